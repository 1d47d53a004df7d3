"""HELM: language models that live in hyperbolic space (arXiv:2505.24722), for transformers."""

import copy
import math

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.utils import can_return_tuple

from .attention_helm import HelmAttention, HelmLatentAttention
from .configuration_helm import HelmConfig
from .experts_helm import HelmExpert, HelmMoE, HelmRouter
from .lorentz_helm import HelmLinear, HelmMLP, HelmResidual, HelmRMSNorm, make_residual, rescale

# What transformers calls the cache in outputs and in its own functions: "cache" since 5.24.
CACHE = "cache" if hasattr(BaseModelOutputWithPast, "cache") else "past_key_values"


def rotary_table(config, positions):
    """cos and sin `[b, s, rotary width]` of positions `[b, s]`, in fp32."""
    rope = config.rope_parameters
    if rope["rope_type"] == "default":
        width = int(config.head_dim * rope.get("partial_rotary_factor", 1.0))
        exponents = torch.arange(0, width, 2, dtype=torch.float32, device=positions.device) / width
        frequencies, factor = 1.0 / rope["rope_theta"] ** exponents, 1.0
    else:
        frequencies, factor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, positions.device)
    angles = positions.unsqueeze(-1).float() * frequencies
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos() * factor, angles.sin() * factor


class HelmDecoderLayer(GradientCheckpointingLayer):
    """Attention, then a dense or mixture-of-experts feed-forward, each normed and residual."""

    def __init__(self, config, layer_idx):
        super().__init__()
        self.outer_curvature = config.curvature
        if config.geometry == "lorentz" and config.layer_curvatures is not None:
            config = copy.copy(config)
            config.curvature = config.layer_curvatures[layer_idx]
        self.curvature = config.curvature
        attention = HelmAttention if config.kv_lora_rank is None else HelmLatentAttention
        moe = config.moe_layers[layer_idx]
        # A Euclidean table's points enter the first residual with the time of their own curvature.
        c, free = self.outer_curvature, config.embedding == "euclidean"
        first = config.embedding_curvature if layer_idx == 0 and free else c
        self.input_layernorm = HelmRMSNorm(config, config.hidden_size)
        self.self_attn = attention(config, layer_idx)
        self.attn_residual = make_residual(config, None if first == c else first)
        self.post_attention_layernorm = HelmRMSNorm(config, config.hidden_size)
        self.mlp = HelmMoE(config) if moe else HelmMLP(config, config.intermediate_size)
        self.mlp_residual = make_residual(config)

    def forward(self, x, mask, rotary, cache=None):
        x = rescale(x, self.outer_curvature, self.curvature)
        attended = self.self_attn(self.input_layernorm(x), mask, rotary, cache)
        x = self.attn_residual(x, attended)
        x = self.mlp_residual(x, self.mlp(self.post_attention_layernorm(x)))
        return rescale(x, self.curvature, self.outer_curvature)


class HelmPreTrainedModel(PreTrainedModel):
    config_class = HelmConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["HelmDecoderLayer"]
    _skip_keys_device_placement = ["cache", "past_key_values"]
    _keep_in_fp32_modules_strict = ["e_score_correction_bias"]
    _supports_sdpa = True

    @torch.no_grad()
    def _init_weights(self, module):
        std = self.config.initializer_range
        if isinstance(module, (HelmLinear, HelmRouter, nn.Linear, nn.Embedding)):
            init.normal_(module.weight, std=std)
            for name in ("time_weight", "bias", "e_score_correction_bias"):
                if getattr(module, name, None) is not None:
                    init.zeros_(getattr(module, name))
        elif isinstance(module, (HelmRMSNorm, HelmResidual)):
            init.ones_(module.weight)
            if getattr(module, "log_scale", None) is not None:
                init.constant_(module.log_scale, math.log(module.scale))
        elif isinstance(module, (HelmAttention, HelmLatentAttention)) and module.lorentz:
            init.constant_(module.temperature, module.initial_temperature)
        elif isinstance(module, HelmExpert) and module.curvature is not None:
            init.constant_(module.curvature, math.log(math.expm1(1.0)))


class HelmModel(HelmPreTrainedModel):
    """The decoder: token embeddings to normed points at the output curvature."""

    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            HelmDecoderLayer(config, i) for i in range(config.num_hidden_layers)
        )
        lorentz, hidden = config.geometry == "lorentz", config.hidden_size
        self.final_proj = HelmLinear(config, hidden, hidden) if lorentz else None
        self.norm = HelmRMSNorm(config, hidden)
        self.gradient_checkpointing = False
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        cache=None,
        inputs_embeds=None,
        use_cache=None,
        output_hidden_states=None,
        output_attentions=None,
        past_key_values=None,
    ):
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass either input_ids or inputs_embeds")
        config = self.config
        self._refuse_attentions(output_attentions)
        cache, use_cache = self._cache(cache, past_key_values, use_cache)
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if position_ids is None:
            seen = 0 if cache is None else cache.get_seq_length()
            position_ids = torch.arange(seen, seen + x.shape[1], device=x.device).unsqueeze(0)
        mask = create_causal_mask(
            config=config,
            inputs_embeds=x,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **{CACHE: cache},
        )
        rotary = rotary_table(config, position_ids)
        if config.geometry == "lorentz" and config.embedding == "lorentz":
            x = rescale(x, config.embedding_curvature, config.curvature)
        hidden_states = [x]
        for layer in self.layers:
            x = layer(x, mask, rotary, cache=cache)
            hidden_states.append(x)
        if self.final_proj is not None:
            x = rescale(self.final_proj(x), config.curvature, config.output_curvature)
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(x),
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            **{CACHE: cache if use_cache else None},
        )

    def _refuse_attentions(self, wanted):
        if self.config.output_attentions if wanted is None else wanted:
            raise ValueError("output_attentions: HELM's fused attention has no weights to return")

    def _cache(self, cache, past_key_values, use_cache):
        """The cache that layers read and write, if any, and whether it is returned."""
        if cache is not None and past_key_values is not None:
            raise ValueError("pass either cache or past_key_values, two names of one thing")
        cache = past_key_values if cache is None else cache
        # Layers that the backward pass runs again would write their tokens twice.
        again = self.gradient_checkpointing and self.training and torch.is_grad_enabled()
        if again and (cache is not None or use_cache):
            raise ValueError("there can be no cache in training with checkpointed gradients")
        if use_cache is None:
            use_cache = self.config.use_cache and not again
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        return cache, use_cache


class HelmForCausalLM(HelmPreTrainedModel, GenerationMixin):
    """HELM with logits of the ambient vector; labels give the next-token loss."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    # Of Trainer, which else looks for **kwargs: the number of all labels of a step may be given.
    accepts_loss_kwargs = True

    def __init__(self, config):
        super().__init__(config)
        self.model = HelmModel(config)
        self.lm_head = HelmLinear(config, config.hidden_size, config.vocab_size, bias=False)
        self.lm_head.curvature = config.output_curvature
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        cache=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        logits_to_keep=0,
        output_hidden_states=None,
        output_attentions=None,
        past_key_values=None,
        num_items_in_batch=None,
    ):
        """Logits of the last `logits_to_keep` tokens, or of those that it indexes; 0 is all.

        `labels` are the tokens themselves; the loss is their mean, or their sum over
        `num_items_in_batch`, which Trainer gives without labels too when it computes the loss.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            past_key_values=past_key_values,
            return_dict=True,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits,
                labels=labels,
                vocab_size=self.config.vocab_size,
                num_items_in_batch=num_items_in_batch,
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            **{CACHE: getattr(outputs, CACHE)},
        )


__all__ = ["HelmForCausalLM", "HelmModel", "HelmPreTrainedModel"]
