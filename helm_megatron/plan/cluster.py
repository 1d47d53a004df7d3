"""The cluster that a run is planned for."""

from __future__ import annotations

from dataclasses import dataclass

GIGA = 1e9
TERA = 1e12


@dataclass(frozen=True)
class Cluster:
    """GPUs and their links; memory in GB, bandwidths in GB/s of one GPU in one direction.

    `tflops` is what matrix products reach, not what the data sheet says. `margin` is the part of
    the memory left to CUDA, NCCL, fragments and uneven routing.
    """

    gpus: int
    gpus_per_node: int = 8
    memory: float = 80.0
    intra_node_bandwidth: float = 400.0
    inter_node_bandwidth: float = 45.0
    tflops: float = 400.0
    margin: float = 0.1

    @property
    def usable_bytes(self) -> float:
        """Memory of a GPU without the margin."""
        return self.memory * GIGA * (1 - self.margin)

    def seconds(self, collective: str, size: int, ranks: int, extent: int) -> float:
        """Time of one collective of a tensor of `size` bytes over a group of `ranks`.

        `extent` is the number of neighboring ranks that the group is spread over: beyond a node
        its slowest link counts. Rings: an all-reduce sends the tensor twice, others once, but for
        the rank's own share.
        """
        if ranks < 2:
            return 0.0
        within = extent <= self.gpus_per_node
        bandwidth = self.intra_node_bandwidth if within else self.inter_node_bandwidth
        times = {"all-reduce": 2 * (ranks - 1) / ranks, "send": 1.0}
        return times.get(collective, (ranks - 1) / ranks) * size / (bandwidth * GIGA)
