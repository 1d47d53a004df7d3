"""Configuration of HELM models: HELM-D, HELM-MiCE, and their Euclidean twins."""

import difflib
import math

from transformers import PreTrainedConfig

# Of the code files that travel with a checkpoint; config.json remembers which wrote it. One more
# with every change that folders exported before should get (convert.py --refresh-code).
#   1: transformers < 5.24 (config.json has no code_version)
#   2: the cache under both its names, unknown keywords refused
CODE_VERSION = 2

_CHOICES = {
    "geometry": ("lorentz", "euclidean"),
    "embedding": ("euclidean", "lorentz"),
    "scoring_func": ("softmax", "sigmoid"),
    "mice_routing": ("megatron", "reference"),
    "mice_combine": ("centroid", "reference"),
}
# Whole numbers from 1 to these: what is larger is a damaged file, and would take all memory.
_COUNTS = {
    "vocab_size": 2**31,
    "hidden_size": 2**24,
    "intermediate_size": 2**24,
    "num_hidden_layers": 10_000,
    "num_attention_heads": 2**16,
    "num_key_value_heads": 2**16,
    "head_dim": 2**16,
    "max_position_embeddings": 2**40,
    "num_experts_per_tok": 2**16,
    "q_lora_rank": 2**24,
    "kv_lora_rank": 2**24,
    "qk_nope_head_dim": 2**16,
    "qk_rope_head_dim": 2**16,
    "v_head_dim": 2**16,
    "n_routed_experts": 2**16,
    "moe_intermediate_size": 2**24,
    "shared_expert_intermediate_size": 2**24,
    "n_group": 2**16,
    "topk_group": 2**16,
}
_POSITIVE = (
    "curvature",
    "embedding_curvature",
    "output_curvature",
    "residual_scale",
    "softmax_scale",
    "routed_scaling_factor",
)
_NOT_NEGATIVE = ("rms_norm_eps", "initializer_range")
_SWITCHES = (
    "qk_norm",
    "rope_interleaved",
    "tie_word_embeddings",
    "linear_bias",
    "learn_residual_scale",
    "softmax_before_choice",
    "router_bias",
)
_LATENT = ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")


class HelmConfig(PreTrainedConfig):
    """Shapes count space dimensions only; a curvature c means sectional curvature -1/c.

    `kv_lora_rank` set makes the attention latent (HMLA), whose heads have the widths
    `qk_nope_head_dim`, `qk_rope_head_dim` and `v_head_dim`; `head_dim` is then the rotary width.
    `n_routed_experts` set makes the layers that `moe_layers` marks mixtures of experts.

    A field that is added has the old behaviour as its default: a config.json without it keeps its
    meaning. Further keywords are transformers'; one that is nearly a field's name is refused.
    """

    model_type = "helm"
    keys_to_ignore_at_inference = ["cache", "past_key_values"]

    code_version: int = CODE_VERSION

    vocab_size: int = 32000
    hidden_size: int = 512
    intermediate_size: int = 1536
    num_hidden_layers: int = 6
    num_attention_heads: int = 8
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-5
    qk_norm: bool = False
    rope_parameters: dict | None = None
    # Rotated pairs are (2i, 2i+1) rather than (i, i + width / 2).
    rope_interleaved: bool = False
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    tie_word_embeddings: bool = False

    # "lorentz", or "euclidean" for the twin without time coordinates.
    geometry: str = "lorentz"
    # Of the hidden activations, of the token embeddings, of the input of the logits.
    curvature: float = 1.0
    embedding_curvature: float = 1.0
    output_curvature: float = 1.0
    # Within each layer, if not that of the hidden activations, which is that between layers.
    layer_curvatures: list[float] | None = None
    linear_bias: bool = True
    # In units of sqrt(hidden_size + 1).
    residual_scale: float = 1.0
    learn_residual_scale: bool = False
    # "euclidean": a free table of space coordinates; "lorentz": points at embedding_curvature.
    embedding: str = "euclidean"

    # Latent attention.
    q_lora_rank: int | None = None
    kv_lora_rank: int | None = None
    qk_nope_head_dim: int | None = None
    qk_rope_head_dim: int | None = None
    v_head_dim: int | None = None
    # Of the Euclidean scores, 1 / sqrt(head width) if not set; Lorentz scores have a temperature.
    softmax_scale: float | None = None

    # Mixture of (curvature) experts.
    n_routed_experts: int | None = None
    num_experts_per_tok: int = 2
    moe_layers: list[int] | None = None
    moe_intermediate_size: int | None = None
    shared_expert_intermediate_size: int | None = None
    scoring_func: str = "softmax"
    # Softmax over all experts, then the choice; else over the chosen ones only.
    softmax_before_choice: bool = False
    n_group: int | None = None
    topk_group: int | None = None
    routed_scaling_factor: float | None = None
    router_bias: bool = False
    # "megatron", or "reference" for the rule of the HELM authors' release; see modeling_helm.
    mice_routing: str = "megatron"
    # "centroid", or "reference" for the residual sums of the authors' release.
    mice_combine: str = "centroid"

    def __post_init__(self, **kwargs):
        if self.code_version > CODE_VERSION:
            raise ValueError(
                f"a HELM model of code version {self.code_version}; this code is version "
                f"{CODE_VERSION} and would misread it"
            )
        for key in kwargs:
            if near := difflib.get_close_matches(key, HelmConfig.__annotations__, 1, cutoff=0.85):
                raise TypeError(f"HelmConfig has no {key}: is {near[0]} meant?")
        self._check_numbers()
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.kv_lora_rank is not None:
            self.head_dim = self.qk_rope_head_dim
        elif self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.moe_layers is None:
            self.moe_layers = [int(self.n_routed_experts is not None)] * self.num_hidden_layers
        self._check_layers()
        super().__post_init__(**kwargs)

    def _check_numbers(self):
        """Refuse values that no model has, with a ValueError that names the setting."""
        for name, choices in _CHOICES.items():
            self._check(name, f"one of {', '.join(choices)}", choices.__contains__)
        for name, largest in _COUNTS.items():
            expected = f"a whole number from 1 to {largest:,}"
            self._check(name, expected, lambda n, top=largest: type(n) is int and 1 <= n <= top)
        for name in _POSITIVE:
            self._check(name, "a finite number above 0", lambda x: _is_number(x) and x > 0)
        for name in _NOT_NEGATIVE:
            self._check(name, "a finite number from 0 on", lambda x: _is_number(x) and x >= 0)
        for name in _SWITCHES:
            self._check(name, "true or false", lambda value: type(value) is bool)

    def _check(self, name, expected, holds):
        value = getattr(self, name)
        if not (holds(value) or value is None and getattr(HelmConfig, name) is None):
            raise ValueError(f"{name} is {value!r}; it must be {expected}")

    def _check_layers(self):
        """Refuse settings that contradict each other, with a ValueError that names them."""

        def refuse(what):
            raise ValueError(what)

        layers = self.num_hidden_layers
        for name, expected, holds in (
            ("layer_curvatures", "numbers above 0", lambda c: _is_number(c) and c > 0),
            ("moe_layers", "0s and 1s", lambda value: value in (0, 1)),
        ):
            values = getattr(self, name)
            if values is None:
                continue
            if not isinstance(values, list) or len(values) != layers or not all(map(holds, values)):
                refuse(f"{name} must be a list of {layers} {expected}, one a layer")
        if self.num_attention_heads % self.num_key_value_heads:
            refuse("num_attention_heads must be a multiple of num_key_value_heads")
        if self.kv_lora_rank is not None:
            missing = [name for name in _LATENT if getattr(self, name) is None]
            if missing:
                refuse(f"kv_lora_rank needs {missing[0]}")
        if any(self.moe_layers):
            self._check_experts(refuse)

    def _check_experts(self, refuse):
        experts = self.n_routed_experts
        if experts is None or self.moe_intermediate_size is None:
            refuse("moe_layers needs n_routed_experts and moe_intermediate_size")
        if self.num_experts_per_tok > experts:
            refuse(f"num_experts_per_tok {self.num_experts_per_tok} of {experts} experts")
        if self.topk_group is not None:
            groups = self.n_group
            if groups is None or experts % groups or self.topk_group > groups:
                refuse(f"topk_group {self.topk_group} of n_group {groups} of {experts} experts")


def _is_number(value):
    return type(value) in (int, float) and math.isfinite(value)


__all__ = ["HelmConfig"]
