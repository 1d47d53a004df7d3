"""Checkpoints to Hugging Face: streamed tensor by tensor, then compared by logits."""

from __future__ import annotations

import contextlib
import math
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from tqdm import tqdm
from transformers import GenerationConfig

from helm_megatron.conversion import hf_names, tensor_files
from helm_megatron.conversion.card import write_card
from helm_megatron.conversion.defaults import MAX_SHARD_BYTES
from helm_megatron.conversion.folder_code import AUTO_MAP, code_files
from helm_megatron.conversion.source_model import SourceModel
from helm_megatron.conversion.table import Rule
from helm_megatron.conversion.text import Text
from helm_megatron.data.output import full_disk, own_folder
from helm_megatron.errors import HelmError
from helm_megatron.hf.configuration_helm import HelmConfig
from helm_megatron.hf.modeling_helm import HelmForCausalLM

# Largest difference of the logits in units of the largest logit, both models in fp32 ...
TOLERANCE = 1e-5
# ... or so many times what fp32 costs this model, where its weights amplify rounding more.
TIMES_ROUNDING = 8


class ConversionError(HelmError):
    """A conversion that cannot be done, or that changed the model; the message is one line."""


def export(
    source: SourceModel,
    folder: Path,
    *,
    verify: bool = True,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    tensorboard: Path | None = None,
    evaluation: Path | None = None,
) -> None:
    """Write a model as a Hugging Face folder, which appears only when it is complete.

    The model card tells the losses in the `tensorboard` folder (that of the run, if not given) and
    the `evaluation` of lm-eval.

    Raises:
        ConversionError, MappingError, TensorFileError, CheckpointError: nothing was written.
    """
    with new_folder(folder) as staging:
        _write_tensors(source, staging, max_shard_bytes)
        write_config(source.config, staging)
        source.text.save(staging, source.config.max_position_embeddings)
        _write_card(source, staging, tensorboard, evaluation)
        if verify:
            tokens = source.text.sample(source.config)
            expected, actual = source.logits(tokens), hf_logits(staging, tokens)
            exact = partial(hf_logits, staging, tokens, torch.float64)
            compare(source.name, expected, str(folder), actual, exact)


def _write_tensors(source: SourceModel, folder: Path, max_shard_bytes: int) -> None:
    config, parameters = source.config, source.parameters
    rules, groups = checked(source)
    values = (
        rule.save(config, [finite(parameters.read(rule.ours[0]), source.name, rule.ours[0])])
        for rule in tqdm(rules, "parameters", file=sys.stderr, disable=None)
    )
    tensor_files.write(folder, groups, values, max_shard_bytes)


def check_count(config: HelmConfig, count: int, what: str, of: str) -> None:
    """Refuse fewer tensors than a config has layers and experts, before so many names are made.

    Raises:
        ConversionError: beginning with `what` has so many, of a config that is `of` what.
    """
    experts = sum(config.moe_layers or []) * (config.n_routed_experts or 0)
    if config.num_hidden_layers + experts > count:
        raise ConversionError(
            f"{what} {count} tensors, too few for the {config.num_hidden_layers} layers and "
            f"{experts} experts of {of}"
        )


def finite(tensor: Tensor, source: str, name: str) -> Tensor:
    """The tensor.

    Raises:
        ConversionError: it has values that are no numbers.
    """
    if not bool(torch.isfinite(tensor).all()):
        raise ConversionError(
            f"{source}: {name} has NaN or Inf: its training went wrong; take an older checkpoint"
        )
    return tensor


def checked(source: SourceModel) -> tuple[list[Rule], list[list[tensor_files.Entry]]]:
    """The rules for all parameters, and the tensors that each gives.

    Raises:
        ConversionError, MappingError: names or shapes are not those of the model's settings.
    """
    config, parameters = source.config, source.parameters
    expected = shapes_of(config)
    rules = hf_names.plan(config, expected)
    check_names(source.name, parameters.names(), [rule.ours[0] for rule in rules])
    groups = []
    for rule in rules:
        [name] = rule.ours
        empty = torch.empty(parameters.shape(name), device="meta")
        try:
            parts = rule.save(config, [empty])
        except RuntimeError as error:
            raise _wrong_shape(source, name) from error
        shapes = [tuple(part.shape) for part in parts]
        if shapes != [expected[part] for part in rule.theirs]:
            raise _wrong_shape(source, name)
        dtype = parameters.dtype(name)
        groups.append(
            [
                tensor_files.Entry(part, dtype, shape)
                for part, shape in zip(rule.theirs, shapes, strict=True)
            ]
        )
    return rules, groups


def _write_card(
    source: SourceModel, folder: Path, tensorboard: Path | None, evaluation: Path | None
) -> None:
    count = sum(math.prod(shape) for shape in shapes_of(source.config).values())
    logged = tensorboard or getattr(source.run, "tensorboard_dir", None)
    logs = Path(logged) if logged else None
    try:
        write_card(folder, source.config, source.name, count, source.run, logs, evaluation)
    except ValueError as error:
        raise ConversionError(str(error)) from error


def _wrong_shape(source: SourceModel, name: str) -> ConversionError:
    shape = tuple(source.parameters.shape(name))
    return ConversionError(
        f"{source.name}: {name} has the shape {shape}, which does not fit the model's settings"
    )


def shapes_of(config: HelmConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a Hugging Face model, nothing tied twice."""
    # Not torch.device("meta"): Megatron's CPU platform hides torch's factories from it.
    with FakeTensorMode():
        model = HelmForCausalLM(config)
    state = model.state_dict()
    if config.tie_word_embeddings:
        del state["lm_head.weight"]
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def check_names(source: str, found: list[str], wanted: list[str]) -> None:
    """Refuse parameters that are missing, or that nothing asks for and nothing names as ignored.

    Raises:
        ConversionError: naming the first.
    """
    names = set(found)
    if missing := [name for name in wanted if name not in names]:
        raise ConversionError(
            f"{source} lacks {missing[0]} ({len(missing)} missing): not the model of its settings"
        )
    known = set(wanted)
    if extra := [n for n in found if n not in known and hf_names.ignored(n) is None]:
        raise ConversionError(
            f"{source} has {extra[0]} ({len(extra)} such), which its settings do not account for"
        )


def write_config(config: HelmConfig, folder: Path) -> None:
    """config.json, generation_config.json and the model's code."""
    config.architectures = ["HelmForCausalLM"]
    config.auto_map = dict(AUTO_MAP)
    config.save_pretrained(folder)
    ends = {name: getattr(config, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    generation = GenerationConfig(**{f"{n}_token_id": i for n, i in ends.items() if i is not None})
    generation.save_pretrained(folder)
    for path in code_files():
        shutil.copy(path, folder)


def hf_logits(folder: Path, tokens: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Logits of the model in a Hugging Face folder, with its weights in a dtype."""
    model = HelmForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    with torch.no_grad():
        return model(tokens, use_cache=False).logits


def compare(
    one: str,
    expected: Tensor,
    other: str,
    actual: Tensor,
    exact: Callable[[], Tensor] | None = None,
) -> float:
    """The largest difference of the logits in units of the largest.

    Args:
        exact: gives the logits of one of the two in fp64; asked only where the difference is above
            `TOLERANCE`. What the better of them is off by, is the rounding of fp32 in this model.

    Raises:
        ConversionError: it is above `TOLERANCE`, and more than rounding.
    """
    size = expected.abs().max().item()

    def apart(a: Tensor, b: Tensor) -> float:
        return (a - b).abs().max().item() / size

    difference, bound = apart(actual, expected), TOLERANCE
    message = f"logits of {one} and of {other} differ by {difference:.1e} of the largest"
    if not difference <= bound and exact is not None:
        truth = exact()
        bound = max(bound, TIMES_ROUNDING * min(apart(expected, truth), apart(actual, truth)))
    if not difference <= bound:
        raise ConversionError(f"{message}; at most {bound:.0e} is rounding: nothing was written")
    print(f"{message} ({expected.shape[1]} tokens of text)", file=sys.stderr)
    return difference


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder in a hidden one beside the wanted one, which it becomes when the block succeeds.

    Raises:
        ConversionError: the folder has something in it.
        DataError: it cannot be made or written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConversionError(f"--save {folder} exists and is not empty; name another folder")
    with full_disk(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with own_folder(folder.parent, f".{folder.name}.partial-") as own:
            staging = own / folder.name
            staging.mkdir()
            yield staging
            if folder.exists():
                folder.rmdir()
            staging.rename(folder)


def text_of_folder(folder: Path) -> Text:
    """The tokenizer in a Hugging Face folder, if it has one."""
    has_one = (folder / "tokenizer_config.json").is_file()
    return Text("HuggingFaceTokenizer", str(folder)) if has_one else Text()
