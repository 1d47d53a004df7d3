"""The model to evaluate, as the Hugging Face folder that lm-eval loads."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from helm_megatron.conversion.exported import exported
from helm_megatron.conversion.folder_code import foreign_code
from helm_megatron.evaluation.errors import EvaluationError


@contextmanager
def hf_folder(
    load: Path, workplace: Path, flags: Sequence[str] = (), trust_remote_code: bool = False
) -> Iterator[Path]:
    """Yield a Hugging Face folder of the model at `load`.

    A Megatron checkpoint is converted into a temporary folder of `workplace`, and the result's
    logits are checked against it.

    Args:
        load: a Hugging Face folder, or a checkpoint of pretrain_helm.py.
        flags: more of the converter's flags.
        trust_remote_code: the code in a Hugging Face folder will be run.

    Raises:
        EvaluationError: there is no model, or none with a tokenizer of its own, or one that needs
            code which is not trusted.
        ConversionError, TensorFileError: its weights are damaged, or no numbers.
        ExportError: it cannot be converted.
    """
    if (load / "config.json").is_file():
        if flags:
            raise EvaluationError(f"{flags[0]} is for Megatron checkpoints; {load} is none")
        check_code(load) if trust_remote_code else check_trust(load)
        check_tokenizer(load)
        if trust_remote_code or read_json(load / "config.json").get("model_type") != "helm":
            check_numbers(load)  # the project's own model does it when it is loaded
        yield load
        return
    if not load.exists():
        raise EvaluationError(f"--load {load}: no such folder")
    print(f"converting {load} to Hugging Face's format", file=sys.stderr, flush=True)
    with exported(load, flags, workplace) as folder:
        check_tokenizer(folder)
        yield folder


def check_trust(folder: Path) -> None:
    """Refuse a model that needs code of its folder; say where a HELM model's own is not run.

    Raises:
        EvaluationError: the model is not HELM's, and brings code.
    """
    is_helm = read_json(folder / "config.json").get("model_type") == "helm"
    try:
        stranger = foreign_code(folder)
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{folder}: {error}") from error
    if stranger is None:
        return
    if not is_helm:
        raise EvaluationError(
            f"{folder} brings code of its own, which nobody here has read ({stranger}); read it, "
            "then pass --trust-remote-code to run it"
        )
    print(
        f"{folder} has code that this project did not export ({stranger}): it is not run, the "
        "project's own model is used",
        file=sys.stderr,
    )


def check_numbers(folder: Path) -> None:
    """Refuse safetensors files, where there are some, that are damaged or have NaN or Inf.

    Raises:
        ConversionError, TensorFileError: naming the tensor, or the file.
    """
    from helm_megatron.conversion import hf_folder, tensor_files  # they import torch, seconds

    if any((folder / name).is_file() for name in (tensor_files.INDEX, tensor_files.SINGLE)):
        hf_folder.check_finite(tensor_files.TensorFiles(folder), str(folder))


def check_code(folder: Path) -> None:
    """Refuse a HELM model that was exported before transformers 5.24, which needs newer code.

    Raises:
        EvaluationError: it would write wrong text, without a word.
    """
    config = read_json(folder / "config.json")
    if config.get("model_type") == "helm" and "code_version" not in config:
        raise EvaluationError(
            f"{folder} has code of before transformers 5.24; tools/checkpoint/convert.py --from hf "
            "--to hf --refresh-code renews it (docs/huggingface.md)"
        )


def check_tokenizer(folder: Path) -> None:
    """Refuse a model without a tokenizer, or with one that has tokens the model does not know.

    Raises:
        EvaluationError: lm-eval could not evaluate it, or would fail half-way.
    """
    if not (folder / "tokenizer_config.json").is_file():
        raise EvaluationError(
            f"{folder} has no tokenizer (tokenizer_config.json), and lm-eval's tasks are text"
        )
    if not (folder / "tokenizer.json").is_file():
        return  # A tokenizer of another kind: its size shows only when it is loaded.
    rows = read_json(folder / "config.json").get("vocab_size")
    tokenizer = read_json(folder / "tokenizer.json")
    try:
        vocabulary = tokenizer["model"]["vocab"]
        # A list in unigram models, else {token: id}.
        ids = range(len(vocabulary)) if isinstance(vocabulary, list) else vocabulary.values()
        added = [token["id"] for token in tokenizer.get("added_tokens", [])]
        tokens = 1 + max([*ids, *added])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise EvaluationError(f"{folder / 'tokenizer.json'}: not a tokenizer") from error
    if rows is not None and tokens > rows:
        raise EvaluationError(
            f"{folder}: the tokenizer has {tokens:,} tokens, the model {rows:,} embeddings: it is"
            " another model's tokenizer"
        )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        EvaluationError: it is none.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise EvaluationError(f"{path}: cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise EvaluationError(f"{path}: not a JSON object")
    return value
