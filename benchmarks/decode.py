#!/usr/bin/env python3
"""What decoding costs: bytes a token in the cache, and time a token as the prompt grows.

Three models of the same shape are compared in one run: latent attention with its latent cache
(HMLA), the Euclidean latent attention, and plain per-head attention. Times are ratios: each is
divided by the time of the same model at the shortest prompt. `attention` is the time of the
attention layers alone over such a cache, `rest` what remains, which should not grow.

    python benchmarks/decode.py --hidden-size 512 --layers 4 --prompts 128 512 2048
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch

from helm_megatron.hf.configuration_helm import HelmConfig
from helm_megatron.hf.modeling_helm import HelmForCausalLM

Cache = Any


def configs(args: argparse.Namespace) -> dict[str, HelmConfig]:
    """The models that are compared."""
    common = dict(
        vocab_size=512,
        hidden_size=args.hidden_size,
        intermediate_size=3 * args.hidden_size,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        max_position_embeddings=max(args.prompts) + 64,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    width = args.hidden_size // args.heads
    latent = dict(
        kv_lora_rank=args.kv_lora_rank,
        qk_nope_head_dim=width,
        qk_rope_head_dim=width // 2,
        v_head_dim=width,
        rope_interleaved=True,
    )
    return {
        "HMLA": HelmConfig(**common, **latent),
        "Euclidean MLA": HelmConfig(**common, **latent, geometry="euclidean"),
        "per-head Lorentz": HelmConfig(**common, head_dim=width),
    }


def bytes_per_token(config: HelmConfig, itemsize: int) -> int:
    """Size of the cache for one token, computed from the shapes."""
    heads, layers = config.num_attention_heads, config.num_hidden_layers
    if config.kv_lora_rank is None:
        return (
            layers * 2 * (config.num_key_value_heads or heads) * (config.head_dim or 0) * itemsize
        )
    latent = (config.kv_lora_rank + (config.qk_rope_head_dim or 0)) * itemsize
    times = 2 * heads * 4 if config.geometry == "lorentz" else 0
    return layers * (latent + times)


def measured_bytes(cache: Cache, tokens: int) -> float:
    """Size of what a cache holds, by token."""
    tensors = [t for layer in cache.layers for t in (layer.keys, layer.values)]
    return sum(t.numel() * t.element_size() for t in tensors) / tokens


def seconds(step: Callable[[], Any], repeats: int) -> float:
    """The shortest time of a step: other work on the machine only adds to it."""
    step()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


@torch.no_grad()
def measure(model: HelmForCausalLM, prompt: int, repeats: int) -> tuple[float, float, float]:
    """Bytes a token, seconds a decoded token, seconds of attention alone in all layers."""
    device = model.device
    ids = torch.randint(model.config.vocab_size, (1, prompt), device=device)
    cache = model(ids, use_cache=True, logits_to_keep=1).past_key_values
    size = measured_bytes(cache, prompt)

    def decode() -> None:
        model(ids[:, -1:], past_key_values=cache, use_cache=True)
        cache.crop(-1)

    whole = seconds(decode, repeats)
    layer = model.model.layers[0].self_attn
    x = torch.randn(1, 1, model.config.hidden_size, device=device, dtype=model.dtype)
    width = int(model.config.head_dim or 0)
    rotary = (torch.ones(1, 1, width, device=device), torch.zeros(1, 1, width, device=device))

    def attend() -> None:
        layer(x, None, rotary, cache)
        cache.layers[0].crop(-1)

    return size, whole, seconds(attend, repeats) * model.config.num_hidden_layers


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hidden-size", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-lora-rank", type=int, default=64)
    parser.add_argument("--prompts", type=int, nargs="+", default=[128, 512, 2048])
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, args.dtype)
    torch.manual_seed(0)
    print("| model | prompt | bytes/token computed | measured | time/token | rest | attention |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, config in configs(args).items():
        model = HelmForCausalLM(config).to(device, dtype).eval()
        first: tuple[float, float] | None = None
        for prompt in sorted(args.prompts):
            size, whole, attention = measure(model, prompt, args.repeats)
            rest = whole - attention
            first = first or (whole, rest)
            print(
                f"| {name} | {prompt} | {bytes_per_token(config, dtype.itemsize)} | {size:.0f} "
                f"| {whole / first[0]:.2f} | {rest / first[1]:.2f} | {attention / first[0]:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
