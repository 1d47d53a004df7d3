"""Train Megatron's own tiny GPT by megatron.training.pretrain: many runs in the same processes."""

import contextlib
import json
import multiprocessing.connection
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from helm_megatron import megatron_patches
from helm_megatron.megatron_patches import cpu
from tests import forked

MODEL = """
    --num-layers 4 --hidden-size 32 --ffn-hidden-size 64 --num-attention-heads 4 --swiglu
    --disable-bias-linear --normalization RMSNorm --position-embedding-type rope
    --untie-embeddings-and-output-weights --seq-length 16 --max-position-embeddings 16
    --tokenizer-type NullTokenizer --vocab-size 60 --make-vocab-size-divisible-by 8 --mock-data
    --micro-batch-size 1 --global-batch-size 4 --lr 0.01 --min-lr 0.01 --lr-warmup-iters 0
    --lr-decay-iters 100 --clip-grad 1.0 --weight-decay 0.1
    --train-iters 8 --num-workers 0 --log-interval 1 --eval-iters 0 --eval-interval 100
    --save-interval 2
""".split()
EXACT = "--hidden-dropout 0 --attention-dropout 0".split()
MOE = """--num-experts 4 --moe-router-topk 2 --moe-aux-loss-coeff 0.01 --moe-ffn-hidden-size 32
    --moe-layer-freq 2""".split()


@dataclass
class Run:
    """One call of pretrain() by `world` processes up to iteration `end`; `flags` are Megatron's."""

    name: str
    flags: str
    world: int = 1
    end: int = 4
    terminate_at: int | None = None  # the step during which rank 0 gets SIGTERM

    def argv(self) -> list[str]:
        return [*MODEL, "--exit-interval", str(self.end), *self.flags.split()]


def forward_step(data_iterator, model):
    """Megatron's GPT forward step."""
    import torch
    from megatron.core import tensor_parallel

    keys = ["tokens", "labels", "position_ids"]
    data = next(data_iterator) if data_iterator is not None else None
    batch = tensor_parallel.broadcast_data(keys, data, torch.int64)
    tokens, labels, positions = (batch[key] for key in keys)

    def loss_func(losses):
        loss, count = losses.float().sum(), torch.tensor(losses.numel(), dtype=torch.int)
        return loss, count, {"lm loss": torch.stack([loss.detach(), count.float()])}

    return model(tokens, positions, None, labels=labels), loss_func


def datasets(sizes, vp_stage=None):
    """Mock train, validation and test data."""
    from megatron.core import parallel_state
    from megatron.core.datasets.blended_megatron_dataset_builder import (
        BlendedMegatronDatasetBuilder,
    )
    from megatron.core.datasets.gpt_dataset import GPTDatasetConfig, MockGPTDataset
    from megatron.training import get_args, get_tokenizer

    args = get_args()
    config = GPTDatasetConfig(
        random_seed=args.seed,
        sequence_length=args.seq_length,
        blend=None,
        split="100,0,0",
        tokenizer=get_tokenizer(),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        mid_level_dataset_surplus=0.005,
    )
    on_this_rank = lambda: parallel_state.get_tensor_model_parallel_rank() == 0  # noqa: E731
    return BlendedMegatronDatasetBuilder(MockGPTDataset, sizes, on_this_rank, config).build()


datasets.is_distributed = True  # every rank calls it


def train(run: Run, rank: int, directory: Path) -> None:
    """Train; the last rank writes {"loss": [...], "grad_norm": [...]} of every iteration."""
    import torch
    from megatron.core.enums import ModelType
    from megatron.training import arguments, training
    from megatron.training.argument_utils import (
        gpt_config_from_args,
        pretrain_cfg_container_from_args,
    )

    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(run.world))
    sys.argv = ["pretrain", *run.argv()]

    def defaults(parser):
        parser.set_defaults(**cpu.defaults())
        return parser

    record: dict[str, list[float]] = {"loss": [], "grad_norm": []}
    train_step = training.train_step

    def recorded(*args, **kwargs):
        out = train_step(*args, **kwargs)
        record["loss"].append(float(out[0].get("lm loss", 0)))  # the last pipeline stage has it
        record["grad_norm"].append(float(out[5] or 0))  # None if fp16 skipped the step
        if rank == 0 and run.terminate_at == len(record["loss"]):
            os.kill(os.getpid(), signal.SIGTERM)
        return out

    training.train_step = recorded
    training.set_startup_timestamps(time.time(), time.time())  # an earlier run left its own
    try:
        args = arguments.parse_and_validate_args(defaults)
        with contextlib.suppress(SystemExit):  # at --exit-interval
            training.pretrain(
                pretrain_cfg_container_from_args(args, gpt_config_from_args(args)),
                datasets,
                ModelType.encoder_or_decoder,
                forward_step,
                store=torch.distributed.FileStore(str(directory / f"{run.name}.store"), run.world),
            )
    finally:
        training.train_step = train_step
        training.destroy_global_state()
    torch.distributed.destroy_process_group()
    if rank == run.world - 1:
        (directory / f"{run.name}.json").write_text(json.dumps(record))


def worker(rank: int, runs: list[Run], directory: Path) -> None:
    """Take part in the runs that have a process of this rank; each process logs to a file."""
    forked.leave(directory / f"rank{rank}.log")
    megatron_patches.apply()
    multiprocessing.set_start_method("fork", force=True)  # of data loaders, as in a plain process
    for run in runs:
        if rank < run.world:
            print(f"RUN {run.name}: {' '.join(run.argv())}", flush=True)
            train(run, rank, directory)


def train_all(runs: list[Run], directory: Path) -> dict[str, dict[str, list[float]]]:
    """What each run recorded, by its name."""
    world = max(run.world for run in runs)
    ranks = [forked.start(worker, rank, runs, directory) for rank in range(world)]
    multiprocessing.connection.wait([rank.sentinel for rank in ranks])
    failed = any(rank.exitcode for rank in ranks)  # the others would wait for it
    for rank in ranks:
        rank.join(0 if failed else None)
    forked.kill(*ranks)
    codes = [rank.exitcode for rank in ranks]
    logs = [path.read_text()[-3000:] for path in directory.glob("rank*.log")]
    assert codes == [0] * world, f"exit codes {codes}:\n" + "\n".join(logs)
    return {run.name: json.loads((directory / f"{run.name}.json").read_text()) for run in runs}
