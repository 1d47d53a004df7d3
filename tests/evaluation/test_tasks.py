"""The tasks that travel with the repository."""

import gzip
import json
import math
import re
from collections import Counter, defaultdict
from pathlib import Path

import lm_eval.tasks
import pytest
from lm_eval.tasks import TaskManager, _factory

from helm_megatron.evaluation.presets import OFFLINE_TASKS, PRESETS, TASKS, is_offline, task_names

DATA = Path(__file__).parents[2] / "examples" / "data"
CORPUS = DATA / "wordnet_glosses.jsonl.gz"
HYPERNYMS = DATA / "wordnet_hypernyms.jsonl.gz"
LM_EVAL_TASKS = Path(lm_eval.tasks.__file__).parent


def read(path):
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def questions():
    return read(TASKS / "wordnet_hypernymy.jsonl.gz")


def test_questions_are_fair(questions):
    assert len(questions) == 1000
    assert len({question["term"] for question in questions}) == 1000
    positions = Counter(question["answer"] for question in questions)
    # Four standard deviations around a quarter.
    assert all(195 <= positions[position] <= 305 for position in range(4))
    for question in questions:
        assert len(set(question["choices"])) == 4
        words = {word for choice in question["choices"] for word in choice.split()}
        assert words.isdisjoint(question["term"].split())


def test_wrong_choices_are_as_common_as_right_ones(questions):
    """Always choosing the word that most often is a right answer gains nothing."""
    right = Counter(question["choices"][question["answer"]] for question in questions)
    hits = 0.0
    for question in questions:
        # Not counting the question itself.
        own = question["choices"][question["answer"]]
        counts = [right[choice] - (choice == own) for choice in question["choices"]]
        best = [place for place, count in enumerate(counts) if count == max(counts)]
        hits += (question["answer"] in best) / len(best)
    assert hits / len(questions) < 0.30


@pytest.mark.parametrize("corpus", [CORPUS, HYPERNYMS], ids=lambda corpus: corpus.name)
def test_answers_are_held_out_of_the_corpus(questions, corpus):
    """What states an answer is in the part that `--split 95,5,0` does not train on."""
    texts = [document["text"] for document in read(corpus)]
    # "lion, king of beasts, Panthera leo: a kind of big cat. ..."
    stated = re.compile(r"([^,:]+)(?:,[^:]*)?: a kind of ([^.]+)\.")
    facts = {
        match.groups(): place for place, text in enumerate(texts) if (match := stated.match(text))
    }
    for question in questions:
        answer = question["choices"][question["answer"]]
        assert facts[question["term"], answer] >= 0.95 * len(texts), question


def test_hypernyms_are_the_first_sentences_of_the_glosses():
    for entry, first in zip(read(CORPUS), read(HYPERNYMS), strict=True):
        assert entry["text"].startswith(first["text"] + " ")


def pieces(word):
    """The substrings of three to five characters of a word, its ends marked."""
    word = f"^{word}$"
    return {word[i : i + n] for n in (3, 4, 5) for i in range(len(word) - n + 1)}


def test_answers_can_be_inferred_from_the_corpus(questions):
    """Naive Bayes on pieces of words, learned from the part to train on, does better than guess."""
    words = defaultdict(list)
    texts = [document["text"] for document in read(CORPUS)]
    for text in texts[: int(0.95 * len(texts))]:
        if match := re.match(r"([^:.]+): a kind of ([^.]+)\.", text):
            words[match[2]] += match[1].lower().split(", ")
    counts = {kind: Counter(p for word in words[kind] for p in pieces(word)) for kind in words}
    total = Counter()
    for seen in counts.values():
        total.update(seen)
    number = sum(map(len, words.values()))

    def surprise(term, kind):
        """How much likelier the term's pieces are below this kind than anywhere, as a logarithm."""
        seen, size = counts.get(kind, Counter()), len(words.get(kind, ()))
        expected = {piece: (total[piece] + 1) / number for piece in pieces(term)}
        return sum(math.log((seen[p] / e + 1) / (size + 1)) for p, e in expected.items())

    right = sum(
        max(question["choices"], key=lambda kind: surprise(question["term"], kind))
        == question["choices"][question["answer"]]
        for question in questions
    )
    assert right / len(questions) > 0.4


def test_offline_tasks_load():
    manager = TaskManager(include_path=TASKS, include_defaults=False)
    of_paper = {"helm_paper", "helm_paper_as_released", "openbookqa_letters"}
    assert set(manager.all_tasks) == OFFLINE_TASKS | of_paper
    tasks = manager.load(["helm_offline"])["tasks"]
    docs = {name: list(task.test_docs()) for name, task in tasks.items()}
    assert len(docs["wordnet_hypernymy"]) == 1000
    # The questions of all subjects but one with five choices.
    assert len(docs["mmlu_dev"]) == 281
    assert len({doc["subject"] for doc in docs["mmlu_dev"]}) == 57
    for doc in docs["mmlu_dev"]:
        assert doc["question"] and all(doc["choices"]) and len(doc["choices"]) == 4
    first = docs["wordnet_hypernymy"][0]
    assert tasks["wordnet_hypernymy"].doc_to_text(first) == f"{first['term']}: a kind of"


def test_paper_preset_has_the_papers_shots(monkeypatch):
    """lm-eval builds the preset's tasks with these shots; their data would need a network."""
    built = {}

    class Task:
        def __init__(self, config):
            self.task_name = self.config = None
            built[config["task"]] = config["num_fewshot"]

    monkeypatch.setattr(_factory, "ConfigurableTask", Task)
    folders = ["commonsense_qa", "hellaswag", "openbookqa", "mmlu/default", "arc"]
    manager = TaskManager(
        include_path=[TASKS, *(LM_EVAL_TASKS / folder for folder in folders)],
        include_defaults=False,
    )
    manager._factory.build(
        manager.task_index["helm_paper"], overrides=None, registry=manager.task_index
    )
    mmlu = {name: shots for name, shots in built.items() if name.startswith("mmlu_")}
    assert len(mmlu) == 57 and set(mmlu.values()) == {5}
    assert {name: shots for name, shots in built.items() if name not in mmlu} == {
        "commonsense_qa": 0,
        "hellaswag": 0,
        "openbookqa": 0,
        "arc_challenge": 5,
    }


def test_presets():
    assert task_names("offline, arc_easy") == ["helm_offline", "arc_easy"]
    assert is_offline(task_names("offline")) and is_offline(["mmlu_dev"])
    assert not is_offline(task_names("offline,paper"))
    assert set(PRESETS) == {"offline", "paper", "paper-as-released"}
