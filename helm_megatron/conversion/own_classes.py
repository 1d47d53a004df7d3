"""This project's classes for transformers' Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from helm_megatron.hf.configuration_helm import HelmConfig
from helm_megatron.hf.modeling_helm import HelmForCausalLM, HelmModel
from helm_megatron.hf.tokenization_helm import HelmTokenizer


def use_own_classes() -> None:
    """Let transformers' Auto classes take this project's code for HELM models, not a folder's."""
    AutoConfig.register(HelmConfig.model_type, HelmConfig, exist_ok=True)
    AutoModel.register(HelmConfig, HelmModel, exist_ok=True)
    AutoModelForCausalLM.register(HelmConfig, HelmForCausalLM, exist_ok=True)
    AutoTokenizer.register(HelmConfig, HelmTokenizer, exist_ok=True)
