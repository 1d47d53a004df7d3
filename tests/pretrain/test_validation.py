"""Every evaluation reads the same samples: in any layout, and after a resume."""

import re

import pytest

VALUE = r"validation loss at iteration (\d+)(?: on (\w+) set)? \| lm loss value: ([0-9.E+-]+) "


def validated(output: str) -> dict[tuple[int, str], float]:
    """Losses by iteration and "", "validation" or "test"."""
    return {(int(i), part): float(loss) for i, part, loss in re.findall(VALUE, output)}


LAYOUTS = {
    "TP2": ["--tensor-model-parallel-size", 2, "--sequence-parallel"],
    "PP2": ["--pipeline-model-parallel-size", 2],
    "CP2": ["--context-parallel-size", 2],
}


@pytest.mark.parametrize("layouts", [[], pytest.param(list(LAYOUTS), marks=pytest.mark.slow)])
def test_evaluations_of_one_model_agree(starter, tmp_path, layouts):
    """The model stays as it is, at a rate of 1e-12; whatever else changes, the number does not."""
    still = ["--lr", "1e-12", "--eval-interval", 2, "--eval-iters", 3, "--train-iters", 4]
    save = ["--save", tmp_path / "saved", "--save-interval", 4]
    losses = {}

    def run(name, *flags, processes=1):
        ranks = starter.start(*still, *flags, processes=processes)
        assert ranks.join() == [0] * processes, ranks.output[-4000:]
        losses[name] = validated(ranks.output)

    run("one process", *save)
    go_on = ["--load", tmp_path / "saved", "--train-iters", 8, "--override-opt_param-scheduler"]
    run("resumed", *go_on)
    run("data parallel", processes=2)
    # The weights of a new run on a CPU depend on its micro-batch; those of a checkpoint do not.
    run("whole mock set, other batches", *go_on, "--full-validation", "--micro-batch-size", 4)
    for layout in layouts:
        run(layout, *go_on, *LAYOUTS[layout], processes=2)
    parts = [(2, ""), (4, ""), (4, "validation"), (4, "test")]
    assert list(losses["one process"]) == parts
    assert list(losses["resumed"]) == [(6, ""), (8, ""), (8, "validation"), (8, "test")]
    whole = losses["one process"][2, ""]
    for name, found in losses.items():
        for (iteration, part), loss in found.items():
            if part != "test":
                assert loss == pytest.approx(whole, rel=2e-6), (name, iteration, losses)
    assert abs(losses["one process"][4, "test"] / whole - 1) > 1e-5
