"""Scores as the authors' released evaluation computes them (arXiv:2505.24722).

A "." goes behind the context unless that ends in ". "; context and continuation are tokenized
apart, the context alone with the tokenizer's special tokens; and the context loses its beginning
where the two are longer than the model's. `python -m helm_megatron.evaluation.as_released` is
lm-eval's command line with this model among its own as `helm-as-released`.
"""

from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model

from helm_megatron.evaluation.command_line import main
from helm_megatron.evaluation.errors import EvaluationError
from helm_megatron.evaluation.own_model import OwnModel


@register_model("helm-as-released")
class AsReleased(OwnModel):
    """A Hugging Face model under the released rule, for tasks that choose among answers."""

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, and whether greedy search would write it."""
        encoded = [(request.args, *self.encoded(*request.args)) for request in requests]
        return self._loglikelihood_tokens(encoded, disable_tqdm=disable_tqdm)

    def encoded(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of the context, cut on its left, and of the continuation.

        Raises:
            EvaluationError: the continuation alone is longer than the model's context.
        """
        if not context.endswith(". "):
            context += "."
        before = self.tok_encode(context, add_special_tokens=True)
        after = self.tok_encode(continuation, add_special_tokens=False)
        room = self.max_length - len(after)
        if room < 1:
            raise EvaluationError(
                f"an answer of {len(after)} tokens leaves no room for its question in the model's "
                f"{self.max_length}; leave the task out"
            )
        return before[-room:], after

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Refuse: the released code has none that runs."""
        raise EvaluationError(_no_such(requests))

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> Any:
        """Refuse: the released code has none."""
        raise EvaluationError(_no_such(requests))


def _no_such(requests: list[Instance]) -> str:
    return (
        f"{requests[0].task_name}: the released evaluation only chooses among answers; evaluate "
        "this task by itself, without paper-as-released"
    )


if __name__ == "__main__":
    main()
