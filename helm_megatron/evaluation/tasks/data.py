"""The questions of the tasks beside this file, which lm-eval reads without a network.

This folder works by itself, also where helm_megatron is not installed: `lm_eval --include_path`.
lm-eval hands a task's metadata to these functions as keywords; they need none of it.
"""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import lm_eval.tasks
import yaml
from datasets import Dataset, DatasetDict

HERE = Path(__file__).parent

# "What ...?\n(A) one (B) two (C) three (D) four", and "Let's think ... The answer is (B)."
QUESTION = re.compile(r"(.*?)\n\s*\(A\)(.*)\(B\)(.*)\(C\)(.*)\(D\)(.*)", re.DOTALL)
ANSWER = re.compile(r"answer is \(([ABCD])\)")


def wordnet_hypernymy(**_: Any) -> DatasetDict:
    """Return the questions that examples/wordnet/make_questions.py made of WordNet."""
    with gzip.open(HERE / "wordnet_hypernymy.jsonl.gz", "rt", encoding="utf-8") as lines:
        return DatasetDict(test=Dataset.from_list([json.loads(line) for line in lines]))


def mmlu_dev(**_: Any) -> DatasetDict:
    """Return the MMLU dev questions that lm-eval carries as examples of worked answers.

    They are MMLU's few-shot examples, 4 or 5 a subject, not its test. The one question with five
    choices is left out.
    """
    folder = Path(lm_eval.tasks.__file__).parent / "mmlu" / "flan_cot_fewshot"
    questions = []
    for path in sorted(folder.glob("mmlu_*.yaml")):
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        subject = config["dataset_name"].replace("_", " ")
        for sample in config["fewshot_config"]["samples"]:
            asked = QUESTION.fullmatch(sample["question"])
            answer = ANSWER.search(sample["target"])
            if asked and answer:
                text, *choices = (part.strip() for part in asked.groups())
                questions.append(
                    {
                        "subject": subject,
                        "question": text,
                        "choices": choices,
                        "answer": "ABCD".index(answer[1]),
                    }
                )
    if not questions:
        raise FileNotFoundError(f"{folder}: this version of lm-eval carries no MMLU questions")
    return DatasetDict(test=Dataset.from_list(questions))
