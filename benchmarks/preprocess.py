#!/usr/bin/env python
"""Throughput and memory of tools/preprocess_data.py, beside upstream's scheme, in one run.

The peer (benchmarks/preprocess_pool.py) is what Megatron-LM's own tool does: a pool that takes
documents one by one and Megatron's tokenizers. Both are timed as whole commands, start-up included,
on the same text and number of workers, and must write the same .bin and .idx. For a rank file
(TikTokenizer) the peer runs the same vocabulary as Hugging Face's tokenizer.

On a busy machine only the CPU times compare.

The text is the WordNet glosses of examples/data, joined to documents of the length of an
encyclopedia's and repeated up to the size. Memory is the proportional share (Pss) of a command's
processes together, sampled ten times a second.

Example:
    python benchmarks/preprocess.py --tokenizer-type SentencePieceTokenizer \
        --tokenizer-model tokenizer.model
    python benchmarks/preprocess.py --tokenizer-type TikTokenizer \
        --tokenizer-model tokenizer.model --size-mb 1000 --no-peer
"""

import argparse
import filecmp
import gzip
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import batched, cycle
from pathlib import Path

from helm_megatron.data.encoders import TikTokenEncoder

ROOT = Path(__file__).parents[1]
CORPUS = ROOT / "examples" / "data" / "wordnet_glosses.jsonl.gz"
GLOSSES = 25


def write_text(path: Path, size: int) -> int:
    """Write JSONL of at least `size` bytes of text; returns how many there are."""
    with gzip.open(CORPUS, "rt", encoding="utf-8") as lines:
        glosses = [json.loads(line)["text"] for line in lines]
    documents = ["\n".join(part) for part in batched(glosses, GLOSSES)]
    written = 0
    with path.open("w", encoding="utf-8") as file:
        for text in cycle(documents):
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            written += len(text.encode())
            if written >= size:
                return written
    raise AssertionError


def as_hugging_face(rank_file: str, folder: Path) -> str:
    """Convert a rank file to a folder that Megatron's HuggingFaceTokenizer reads."""
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    special = ["<|begin_of_text|>", "<|end_of_text|>"]
    special += [f"<|reserved_{i}|>" for i in range(2, TikTokenEncoder.SPECIAL_TOKENS)]
    converter = TikTokenConverter(
        rank_file, pattern=TikTokenEncoder.PATTERN, extra_special_tokens=special
    )
    tokenizer = converter.converted()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=special[1]).save_pretrained(
        folder
    )
    return str(folder)


def memory(pid: int) -> int:
    """Return the bytes that a process and those it started take, shared pages in shares."""
    total = 0
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total = int(line.split()[1]) << 10
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return total
    return total + sum(memory(int(child)) for child in children)


def cpu_seconds() -> float:
    """Return the CPU time of all processes that have ended, begun from here."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def timed(command: Sequence[object], size: int) -> float:
    """Run a command; print and return its MB/s of text, and print its peak memory."""
    start, used, peak = time.monotonic(), cpu_seconds(), 0
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, *map(str, command)], stderr=subprocess.PIPE, env=environment
    ) as process:
        assert process.stderr is not None
        os.set_blocking(process.stderr.fileno(), False)
        printed = b""
        while process.poll() is None:
            peak = max(peak, memory(process.pid))
            printed += process.stderr.read() or b""
            time.sleep(0.1)
        seconds = time.monotonic() - start
        printed += process.stderr.read() or b""
    if process.returncode:
        sys.exit(printed.decode(errors="replace")[-2000:])
    rate, used = size / seconds / 1e6, cpu_seconds() - used
    name = Path(str(command[0])).name
    print(
        f"{name}: {seconds:.1f} s ({used:.1f} s of CPU), {rate:.2f} MB/s, peak {peak / 1e6:.0f} MB",
        flush=True,
    )
    return rate


def main() -> None:
    """Run both and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokenizer-type", required=True)
    parser.add_argument("--tokenizer-model", required=True)
    parser.add_argument("--size-mb", type=float, default=60, help="of text (default: 60)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--no-peer", action="store_true", help="run our tool only")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = folder / "text.jsonl"
        size = write_text(text, int(args.size_mb * 1e6))
        print(
            f"{size / 1e6:.1f} MB of text, {args.workers} workers, load {os.getloadavg()[0]:.1f}",
            flush=True,
        )
        flags = ["--input", text, "--append-eod", "--workers", args.workers]
        own = ["--tokenizer-type", args.tokenizer_type, "--tokenizer-model", args.tokenizer_model]
        tool, pool = (
            ROOT / "tools" / "preprocess_data.py",
            ROOT / "benchmarks" / "preprocess_pool.py",
        )
        ours = timed([tool, *flags, *own, "--output-prefix", folder / "ours"], size)
        if args.no_peer:
            return
        if args.tokenizer_type == "TikTokenizer":
            converted = as_hugging_face(args.tokenizer_model, folder / "tokenizer")
            own = ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", converted]
        theirs = timed([pool, *flags, *own, "--output-prefix", folder / "theirs"], size)
        for suffix in ("bin", "idx"):
            names = [folder / f"{who}_text_document.{suffix}" for who in ("ours", "theirs")]
            assert filecmp.cmp(*names, shallow=False), f"the .{suffix} files differ"
        print(f"the files are the same; {ours / theirs:.1f} times the speed")


if __name__ == "__main__":
    main()
