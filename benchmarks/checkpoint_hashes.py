"""What hashing costs when a checkpoint's shards are written, and checking it before it is loaded.

Writers are processes, as the ranks of a node are, each with a shard of its own, which they write at
the same time, on the folder's own disk, with fsync as Megatron's writer does. With and without
hashes take turns; the bytes were just written, so loading finds them in memory.
"""

import argparse
import multiprocessing
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch
from measure import add_output, in_turns, report

from helm_megatron.checkpoint.files import check_sums
from helm_megatron.megatron_patches.checkpoint_hashes import HashedFile, hash_of

_tensors: list[torch.Tensor] = []


def make(count: int) -> None:
    """The tensors that this process writes, of 4 MiB."""
    torch.set_num_threads(1)
    _tensors[:] = [torch.randn(1 << 20) for _ in range(count)]


def save(path: Path, hashed: bool) -> None:
    """Write the tensors one after the other, as Megatron's writer does."""
    with HashedFile(path) if hashed else path.open("wb") as file:
        for tensor in _tensors:
            if isinstance(file, HashedFile):
                file.keep(tensor)
            torch.save(tensor, file)
        file.flush()
        os.fsync(file.fileno())


def save_all(pool: ProcessPoolExecutor, paths: list[Path], hashed: bool) -> None:
    """Every writer writes its shard."""
    for done in [pool.submit(save, path, hashed) for path in paths]:
        done.result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=512, help="size of a shard")
    parser.add_argument("--writers", type=int, default=1, help="shards written at the same time")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where to write (default: the system's)")
    add_output(parser)
    args = parser.parse_args()
    count = max(1, args.megabytes // 4)
    make(count)
    pool = ProcessPoolExecutor(
        args.writers, multiprocessing.get_context("spawn"), initializer=make, initargs=(count,)
    )
    with pool, tempfile.TemporaryDirectory(dir=args.folder) as folder:
        shards = [Path(folder, f"shard-{number}") for number in range(args.writers)]
        one = Path(folder, "one.pt")
        torch.save(_tensors, one)
        calls = {
            "save": partial(save_all, pool, shards, False),
            "save and hash": partial(save_all, pool, shards, True),
            "load": partial(torch.load, one, weights_only=True),
            "check the hash": partial(hash_of, one),
            "check the sums of the zip format": partial(check_sums, one, "one.pt"),
        }
        times = in_turns(calls, args.repeats)
    base = {"save and hash": "save"} | dict.fromkeys(list(calls)[3:], "load")
    shards_of = {name: args.writers if name.startswith("save") else 1 for name in calls}
    table = [
        {
            "what": name,
            "GB/s": f"{4.194304e-3 * count * shards_of[name] / times[name].wall:.2f}",
            "of": base.get(name, name),
            "share": f"{times[name].wall / times[base.get(name, name)].wall:.2f}",
        }
        for name in calls
    ]
    report(table, args.output)


if __name__ == "__main__":
    main()
