#!/usr/bin/env python3
"""What decoding costs: bytes a token in the cache, and time a token as the prompt grows.

Three models of the same shape are compared in one run: latent attention with its latent cache
(HMLA), the Euclidean latent attention, and plain per-head attention. Times are ratios: each is
divided by that of the same model at the shortest prompt. `attention` is the time in the attention
layers, which read the cache; the `rest` should not grow.

    python benchmarks/decode.py --hidden-size 512 --layers 4 --prompts 128 512 2048
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from measure import add_output, report, synchronize
from transformers import DynamicCache

from helm_megatron.hf.configuration_helm import HelmConfig
from helm_megatron.hf.modeling_helm import HelmForCausalLM


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


def measured_bytes(cache: DynamicCache, tokens: int) -> float:
    """Size of what a cache holds, by token."""
    tensors = [t for layer in cache.layers for t in (layer.keys, layer.values)]
    return sum(t.numel() * t.element_size() for t in tensors) / tokens


class AttentionClock:
    """Adds up the time that a model spends in its attention layers."""

    def __init__(self, model: HelmForCausalLM) -> None:
        self.total = 0.0
        for layer in model.model.layers:
            layer.self_attn.register_forward_pre_hook(lambda *_: self._add(-now()))
            layer.self_attn.register_forward_hook(lambda *_: self._add(now()))

    def _add(self, seconds: float) -> None:
        self.total += seconds


def now() -> float:
    """The time, when all work on the device is done."""
    synchronize()
    return time.perf_counter()


@torch.no_grad()
def measure(
    model: HelmForCausalLM, clock: AttentionClock, prompt: int, repeats: int
) -> tuple[float, float, float]:
    """Bytes a token, and seconds a decoded token: in attention, and in all else.

    The shortest times of all steps: other work on the machine only adds to them.
    """
    ids = torch.randint(model.config.vocab_size, (1, prompt), device=model.device)
    cache = DynamicCache(config=model.config)
    model(ids, cache=cache, logits_to_keep=1)
    size = measured_bytes(cache, prompt)
    attention, rest = [], []
    for _ in range(repeats):
        clock.total, start = 0.0, now()
        model(ids[:, -1:], cache=cache)
        attention.append(clock.total)
        rest.append(now() - start - clock.total)
        cache.crop(-1)
    return size, min(attention), min(rest)


def main() -> None:
    """Measure, print a Markdown table, write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hidden-size", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-lora-rank", type=int, default=64)
    parser.add_argument("--prompts", type=int, nargs="+", default=[128, 512, 2048])
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    add_output(parser)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, args.dtype)
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    for name, config in configs(args).items():
        model = HelmForCausalLM(config).to(device, dtype).eval()
        clock = AttentionClock(model)
        measure(model, clock, min(args.prompts), 2)
        first: tuple[float, float] | None = None
        for prompt in sorted(args.prompts):
            size, attention, rest = measure(model, clock, prompt, args.repeats)
            first = first or (attention, rest)
            rows.append(
                {
                    "model": name,
                    "prompt": prompt,
                    "bytes/token computed": bytes_per_token(config, dtype.itemsize),
                    "measured": f"{size:.0f}",
                    "time/token": f"{(attention + rest) / sum(first):.2f}",
                    "attention": f"{attention / first[0]:.2f}",
                    "rest": f"{rest / first[1]:.2f}",
                }
            )
    report(rows, args.output)


if __name__ == "__main__":
    main()
