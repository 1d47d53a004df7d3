"""Evaluate a model by stock lm-eval: a Megatron checkpoint or a Hugging Face folder.

A Megatron checkpoint is converted first, into a folder that is removed afterwards; see
tools/checkpoint/convert.py to keep it. --tasks takes any of lm-eval's tasks, and three presets:
`offline` needs no network (WordNet hypernymy, MMLU's dev questions), `paper` is the HELM paper's
list with its numbers of shots (CommonsenseQA, HellaSwag, OpenBookQA, MMLU, ARC-Challenge), and
`paper-as-released` that list scored as the paper's released code does. `--tasks validation
--data-path PREFIX --split 95,5,0` is no task of lm-eval's: loss, perplexity and bits per byte of
the whole validation set, as pretrain_helm.py computes them.

Example:
    python tools/evaluate.py --load checkpoints --tasks offline --output-dir evaluation

With `--unigram-data PREFIX --split 95,5,0` each score stands beside that of a model which knows
only how often each token occurs in the training data. It writes scores.md, scores.json,
scores.png, and lm-eval's own lm_eval.json and lm_eval.log.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from helm_megatron.commands.options import not_negative, positive, seed
from helm_megatron.data.output import own_folder, staged
from helm_megatron.errors import HelmError
from helm_megatron.evaluation.errors import EvaluationError
from helm_megatron.evaluation.harness import Options, Outcome, run
from helm_megatron.evaluation.model import hf_folder
from helm_megatron.evaluation.paper import comparison
from helm_megatron.evaluation.presets import scored_as_released, task_names
from helm_megatron.evaluation.scores import markdown, read_scores, with_unigram


def parse_args() -> argparse.Namespace:
    """Parse the command line; what goes to lm-eval unchanged is named as there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--load", type=Path, required=True, help="Megatron checkpoints or Hugging Face folder"
    )
    parser.add_argument(
        "--ckpt-step", type=not_negative, help="iteration to evaluate (default: the latest)"
    )
    parser.add_argument(
        "--tokenizer-model", help="tokenizer, if it is not where the checkpoint's arguments say"
    )
    parser.add_argument("--output-dir", type=Path, required=True, help="folder for the scores")
    parser.add_argument(
        "--tasks",
        default="offline",
        help="presets, tasks and YAML files, comma-separated (default: offline)",
    )
    parser.add_argument("--limit", type=positive, help="only so many questions of every task")
    parser.add_argument(
        "--num-fewshot", type=not_negative, help="shots, instead of each task's own"
    )
    parser.add_argument("--batch-size", default="8", help="or auto (default: 8)")
    parser.add_argument("--device", help="cuda, cuda:1, cpu, ... (default: a GPU if there is one)")
    parser.add_argument("--dtype", default="auto", help="float32, bfloat16 (default: the model's)")
    parser.add_argument(
        "--log-samples", action="store_true", help="write samples_TASK.jsonl: every answer"
    )
    parser.add_argument(
        "--unigram-data",
        metavar="PREFIX",
        help="the training data, as for --data-path: adds the scores of its unigram model",
    )
    parser.add_argument(
        "--split", help="with --unigram-data or --data-path: as for training, for example 95,5,0"
    )
    parser.add_argument(
        "--data-path", nargs="+", metavar="PREFIX", help="with --tasks validation: as for training"
    )
    parser.add_argument(
        "--seed",
        type=seed,
        help="with --tasks validation: of training (default: Megatron's, 1234)",
    )
    parser.add_argument(
        "--update-card",
        action="store_true",
        help="put the scores into the model card (README.md) of an exported folder",
    )
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run the model's code that is in the folder --load (default: helm_megatron's own)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing scores")
    return parser.parse_args()


def write(
    outcome: Outcome, unigram: Outcome | None, args: argparse.Namespace, published: str
) -> str:
    """Write all files of the output folder, and return the table with what is `published`."""
    from helm_megatron.evaluation.chart import draw  # it imports matplotlib, seconds

    scores = read_scores(outcome.results)
    if unigram is not None:
        scores = with_unigram(scores, read_scores(unigram.results))
    table = markdown(scores) + published
    if outcome.truncated:
        context = outcome.results["max_length"]
        table += f"Prompts longer than the model's {context} tokens lost their beginning.\n"
    summary = {
        "model": str(args.load),
        "tasks": args.tasks,
        "limit": args.limit,
        "unigram_data": args.unigram_data,
        "split": args.split,
        "truncated_prompts": outcome.truncated,
        "lm_eval": outcome.results.get("lm_eval_version"),
        "scores": [asdict(score) for score in scores],
    }
    texts = {f"samples_{task}.jsonl": text for task, text in outcome.samples.items()}
    texts["lm_eval.json"] = json.dumps(outcome.results, indent=2) + "\n"
    texts["scores.md"] = table
    names = [*texts, "scores.png", "scores.json"]
    with staged([args.output_dir / name for name in names], True) as [*paths, chart, last]:
        for path, text in zip(paths, texts.values(), strict=True):
            path.write_text(text, encoding="utf-8")
        draw(scores, args.load.resolve().name, chart)
        last.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return table


def evaluate(args: argparse.Namespace) -> str:
    """Run lm-eval on the model, or validate it, and return the table of scores."""
    if args.trust_remote_code and not (args.load / "config.json").is_file():
        raise EvaluationError(f"--trust-remote-code: {args.load} is no Hugging Face folder")
    check_data(args)
    if args.update_card and not (args.load / "README.md").is_file():
        raise EvaluationError(f"--update-card: {args.load} has no README.md")
    finished = args.output_dir / "scores.json"
    if finished.exists() and not args.overwrite:
        raise EvaluationError(f"{finished} exists; pass --overwrite to replace it")
    if args.tasks == "validation":
        return validate(args)
    names = task_names(args.tasks)
    options = Options(
        names,
        batch_size=args.batch_size,
        device=args.device,
        dtype=args.dtype,
        limit=args.limit,
        num_fewshot=args.num_fewshot,
        log_samples=args.log_samples,
        as_released=scored_as_released(names),
        trust_remote_code=args.trust_remote_code,
    )
    flags = []
    for flag, value in (
        ("--ckpt-step", args.ckpt_step),
        ("--tokenizer-model", args.tokenizer_model),
    ):
        flags += [] if value is None else [flag, str(value)]
    if args.trust_remote_code:
        print(f"running the model's code that is in {args.load}", file=sys.stderr, flush=True)
    try:
        args.output_dir.mkdir(parents=True, exist_ok=True)
        with own_folder(args.output_dir, ".counts-") as temporary:
            counts = count_tokens(args, temporary)
            with hf_folder(args.load, args.output_dir, flags, args.trust_remote_code) as folder:
                unigram = None
                if counts is not None:  # the first to run: it takes seconds and may be refused
                    unigram = run(folder, options, args.output_dir / "unigram.log", counts)
                outcome = run(folder, options, args.output_dir / "lm_eval.log")
                published = comparison(read_scores(outcome.results), folder, args.load)
    except OSError as error:
        raise EvaluationError(f"{error.filename}: {error.strerror}") from error
    table = write(outcome, unigram, args, published)
    if args.update_card:
        update_card(args.load, args.output_dir / "lm_eval.json")
    return table


def check_data(args: argparse.Namespace) -> None:
    """Refuse data without a use, and a validation without data or beside other tasks."""
    validation = "validation" in args.tasks.split(",")
    if validation and args.tasks != "validation":
        raise EvaluationError("--tasks validation is none of lm-eval's: run the others apart")
    if validation and (args.data_path is None or args.split is None):
        raise EvaluationError("--tasks validation needs --data-path and --split, as for training")
    for name in () if validation else ("data_path", "seed"):
        if getattr(args, name) is not None:
            raise EvaluationError(f"--{name.replace('_', '-')} is for --tasks validation")
    if not validation and (args.unigram_data is None) != (args.split is None):
        raise EvaluationError("--unigram-data and --split come together, as for training")
    if validation:
        others = ("unigram_data", "limit", "num_fewshot", "device", "log_samples", "update_card")
        given = [name for name in (*others, "trust_remote_code") if getattr(args, name)]
        if given := given + ["dtype"] * (args.dtype != "auto"):
            raise EvaluationError(f"--{given[0].replace('_', '-')} is not for --tasks validation")
        if not args.batch_size.isdecimal():
            raise EvaluationError(f"--batch-size {args.batch_size}: a number for validation")


def validate(args: argparse.Namespace) -> str:
    """Validate the model and return the table of its loss."""
    from helm_megatron.evaluation import validation

    shuffled_by = 1234 if args.seed is None else args.seed
    what = validation.Validation(args.data_path, args.split, shuffled_by, int(args.batch_size))
    try:
        args.output_dir.mkdir(parents=True, exist_ok=True)
        log = args.output_dir / "validation.log"
        found = validation.validate(args.load, what, log, args.ckpt_step, args.tokenizer_model)
    except OSError as error:
        raise EvaluationError(f"{error.filename}: {error.strerror}") from error
    table = validation.table(args.load, found)
    summary = {"model": str(args.load), "tasks": args.tasks, "data_path": args.data_path}
    summary |= {"split": args.split, "seed": shuffled_by, "scores": found}
    names = [args.output_dir / "scores.md", args.output_dir / "scores.json"]
    with staged(names, True) as [markdown_file, last]:
        markdown_file.write_text(table, encoding="utf-8")
        last.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return table


def count_tokens(args: argparse.Namespace, folder: Path) -> Path | None:
    """Count the tokens of --unigram-data, if given, in a file of a folder."""
    if args.unigram_data is None:
        return None
    from helm_megatron.evaluation.unigram_counts import write_counts  # imports Megatron, seconds

    write_counts(args.unigram_data, args.split, folder / "counts.json")
    return folder / "counts.json"


def update_card(folder: Path, results: Path) -> None:
    """Put lm-eval's results into the model card of an exported folder."""
    from helm_megatron.conversion.card import set_evaluation  # it imports torch, seconds

    try:
        set_evaluation(folder, results)
    except ValueError as error:
        raise EvaluationError(str(error)) from error


def main() -> None:
    """Run the tool; a problem ends it with one line and exit code 1."""
    args = parse_args()
    try:
        table = evaluate(args)
    except HelmError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; no scores were written")
    print(table, end="")
    picture = "" if args.tasks == "validation" else ", scores.png"
    print(f"\nscores.md, scores.json{picture}: {args.output_dir}", file=sys.stderr)
