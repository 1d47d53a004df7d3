"""A job array that tokenizes, under SLURM itself: requeued, in a folder whose name has a space."""

import json
import subprocess
import sys

from tests.slurm.conftest import ROOT


def test_a_requeued_array_makes_nothing_twice(cluster, jobs):
    folder = jobs.folder / "a corpus"
    folder.mkdir()
    paths = [folder / f"text{i}.jsonl" for i in range(3)]
    for path in paths:
        path.write_text('{"text": "river stone lantern"}\n')
    (folder / "list").write_text("\n".join(map(str, paths)))
    (folder / "words.txt").write_text("\n".join(f"river stone lantern {i}" for i in range(300)))
    train = [sys.executable, ROOT / "tools" / "train_tokenizer.py", "--vocab-size", "290"]
    names = ["--input", folder / "words.txt", "--output-prefix", folder / "words"]
    subprocess.run([*train, *names], check=True, capture_output=True, timeout=300)
    script = ["slurm/preprocess.sbatch", folder / "list", folder / "data"]
    script += ["--tokenizer-type", "SentencePieceTokenizer"]
    script += ["--tokenizer-model", folder / "words.model"]
    env = jobs.env | {"SBATCH_OUTPUT": str(folder / "job-%A-%a.out")}
    array = cluster.submit("--array=0-1", *script, env=env, cwd=ROOT)

    def completed():
        states = cluster.run("scontrol", "--oneliner", "show", "job", array)
        assert "JobState=FAILED" not in states, states
        return states.count("JobState=COMPLETED") == 2

    cluster.wait_until(completed, 120, "tokenized files")
    cluster.run("scontrol", "requeue", f"{array}_0")
    cluster.wait_until(lambda: not completed(), 60, "requeue")
    cluster.wait_until(completed, 120, "end of the requeued task")
    assert (folder / f"job-{array}-0.out").read_text().count("complete already") == 2
    merge = cluster.submit(*script, env=env, cwd=ROOT)
    assert cluster.wait(merge) == "COMPLETED"
    made = json.loads((folder / "data_text_document.json").read_text())
    assert made["counts"]["documents"] == 3
