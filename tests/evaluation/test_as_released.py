"""paper-as-released: every item of made data scored as a direct computation of the rule says."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoTokenizer

from helm_megatron.evaluation import harness, paper
from helm_megatron.evaluation.errors import EvaluationError
from helm_megatron.evaluation.presets import TASKS, scored_as_released, task_names
from helm_megatron.evaluation.scores import Score
from helm_megatron.hf.modeling_helm import HelmForCausalLM
from tests.evaluation.models import exported

pytestmark = pytest.mark.usefixtures("one_process")

LETTERS = [
    {"question_stem": "why is it wet", "choices": ["rain", "sun", "sand", "tar"], "answerKey": "A"},
    {
        "question_stem": "who sees",
        "choices": ["ice", "an eel", "tea", "mat"],
        "answerKey": "B",
    },
]
# Contexts that end in ". " and not; an empty one; one of which the model has no room for all.
PLAIN = [
    {"context": "the cat sat. ", "choices": ["it slept", "no"], "gold": 0},
    {"context": "the cat sat.", "choices": ["it slept", "a much longer answer"], "gold": 1},
    {"context": "", "choices": ["one", "two"], "gold": 1},
    {"context": "question: " + "long " * 40 + "\nanswer:", "choices": ["yes", "no no"], "gold": 0},
]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    """OpenBookQA by letters with made data, and a task of plain contexts."""
    folder = tmp_path_factory.mktemp("tasks")
    asked = [row | {"choices": {"text": row["choices"], "label": list("ABCD")}} for row in LETTERS]
    for name, rows in (("letters", asked), ("plain", PLAIN)):
        lines = "\n".join(json.dumps(row) for row in rows)
        (folder / f"{name}.jsonl").write_text(lines + "\n")
    made = yaml.safe_load((TASKS / "openbookqa_letters.yaml").read_text())
    made |= {"dataset_path": "json", "dataset_name": None, "task": "made_letters"}
    made["dataset_kwargs"] = {"data_files": {"test": str(folder / "letters.jsonl")}}
    plain = dict(
        task="made_plain",
        dataset_path="json",
        dataset_kwargs={"data_files": {"test": str(folder / "plain.jsonl")}},
        output_type="multiple_choice",
        test_split="test",
        doc_to_text="{{context}}",
        doc_to_choice="{{choices}}",
        doc_to_target="gold",
        metric_list=[{"metric": "acc"}],
    )
    for config in (made, plain):
        (folder / f"{config['task']}.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture(scope="module")
def outcome(tasks, tmp_path_factory, one_process):
    folder = tmp_path_factory.mktemp("model")
    exported(folder / "hf")
    names = [str(tasks / f"{name}.yaml") for name in ("made_letters", "made_plain")]
    options = harness.Options(
        names, dtype="float32", device="cpu", log_samples=True, as_released=True, batch_size="3"
    )
    return folder / "hf", harness.run(folder / "hf", options, folder / "log")


def log_likelihood(model, tokenizer, context: str, answer: str) -> tuple[float, bool]:
    """The rule, one item at a time."""
    if context[-2:] != ". ":
        context = context + "."
    continuation = tokenizer.encode(" " + answer, add_special_tokens=False)
    limit = model.config.max_position_embeddings
    prompt = tokenizer.encode(context, add_special_tokens=True)[-(limit - len(continuation)) :]
    with torch.no_grad():
        logits = model(torch.tensor([prompt + continuation])).logits[0].log_softmax(-1)
    rows = logits[len(prompt) - 1 : -1]
    chosen = rows.gather(1, torch.tensor(continuation).unsqueeze(1)).sum().item()
    return chosen, bool((rows.argmax(-1) == torch.tensor(continuation)).all())


def expected_letters(row: dict) -> tuple[str, list[str]]:
    lines = [f"({label}) {text}" for label, text in zip("ABCD", row["choices"], strict=True)]
    return "\n".join([row["question_stem"], *lines, "", "Answer:", ""]), list("ABCD")


def test_every_item_is_scored_by_the_rule(outcome) -> None:
    folder, found = outcome
    model = HelmForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked = {
        "made_letters": [(*expected_letters(row), row["answerKey"]) for row in LETTERS],
        "made_plain": [(row["context"], row["choices"], row["gold"]) for row in PLAIN],
    }
    items, right = 0, {}
    for task, rows in asked.items():
        samples = [json.loads(line) for line in found.samples[task].splitlines()]
        samples.sort(key=lambda sample: sample["doc_id"])
        assert len(samples) == len(rows)
        right[task] = 0
        for sample, (context, choices, gold) in zip(samples, rows, strict=True):
            values = []
            for answer, response in zip(choices, sample["filtered_resps"], strict=True):
                expected = log_likelihood(model, tokenizer, context, answer)
                value, greedy = float(response[0]), str(response[1]) == "True"
                assert value == pytest.approx(expected[0], rel=1e-5), (context, answer)
                assert greedy == expected[1]
                values.append(expected[0])
                items += 1
            best = values.index(max(values))
            right[task] += (choices[best] if task == "made_letters" else best) == gold
        score = found.results["results"][task]["acc,none"]
        assert score == pytest.approx(right[task] / len(rows))
    assert items == 16
    longest = max(len(tokenizer.encode(row["context"])) for row in PLAIN)
    assert longest > model.config.max_position_embeddings  # one prompt was cut


def test_preset() -> None:
    [name] = task_names("paper-as-released")
    assert scored_as_released([name]) and not scored_as_released(task_names("paper"))
    group = yaml.safe_load((TASKS / f"{name}.yaml").read_text())
    assert [t.get("task", t.get("group")) for t in group["task"]] == [
        *("commonsense_qa", "hellaswag", "openbookqa_letters", "mmlu", "arc_challenge")
    ]
    with pytest.raises(EvaluationError, match="a rule of its own"):
        scored_as_released(task_names("offline,paper-as-released"))


def test_columns_of_the_paper(outcome) -> None:
    folder, _ = outcome
    asked = zip(paper.COLUMNS, (0.2, 0.25, 0.3, 0.22, 0.23), strict=True)
    scores = [
        Score(tasks[-1], "acc", None if tasks == ("mmlu",) else shots, 9, value, None, None)
        for (_, shots, tasks), value in asked
    ]
    table = paper.comparison(scores, folder, Path("mine"))
    assert "| 20.0 | 25.0 | 30.0 | 22.0 | 23.0 | 24.0 |" in table and "mine (0.0M" in table
    assert "published: HELM-MiCE 120M | 19.7 | 25.9 | 27.7 | 24.4 | 23.2 | 24.1 |" in table
    assert "HELM-D" not in table and "1B" not in table
    assert not paper.comparison(scores[1:], folder, Path("mine"))
    for row in paper.PUBLISHED:
        if row.name != "DeepSeekV3 120M (Euclidean)":
            assert sum(row.scores) / 5 == pytest.approx(row.average, abs=0.1)
