"""The file beside .bin and .idx that says what the tokens are: `<prefix>.json`."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from helm_megatron.data.encoders import Encoder
from helm_megatron.data.errors import DataError

FORMAT = "helm_megatron dataset 1"
# What a tokenizer makes of these tells it from others: words, names, code, numbers, scripts, bytes.
PROBES = (
    "The quick brown fox jumps over the lazy dog; it didn't (and wouldn't) stop. ",
    "Internationalization, hyperbolic embeddings and the Lorentz model: -x_t^2 + |x_s|^2 = -1.",
    "def f(x: int) -> str:\n    return f'{x:>8,}'  # \t\tbut why?\n\n\n",
    "0 1 12 123 1234 12345 3.14159 1e-9 2025-11-22 0xFF 100,000,000",
    "  leading, doubled  and trailing  \r\n\ttabs\t\n \n",
    "naïve café Straße Ελληνικά русский язык עברית العربية हिन्दी ภาษาไทย 日本語 中文 한국어",
    "🙂👍🏽 e\u0301 \ufb01 \u00a0 \u200b \u2581 \0 ~`!@#$%^&*()_+-={}[]|\\:;\"'<>,.?/",
    "the of and to in is that for it was on as with by he his at from are this be or had which",
    "Aardvark zygote Mississippi Constantinople antidisestablishmentarianism MEGATRON helm",
)


def fingerprint(encode: Callable[[str], Sequence[int]]) -> str:
    """Return a hash of what a tokenizer makes of `PROBES`, by whatever library it is run.

    Special tokens that it puts before and after every text are left out.
    """
    around = list(encode(""))
    digest = hashlib.sha256()
    for text in PROBES:
        ids = list(encode(text))
        for before in range(len(around), -1, -1):
            after = len(around) - before
            if ids[:before] == around[:before] and ids[len(ids) - after :] == around[before:]:
                ids = ids[before : len(ids) - after]
                break
        digest.update(json.dumps(ids).encode())
    return digest.hexdigest()


def describe_tokenizer(encoder: Encoder, tokenizer_type: str, model: str) -> dict[str, Any]:
    """Return a tokenizer's entry of the sidecar."""
    return {
        "type": tokenizer_type,
        "model": model,
        "sha256": encoder.sha256,
        "fingerprint": fingerprint(lambda text: encoder.encode([text])[0]),
        "vocab_size": encoder.vocab_size,
        "eod": encoder.eod,
    }


def describe_file(path: Path) -> dict[str, Any]:
    """Return a file's size and hash."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def sidecar_path(prefix: str | Path) -> Path:
    """Return where a dataset's sidecar is; the prefix is as for --data-path."""
    return Path(f"{prefix}.json")


def read_sidecar(prefix: str | Path) -> dict[str, Any] | None:
    """Return a dataset's sidecar; None if it has none, as those of Megatron's own tool.

    Raises:
        DataError: the file is there but is no sidecar.
    """
    path = sidecar_path(prefix)
    try:
        sidecar = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is damaged: not valid JSON") from error
    if not isinstance(sidecar, dict) or sidecar.get("format") != FORMAT:
        raise DataError(f"{path}: not a sidecar of this version ({FORMAT})")
    problem = _missing(sidecar)
    if problem:
        raise DataError(f"{path}: is damaged: {problem}")
    return sidecar


def _missing(sidecar: dict[str, Any]) -> str | None:
    kinds: dict[str, dict[str, type]] = {
        "tokenizer": {"type": str, "model": str, "fingerprint": str, "vocab_size": int},
        "counts": {"documents": int, "sequences": int, "tokens": int},
        "files": {"bin": dict, "idx": dict},
    }
    for part, entries in kinds.items():
        found = sidecar.get(part)
        for name, kind in entries.items():
            if not isinstance(found, dict) or not isinstance(found.get(name), kind):
                return f"{part}.{name} is missing or no {kind.__name__}"
    eod = sidecar["tokenizer"].get("eod")
    if eod is not None and not isinstance(eod, int):
        return "tokenizer.eod is no int"
    for name, kind in {"options": dict, "sources": list}.items():
        if not isinstance(sidecar.get(name, kind()), kind):
            return f"{name} is no {kind.__name__}"
    return None


def write_sidecar(path: Path, content: dict[str, Any]) -> None:
    """Write a sidecar."""
    text = json.dumps({"format": FORMAT} | content, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
