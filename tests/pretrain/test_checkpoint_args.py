"""A checkpoint of another model is refused before anything is built; its flags can be taken."""

import pytest

from tests.pretrain.runs import MICE

COMMON = """
    --train-iters 4 --save-interval 2 --eval-iters 0 --hidden-dropout 0 --attention-dropout 0
""".split()
SAVED = [*COMMON, *MICE, "--curvature", 2]
# Flags that end the command line of the checkpoint, and what the refusal says.
REFUSED = {
    "geometry": (["--geometry", "euclidean"], ("--geometry euclidean", "lorentz")),
    "curvature": (["--curvature", 1], ("--curvature 1.0", "2.0")),
    "embedding curvature": (["--embedding-curvature", 3], ("--embedding-curvature 3.0", "2.0")),
    "output curvature": (["--output-curvature", 3], ("--output-curvature 3.0", "2.0")),
    "embedding": (["--helm-embedding", "lorentz"], ("--helm-embedding lorentz", "euclidean")),
    "combine rule": (["--mice-combine", "reference"], ("--mice-combine reference", "centroid")),
    "routing": (["--mice-routing", "reference"], ("--mice-routing reference", "megatron")),
    "biases": (["--disable-lorentz-bias"], ("--disable-lorentz-bias (given)", "(not given)")),
    "layers": (["--num-layers", 1, "--moe-layer-freq", "[1]"], ("--num-layers 1", "has 2")),
}


@pytest.fixture(scope="module")
def saved(starter):
    """A checkpoint of iteration 2, and the losses of the run."""
    folder = starter.folder / "saved"
    return folder, starter.run(*SAVED, "--save", folder)


def complaints(output):
    return [line for line in output.splitlines() if "pretrain_helm.py: error" in line]


@pytest.mark.parametrize("what", REFUSED)
def test_other_model_is_refused(starter, saved, what):
    flags, words = REFUSED[what]
    codes, output = starter.refused(*SAVED, "--load", saved[0], *flags)
    assert codes == [2]
    (line,) = complaints(output)
    assert all(word in line for word in words) and str(saved[0]) in line
    assert "Traceback" not in output and "parameters on" not in output


def test_every_rank_refuses(starter, saved):
    codes, output = starter.refused(*SAVED, "--load", saved[0], "--curvature", 1, processes=2)
    assert codes == [2, 2] and len(complaints(output)) == 1


def test_fixing_learned_curvatures_is_no_other_model(starter, saved):
    folder, losses = saved
    step2 = ["--load", folder, "--ckpt-step", 2]
    fixed = starter.run(*SAVED, *step2, "--mice-fixed-curvature", "--save", folder / "fixed")
    assert fixed[3] == losses[3]
    learning = [*SAVED, "--load", folder / "fixed"]
    codes, output = starter.refused(*learning)
    assert codes == [2] and "--no-load-optim" in complaints(output)[0]
    starter.run(*learning, "--no-load-optim")


def test_checkpoint_gives_the_flags(starter, saved):
    """Curvatures, latent attention and experts come with --use-checkpoint-args."""
    folder, losses = saved
    needed = "--moe-token-dispatcher-type alltoall --moe-router-load-balancing-type aux_loss"
    flags = [*needed.split(), "--moe-aux-loss-coeff", 1e-2, "--use-checkpoint-args"]
    taken = starter.run(*COMMON, *flags, "--load", folder, "--ckpt-step", 2)
    assert taken == {i: losses[i] for i in (3, 4)}
    codes, output = starter.refused(
        *COMMON, *flags, "--load", folder, "--ckpt-step", 2, "--curvature", 1
    )
    assert codes == [2] and "--curvature 1.0" in complaints(output)[0]


def test_another_function_of_the_same_parameters_is_named(starter, saved):
    """Nothing in a checkpoint's tensors tells of these, and some are changed on purpose."""
    changed = ["--rotary-base", 5000, "--norm-epsilon", 1e-4, "--moe-router-topk", 3]
    ranks = starter.start(*SAVED, "--load", saved[0], "--ckpt-step", 2, *changed, processes=2)
    assert ranks.join() == [0, 0], ranks.output[-4000:]
    named = [line for line in ranks.output.splitlines() if "another function: " in line]
    assert [line.partition("function: ")[2] for line in named] == [
        "--rotary-base 5000: the checkpoint has 10000",
        "--norm-epsilon 0.0001: the checkpoint has 1e-05",
        "--moe-router-topk 3: the checkpoint has 2",
    ]


def test_other_programs_checkpoint_is_refused(starter, saved):
    """One that has arguments, but none of HELM's."""
    folder = starter.folder / "foreign"
    starter.run(*SAVED, "--save", folder, fault=forget_geometry)
    codes, output = starter.refused(*SAVED, "--load", folder)
    assert codes == [2] and "not a checkpoint of pretrain_helm.py" in complaints(output)[0]


def forget_geometry(rank):
    """Save the arguments without HELM's."""
    from megatron.training import checkpointing

    generate = checkpointing.generate_state_dict

    def forgetful(args, *rest, **kwargs):
        state = generate(args, *rest, **kwargs)
        state["args"] = type(args)(**{k: v for k, v in vars(args).items() if k != "geometry"})
        return state

    checkpointing.generate_state_dict = forgetful
