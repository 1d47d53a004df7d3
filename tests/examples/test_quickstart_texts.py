"""What the quickstart shows of Megatron's log, and what it says of the scores."""

import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from helm_megatron.evaluation.scores import Score

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def iteration(number, loss="| lm loss: 4.512345E+00 ", skipped=0):
    return (
        f" [2026-11-28 13:24:04.410637] iteration {number:8}/     400 | consumed samples: 16 |"
        f" elapsed time per iteration (ms): 180.4 | learning rate: 1.5E-03 {loss}|"
        f" grad norm: 3.198 | number of skipped iterations: {skipped:3} |"
        " number of nan iterations:   0 |\n"
    )


LOG = [
    "using torch.float32 for parameters ...\n",
    "  successfully loaded checkpoint from a/b [ t 1/1, p 1/1 ] at iteration 200\n",
    iteration(1),
    # Two ranks write at once.
    "Number of parameters in transformer block in billions:  0.00" + iteration(90),
    "WARNING: could not find the metadata file\n",
    " helm at iteration 90: curvature 0.09928..2.007\n",
    " validation loss at iteration 100 | lm loss value: 4.25E+00 | lm loss PPL: 7.0E+01 | \n",
    " helm at iteration 100: embedding-radius 0.23..0.317 | attention-temperature 13.99..14 |"
    " expert-load 0.0002441..0.3782 | curvature 0.09928..2.007\n",
    " helm at iteration 200: embedding-radius 0.23..0.317 | attention-temperature 1e-05..14\n",
    iteration(300, loss="", skipped=2),
    "[2026-11-28 13:25:33] saving checkpoint at iteration      10 to a/b in torch_dist format\n",
    "  [2026] successfully saved checkpoint from iteration      400 to a/b [ t 1/1, p 1/1 ]\n",
    "[exiting program at iteration 400] datetime: 2026-11-28 13:26:46.052385 \n",
]
SHOWN = """\
  goes on from iteration 200
  iteration   1/400 | loss 4.512 | 180 ms per iteration
  iteration  90/400 | loss 4.512 | 180 ms per iteration | 0:56 left
  validation loss at iteration 100: 4.250
  curvature 0.10 to 2.01, expert load 0.00 to 0.38, attention temperature 13.99 to 14.00
  attention temperature 0.00 to 14.00
  iteration 300/400 | loss unknown | 180 ms per iteration | 0:18 left | 2 skipped
  checkpoint of iteration 400 saved
  stopped at iteration 400
"""


def test_log_as_a_person_reads_it():
    assert "".join(f"{line}\n" for line in load("quickstart_log").readable(LOG)) == SHOWN


def test_lines_come_at_once():
    """Each as soon as it is known, and bytes that are no text do no harm."""
    command = [sys.executable, EXAMPLES / "quickstart_log.py"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as filter_:
        filter_.stdin.write(b"\xff\xfe\n" + iteration(90).encode())
        filter_.stdin.flush()
        assert filter_.stdout.readline().startswith(b"  iteration  90/400 | loss 4.512")
        filter_.stdin.close()
        assert filter_.wait(timeout=60) == 0


SCORE = Score("words", "acc", 0, 1000, 0.32, 0.015, 0.25, 0.26)


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({}, "That is 5.1 sd above guessing, and clearly above the unigram model."),
        ({"unigram": 0.3}, "5.1 sd above guessing, but not clearly above the unigram model."),
        ({"value": 0.26}, "That is not clearly above guessing (+0.7 sd)."),
        ({"value": 0.2}, "That is not clearly above guessing (-3.7 sd)."),
    ],
)
def test_verdict_is_that_of_the_numbers(changed, verdict):
    score = replace(SCORE, **changed)
    said = load("quickstart_scores").sentence(score)
    numbers = f"words (acc): {score.value:.3f} are right; guessing gives 0.250, the unigram model"
    assert said.startswith(f"{numbers} {score.unigram:.3f}. ") and said.endswith(verdict)
