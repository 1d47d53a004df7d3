"""A model of single tokens for lm-eval: all it knows is how often each occurs in training data.

What it scores on a task is due to how common the answers' words are. `python -m
helm_megatron.evaluation.unigram` is lm-eval's command line with this model among its own as
`unigram`: tasks, metrics and their normalizations are those that any model gets.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model

from helm_megatron.conversion.hf_folder import load_tokenizer
from helm_megatron.data.sidecar import fingerprint
from helm_megatron.evaluation.command_line import main
from helm_megatron.evaluation.errors import EvaluationError


@register_model("unigram")
class Unigram(TemplateLM):
    """log p(token) = log((count + 1) / (tokens + vocabulary)), whatever stands before it.

    A text is split into tokens as lm-eval splits it for a Hugging Face model.

    Args:
        tokenizer: a Hugging Face folder.
        counts: a file of `write_counts`.

    Raises:
        EvaluationError: the data was made with another tokenizer.
    """

    def __init__(self, tokenizer: str, counts: str) -> None:
        super().__init__()
        self.tokenizer: Any = load_tokenizer(Path(tokenizer))
        data = json.loads(Path(counts).read_text(encoding="utf-8"))
        _check_tokenizer(self.tokenizer, tokenizer, data)
        found = np.array(data["counts"], np.int64)
        found = np.pad(found, (0, len(self.tokenizer) - found.size)) + 1
        self.log_probabilities = np.log(found / found.sum())

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> "Unigram":
        """Make it for lm-eval, whose additional settings (batch size, device) concern no counts."""
        return cls(**arg_dict)

    @property
    def eot_token_id(self) -> int:
        """The token that stands before a text without a context."""
        return self.tokenizer.eos_token_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None) -> list[int]:
        """Return the token ids of a text, with the tokenizer's own special ones if not told."""
        told = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return self.tokenizer.encode(string, **told)

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        values = [self.log_probabilities[tokens] for _, _, tokens in requests]
        highest = self.log_probabilities.max()
        return [(float(each.sum()), bool((each == highest).all())) for each in values]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Return the log-probability of each whole text."""
        texts = [self.tok_encode(request.args[0], False) for request in requests]
        return [float(self.log_probabilities[tokens].sum()) for tokens in texts]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Refuse: without a context there is nothing to go on with."""
        raise EvaluationError(
            f"{requests[0].task_name} has the model write its answers, which counts of tokens"
            " cannot; leave the flag or the task out"
        )


def _check_tokenizer(tokenizer: Any, name: str, data: dict[str, Any]) -> None:
    """Refuse counts of another tokenizer's tokens; data without a sidecar goes by its size."""
    prefix, made_with, size = data["data"], data["tokenizer"], len(tokenizer)
    if len(data["counts"]) > size:
        raise EvaluationError(
            f"{prefix} has a token {len(data['counts']) - 1:,}, and the model's tokenizer only"
            f" {size:,} tokens: it is not the data that the model was trained on"
        )
    if made_with is None:
        return
    own = fingerprint(lambda text: tokenizer.encode(text, add_special_tokens=False))
    if made_with["fingerprint"] != own:
        raise EvaluationError(
            f"{prefix} was made with {made_with['type']} {made_with['model']}, which is another"
            f" tokenizer than that of {name}: pass the data that the model was trained on"
        )


if __name__ == "__main__":
    main()
