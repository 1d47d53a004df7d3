"""Small models of both sides with the same parameters."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from helm_megatron import builder
from helm_megatron.builder import HelmModelConfig
from helm_megatron.config import HelmSettings
from helm_megatron.conversion import in_megatron, settings
from helm_megatron.conversion.source_model import SourceModel
from helm_megatron.conversion.text import Text
from helm_megatron.conversion.to_hf import export
from helm_megatron.hf.modeling_helm import HelmForCausalLM
from helm_megatron.process_groups import one_process
from helm_megatron.transformer_config import HelmMLATransformerConfig, HelmTransformerConfig
from tests.distributed import cases
from tests.distributed.cases import BASE, CURVED, LATENT, MOE, Model
from tests.layers.models import perturb

VOCABULARY, PADDED, POSITIONS = 61, 64, 48

EUCLIDEAN = {"geometry": "euclidean"}
HELM_D_QK_NORM = Model(
    "helm-d-qk-norm",
    {**BASE, "num_query_groups": 2, "qk_layernorm": True, "rotary_interleaved": True},
    CURVED,
)
HMLA_YARN = Model(
    "hmla-yarn",
    {**LATENT, "q_lora_rank": None, "rope_type": "yarn", "rotary_scaling_factor": 4.0}
    | {"original_max_position_embeddings": 16, "mscale": 0.7, "mscale_all_dim": 0.4}
    # Of a table wide enough for the ramp to have a slope.
    | {"qk_pos_emb_head_dim": 16, "rotary_base": 20, "beta_fast": 2.0, "beta_slow": 0.5},
    CURVED,
    latent=True,
)
MLA_TWIN = Model(
    "mla-twin",
    {**LATENT, "q_lora_rank": 10, "rope_type": "yarn", "rotary_scaling_factor": 4.0}
    | {"original_max_position_embeddings": 16, "mscale_all_dim": 0.5},
    EUCLIDEAN,
    latent=True,
)
MICE_TWIN = Model("mice-twin", {**LATENT, **MOE, "q_lora_rank": None}, EUCLIDEAN, latent=True)
MICE_LORENTZ = Model(
    "mice-lorentz-embedding",
    cases.MICE_Q_LORA.config,
    {**cases.SPREAD, "embedding": "lorentz", "embedding_curvature": 0.7},
    latent=True,
)

MODELS = [
    cases.HELM_D,
    cases.HELM_D_MHA,
    cases.HELM_D_TIED,
    cases.HELM_D_TWIN,
    HELM_D_QK_NORM,
    cases.HMLA_DENSE,
    HMLA_YARN,
    MLA_TWIN,
    cases.MICE,
    cases.MICE_Q_LORA,
    cases.MICE_GQA,
    cases.MICE_TOP1,
    cases.MICE_LAYERS,
    cases.MICE_REFERENCE,
    MICE_LORENTZ,
    MICE_TWIN,
]


def model_config(model: Model, dtype: torch.dtype = torch.float32) -> HelmModelConfig:
    """Megatron's model config of a case, for one process."""
    make = HelmMLATransformerConfig if model.latent else HelmTransformerConfig
    config = make(
        **model.config,
        helm=HelmSettings(**model.helm),
        activation_func=F.silu,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        moe_token_dispatcher_type="alltoall",
    )
    tied = model.arguments.get("share_embeddings_and_output_weights", False)
    return builder.model_config(
        config,
        vocab_size=PADDED,
        should_pad_vocab=False,
        seq_length=POSITIONS,
        position_embedding_type="rope",
        share_embeddings_and_output_weights=tied,
    )


@dataclass
class InMemory:
    """Parameters of a Megatron model."""

    state: dict[str, Tensor]

    def names(self):
        return list(self.state)

    def shape(self, name):
        return tuple(self.state[name].shape)

    def dtype(self, name):
        return self.state[name].dtype

    def read(self, name):
        return self.state[name]


def source(model: Model, dtype: torch.dtype = torch.float32, vocabulary=VOCABULARY) -> SourceModel:
    """A Megatron model with random parameters, none of them trivial."""
    config = model_config(model, dtype)
    with one_process():
        megatron = perturb(in_megatron.build(config))
        for buffer, bias in megatron.named_buffers():
            if buffer.endswith("expert_bias"):
                bias.copy_(torch.linspace(-0.1, 0.1, bias.numel()))
    state = megatron.state_dict()
    if config.share_embeddings_and_output_weights:
        state.pop("output_layer.weight", None)
    return SourceModel(
        model.name,
        InMemory({name: tensor for name, tensor in state.items() if tensor is not None}),
        settings.hf_config(config, vocabulary),
        Text(),
        lambda tokens: in_megatron.logits(
            config, lambda other: other.load_state_dict(state, strict=False), tokens, vocabulary
        ),
    )


def exported(folder, model: Model, dtype: torch.dtype = torch.float32) -> HelmForCausalLM:
    """The exported model of a case."""
    export(source(model, dtype), folder, verify=False)
    return HelmForCausalLM.from_pretrained(folder, dtype=dtype).eval()


@dataclass
class MadeOnDemand:
    """Random parameters of given shapes, none of which is kept."""

    shapes: dict[str, tuple[int, ...]]

    def names(self):
        return list(self.shapes)

    def shape(self, name):
        return self.shapes[name]

    def dtype(self, name):
        return torch.float32

    def read(self, name):
        return torch.rand(self.shapes[name])


def large() -> SourceModel:
    """A model of 256 MiB in tensors of at most 8."""
    sizes = dict(num_layers=16, hidden_size=512, ffn_hidden_size=2048, num_attention_heads=8)
    config = model_config(Model("large", {**BASE, **sizes}, CURVED))
    config.transformer.perform_initialization = False
    config.transformer.use_cpu_initialization = True
    with one_process(), FakeTensorMode():
        megatron = in_megatron.build(config)
    shapes = {name: tuple(p.shape) for name, p in megatron.named_parameters()}
    return SourceModel(
        "large", MadeOnDemand(shapes), settings.hf_config(config, PADDED), Text(), None
    )
