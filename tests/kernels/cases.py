"""Every fused function beside its plain twin, with inputs of awkward sizes."""

from dataclasses import dataclass

import torch

from helm_megatron.geometry import lorentz
from helm_megatron.kernels.linear_tail import op as linear_tail
from helm_megatron.kernels.linear_tail import plain as plain_tail
from helm_megatron.kernels.mixture import op as mixture
from helm_megatron.kernels.mixture.plain import mixture as plain_mixture
from helm_megatron.kernels.norm2 import op as norm2
from helm_megatron.kernels.residual import op as residual
from helm_megatron.kernels.residual_norm import op as residual_norm
from helm_megatron.kernels.residual_norm import plain as plain_residual_norm
from helm_megatron.kernels.rms_norm import op as rms_norm
from helm_megatron.kernels.rms_norm import plain as norm

TOKENS = (13, 3)


@dataclass(frozen=True)
class Case:
    """`shapes` name the tensors; both functions take them in that order."""

    fused: object
    twin: object
    shapes: dict

    def inputs(self, dtype, device, seed=0):
        """Random leaves; times are positive and of the precision they are computed in."""
        generator = torch.Generator().manual_seed(seed)
        out = []
        for name, shape in self.shapes.items():
            x = torch.randn(shape, generator=generator, dtype=torch.float64)
            if name in ("time", "scale", "curvature", "weights"):
                x = x.abs() + 0.5
            wide = name in ("time", "curvature", "weights")
            x = x.to(lorentz.at_least_fp32(torch.empty((), dtype=dtype)).dtype if wide else dtype)
            out.append(x.to(device).requires_grad_())
        return out


def fresh(function):
    """The function of a copy of its first argument, which it may overwrite."""
    return lambda y, *rest: function(y * 1, *rest)


def tail(fused, twin, out):
    shapes = {"y": (*TOKENS, out), "time": (*TOKENS, 1), "time_weight": out}
    return {
        "": Case(fresh(fused), twin, shapes | {"bias": out}),
        "_without_bias": Case(
            lambda *inputs: fresh(fused)(*inputs, None), lambda *inputs: twin(*inputs, None), shapes
        ),
    }


def residuals():
    shapes = {"x": (*TOKENS, 37), "f": (*TOKENS, 37), "weight": 1}
    return {
        "": Case(
            lambda x, f, w: residual.residual(x, f, w, 3.1, 1.3),
            lambda x, f, w: lorentz.residual(x, f, w, 3.1, 1.3),
            shapes,
        ),
        "_learned_scale": Case(
            lambda x, f, w, a: residual.residual(x, f, w, a, 0.4),
            lambda x, f, w, a: lorentz.residual(x, f, w, a, 0.4),
            shapes | {"scale": 1},
        ),
        "_other_curvature": Case(
            lambda x, f, w: residual.residual(x, f, w, 3.1, 1.3, 0.6),
            lambda x, f, w: lorentz.residual(x, f, w, 3.1, 1.3, c_x=0.6),
            shapes,
        ),
        "_curvature_tensor": Case(
            lambda x, f, w, c: residual.residual(x, f, w, 3.1, c),
            lambda x, f, w, c: lorentz.residual(x, f, w, 3.1, c),
            shapes | {"curvature": 1},
        ),
    }


def residual_norms():
    """Both outputs, or only one; the norm's eps is large enough to be seen."""
    shapes = {"norm_weight": 37, "x": (*TOKENS, 37), "f": (*TOKENS, 37), "weight": 1}

    def case(arguments, part=slice(None), **more):
        """`arguments` makes those of the residual of all tensors but the norm's weight."""

        def fused(norm_weight, *tensors):
            *first, c, c_x = arguments(*tensors)
            return residual_norm.residual_norm(*first, norm_weight, 0.1, c, c_x)[part]

        def twin(norm_weight, *tensors):
            *first, c, c_x = arguments(*tensors)
            return plain_residual_norm.residual_norm(*first, norm_weight, 0.1, c, c_x)[part]

        return Case(fused, twin, shapes | more)

    def fixed(x, f, w):
        return x, f, w, 3.1, 1.3, None

    return {
        "": case(fixed),
        "_learned_scale": case(lambda x, f, w, a: (x, f, w, a, 0.4, None), scale=1),
        "_other_curvature": case(lambda x, f, w: (x, f, w, 3.1, 1.3, 0.6)),
        "_curvature_tensor": case(lambda x, f, w, c: (x, f, w, 3.1, c, None), curvature=1),
        "_without_norm": case(fixed, part=0),
        "_norm_alone": case(fixed, part=1),
    }


def times():
    x = {"x": (*TOKENS, 301)}
    return {
        "": Case(lambda x: norm2.time(x, 1.3), lambda x: lorentz.time(x, 1.3), x),
        "_curvature_tensor": Case(norm2.time, lorentz.time, x | {"curvature": 1}),
    }


def norms():
    return {
        "": Case(
            lambda x, w: rms_norm.rms_norm(x, w, 0.1),
            lambda x, w: norm.rms_norm(x, w, 0.1),
            {"x": (*TOKENS, 37), "weight": 37},
        )
    }


def mixtures():
    """Rows in any order; the twin takes their shared points or none."""
    slots = torch.randperm(39, generator=torch.Generator().manual_seed(2)).view(13, 3)
    shapes = {"rows": (39, 77), "weights": 39}

    def case(function, c):
        return lambda y, w, shared=None: function(y, w, slots.to(y.device), shared, c)

    return {
        "": Case(
            case(mixture.mixture, 1.3), case(plain_mixture, 1.3), shapes | {"shared": (13, 77)}
        ),
        "_unshared": Case(case(mixture.mixture, 0.4), case(plain_mixture, 0.4), shapes),
    }


CASES = {
    f"{name}{variant}": case
    for name, cases in {
        "time_term": tail(linear_tail.add_time_term, plain_tail.add_time_term, 301),
        "gated": tail(linear_tail.gated, plain_tail.gated, 2 * 257),
        "residual": residuals(),
        "rms_norm": norms(),
        "residual_norm": residual_norms(),
        "time": times(),
        "mixture": mixtures(),
    }.items()
    for variant, case in cases.items()
}
