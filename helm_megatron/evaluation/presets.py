"""Named lists of tasks, and what guessing scores on them."""

from pathlib import Path

from helm_megatron.evaluation.errors import EvaluationError

# A folder for lm-eval's --include_path.
TASKS = Path(__file__).with_name("tasks")

# Groups that TASKS defines. `paper` is the task list of arXiv:2505.24722 with its shots,
# `paper-as-released` the same scored as its released code does.
AS_RELEASED = "helm_paper_as_released"
PRESETS = {"offline": "helm_offline", "paper": "helm_paper", "paper-as-released": AS_RELEASED}

# Tasks that read installed files only.
OFFLINE_TASKS = frozenset({"helm_offline", "wordnet_hypernymy", "mmlu_dev"})

# One in the number of choices, for tasks of lm-eval's; ours state it in their metadata. A few
# questions of ARC have three or five choices.
CHANCE = {
    "commonsense_qa": 1 / 5,
    "hellaswag": 1 / 4,
    "openbookqa": 1 / 4,
    "mmlu": 1 / 4,
    "arc_challenge": 1 / 4,
}


def task_names(tasks: str) -> list[str]:
    """Return lm-eval's names of a comma-separated list of presets and tasks."""
    return [PRESETS.get(name, name) for part in tasks.split(",") if (name := part.strip())]


def scored_as_released(names: list[str]) -> bool:
    """Whether the tasks are to be scored by the rule of the authors' released evaluation.

    Raises:
        EvaluationError: only some of them are: one run has one rule.
    """
    if AS_RELEASED in names and len(names) > 1:
        raise EvaluationError(
            "--tasks paper-as-released scores by a rule of its own: evaluate the other tasks in "
            "another run"
        )
    return names == [AS_RELEASED]


def is_offline(names: list[str]) -> bool:
    """Whether none of the tasks needs a network."""
    return OFFLINE_TASKS.issuperset(names)
