"""Compare variants of a model: train them over learning rates and seeds, then test the difference.

The file names variants as flags of pretrain_helm.py (examples/studies/). Each variant's learning
rate is chosen on some seeds and reported on others; differences are paired by seed. Runs that are
done are skipped, so a study that was stopped, or killed, goes on when it is called again.

Example:
    helm-megatron study examples/studies/geometry.toml --output-dir studies/geometry --at-once 2

As a SLURM array, `--list` says how many tasks there are, and `--task $SLURM_ARRAY_TASK_ID` runs one
(slurm/study.sbatch). It writes table.md, table.json and curves.png beside the runs' folders.
"""

import argparse
import sys
from pathlib import Path

from helm_megatron.commands.options import not_negative, positive
from helm_megatron.data.output import staged
from helm_megatron.errors import HelmError
from helm_megatron.study import queue, report
from helm_megatron.study.config import Run, Study, read
from helm_megatron.study.cost import Cost, cost_of
from helm_megatron.study.errors import StudyError
from helm_megatron.study.records import Answers, Record


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path, help="the TOML file")
    parser.add_argument("--output-dir", type=Path, required=True, help="folder of runs and tables")
    parser.add_argument("--size", help="one of the file's sizes (default: its first)")
    parser.add_argument(
        "--at-once", type=positive, default=1, help="runs side by side (default: 1)"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="list the tasks, and run none")
    what.add_argument("--task", type=not_negative, help="run only the task of this number")
    what.add_argument("--report", action="store_true", help="write the tables of what is done")
    return parser.parse_args()


class Work:
    """A study in its output folder."""

    def __init__(self, study: Study, output: Path) -> None:
        self.study, self.output = study, output

    def job(self, run: Run, rate: float) -> queue.Job:
        """The job of a run."""
        return queue.job(self.study, run, rate, self.output)

    def selections(self) -> list[queue.Job]:
        """The jobs that select learning rates."""
        runs = self.study.selections()
        return [self.job(run, run.learning_rate) for run in runs if run.learning_rate is not None]

    def chosen(self) -> dict[str, report.Selection]:
        """The learning rate of each variant, by the runs that are done."""
        return report.select(self.study, self.selections())

    def reports(self, chosen: dict[str, report.Selection]) -> list[queue.Job]:
        """The jobs that are reported, of the variants whose learning rate is known."""
        rated = [(run, chosen[run.variant].rate) for run in self.study.reports()]
        return [self.job(run, rate) for run, rate in rated if rate is not None]

    def write(self, failed: dict[int, str]) -> str:
        """Write table and figure of all runs that are done, and return the table."""
        chosen = self.chosen()
        records: dict[tuple[str, int], Record] = {}
        costs: dict[str, Cost] = {}
        answers: dict[tuple[str, int], dict[str, Answers]] = {}
        for job in self.reports(chosen):
            name, rate, record = job.run.variant, chosen[job.run.variant].rate, job.record
            if record is None or rate is None:
                continue
            records[name, job.run.seed] = record
            if job.tasks and (scores := job.scores) is not None:
                answers[name, job.run.seed] = scores
            if name not in costs:
                flags = self.study.command_flags(job.run, rate)
                costs[name] = cost_of(flags, record.vocabulary)
        named = {run.number: run for run in [*self.study.selections(), *self.study.reports()]}
        reasons = [
            f"task {number}, {named[number].variant}, seed {named[number].seed}: {reason}"
            for number, reason in sorted(failed.items())
        ]
        reasons += [
            f"{name}: no learning rate was selected"
            for name, selection in chosen.items()
            if selection.rate is None
        ]
        table = report.rows(self.study, chosen, records, costs, answers)
        text = report.markdown(self.study, table, reasons)
        folder = self.output / self.study.size
        folder.mkdir(parents=True, exist_ok=True)
        names = [folder / name for name in ("curves.png", "table.json", "table.md")]
        with staged(names, True) as [curves, data, last]:
            report.draw(self.study, records, curves)
            data.write_text(report.as_json(self.study, table, reasons), encoding="utf-8")
            last.write_text(text, encoding="utf-8")
        return text


def run_task(work: Work, number: int) -> dict[int, str]:
    """Run one task of an array job, which holds its own folder only: others run beside it."""
    study = work.study
    every = [*study.selections(), *study.reports()]
    if number >= len(every):
        raise StudyError(f"--task {number}: there are tasks 0 to {len(every) - 1}")
    run = every[number]
    rate = run.learning_rate
    if rate is None:
        rate = work.chosen()[run.variant].rate
    if rate is None:
        raise StudyError(
            f"--task {number}: {run.variant} has no learning rate yet: run tasks 0 to "
            f"{len(study.selections()) - 1} first"
        )
    job = work.job(run, rate)
    with queue.lock(job.folder) as held:
        return queue.run_all([job], 1, held)


def do(args: argparse.Namespace) -> int:
    """Do what the command line says; returns the exit code."""
    work = Work(read(args.study, args.size), args.output_dir)
    study = work.study
    if args.list:
        selections = len(study.selections())
        for run in [*study.selections(), *study.reports()]:
            rate = "the selected rate" if run.learning_rate is None else f"{run.learning_rate:g}"
            print(f"{run.number}\t{run.variant}\tseed {run.seed}\t{rate}")
        print(f"tasks 0 to {selections - 1} select learning rates", file=sys.stderr)
        return 0
    if args.task is not None:
        return 1 if run_task(work, args.task) else 0
    failed: dict[int, str] = {}
    if not args.report:
        with queue.lock(args.output_dir) as held:
            failed |= queue.run_all(work.selections(), args.at_once, held)
            failed |= queue.run_all(work.reports(work.chosen()), args.at_once, held)
    print(work.write(failed), end="")
    print(f"\ntable.md, table.json, curves.png: {args.output_dir / study.size}", file=sys.stderr)
    return 1 if failed else 0


def main() -> int:
    """Run the tool; a problem ends it with one line and exit code 1."""
    args = parse_args()
    try:
        return do(args)
    except HelmError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; call it again to go on")
