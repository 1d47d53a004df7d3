"""Geometry of a model in training, by interval: expert loads, curvatures, times, temperatures, and
the radii and hyperbolicity of its token embeddings.

The values are gathered where Megatron finalizes the gradients, the one place in a training step
that all ranks reach together, and go to Megatron's log, TensorBoard and W&B.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from megatron.core.transformer import TransformerLayer
from megatron.core.transformer.moe.router import TopKRouter
from megatron.training import get_args, get_tokenizer, print_rank_last
from megatron.training.global_vars import get_tensorboard_writer, get_wandb_writer
from torch import Tensor

from helm_megatron.analysis import embedding
from helm_megatron.geometry import lorentz
from helm_megatron.layers.attention import LorentzAttention
from helm_megatron.moe import bias
from helm_megatron.moe.experts import MiceExperts
from helm_megatron.transformer_config import HelmTransformerConfig


class Monitor:
    """Watches the layers of this rank during the iterations that Megatron logs."""

    def __init__(self, config: HelmTransformerConfig) -> None:
        self.config = config
        layers, experts = config.num_layers, config.num_moe_experts or 0
        # Row l is layer l; a rank fills the rows of its own layers and experts.
        self.load = torch.zeros(layers, experts)
        self.max_time = torch.zeros(layers)

    def watch(self, model: list[torch.nn.Module]) -> list[torch.nn.Module]:
        """Hook the layers and routers of the model chunks of this rank; returns the chunks."""
        for layer, module in _numbered(model):
            if isinstance(module, TransformerLayer):
                module.register_forward_hook(lambda m, _, out, i=layer: self._see_time(i, m, out))
            elif isinstance(module, TopKRouter):
                module.register_forward_hook(lambda m, _, out, i=layer: self._see_load(i, m, out))
        return model

    def finalize(self, model: list[torch.nn.Module], *args: Any, **kwargs: Any) -> None:
        """Finalize the gradients and biases, and report where an interval ends."""
        bias.finalize(model, *args, **kwargs)
        if self._is_logged():
            self.report(model)

    def report(self, model: list[torch.nn.Module]) -> None:
        """Gather the values from all ranks and write them; collective over all ranks."""
        config = self.config
        temperature, curvature = torch.zeros(config.num_layers), torch.zeros_like(self.load)
        for layer, module in _numbered(model):
            if isinstance(module, LorentzAttention):
                temperature[layer] = module.temperature.detach().float().item()
            elif isinstance(module, MiceExperts):
                first = module.ep_group.rank() * module.num_local_experts
                values = module.curvatures().detach().cpu()
                curvature[layer, first : first + len(values)] = values
        device = torch.cuda.current_device()
        tokens = embedding.measure(model, config.helm, get_tokenizer().vocab_size)
        found = [curvature, temperature, self.max_time, tokens]
        highest = torch.cat([each.flatten() for each in found]).to(device)
        load = self.load.to(device)
        dist.all_reduce(highest, op=dist.ReduceOp.MAX)
        dist.all_reduce(load)
        parts = highest.cpu().split([each.numel() for each in found])
        curvature, temperature, max_time, tokens = (
            part.view_as(each) for part, each in zip(parts, found, strict=True)
        )
        share = load.cpu() / load.cpu().sum(-1, keepdim=True).clamp_min(1)
        scalars = dict(zip(embedding.NAMES, tokens.tolist(), strict=True))
        scalars |= _scalars(share, curvature, temperature, max_time)
        self._write(scalars, get_args().curr_iteration + 1)
        self.load.zero_()
        self.max_time.zero_()

    def _is_logged(self) -> bool:
        return (get_args().curr_iteration + 1) % get_args().log_interval == 0

    def _see_time(self, layer: int, module: torch.nn.Module, out: Any) -> None:
        if module.training and self._is_logged():
            points = (out[0] if isinstance(out, tuple) else out).detach()
            time = lorentz.time(points, self.config.helm.curvature).max().cpu()
            self.max_time[layer] = torch.maximum(self.max_time[layer], time)

    def _see_load(self, layer: int, module: torch.nn.Module, out: Any) -> None:
        if module.training and self._is_logged():
            self.load[layer] += out[1].sum(0).float().cpu()

    def _write(self, scalars: dict[str, float], iteration: int) -> None:
        print_rank_last(f" helm at iteration {iteration}: {_summary(scalars)}")
        if writer := get_tensorboard_writer():
            for name, value in scalars.items():
                writer.add_scalar(name, value, iteration)
        if wandb_writer := get_wandb_writer():
            wandb_writer.log(scalars, iteration)


def _numbered(model: list[torch.nn.Module]) -> list[tuple[int, Any]]:
    """The modules of every transformer layer of this rank, with the layer's global index."""
    found: list[tuple[int, Any]] = []
    for chunk in model:
        for layer in chunk.modules():
            if isinstance(layer, TransformerLayer):
                found += [(layer.layer_number - 1, module) for module in layer.modules()]
    return found


def _scalars(
    share: Tensor, curvature: Tensor, temperature: Tensor, max_time: Tensor
) -> dict[str, float]:
    """Values by TensorBoard name; zero means that a layer has no such thing."""
    scalars: dict[str, float] = {}
    for layer in range(len(max_time)):
        where = f"layer-{layer + 1}"
        if max_time[layer] > 0:
            scalars[f"max-time/{where}"] = max_time[layer].item()
        if temperature[layer] > 0:
            scalars[f"attention-temperature/{where}"] = temperature[layer].item()
        if share[layer].sum() > 0:
            scalars[f"expert-load-min/{where}"] = share[layer].min().item()
            scalars[f"expert-load-max/{where}"] = share[layer].max().item()
            for expert, part in enumerate(share[layer].tolist()):
                scalars[f"expert-load/{where}-expert-{expert}"] = part
        for expert, c in enumerate(curvature[layer].tolist()):
            if c > 0:
                scalars[f"curvature/{where}-expert-{expert}"] = c
    return scalars


def _summary(scalars: dict[str, float]) -> str:
    """One line: the range of each kind of value over layers and experts."""
    kinds: dict[str, list[float]] = {}
    for name, value in scalars.items():
        kind = name.split("/")[0].removesuffix("-min").removesuffix("-max")
        kinds.setdefault(kind, []).append(value)
    return " | ".join(f"{kind} {min(v):.4g}..{max(v):.4g}" for kind, v in kinds.items())
