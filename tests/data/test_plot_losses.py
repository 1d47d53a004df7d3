import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from helm_megatron.analysis.losses import read_curve


def log_run(folder, losses, validation):
    with SummaryWriter(folder) as writer:
        for tag, curve in (("lm loss", losses), ("lm loss validation", validation)):
            for iteration, loss in curve.items():
                writer.add_scalar(tag, loss, iteration)


@pytest.fixture
def log(tmp_path):
    """The folder of a run that was resumed from iteration 10 after it had reached 19."""
    log_run(tmp_path / "log", {i: 9 - i for i in range(20)}, {10: 8.5, 15: 7.75})
    log_run(tmp_path / "log", {i: 8 - i for i in range(11, 30)}, {15: 7.25, 20: 6.125})
    return tmp_path / "log"


def test_resumed_run_gives_one_curve(log):
    events = EventAccumulator(str(log)).Reload()
    expected = [(i, 9 - i if i < 11 else 8 - i) for i in range(30)]
    assert read_curve(events, "lm loss") == expected
    assert read_curve(events, "lm loss validation") == [(10, 8.5), (15, 7.25), (20, 6.125)]
    assert read_curve(events, "other") == []


def test_tool(run_tool, log, tmp_path):
    png = tmp_path / "new" / "loss.png"
    done = run_tool("plot_losses.py", "--tensorboard-dir", log, "--output", png)
    assert done.returncode == 0, done.stderr
    assert "validation loss at iteration 20: 6.1250 nats per token\n" in done.stdout
    plain = png.read_bytes()
    assert plain.startswith(b"\x89PNG")

    flags = ["--tensorboard-dir", log, "--output", png, "--unigram-entropy", 6.5]
    done = run_tool("plot_losses.py", *flags)
    assert "(unigram entropy of the validation tokens: 6.5000)" in done.stdout
    assert png.read_bytes() != plain


@pytest.mark.parametrize("made", [False, True])
def test_folder_without_losses(run_tool, tmp_path, made):
    folder = tmp_path / "log"
    if made:
        folder.mkdir()
    flags = ["--tensorboard-dir", folder, "--output", tmp_path / "loss.png"]
    done = run_tool("plot_losses.py", *flags)
    assert done.returncode == 1
    assert done.stderr.strip().startswith(f"error: {folder}: no ")
    assert not (tmp_path / "loss.png").exists()
