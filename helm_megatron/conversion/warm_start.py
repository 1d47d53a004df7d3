"""HELM-D from a Llama-shaped Hugging Face checkpoint.

With zero time weights a Lorentz linear is the Euclidean one; so are the norm, the rotary encoding,
the feed-forward layers and the logits. Attention and residual are Euclidean only near the origin:
every activation that they see is brought there by a factor `scale` folded into the weights, which
RMSNorm takes off again. Let s be the scale; to first order

- embeddings, values and the output of the feed-forward layers carry s; attention's and residual's
  normalizations then change a vector by O(s^2) of itself;
- keys carry s, and the temperature 2 s sqrt(head width) makes the scores q.k / sqrt(width) again,
  up to s |k|^2 sqrt(|q|^2 + c) / (2 sqrt(c width));
- the residual has the scale 2 of its two terms' mean, and the norms the epsilon s^2 eps.

So the model is the Euclidean one in the limit s -> 0. In fp32, rounding of the scores grows with
1 / s, and what training has to grow back to leave the flat region too.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig

from helm_megatron.conversion import to_hf
from helm_megatron.conversion.defaults import WARM_START_SCALE
from helm_megatron.conversion.tensor_files import TensorFiles
from helm_megatron.conversion.to_hf import ConversionError
from helm_megatron.hf.configuration_helm import HelmConfig

# Settings of a Llama-shaped config that HELM-D has no counterpart for: name and harmless values.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "sliding_window": (None,),
    "use_sliding_window": (None, False),
    "num_local_experts": (None,),
}
# Tensors that carry the scale.
_SCALED = (
    "embed_tokens.weight",
    "k_proj.weight",
    "k_proj.bias",
    "v_proj.weight",
    "v_proj.bias",
    "o_proj.bias",
    "down_proj.weight",
    "down_proj.bias",
)


class LlamaAsHelm:
    """The tensors of a Llama-shaped folder under the names of a Hugging Face HELM-D."""

    def __init__(self, folder: Path, config: HelmConfig, tied: bool, scale: float) -> None:
        """Open the folder.

        Raises:
            ConversionError: it has tensors that HELM-D has no place for.
            TensorFileError: its files cannot be read.
        """
        self.files, self.config, self.scale = TensorFiles(folder), config, scale
        self.head = "model.embed_tokens.weight" if tied else "lm_head.weight"
        self.shapes = to_hf.shapes_of(config)
        stored = set(self.files.names())
        known = {*self.shapes, self.head, "lm_head.weight"}
        # Old checkpoints hold the rotary table.
        extra = sorted(n for n in stored - known if not n.endswith("rotary_emb.inv_freq"))
        if extra:
            raise ConversionError(f"{folder} has {extra[0]}, which HELM-D has no place for")
        self.stored = stored
        self._dtype = self.files.dtype("model.embed_tokens.weight")

    def names(self) -> list[str]:
        """The names of all tensors of the HELM-D."""
        return list(self.shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor; that in the file, if it is taken as it is."""
        source = self.head if name == "lm_head.weight" else name
        if source in self.stored and not name.endswith("o_proj.weight"):
            return self.files.shape(source)
        return self.shapes[name]

    def dtype(self, name: str) -> torch.dtype:
        """The type of all tensors."""
        return self._dtype

    def read(self, name: str) -> Tensor:
        """A tensor of the HELM-D, in the type of the file's."""
        if name == "lm_head.weight":
            return self.files.read(self.head)
        if name.endswith("o_proj.weight"):
            return self._over_ambient_heads(self.files.read(name))
        if name in self.stored:
            tensor = self.files.read(name)
            return tensor * self.scale if name.endswith(_SCALED) else tensor
        return self._new(name).to(self._dtype)

    def _over_ambient_heads(self, weight: Tensor) -> Tensor:
        """A column of zeros for the time of each head."""
        by_head = weight.unflatten(1, (self.config.num_attention_heads, -1))
        return torch.nn.functional.pad(by_head, (1, 0)).flatten(1)

    def _new(self, name: str) -> Tensor:
        """What Llama has not: zero time weights and biases, the neutral ends."""
        shape = self.shapes[name]
        if name.endswith("temperature"):
            return torch.full(shape, 2 * self.scale * math.sqrt(self.config.head_dim or 0))
        if name.endswith("residual.weight"):
            return torch.ones(shape)
        if name == "model.final_proj.weight":
            return torch.eye(*shape)
        if name.endswith((".time_weight", ".bias")):
            return torch.zeros(shape)
        raise ConversionError(f"{self.files.folder} lacks {name}")


def helm_d(folder: Path, scale: float = WARM_START_SCALE) -> tuple[HelmConfig, LlamaAsHelm]:
    """Config and tensors of the HELM-D that a Llama-shaped folder starts.

    Raises:
        ConversionError, TensorFileError: it is not Llama-shaped, or cannot be read.
    """
    if not 0 < scale <= 1:
        raise ConversionError(f"--warm-start-scale {scale}: must be above 0 and at most 1")
    try:
        theirs = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConversionError(f"{folder}/config.json cannot be read: {reason}") from error
    for name, harmless in _UNSUPPORTED.items():
        value = getattr(theirs, name, harmless[0])
        if value not in harmless:
            raise ConversionError(f"{folder}: HELM-D has no {name} {value!r}")
    needed = ("rms_norm_eps", "num_key_value_heads", "rope_parameters", "intermediate_size")
    if missing := [name for name in needed if getattr(theirs, name, None) is None]:
        raise ConversionError(
            f"{folder} holds a {theirs.model_type}, which is not Llama-shaped: no {missing[0]}"
        )
    same = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads"
    same += " num_key_value_heads max_position_embeddings rope_parameters initializer_range"
    same += " bos_token_id eos_token_id pad_token_id"
    config = HelmConfig(
        **{name: getattr(theirs, name, None) for name in same.split()},
        head_dim=getattr(theirs, "head_dim", None),
        rms_norm_eps=theirs.rms_norm_eps * scale**2,
        residual_scale=2 / math.sqrt(theirs.hidden_size + 1),
        dtype=theirs.dtype,
    )
    return config, LlamaAsHelm(folder, config, bool(theirs.tie_word_embeddings), scale)
