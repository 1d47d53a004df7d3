"""The released models written from `geometry.reference`: ambient points, fp64, none of our leaves.

`logits` takes tensors by their released names and the released arguments, and shares no line with
the importer: not its names, not its config, not Megatron's rotary tables.
"""

import math
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from helm_megatron.geometry import reference

State = dict[str, Tensor]
Recorder = Callable[[str, Tensor], None]


def nothing(name: str, tensor: Tensor) -> None:
    """Record no tensor."""


def logits(state: State, released: dict[str, Any], tokens: Tensor, record: Recorder = nothing):
    """Logits `[b, s, vocabulary]` of tokens `[b, s]`, attention causal.

    `record` gets the states after each block, ambient, and what the gates choose, by the names of
    the golden files.
    """
    return _Model(state, released, record).forward(tokens)


class _Model:
    def __init__(self, state: State, released: dict[str, Any], record: Recorder) -> None:
        self.state, self.released, self.record = state, released, record
        self.dense = "arch" in released
        names = ("manifold_in.k", "manifold_hidden.k", "manifold_out.k")
        self.c_in, self.c, self.c_out = (state[name] for name in names)

    def forward(self, tokens: Tensor) -> Tensor:
        state = self.state
        x = self.embedded(tokens)
        self.record("hidden/embed", x)
        block, layers = ("resblocks", self.dense_layer) if self.dense else ("layers", self.layer)
        i = 0
        while f"{block}.{i}.manifold.k" in state:
            x = layers(f"{block}.{i}", x)
            self.record(f"hidden/{i}", x)
            i += 1
        out = None if self.dense else self.c_out
        x = reference.linear(x, *self.pair("final_proj.linear"), self.c, out)
        norm, head = ("ln_final", "mapping") if self.dense else ("norm", "head")
        x = reference.rmsnorm(x, state[f"{norm}.weight"], self.c if out is None else out)
        self.record("hidden/final_norm", x)
        return x @ state[f"{head}.weight"].T

    def embedded(self, tokens: Tensor) -> Tensor:
        name = "token_embed" if self.dense else "embed"
        if f"{name}.embedding" in self.state:
            points = self.state[f"{name}.embedding"][tokens]
            return reference.rescale(points, self.c_in, self.c)
        return reference.lift(self.state[f"{name}.weight"][tokens], self.c_in)

    def pair(self, name: str) -> tuple[Tensor, Tensor]:
        return self.state[f"{name}.weight"], self.state[f"{name}.bias"]

    def residual(self, name: str, x: Tensor, f: Tensor, fixed: float) -> Tensor:
        scale = self.state.get(f"{name}.scale")
        scale = fixed if scale is None else scale.exp()
        return reference.residual(x, f, self.state[f"{name}.w_y"], scale, self.c)

    def feedforward(self, name: str, x: Tensor, c: Tensor) -> Tensor:
        w1, w3, w2 = (self.pair(f"{name}.{w}.linear") for w in ("w1", "w3", "w2"))
        return reference.feedforward(x, w1, w3, w2, c)

    def rotated(self, s: Tensor) -> Tensor:
        """`[b, h, n, d]`, whose pairs (2i, 2i + 1) turn by position * theta^(-2i / d)."""
        n, d = s.shape[-2:]
        theta = self.released.get("rope_theta", 10000)
        rates = torch.tensor([theta ** (-2 * i / d) for i in range(d // 2)], dtype=s.dtype)
        turned = torch.outer(torch.arange(n, dtype=s.dtype), rates)
        even, odd = s[..., 0::2], s[..., 1::2]
        cos, sin = turned.cos(), turned.sin()
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)

    def attended(self, name: str, q: Tensor, k: Tensor, v: Tensor, out: str, tau: str) -> Tensor:
        """Space coordinates `[b, h, n, d]` through attention and its last linear."""
        q, k, v = (reference.lift(s, self.c) for s in (q, k, v))
        causal = torch.ones(q.shape[-2], q.shape[-2], dtype=torch.bool).triu(1)
        scale, beta = self.state[f"{name}.{tau}"], self.state[f"{name}.bias"]
        o = reference.attention(q, k, v, self.c, scale, beta, causal)
        return reference.linear(o.transpose(1, 2).flatten(-2), *self.pair(f"{name}.{out}"), self.c)

    def dense_layer(self, name: str, x: Tensor) -> Tensor:
        heads = int(self.released["arch"].partition("A")[2])
        normed = reference.rmsnorm(x, self.state[f"{name}.ln_1.weight"], self.c)

        def of_heads(letter: str) -> Tensor:
            s = torch.nn.functional.linear(normed, *self.pair(f"{name}.attn.W{letter}"))
            return s.unflatten(-1, (heads, -1)).transpose(1, 2)

        q, k = self.rotated(of_heads("q")), self.rotated(of_heads("k"))
        f = self.attended(f"{name}.attn", q, k, of_heads("v"), "final_linear", "scale")
        fixed = 4 * math.sqrt(x.shape[-1])
        x = self.residual(f"{name}.res1", x, f, fixed)
        normed = reference.rmsnorm(x, self.state[f"{name}.ln_2.weight"], self.c)
        return self.residual(
            f"{name}.res2", x, self.feedforward(f"{name}.mlp", normed, self.c), fixed
        )

    def layer(self, name: str, x: Tensor) -> Tensor:
        fixed = math.sqrt(x.shape[-1])
        normed = reference.rmsnorm(x, self.state[f"{name}.attn_norm.weight"], self.c)
        x = self.residual(f"{name}.attn_res", x, self.latent(f"{name}.attn", normed), fixed)
        normed = reference.rmsnorm(x, self.state[f"{name}.ffn_norm.weight"], self.c)
        routed = f"{name}.ffn.gate.weight" in self.state
        f = (self.mixture if routed else self.feedforward)(f"{name}.ffn", normed, self.c)
        return self.residual(f"{name}.ffn_res", x, f, fixed)

    def latent(self, name: str, x: Tensor) -> Tensor:
        r = self.released
        nope, turning = r["qk_nope_head_dim"], r["qk_rope_head_dim"] - 1

        def space(part: str, point: Tensor) -> Tensor:
            return torch.nn.functional.linear(point, *self.pair(f"{name}.{part}.linear"))

        q = space("wq", x).unflatten(-1, (r["n_heads"], nope + turning)).transpose(1, 2)
        latent, shared = space("wkv_a", x).split([r["kv_lora_rank"], turning], -1)
        weight = self.state[f"{name}.kv_norm.weight"]
        point = reference.rmsnorm(reference.lift(latent, self.c), weight, self.c)
        kv = space("wkv_b", point).unflatten(-1, (r["n_heads"], -1)).transpose(1, 2)
        q = torch.cat([q[..., :nope], self.rotated(q[..., nope:])], -1)
        shared = self.rotated(shared.unsqueeze(1)).expand(-1, r["n_heads"], -1, -1)
        k = torch.cat([kv[..., :nope], shared], -1)
        return self.attended(name, q, k, kv[..., nope:], "wo.linear", "softmax_scale")

    def mixture(self, name: str, x: Tensor, c: Tensor) -> Tensor:
        weights = self.gate(name, x)
        y = reference.origin(x, c)
        for e in range(self.released["n_routed_experts"]):
            c_e = self.state[f"{name}.experts.{e}.expert_manifold.k"]
            own = self.feedforward(f"{name}.experts.{e}", reference.rescale(x, c, c_e), c_e)
            added = reference.residual(
                y, reference.rescale(own, c_e, c), weights[..., e : e + 1], 2.0, c
            )
            y = torch.where(weights[..., e : e + 1] != 0, added, y)
        shared = self.feedforward(f"{name}.shared_experts", x, c)
        return self.residual(f"{name}.add_experts", shared, y, math.nan)

    def gate(self, name: str, x: Tensor) -> Tensor:
        """The weight of each expert, 0 where it is not chosen, `[b, s, experts]`."""
        r = self.released
        raw = torch.nn.functional.linear(x[..., 1:], self.state[f"{name}.gate.weight"])
        scores = raw.softmax(-1) if r["score_func"] == "softmax" else raw.sigmoid()
        biased = scores + self.state[f"{name}.gate.bias"]
        groups = biased.unflatten(-1, (r["n_expert_groups"], -1))
        if r["n_expert_groups"] > 1:
            best = groups.topk(2, -1).values.sum(-1).topk(r["n_limited_groups"], -1).indices
            kept = torch.zeros_like(groups[..., 0], dtype=torch.bool).scatter(-1, best, True)
            biased = groups.masked_fill(~kept.unsqueeze(-1), -math.inf).flatten(-2)
        chosen = biased.topk(r["n_activated_experts"], -1).indices
        weights = scores.gather(-1, chosen)
        if r["score_func"] == "sigmoid":
            weights = weights / weights.sum(-1, keepdim=True)
        weights = weights * r["route_scale"]
        layer = name.split(".")[1]
        for key, tensor in (("indices", chosen), ("weights", weights), ("scores", scores)):
            self.record(f"router/{layer}/{key}", tensor.flatten(0, 1))
        self.record(f"router/{layer}/counts", chosen.flatten().bincount(minlength=scores.shape[-1]))
        return torch.zeros_like(scores).scatter(-1, chosen, weights)


def mice_arguments(draw: random.Random) -> dict[str, Any]:
    """Arguments of a small HELM-MiCE, each away from its default, widths that divide nothing."""
    heads = draw.choice([3, 5])
    experts, groups = draw.choice([(4, 1), (6, 3), (4, 2)])
    nope = draw.randrange(4, 9)
    return dict(
        dim=draw.choice([w for w in range(14, 30) if (w - 1) % heads and w % heads]),
        inter_dim=draw.randrange(17, 31),
        mice_inter_dim=draw.randrange(7, 15),
        n_layers=draw.choice([2, 3]),
        n_dense_layers=draw.choice([0, 1]),
        n_heads=heads,
        n_routed_experts=experts,
        n_shared_experts=1,
        n_activated_experts=2,
        n_expert_groups=groups,
        n_limited_groups=max(groups - 1, 1),
        score_func=draw.choice(["softmax", "sigmoid"]),
        route_scale=draw.uniform(0.6, 2.0),
        bias_update_speed=0.004,
        seq_bal_alpha=3e-4,
        kv_lora_rank=draw.randrange(5, 12),
        qk_nope_head_dim=nope,
        qk_rope_head_dim=draw.choice([3, 5, 7]),
        v_head_dim=draw.choice([w for w in range(4, 9) if w != nope]),
        rope_theta=draw.choice([500, 5000, 123456]),
        max_seq_len=draw.randrange(20, 40),
        vocab_size=draw.randrange(29, 60),
        project_emb=draw.choice([True, False]),
    )


def dense_arguments(draw: random.Random) -> dict[str, Any]:
    """Arguments of a small HELM-D, its rotary base not the usual one."""
    heads, layers = draw.choice([2, 3, 5]), draw.choice([1, 2])
    return dict(
        arch=f"L{layers}_W{heads * draw.choice([5, 7, 9])}_A{heads}",
        rope_theta=draw.choice([500, 5000, 123456]),
        max_seq_len=draw.randrange(20, 40),
        vocab_size=draw.randrange(29, 60),
        project_emb=draw.choice([True, False]),
    )


class StateOf:
    """Random tensors, by their released names, of a model of the arguments; in fp64."""

    def __init__(self, released: dict[str, Any], seed: int, learned_scales: bool) -> None:
        self.released, self.learned = released, learned_scales
        self.random, self.state = torch.Generator().manual_seed(seed), State()
        for name, c in zip(("in", "hidden", "out"), (0.7, 1.6, 1.2), strict=True):
            self.state[f"manifold_{name}.k"] = torch.tensor(c, dtype=torch.float64)
        self.dense() if "arch" in released else self.mice()

    def new(self, name: str, *shape: int, around: float = 0.0, spread: float = 0.3) -> None:
        noise = torch.randn(shape, dtype=torch.float64, generator=self.random)
        self.state[name] = around + spread * noise

    def linear(self, name: str, inputs: int, outputs: int) -> None:
        self.new(f"{name}.weight", outputs, inputs, spread=inputs**-0.5)
        self.new(f"{name}.bias", outputs)

    def feedforward(self, name: str, width: int, inner: int) -> None:
        self.linear(f"{name}.w1.linear", width, inner - 1)
        self.linear(f"{name}.w3.linear", width, inner - 1)
        self.linear(f"{name}.w2.linear", inner, width - 1)

    def residual(self, name: str, learned: bool) -> None:
        self.new(f"{name}.w_y", around=0.8, spread=0.1)
        if learned:
            self.new(f"{name}.scale", around=0.7, spread=0.1)

    def ends(self, embedding: str, norm: str, head: str, width: int) -> None:
        rows = self.released["vocab_size"]
        self.new("table", rows, width - 1, spread=0.5)
        table = self.state.pop("table")
        if self.released["project_emb"]:
            self.state[f"{embedding}.weight"] = table
        else:
            c = self.state["manifold_in.k"]
            self.state[f"{embedding}.embedding"] = reference.lift(table, c)
        self.linear("final_proj.linear", width, width - 1)
        self.new(f"{norm}.weight", width - 1, around=1.0)
        self.new(f"{head}.weight", rows, width)

    def attention_scalars(self, name: str, tau: str, start: float) -> None:
        self.new(f"{name}.{tau}", 1, around=start, spread=0.1)
        self.new(f"{name}.bias", around=0.5)

    def dense(self) -> None:
        layers, width, heads = (int(part[1:]) for part in self.released["arch"].split("_"))
        head = width // heads
        for i in range(layers):
            block = f"resblocks.{i}"
            self.state[f"{block}.manifold.k"] = self.state["manifold_hidden.k"]
            for letter in "qkv":
                self.linear(f"{block}.attn.W{letter}", width, heads * (head - 1))
            self.linear(f"{block}.attn.final_linear", heads * head, width - 1)
            self.attention_scalars(f"{block}.attn", "scale", width**0.5)
            self.feedforward(f"{block}.mlp", width, 4 * width)
            for norm in ("ln_1", "ln_2"):
                self.new(f"{block}.{norm}.weight", width - 1, around=1.0)
            for residual in ("res1", "res2"):
                self.residual(f"{block}.{residual}", self.learned)
        self.ends("token_embed", "ln_final", "mapping", width)
        pairs, theta = (head - 1) // 2, self.released["rope_theta"]
        rates = torch.tensor([theta ** (-i / pairs) for i in range(pairs)], dtype=torch.float64)
        turned = torch.outer(torch.arange(self.released["max_seq_len"]).double(), rates)
        self.state["freqs_complex"] = torch.polar(torch.ones_like(turned), turned)

    def mice(self) -> None:
        r = self.released
        width = r["dim"]
        for i in range(r["n_layers"]):
            layer = f"layers.{i}"
            self.state[f"{layer}.manifold.k"] = self.state["manifold_hidden.k"]
            self.latent(f"{layer}.attn", width)
            for norm in ("attn_norm", "ffn_norm"):
                self.new(f"{layer}.{norm}.weight", width - 1, around=1.0)
            for residual in ("attn_res", "ffn_res"):
                self.residual(f"{layer}.{residual}", self.learned)
            if i < r["n_dense_layers"]:
                self.feedforward(f"{layer}.ffn", width, r["inter_dim"])
            else:
                self.mixture(f"{layer}.ffn", width)
        self.ends("embed", "norm", "head", width)

    def latent(self, name: str, width: int) -> None:
        r = self.released
        nope, turning = r["qk_nope_head_dim"], r["qk_rope_head_dim"] - 1
        heads, values, rank = r["n_heads"], r["v_head_dim"], r["kv_lora_rank"]
        self.linear(f"{name}.wq.linear", width, heads * (nope + turning))
        self.linear(f"{name}.wkv_a.linear", width, rank + turning)
        self.new(f"{name}.kv_norm.weight", rank, around=1.0)
        self.linear(f"{name}.wkv_b.linear", rank + 1, heads * (nope + values - 1))
        self.linear(f"{name}.wo.linear", heads * values, width - 1)
        self.attention_scalars(name, "softmax_scale", (heads * (nope + turning + 1)) ** 0.5)

    def mixture(self, name: str, width: int) -> None:
        r = self.released
        self.new(f"{name}.gate.weight", r["n_routed_experts"], width - 1)
        self.new(f"{name}.gate.bias", r["n_routed_experts"], spread=0.05)
        for e in range(r["n_routed_experts"]):
            expert = f"{name}.experts.{e}"
            self.feedforward(expert, width, r["mice_inter_dim"])
            c = torch.tensor(0.4 + 0.5 * e, dtype=torch.float64)
            self.state[f"{expert}.expert_manifold.k"] = c
        self.feedforward(f"{name}.shared_experts", width, r["mice_inter_dim"])
        self.residual(f"{name}.add_experts", learned=True)
