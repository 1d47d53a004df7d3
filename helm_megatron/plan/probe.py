"""Run one layer of each kind of a model on tensors without data, and see what it takes.

The model is the real one, with the local sizes of a rank of its layout, in a world that torch's
fake process groups stand for; tokens are spread evenly over experts. So the numbers follow the
code: nothing here knows a width or a formula.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import math
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from megatron.core import parallel_state as ps
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.random import initialize_rng_tracker
from megatron.core.transformer.enums import AttnBackend
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.training.argument_utils import gpt_config_from_args
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from helm_megatron.arguments import ONE_STAGE, config_from_args
from helm_megatron.builder import HelmModelConfig
from helm_megatron.kernels.experts import one_by_one
from helm_megatron.layers.attention import LorentzAttention
from helm_megatron.layers.dot_product import DotProductAttention
from helm_megatron.plan.tracing import Section, Trace
from helm_megatron.process_groups import process_groups
from helm_megatron.specs import moe_pattern

# Attributes that make the probe a world of one pipeline stage without data parallelism.
_ONE_STAGE: dict[str, Any] = {
    **ONE_STAGE,
    "use_gloo_process_groups": False,
    "distributed_backend": "fake",
    "perform_initialization": False,
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
}


@dataclass(frozen=True)
class Shards:
    """Parameters of one rank: `dense` are reduced over all data-parallel ranks, `expert` over those
    of the same experts; `sequence` of the dense ones over the tensor-parallel ranks before.

    `total` counts every parameter of the model once.
    """

    dense: int
    expert: int
    sequence: int
    total: int


@dataclass(frozen=True)
class Part:
    """Embedding, a layer of one kind, or the head: what a micro-batch takes on one rank.

    `saved` bytes stay from forward to backward; `working` bytes come on top while it is computed.
    """

    parameters: Shards
    saved: int
    working: int
    forward: Section
    backward: Section


def world_size(args: Namespace) -> int:
    """The smallest world that has the layout's tensor, context and expert groups."""
    expert = args.expert_model_parallel_size * (args.expert_tensor_parallel_size or 1)
    return math.lcm(
        args.tensor_model_parallel_size * args.context_parallel_size, expert if expert else 1
    )


def probe(args: Namespace) -> dict[str, Part]:
    """What the parts "embedding", "dense", "moe" and "head" of validated flags take."""
    args = copy.deepcopy(args)
    vars(args).update(_ONE_STAGE, world_size=world_size(args))
    pattern = moe_pattern(config_from_args(args))
    kinds = [name for name, moe in (("dense", False), ("moe", True)) if moe in pattern]
    # Each layer stands between others: it is given its first norm, and computes the next one's.
    layers = [kinds[0], *kinds, kinds[-1]]
    args.num_layers = len(layers)
    if "moe" in kinds:
        args.moe_layer_freq = [int(kind == "moe") for kind in layers]
    with process_groups(args), FakeTensorMode(allow_non_fake_inputs=True), _without_curvatures():
        # Megatron's tracker for inference keeps no random states, which have no numbers here.
        initialize_rng_tracker(inference_rng_tracker=True, force_reset=True)
        model = _without_data(_model(args))
        trace = _run(args, model, kinds)
        parameters = {name: _shards(modules) for name, modules in _modules(model, kinds).items()}
    names = "embedding", *kinds, "head"
    return {name: _part(trace, name, parameters[name]) for name in names}


def count(args: Namespace) -> int:
    """Parameters of the whole model of validated flags, each once, whatever the layout."""
    args = copy.deepcopy(args)
    vars(args).update(_ONE_STAGE, world_size=world_size(args))
    with process_groups(args), FakeTensorMode(allow_non_fake_inputs=True), _without_curvatures():
        initialize_rng_tracker(inference_rng_tracker=True, force_reset=True)
        return _shards([_without_data(_model(args))]).total


def _model(args: Namespace) -> Any:
    config = config_from_args(args)
    model_config = gpt_config_from_args(args, config, HelmModelConfig)
    builder = model_config.get_builder_cls()(model_config)
    groups = ProcessGroupCollection.use_mpu_process_groups()
    with contextlib.redirect_stdout(io.StringIO()):  # it tells of the padded vocabulary
        return builder.build_model(groups, pre_process=True, post_process=True)


def _modules(model: Any, kinds: list[str]) -> dict[str, list[torch.nn.Module]]:
    names = "before", *kinds, "after"
    layers = dict(zip(names, ([layer] for layer in model.decoder.layers), strict=True))
    head = [model.decoder.final_layernorm, model.output_layer]
    return {"embedding": [model.embedding], **layers, "head": head}


def _shards(modules: list[torch.nn.Module]) -> Shards:
    """Counts of the parameters; a weight tied to another part's counts there too."""
    dense = expert = sequence = total = 0
    tp, ep, etp = (
        ps.get_tensor_model_parallel_world_size(),
        ps.get_expert_model_parallel_world_size(),
        ps.get_expert_tensor_parallel_world_size(),
    )
    parameters = [p for module in modules for p in module.parameters()]
    experts = {
        id(p) for module in modules for n, p in module.named_parameters() if ".experts." in n
    }
    for parameter in parameters:
        count = parameter.numel()
        sharded = getattr(parameter, "tensor_model_parallel", False)
        if id(parameter) in experts:
            total += count * ep * (etp if sharded else 1)
        else:
            total += count * (tp if sharded else 1)
        if not parameter.requires_grad:
            continue
        if getattr(parameter, "allreduce", True):
            dense += count
            sequence += count if getattr(parameter, "sequence_parallel", False) else 0
        else:
            expert += count
    return Shards(dense, expert, sequence, total)


def _run(args: Namespace, model: Any, kinds: list[str]) -> Trace:
    """Forward and backward of one micro-batch, in sections "forward NAME" and "backward NAME"."""
    trace = Trace(group_names())
    tokens = torch.zeros(
        args.micro_batch_size, args.seq_length // args.context_parallel_size, dtype=torch.long
    )
    for name, modules in _modules(model, kinds).items():
        _mark(trace, name, modules)
    for parameter in model.parameters():
        # Megatron adds a gradient to its buffer at once.
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    trace.ignore([*model.parameters(), *model.buffers(), tokens])
    with trace:
        loss = model(tokens, tokens.clone(), None, labels=tokens.clone()).float().mean()
        trace.enter("backward head")
        loss.backward()
        trace.finish()
    return trace


def _mark(trace: Trace, name: str, modules: list[torch.nn.Module]) -> None:
    def before(module: Any, inputs: Any) -> None:
        trace.enter(f"forward {name}")

    def after(module: Any, inputs: Any, output: Any) -> None:
        output = output[0] if isinstance(output, tuple) else output
        output.register_hook(lambda _: trace.enter(f"backward {name}"))

    modules[0].register_forward_pre_hook(before)
    if name != "head":  # its backward begins with the loss
        modules[0].register_forward_hook(after)


def _part(trace: Trace, name: str, parameters: Shards) -> Part:
    forward, backward = trace.sections[f"forward {name}"], trace.sections[f"backward {name}"]
    working = max(forward.peak - forward.end, backward.peak - backward.start)
    return Part(parameters, forward.end - forward.start, working, forward, backward)


def group_names() -> dict[str, str]:
    """The usual short names of this rank's groups; of groups of the same ranks the first one's."""
    return {
        group.group_name: name
        for name, group in (
            ("ep", ps.get_expert_model_parallel_group()),
            ("etp", ps.get_expert_tensor_parallel_group()),
            ("tp-ep", ps.get_expert_tensor_and_model_parallel_group()),
            ("cp", ps.get_context_parallel_group()),
            ("tp-cp", ps.get_tensor_and_context_parallel_group()),
            ("tp", ps.get_tensor_model_parallel_group()),
        )
    }


def _without_data(model: Any) -> Any:
    """The model with stand-ins for what looks into tensors, or picks a kernel by the device."""
    for module in model.modules():
        if isinstance(module, LorentzAttention):
            module.computed_in = lambda x: x  # type: ignore[method-assign]
        if isinstance(module, DotProductAttention):
            module._kernel = functools.partial(  # type: ignore[method-assign]
                _flash_attention, module
            )
        if isinstance(module, MoELayer):
            dispatcher = module.token_dispatcher
            dispatcher.preprocess = functools.partial(_spread_evenly, dispatcher)
    return model


def _flash_attention(
    core: DotProductAttention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
) -> Tensor:
    """The fused kernel of a GPU; fewer queries than keys come as to the CPU's kernel."""
    if q.shape[-2] != k.shape[-2] and core.config.attention_backend != AttnBackend.unfused:
        group = q.shape[1] // k.shape[1]
        k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    flash = torch.ops.aten._scaled_dot_product_flash_attention
    return flash(q, k, v, 0.0, True, False, scale=core.softmax_scale)[0]


@contextlib.contextmanager
def _without_curvatures() -> Iterator[None]:
    """The grouped experts' function asks for the curvatures' values, and is no object to change."""
    numbers, one_by_one.numbers = one_by_one.numbers, lambda x: [1.0] * len(x)
    try:
        yield
    finally:
        one_by_one.numbers = numbers


def _spread_evenly(dispatcher: Any, routing_map: Tensor) -> np.ndarray:
    """The dispatcher's counts of tokens, as if the router gave every expert as many.

    Sizes are numpy's: real numbers beside tensors that have none.
    """
    ep, tp, local = dispatcher.ep_size, dispatcher.tp_size, dispatcher.num_local_experts
    rows = routing_map.size(0) * dispatcher.config.moe_router_topk
    counts = np.full(dispatcher.num_experts, rows // dispatcher.num_experts)
    counts[: rows % dispatcher.num_experts] += 1
    first = dispatcher.local_expert_indices[0]
    mine = counts[first : first + local]
    dispatcher.num_out_tokens = rows
    if ep * tp > 1:
        dispatcher.input_splits = counts.reshape(ep, local).sum(1)
        dispatcher.output_splits = np.full(ep, mine.sum())
        dispatcher.output_splits_tp = np.full(tp, mine.sum() * ep)
    dispatcher.num_global_tokens_per_local_expert = np.tile(mine, (tp * ep, 1))
    order = np.arange(dispatcher.num_experts * tp)
    dispatcher.sort_input_by_local_experts = order.reshape(-1, local).T.ravel()
    dispatcher.restore_output_by_local_experts = order.reshape(local, -1).T.ravel()
    return mine * tp * ep
