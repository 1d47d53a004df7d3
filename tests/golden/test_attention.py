"""Attention and latent attention of a Megatron layer against the released modules."""

import functools
from typing import Any

import pytest
import torch
from golden import cases, load_case
from leaves import ModuleCase, leaf_of_layer
from released import DEVICE
from torch import Tensor

pytestmark = pytest.mark.usefixtures("one_process")


def mask_of(case: ModuleCase, tokens: int) -> Tensor:
    """True where attention is blocked, `[b or 1, 1, s, s]`; the golden mask is the whole of it."""
    if "in/mask" not in case.tensors:
        return torch.zeros(1, 1, tokens, tokens, dtype=torch.bool, device=DEVICE)
    mask = case.get("in/mask")
    return mask.unsqueeze(-3) if mask.dim() == 3 else mask[None, None]


@pytest.mark.parametrize("name", cases("mod_hmla"))
def test_latent_attention(name: str, dtype: torch.dtype) -> None:
    tensors, info = load_case("mod_hmla", name)
    case = ModuleCase(tensors, dtype)
    config = case.config(**info["config"])
    leaf = leaf_of_layer(config, "self_attention", "layers.0.attn.")
    leaf.load(case)
    rotary = leaf.module.rotary_pos_emb
    # Megatron's table starts at position 0 and is in fp32.
    pairs = torch.arange(rotary.inv_freq.numel(), dtype=torch.float64, device=DEVICE)
    rotary.inv_freq = config.rotary_base ** (-pairs / pairs.numel())
    rotary.forward = functools.partial(table, rotary, info["start_pos"])
    x = case.space("x").transpose(0, 1)
    y, _ = leaf.module(x, mask_of(case, x.shape[0]))
    case.assert_outputs(y=case.output(y.transpose(0, 1)))
    case.assert_input_gradients()
    leaf.assert_gradients(case)


def table(rotary: Any, start: int, length: int, **_: Any) -> Tensor:
    """Megatron's rotary table of the positions from `start`."""
    return rotary.get_emb(length, offset=start)


@pytest.mark.parametrize("name", cases("mod_mha_full"))
def test_attention(name: str, dtype: torch.dtype) -> None:
    tensors, info = load_case("mod_mha_full", name)
    case = ModuleCase(tensors, dtype)
    heads = info["n_heads"]
    config = case.config(arch=f"L1_W{heads * info['head_dim']}_A{heads}")
    leaf = leaf_of_layer(config, "self_attention", "resblocks.0.attn.")
    leaf.load(case)
    rotary = None
    if "in/freqs_cos" in tensors:
        angles = torch.atan2(tensors["in/freqs_sin"], tensors["in/freqs_cos"]).to(DEVICE)
        rotary = angles.repeat_interleave(2, dim=-1)[:, None, None]
    kernel_inputs: list[Tensor] = []
    leaf.module.core_attention.kernel.register_forward_pre_hook(
        lambda kernel, args: kernel_inputs.extend(args[:4])
    )
    x = case.space("x").transpose(0, 1)
    y, _ = leaf.module(x, mask_of(case, x.shape[0]), rotary_pos_emb=rotary)
    outputs = {"y": case.output(y.transpose(0, 1))}
    if "out/attn" in tensors:
        q, k, _, mask = kernel_inputs
        scores = torch.einsum("ibhd,jbhd->bhij", q, k)
        outputs["attn"] = scores.masked_fill(mask, -torch.inf).softmax(-1)
    case.assert_outputs(**outputs)
    case.assert_input_gradients()
    leaf.assert_gradients(case)
