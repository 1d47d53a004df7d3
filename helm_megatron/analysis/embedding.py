"""The geometry of token embeddings in training, as the tool for checkpoints has it."""

from __future__ import annotations

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import VocabParallelEmbedding
from torch import Tensor

from helm_megatron.analysis import tokens
from helm_megatron.config import HelmSettings

NAMES = ("embedding-radius/median", "embedding-radius/max", "embedding-hyperbolicity/relative")


@torch.no_grad()
def measure(model: list[torch.nn.Module], helm: HelmSettings, vocab_size: int) -> Tensor:
    """The values of `NAMES`, `[3]`: distances to the origin, and 2 delta / diameter of some tokens.

    Rows beyond `vocab_size` pad the table. A Euclidean twin has distances as if at c = 1. Zeros on
    a rank without the table; collective over the tensor-parallel ranks of one that has it.
    """
    parts = [m for chunk in model for m in chunk.modules() if isinstance(m, VocabParallelEmbedding)]
    if not parts:
        return torch.zeros(len(NAMES))
    part, lorentz = parts[0], helm.geometry == "lorentz"
    c = helm.embedding_curvature if lorentz else 1.0
    start, vocab_size = part.vocab_start_index, min(vocab_size, part.num_embeddings)
    own = part.weight[: max(vocab_size - start, 0)]
    radius = torch.zeros(vocab_size, device=own.device)
    radius[start : start + len(own)] = tokens.radii(own, c).float()
    # The same tokens every time.
    indices = tokens.sample(vocab_size, torch.Generator().manual_seed(0)).to(own.device)
    here = (indices >= start) & (indices < start + len(own))
    chosen = torch.zeros(len(indices), own.shape[1], device=own.device)
    chosen[here] = own[indices[here] - start].float()
    for values in (radius, chosen):
        dist.all_reduce(values, group=part.tp_group)
    delta = tokens.relative_hyperbolicity(tokens.distances(chosen, c if lorentz else None))
    return torch.tensor([radius.median().item(), radius.max().item(), delta])
