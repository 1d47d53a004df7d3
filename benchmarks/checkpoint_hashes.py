"""What hashing costs when a checkpoint's shard is written, and checking it before it is loaded.

One writer, on the folder's own disk, with fsync as in Megatron's writer: each rank of a run is one.
With and without take turns; the bytes were just written, so loading finds them in memory.
"""

import argparse
import os
import tempfile
from functools import partial
from pathlib import Path

import torch
from measure import add_output, in_turns, report

from helm_megatron.checkpoint.files import check_sums
from helm_megatron.megatron_patches.checkpoint_hashes import HashedFile, hash_of


def save(path: Path, tensors: list[torch.Tensor], hashed: bool) -> None:
    """Write tensors one after the other, as Megatron's writer does."""
    with HashedFile(path) if hashed else path.open("wb") as file:
        for tensor in tensors:
            torch.save(tensor, file)
        file.flush()
        os.fsync(file.fileno())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=512, help="size of the shard")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where to write (default: the system's)")
    add_output(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads or 1)
    tensors = [torch.randn(1 << 20) for _ in range(max(1, args.megabytes // 4))]
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        shard, one = Path(folder, "shard"), Path(folder, "one.pt")
        torch.save(tensors, one)
        calls = {
            "save": partial(save, shard, tensors, False),
            "save and hash": partial(save, shard, tensors, True),
            "load": partial(torch.load, one, weights_only=True),
            "check the hash": partial(hash_of, one),
            "check the sums of the zip format": partial(check_sums, one, "one.pt"),
        }
        times = in_turns(calls, args.repeats)
    base = {"save and hash": "save"} | dict.fromkeys(list(calls)[3:], "load")
    table = [
        {
            "what": name,
            "GB/s": f"{4.194304e-3 * len(tensors) / times[name].wall:.2f}",
            "of": base.get(name, name),
            "share": f"{times[name].wall / times[base.get(name, name)].wall:.2f}",
        }
        for name in calls
    ]
    report(table, args.output)


if __name__ == "__main__":
    main()
