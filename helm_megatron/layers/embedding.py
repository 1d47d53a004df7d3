"""Token embedding: Megatron's vocabulary-parallel table, read as space coordinates.

A `euclidean` table needs nothing more: the point has the same space coordinates, as in the released
code (`project_emb`). A `lorentz` table holds points to be rescaled.
"""

from __future__ import annotations

from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from torch import Tensor

from helm_megatron.geometry import lorentz


def to_hidden_curvature(module: LanguageModelEmbedding, _: tuple, points: Tensor) -> Tensor:
    """Forward hook of the embedding: bring its points `[s, b, d]` to the hidden curvature."""
    helm = module.config.helm
    return lorentz.rescale(points, helm.embedding_curvature, helm.curvature)
