"""The router of a MiCE layer: Megatron's, or with the selection rule of the released code."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.moe.router import TopKRouter
from torch import Tensor

from helm_megatron.geometry.lorentz import at_least_fp32
from helm_megatron.transformer_config import HelmTransformerConfig


class MiceRouter(TopKRouter):
    """Megatron's top-k router on space coordinates.

    With `mice_routing="reference"` the released rule, which differs in three points: a softmax
    score is selected with the bias too and not renormalized; a group's score is the sum of its
    two best biased scores; the balance loss counts the experts that were really chosen.

    With `mice_bias_update="proportional"` the bias is moved by `moe.bias`, not by Megatron.
    """

    def __init__(self, config: HelmTransformerConfig, **kwargs: Any) -> None:
        super().__init__(config=config, **kwargs)
        self.moves_bias_in_proportion = config.helm.mice_bias_update == "proportional"
        if config.helm.mice_routing == "reference" and self.expert_bias is None:
            # Megatron offers the bias for sigmoid scores only.
            del self.expert_bias, self.local_tokens_per_expert
            zeros = torch.zeros(config.num_moe_experts, device=self.weight.device)
            self.register_buffer("expert_bias", zeros)
            self.register_buffer("local_tokens_per_expert", zeros.clone(), persistent=False)
            self.enable_expert_bias = self.moves_bias_in_proportion
        if self.moves_bias_in_proportion:
            self.frozen_expert_bias = True  # for Megatron's own update

    def routing(self, logits: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits `[s, b, experts]` to combination weights and routing map, `[s*b, experts]`."""
        if self.config.helm.mice_routing != "reference":
            return super().routing(logits, padding_mask)
        seq_length, batch = logits.shape[:2]
        logits = self.apply_z_loss(logits.flatten(0, 1), padding_mask=padding_mask)
        scores = self.scores(logits)
        chosen = self.select(scores)
        routing_map = torch.zeros_like(scores, dtype=torch.bool).scatter(1, chosen, True)
        probs = scores.gather(1, chosen)
        if self.score_function == "sigmoid":
            probs = probs / probs.sum(dim=-1, keepdim=True)
        probs = probs * (self.config.moe_router_topk_scaling_factor or 1.0)
        probs = torch.zeros_like(scores).scatter(1, chosen, probs)
        if self.training and torch.is_grad_enabled() and self.is_aux_loss_enabled():
            shares = scores / scores.sum(dim=-1, keepdim=True)
            probs = self._apply_aux_loss(probs, shares, routing_map)
            probs = self._apply_seq_aux_loss(probs, shares, routing_map, seq_length, batch)
            probs = self._apply_global_aux_loss(probs, shares, routing_map)
        self._apply_expert_bias(routing_map)
        return probs, routing_map

    def scores(self, logits: Tensor) -> Tensor:
        """Scores of all experts `[tokens, experts]`, in at least fp32."""
        logits = at_least_fp32(logits)
        return logits.sigmoid() if self.score_function == "sigmoid" else logits.softmax(dim=-1)

    def select(self, scores: Tensor) -> Tensor:
        """Indices of the chosen experts, `[tokens, k]`: best biased scores of the best groups."""
        biased = scores.detach() + self.expert_bias.to(scores.dtype)
        groups = self.config.moe_router_num_groups or 1
        if groups > 1:
            by_group = biased.unflatten(-1, (groups, -1))
            group_scores = by_group.topk(2, dim=-1).values.sum(-1)
            kept = group_scores.topk(self.config.moe_router_group_topk, dim=-1).indices
            dropped = torch.ones_like(group_scores, dtype=torch.bool).scatter(1, kept, False)
            biased = by_group.masked_fill(dropped.unsqueeze(-1), -torch.inf).flatten(1)
        return biased.topk(self.topk, dim=-1).indices
