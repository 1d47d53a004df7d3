import math

import pytest

from helm_megatron.evaluation.chart import draw
from helm_megatron.evaluation.scores import markdown, read_scores, with_unigram

# As lm-eval writes them: a group without a score of its own, one with, and a perplexity.
RESULTS = {
    "results": {
        "helm_paper": {"alias": "helm_paper"},
        "mmlu": {"acc,none": 0.3, "acc_stderr,none": 0.01, "alias": "mmlu"},
        "mmlu_stem": {"acc,none": 0.3, "acc_stderr,none": 0.01},
        "mmlu_anatomy": {"acc,none": 0.5, "acc_stderr,none": 0.1},
        "mmlu_virology": {"acc,none": 0.1, "acc_stderr,none": "N/A"},
        "own": {"acc,none": 0.5, "acc_stderr,none": "N/A", "sample_len": 4},
        "wikitext": {"word_perplexity,none": 20.5, "word_perplexity_stderr,none": "N/A"},
    },
    "group_subtasks": {
        "helm_paper": ["mmlu", "own"],
        "mmlu": ["mmlu_stem"],
        "mmlu_stem": ["mmlu_anatomy", "mmlu_virology"],
    },
    "n-shot": {"mmlu": 5, "own": 0, "wikitext": 0},
    "n-samples": {
        "mmlu_anatomy": {"original": 200, "effective": 100},
        "mmlu_virology": {"original": 200, "effective": 44},
        "own": {"original": 4, "effective": 4},
        "wikitext": {"original": 62, "effective": 62},
    },
    "configs": {"own": {"metadata": {"chance": 0.5}}, "wikitext": {}},
}


def test_groups_stand_for_their_members():
    mmlu, own, wikitext = read_scores(RESULTS)
    assert (mmlu.task, mmlu.questions, mmlu.shots, mmlu.chance) == ("mmlu", 144, 5, 0.25)
    assert (own.task, own.chance, own.stderr, own.deviations) == ("own", 0.5, None, 0)
    assert (wikitext.metric, wikitext.chance, wikitext.deviations) == (
        "word_perplexity",
        None,
        None,
    )
    assert mmlu.deviations == pytest.approx(0.05 / math.sqrt(0.25 * 0.75 / 144))


def test_table_and_chart(tmp_path):
    scores = read_scores(RESULTS)
    lines = markdown(scores).splitlines()
    assert lines[2] == "| mmlu | acc | 5 | 144 | 0.300 | 0.010 | 0.250 | +1.4 sd |"
    assert lines[4] == "| wikitext | word_perplexity | 0 | 62 | 20.500 |  |  |  |"
    draw(scores, "a model", tmp_path / "scores.png")
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")


def test_unigram_stands_beside_chance(tmp_path):
    changed = {name: dict(values) for name, values in RESULTS["results"].items()}
    changed["mmlu"]["acc,none"] = 0.27
    unigram = read_scores(RESULTS | {"results": changed})
    scores = with_unigram(read_scores(RESULTS), unigram)
    assert [(score.value, score.unigram) for score in scores] == [
        (0.3, 0.27),
        (0.5, 0.5),
        (20.5, 20.5),
    ]
    head, rule, first, *_, note = markdown(scores).splitlines()
    assert head.count("|") == rule.count("|") == first.count("|")
    assert head.endswith("| chance | unigram | above chance |")
    assert first == "| mmlu | acc | 5 | 144 | 0.300 | 0.010 | 0.250 | 0.270 | +1.4 sd |"
    assert note.startswith("unigram: ")
    pictures = []
    for shown in (scores, read_scores(RESULTS)):
        draw(shown, "a model", tmp_path / "scores.png")
        pictures.append((tmp_path / "scores.png").read_bytes())
    assert pictures[0] != pictures[1]
