"""One module of a Megatron layer, run on a golden module case and checked against it.

The released modules take and return ambient points and differentiate by all their coordinates and
by the curvature. Ours take space coordinates. Along the lifted points (x_s, c) ->
(sqrt(|x_s|^2 + c), x_s) both are the same function, so a golden gradient (g_t, g_s), g_c becomes
g_s + g_t x_s / x_t and g_c + sum g_t / (2 x_t).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from golden import RTOL, assert_close
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.spec_utils import build_module
from released import DEVICE, assert_gradients, under
from torch import Tensor

from helm_megatron.config import HelmSettings
from helm_megatron.conversion.release.config import config_from_release
from helm_megatron.conversion.release.names import from_release
from helm_megatron.geometry import lorentz
from helm_megatron.geometry.reference import lift
from helm_megatron.specs import layer_spec, leaves_of

BASE_CURVATURES = ("param/c", "param/manifold.k")
OUT_CURVATURES = ("param/manifold_out.k",)
_SMALL_MICE = dict(
    dim=9, inter_dim=5, mice_inter_dim=5, n_layers=1, n_dense_layers=0, n_heads=1,
    n_routed_experts=4, n_shared_experts=1, n_activated_experts=2, n_expert_groups=1,
    n_limited_groups=1, score_func="softmax", route_scale=1.0, kv_lora_rank=4, qk_nope_head_dim=4,
    qk_rope_head_dim=3, v_head_dim=4, rope_theta=10000, seq_bal_alpha=1e-4, bias_update_speed=0.0,
)  # fmt: skip


@dataclass(frozen=True)
class _SharedHelm(HelmSettings):
    """Megatron copies configs; a curvature to differentiate by must stay the same tensor."""

    def __deepcopy__(self, memo: dict) -> "_SharedHelm":
        return self


class ModuleCase:
    """A golden case, with its inputs and its curvature `c` as tensors to differentiate by."""

    def __init__(self, tensors: dict[str, Tensor], dtype: torch.dtype) -> None:
        self.tensors, self.dtype, self.rtol = tensors, dtype, RTOL[dtype]
        self.c, self.c_out = self._leaf(BASE_CURVATURES), self._leaf(OUT_CURVATURES)
        self.inputs: dict[str, Tensor] = {}

    def _leaf(self, names: tuple[str, ...]) -> Tensor | None:
        found = [self.tensors[name] for name in names if name in self.tensors]
        return found[0].to(DEVICE, copy=True).requires_grad_() if found else None

    def get(self, name: str) -> Tensor:
        """A tensor that is not differentiated by."""
        tensor = self.tensors[name].to(DEVICE)
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def space(self, name: str, ambient: bool = True) -> Tensor:
        """The space coordinates of an input, to differentiate by."""
        x = self.get(f"in/{name}")[..., int(ambient) :].detach().requires_grad_()
        self.inputs[name] = x
        return x

    def config(self, helm: Mapping[str, Any] | None = None, **released: Any) -> TransformerConfig:
        """The config of a one-layer model of this curvature, by the released arguments."""
        block = "resblocks" if "arch" in released else "layers"
        c = torch.tensor(1.0) if self.c is None else self.c.detach()
        state = {n: c for n in ("manifold_in.k", "manifold_hidden.k", "manifold_out.k")}
        state[f"{block}.0.manifold.k"] = c
        config = config_from_release({**_SMALL_MICE, **released}, state, self.dtype)
        given = {"curvature": 1.0 if self.c is None else self.c, **(helm or {})}
        config.helm = _SharedHelm(**{**vars(config.helm), **given})
        return config

    def output(self, y: Tensor, space_only: bool = False) -> Tensor:
        """The ambient points over y, on the output manifold if the case has one."""
        if self.c_out is not None:
            y = lorentz.rescale(y, self.c, self.c_out)
        return y if space_only else lift(y, self.c if self.c_out is None else self.c_out)

    def assert_outputs(self, **outputs: Tensor) -> None:
        """Compare outputs with the golden ones, then go backward through them."""
        total = torch.zeros((), dtype=torch.float64, device=DEVICE)
        for name, actual in outputs.items():
            assert_close(actual.cpu(), self.tensors[f"out/{name}"], self.rtol, what=f"out/{name}")
            total = total + (actual * self.get(f"cotangent/{name}")).sum()
        total.backward()

    def assert_input_gradients(self) -> None:
        """Compare the gradients by the inputs and by the curvatures."""
        names = [f"grad/{n}" for n in BASE_CURVATURES]
        terms = [self.tensors[n] for n in names if n in self.tensors]
        for name, x in self.inputs.items():
            golden, point = self.tensors[f"grad/in/{name}"], self.tensors[f"in/{name}"]
            if golden.shape != x.shape:
                per_time = golden[..., :1] / point[..., :1]
                terms.append(per_time.sum() / 2)
                golden = golden[..., 1:] + per_time * point[..., 1:]
            assert_close(x.grad.cpu(), golden, self.rtol, what=f"grad in/{name}")
        if self.c is not None and terms:
            # The terms may cancel.
            atol = self.rtol * max(term.abs().item() for term in terms)
            grad = torch.zeros_like(self.c) if self.c.grad is None else self.c.grad
            assert_close(grad.cpu(), sum(terms), self.rtol, atol, what="grad c")
        if self.c_out is not None:
            golden = self.tensors[f"grad/{OUT_CURVATURES[0]}"]
            assert_close(self.c_out.grad.cpu(), golden, self.rtol, what="grad c_out")


class Leaf:
    """A module of a model; `ours` and `released` are its prefix in our and the authors' names."""

    def __init__(self, module: Any, config: TransformerConfig, ours: str, released: str) -> None:
        self.module, self.config, self.ours, self.released = module, config, ours, released

    def load(self, case: ModuleCase) -> None:
        """Give the module the parameters of the case."""
        parameters = under("param/", case.tensors)
        state = from_release({self.released + n: t for n, t in parameters.items()}, self.config)
        result = self.module.load_state_dict(under(self.ours, state), strict=False)
        missing = [n for n in result.missing_keys if not n.endswith("_extra_state")]
        assert not missing and not result.unexpected_keys

    def assert_gradients(self, case: ModuleCase, without: tuple[str, ...] = ()) -> None:
        """Compare the gradients by the module's parameters."""
        golden = {
            name: grad
            for name, grad in under("grad/param/", case.tensors).items()
            if f"param/{name}" not in BASE_CURVATURES + OUT_CURVATURES
        }
        assert_gradients(
            {self.ours + n: p for n, p in self.module.named_parameters()},
            {self.released + n: g for n, g in golden.items()},
            self.config,
            case.rtol,
            [self.released + n for n in without],
        )


def leaf_of_layer(config: TransformerConfig, path: str, released: str, moe: bool = False) -> Leaf:
    """The submodule `path` of a layer built from the config's layer spec."""
    spec = layer_spec(config, leaves_of(config), moe)
    layer = build_module(spec, config=config, layer_number=1).to(DEVICE)
    return Leaf(layer.get_submodule(path), config, f"decoder.layers.0.{path}.", released)
