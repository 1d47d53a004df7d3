"""The share of a table that one data-parallel rank updates, and the rows that it has in part.

Megatron's distributed optimizer deals a buffer of parameters out in equal runs of entries, which
end anywhere in a row. Riemannian Adam needs whole rows: the few that are cut are put together on
every rank, updated there alike, and each rank keeps its piece.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Shard:
    """Entries `start` to `stop` of a flattened table of rows of `width`; nothing if they are equal.

    `cut` lists the rows that some rank of `group` has in part, the same on all of them.
    """

    width: int
    start: int
    stop: int
    cut: tuple[int, ...] = ()
    group: dist.ProcessGroup | None = None

    def whole(self, flat: Tensor) -> Tensor:
        """The whole rows `[n, width]` of this rank's entries, as a view."""
        flat = flat.view(-1)
        first, last = -(-self.start // self.width), self.stop // self.width
        if last <= first:
            return flat[:0].view(0, self.width)
        return flat[first * self.width - self.start : last * self.width - self.start].view(
            -1, self.width
        )

    def pieces(self) -> list[tuple[int, slice, slice]]:
        """Of each row that this rank has in part: which of `cut`, columns, and own entries."""
        found = []
        for i, row in enumerate(self.cut):
            begin = max(self.start, row * self.width)
            end = min(self.stop, (row + 1) * self.width)
            if begin < end:
                columns = slice(begin - row * self.width, end - row * self.width)
                found.append((i, columns, slice(begin - self.start, end - self.start)))
        return found

    def gather_cut(self, tables: list[Tensor] | None, count: int, device: object) -> list[Tensor]:
        """The cut rows `[n, width]` of `count` tables; collective over the group.

        `tables` are this rank's entries of them, None if it has none.
        """
        rows = torch.zeros(count, len(self.cut), self.width, device=device)  # type: ignore[call-overload]
        for i, columns, mine in self.pieces() if tables else []:
            for target, table in zip(rows, tables or [], strict=True):
                target[i, columns] = table.view(-1)[mine]
        dist.all_reduce(rows, group=self.group)
        return list(rows.unbind())

    def put_cut(self, rows: Tensor, table: Tensor) -> None:
        """Write this rank's pieces of the cut rows `[n, width]` to its entries of the table."""
        for i, columns, mine in self.pieces():
            table.view(-1)[mine] = rows[i, columns]


def rows_cut(width: int, numel: int, ends: list[int]) -> tuple[int, ...]:
    """Rows of a table of `numel` entries that a division of its entries at `ends` cuts."""
    return tuple(sorted({end // width for end in ends if 0 < end < numel and end % width}))
