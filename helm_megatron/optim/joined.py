"""Riemannian Adam within Megatron's optimizer.

Tables of points are a parameter group of the Adam that Megatron builds: `AdamWithPoints` steps
them in its own way and leaves all others to the Adam it derives from. Megatron's optimizers around
it (fp32, fp32 masters of bf16, distributed, chained) stay as they are, and with them clipping,
schedules and checkpoints: the state of a table has the names and shapes of Adam's.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.optimizer import get_megatron_optimizer, get_standard_config_overrides
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.utils import get_model_config
from torch import Tensor

from helm_megatron.errors import HelmError
from helm_megatron.kernels.points import op as rows
from helm_megatron.optim.groups import POINTS, helm_overrides, is_points, trains_points
from helm_megatron.optim.shards import Shard, rows_cut


@dataclass(frozen=True)
class Table:
    """A table of points: its group, its place in it (None: nothing of it is here), its shard.

    `c` and `retraction` are this run's, whatever the groups of a loaded checkpoint say.
    """

    group: int
    index: int | None
    shard: Shard
    c: float
    retraction: bool


class PointsMixin:
    """Steps the groups of points; `tables` is set once Megatron has dealt the parameters out."""

    param_groups: list[dict[str, Any]]
    state: dict[Tensor, Any]
    tables: tuple[Table, ...] = ()
    # Which rows of each table have a gradient: whole ones, and those that are cut.
    touched: Sequence[tuple[Tensor | None, Tensor | None]] = ()

    @torch.no_grad()
    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Take one step; collective over the data-parallel ranks that cut a row."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if POINTS not in group]
        try:
            result = super().step(*args, **kwargs)  # type: ignore[misc]
        finally:
            self.param_groups = groups
        for group in groups:
            if POINTS in group and group["params"]:
                group["step"] = group.get("step", 0) + 1
        # Without gradients, as when Megatron lets the state come to be, no row is touched.
        nothing = [(None, None)] * len(self.tables)
        for table, touched in zip(self.tables, self.touched or nothing, strict=True):
            self._step_table(table, *touched)
        self.touched = ()
        return result

    @torch.no_grad()
    def to_frame(self) -> None:
        """Turn the tables' gradients into those whose ordinary norm is the Riemannian one."""
        found: list[tuple[Tensor | None, Tensor | None]] = []
        for table in self.tables:
            c, shard, x = table.c, table.shard, self._entries(table)
            mine = None if x is None else [x, _gradient(x)]
            touched, cut_touched = None, None
            if mine is not None:
                touched = rows.to_frame_(shard.whole(mine[0]), shard.whole(mine[1]), c)
            if shard.cut:
                points, gradients = shard.gather_cut(mine, 2, torch.cuda.current_device())
                cut_touched = rows.to_frame_(points, gradients, c)
                if mine is not None:
                    shard.put_cut(gradients, mine[1])
            found.append((touched, cut_touched))
        self.touched = found

    def _entries(self, table: Table) -> Tensor | None:
        params = self.param_groups[table.group]["params"]
        return None if table.index is None else params[table.index]

    def _rule(self, table: Table) -> rows.Rule:
        group = self.param_groups[table.group]
        (beta1, beta2), step = group["betas"], group["step"]
        return rows.Rule(group["lr"], beta1, beta2, group["eps"], step, table.c, table.retraction)

    def _step_table(self, table: Table, touched: Tensor | None, cut_touched: Tensor | None) -> None:
        shard, x = table.shard, self._entries(table)
        mine = None
        if x is not None:
            state = self.state[x]
            for name in ("exp_avg", "exp_avg_sq"):
                if name not in state:
                    state[name] = torch.zeros_like(x)
            mine = [x.detach(), _gradient(x), state["exp_avg"], state["exp_avg_sq"]]
            _step_rows([shard.whole(tensor) for tensor in mine], touched, self._rule(table))
        if shard.cut:
            cut = shard.gather_cut(mine, 4, torch.cuda.current_device())
            if mine is not None:
                _step_rows(cut, cut_touched, self._rule(table))
                for changed, tensor in zip(cut, mine, strict=True):
                    shard.put_cut(changed, tensor)


def with_points(adam: type) -> type:
    """An Adam that steps the groups of points too."""
    return type("AdamWithPoints", (PointsMixin, adam), {})


def _step_rows(tables: list[Tensor], touched: Tensor | None, rule: rows.Rule) -> None:
    if touched is None:
        touched = torch.zeros(len(tables[0]), dtype=torch.bool, device=tables[0].device)
    rows.step_(tables, touched, rule)


def _gradient(x: Tensor) -> Tensor:
    if x.grad is None:
        x.grad = torch.zeros_like(x)
    return x.grad


def get_optimizer(
    config: Any, model_chunks: list[Any], config_overrides: Any = None, **kwargs: Any
) -> Any:
    """Megatron's `get_megatron_optimizer` of a HELM model: points, multipliers, weight decay.

    Takes and returns what that does; `config_overrides` other than those of weight decay are kept.
    """
    model_config = get_model_config(model_chunks[0])
    if config_overrides is None:
        config_overrides = get_standard_config_overrides(config)
    overrides = helm_overrides(config, model_config, config_overrides)
    chain = get_megatron_optimizer(config, model_chunks, config_overrides=overrides, **kwargs)
    if trains_points(model_config):
        named = [pair for chunk in model_chunks for pair in chunk.named_parameters()]
        points = [p for name, p in named if is_points(p, name) and p.requires_grad]
        for each in chain.chained_optimizers:
            _bind(each, points)
    return chain


def _bind(optimizer: Any, points: list[torch.nn.Parameter]) -> None:
    """Find the tables of one of Megatron's optimizers, and turn their gradients in time."""
    inner = optimizer.optimizer
    groups = [i for i, group in enumerate(optimizer.param_groups) if POINTS in group]
    if not groups:
        return
    if not isinstance(inner, PointsMixin):
        raise HelmError(
            "--embedding-optimizer riemannian needs Transformer Engine's or Apex's Adam on GPUs; "
            f"Megatron found {type(inner).__module__}.{type(inner).__name__}"
        )
    find = _sharded_tables if isinstance(optimizer, DistributedOptimizer) else _whole_tables
    group = optimizer.param_groups[groups[0]]
    inner.tables = tuple(
        Table(groups[0], index, shard, group[POINTS], group["retraction"])
        for index, shard in find(optimizer, groups[0], points)
    )
    prepare = optimizer.prepare_grads

    @functools.wraps(prepare)
    def prepare_grads() -> bool:
        found_inf = prepare()
        if not found_inf:
            inner.to_frame()
        return found_inf

    optimizer.prepare_grads = prepare_grads


Found = tuple[int | None, Shard]


def _whole_tables(optimizer: Any, number: int, _: list[torch.nn.Parameter]) -> Iterator[Found]:
    for index, table in enumerate(optimizer.param_groups[number]["params"]):
        yield index, Shard(table.shape[-1], 0, table.numel())


def _sharded_tables(
    optimizer: Any, number: int, points: list[torch.nn.Parameter]
) -> Iterator[Found]:
    group = optimizer.data_parallel_group
    places = optimizer.model_param_group_index_map
    for table in points:
        [buffer] = [b for b in optimizer.buffers if table in b.param_index_map]
        begin, end, bucket = buffer.param_index_map[table]
        run = buffer.buckets[bucket].grad_data.numel() // group.size()
        first = buffer.buckets[bucket].offset - begin
        ends = [first + i * run for i in range(group.size() + 1)]
        start, stop = (min(max(ends[group.rank() + i], 0), end - begin) for i in (0, 1))
        width = table.shape[-1]
        cut = rows_cut(width, end - begin, ends)
        index = places[table][1] if table in places else None
        yield index, Shard(width, start, stop, cut, group)
