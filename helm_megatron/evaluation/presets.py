"""Named lists of tasks, and what guessing scores on them."""

from pathlib import Path

# A folder for lm-eval's --include_path.
TASKS = Path(__file__).with_name("tasks")

# Groups that TASKS defines. `paper` is the task list of arXiv:2505.24722 with its shots.
PRESETS = {"offline": "helm_offline", "paper": "helm_paper"}

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


def is_offline(names: list[str]) -> bool:
    """Whether none of the tasks needs a network."""
    return OFFLINE_TASKS.issuperset(names)
