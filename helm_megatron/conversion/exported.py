"""A Megatron checkpoint as a Hugging Face folder for a while, for what needs one."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from helm_megatron.child_processes import ends_with_this
from helm_megatron.data.output import full_disk, own_folder
from helm_megatron.errors import HelmError


class ExportError(HelmError):
    """A checkpoint that cannot be exported; the message is one line."""


@contextmanager
def exported(
    load: Path, flags: Sequence[str] = (), workplace: Path | None = None
) -> Iterator[Path]:
    """Yield a Hugging Face folder of a checkpoint of pretrain_helm.py, removed at the end.

    `helm-megatron convert` makes it in a process of its own: Megatron's memory is free again at
    once, and what it changes in torch on a CPU is not there for those who use the folder.

    Args:
        load: a folder of checkpoints, or one of them.
        flags: more of the converter's flags.
        workplace: where the folder is made (default: the system's temporary directory).

    Raises:
        ExportError: with what the converter says.
        DataError: the folder cannot be made.
    """
    place = workplace or Path(tempfile.gettempdir())
    with ExitStack() as stack:
        with full_disk(place):
            folder = stack.enter_context(own_folder(place, ".hf-")) / "hf"
        command = [sys.executable, "-m", "helm_megatron.cli", "convert"]
        command += [*"--from megatron --to hf --load".split(), str(load)]
        done = subprocess.run(
            [*command, "--save", str(folder), *flags],
            stdout=subprocess.DEVNULL,  # what Megatron says on its way
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            preexec_fn=ends_with_this(),
        )
        if done.returncode:
            raise ExportError(_reason(done.stderr))
        yield folder


def _reason(said: str) -> str:
    lines = [line for line in said.splitlines() if line.strip()]
    reason = next((line for line in lines if line.startswith("error: ")), (lines or [""])[-1])
    return reason.removeprefix("error: ")
