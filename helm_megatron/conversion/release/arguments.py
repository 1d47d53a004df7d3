"""The arguments that a released model was built with: none is dropped without a word.

The training code calls the experts' width `mice_inter_dim`, the evaluation code `moe_inter_dim`;
both are read. `check` takes every argument for one of three things: a part of the model, something
that the tensors must confirm, or something that does not change the function (`NOT_THE_MODEL` says
why).
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from typing import Any

# Common to the authors' HELM-MiCE models.
_MICE: dict[str, Any] = dict(
    n_dense_layers=1,
    n_shared_experts=1,
    n_activated_experts=2,
    n_expert_groups=1,
    n_limited_groups=1,
    score_func="softmax",
    route_scale=1.0,
    qk_rope_head_dim=65,
    rope_theta=10000.0,
    seq_bal_alpha=1e-4,
    bias_update_speed=0.005,
    max_seq_len=2048,
)
# The kind of token table is not among them: the tensors tell, and the authors' scripts train
# Euclidean tables where their evaluation code has points.
PRESETS: dict[str, dict[str, Any]] = {
    "helm_d_115m": {"arch": "L6_W390_A6", "max_seq_len": 2048},
    "mice_120m": _MICE
    | dict(dim=390, inter_dim=1560, mice_inter_dim=780, n_layers=6, n_heads=6, n_routed_experts=4)
    | dict(kv_lora_rank=65, qk_nope_head_dim=33, qk_rope_head_dim=17, v_head_dim=33),
    # Of the training script ...
    "mice_1b": _MICE
    | dict(dim=910, inter_dim=3640, mice_inter_dim=1820, n_layers=16, n_heads=14)
    | dict(n_routed_experts=8, kv_lora_rank=257, qk_nope_head_dim=65, v_head_dim=65),
    # ... and of the evaluation code, which is another model.
    "mice_1b_eval": _MICE
    | dict(dim=896, inter_dim=3072, mice_inter_dim=1792, n_layers=15, n_heads=14)
    | dict(n_routed_experts=8, kv_lora_rank=257, qk_nope_head_dim=129, v_head_dim=129),
}

_OTHER_NAMES = {"moe_inter_dim": "mice_inter_dim", "context_length": "max_seq_len"}

_COUNTS = (
    "dim inter_dim mice_inter_dim n_layers n_heads n_routed_experts n_shared_experts "
    "n_activated_experts n_expert_groups n_limited_groups kv_lora_rank qk_nope_head_dim "
    "qk_rope_head_dim v_head_dim"
).split()
_NUMBERS = "rope_theta route_scale seq_bal_alpha bias_update_speed".split()
_MICE_ARGUMENTS = [*_COUNTS, *_NUMBERS, "n_dense_layers", "score_func"]
# Of any model, and not required.
_OPTIONAL = "rope_theta max_seq_len vocab_size project_emb train_curv curvatures".split()
_OPTIONAL += ["q_lora_rank", "use_hope"]

# Of widths, counts and lengths: what is larger is a damaged file.
_MOST = 2**31
_MOST_OF = {"n_layers": 10_000, "n_dense_layers": 10_000, "n_routed_experts": 2**16}
_TRAINING = "of the training run"
_YARN = "of YaRN, which runs in no released model"
NOT_THE_MODEL = {
    "original_seq_len": "a longer max_seq_len does not run there",
    "rope_factor": _YARN,
    "beta_fast": _YARN,
    "beta_slow": _YARN,
    "mscale": _YARN,
    "dtype": "the tensors have one",
    "train": "read by nothing but the balance loss",
    "max_batch_size": _TRAINING,
    "model_name": "the tensors tell which of the two models it is",
    "lr": _TRAINING,
    "min_lr_ratio": _TRAINING,
    "warm_up_ratio": _TRAINING,
    "weight_decay": _TRAINING,
    "packing_ratio": _TRAINING,
    "gradient_accumulation_steps": _TRAINING,
    "seed": _TRAINING,
    "find_unused_parameters": _TRAINING,
    "CHECKPOINT_DIR": _TRAINING,
    "log_dir": _TRAINING,
    "data_path": _TRAINING,
}


def checked(released: Mapping[str, Any], dense: bool) -> dict[str, Any]:
    """The arguments by the training code's names, each known and of the right kind.

    Args:
        released: of HELM-D (`arch`) where `dense`, else of HELM-MiCE.

    Raises:
        ValueError: naming the first that is missing, unknown, or no such number.
    """
    found = _by_one_name(released)
    needed = ["arch"] if dense else _MICE_ARGUMENTS
    if missing := [name for name in needed if name not in found]:
        raise ValueError(f"the released config lacks {', '.join(missing)}")
    # The authors' command line has every option for both models.
    known = {"arch", *_MICE_ARGUMENTS, *_OPTIONAL, *NOT_THE_MODEL}
    for name in found:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; is {near[0]} meant?" if near else "; drop it if it is not of the model"
            raise ValueError(f"the released config has {name}, which is read by nothing{hint}")
    for name, value in found.items():
        if wanted := _wrong(name, value):
            raise ValueError(f"the released config has {name} {value!r}, which is not {wanted}")
    if not dense:
        _check_mice(found)
    if found.get("max_seq_len", 0) > found.get("original_seq_len", float("inf")):
        raise ValueError(
            f"max_seq_len {found['max_seq_len']} is more than original_seq_len "
            f"{found['original_seq_len']}: no released model runs so"
        )
    if not found.get("use_hope", True):
        raise ValueError("use_hope is false: attention without rotation is another function")
    if found.get("q_lora_rank"):
        raise ValueError(
            f"q_lora_rank {found['q_lora_rank']}: the released code crashes with any but 0"
        )
    return found


def arch(text: Any) -> tuple[int, int, int]:
    """Layers, ambient width and heads of a HELM-D: "L6_W390_A6" or "L6W390A6".

    Raises:
        ValueError: it has another form, or heads that cannot be.
    """
    match = re.fullmatch(r"L(\d+)_?W(\d+)_?A(\d+)", str(text))
    if match is None:
        raise ValueError(f"arch {text!r} is not of the form L6_W390_A6 or L6W390A6")
    layers, width, heads = (int(number) for number in match.groups())
    if not (0 < layers <= _MOST_OF["n_layers"] and heads and 1 < width // heads <= width <= _MOST):
        raise ValueError(f"arch {text!r}: no model has such a size")
    _check_rotary(width // heads - 1, f"arch {text!r}: heads of {width // heads}")
    return layers, width, heads


def _by_one_name(released: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in released.items():
        ours = _OTHER_NAMES.get(name, name)
        if ours in found and found[ours] != value:
            raise ValueError(
                f"the released config has {name} {value!r} and, which is the same, "
                f"{found[ours]!r}: drop one of them"
            )
        found[ours] = value
    return found


def _wrong(name: str, value: Any) -> str | None:
    """What an argument should be and is not; None if it is."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if name in (*_COUNTS, "n_dense_layers", "max_seq_len", "original_seq_len", "vocab_size"):
        least = 0 if name == "n_dense_layers" else 1
        whole = number and math.isfinite(value) and value == int(value)
        most = _MOST_OF.get(name, _MOST)
        return None if whole and least <= value <= most else f"a number from {least} to {most:,}"
    if name in ("route_scale", "rope_theta"):
        return None if number and 0 < value < math.inf else "a positive number"
    if name in _NUMBERS:
        return None if number and 0 <= value < math.inf else "a number"
    if name in ("project_emb", "train_curv", "use_hope"):
        # As words both are true there.
        return None if isinstance(value, bool) else "true or false"
    if name == "score_func":
        return None if value in ("softmax", "sigmoid") else "softmax or sigmoid"
    if name == "curvatures":
        three = isinstance(value, list) and len(value) == 3
        three = three and all(type(each) in (int, float) for each in value)
        return None if three else "three numbers: of the embeddings, hidden states and logits"
    return None


def _check_mice(found: Mapping[str, Any]) -> None:
    if found["n_shared_experts"] != 1:
        raise ValueError("n_shared_experts must be 1: the released model runs with no other number")
    if found["n_dense_layers"] > found["n_layers"]:
        raise ValueError(
            f"n_dense_layers {found['n_dense_layers']} is more than n_layers {found['n_layers']}"
        )
    width = found["qk_rope_head_dim"]
    _check_rotary(width - 1, f"qk_rope_head_dim {width}")
    experts, groups = found["n_routed_experts"], found["n_expert_groups"]
    if experts % groups:
        raise ValueError(f"n_expert_groups {groups} does not divide n_routed_experts {experts}")


def _check_rotary(width: int, what: str) -> None:
    if width % 2 or not width:
        raise ValueError(f"{what} rotates {width} dimensions: it must be an even number")
