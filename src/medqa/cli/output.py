"""How results look on a terminal."""

import json
import logging
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from medqa.records import LETTERS, Answer
from medqa.runs import RunFolder

__all__ = [
    "print_answer",
    "print_fields",
    "print_json",
    "print_report",
    "print_rows",
    "print_trained",
    "set_up_logging",
]

BAR_WIDTH = 24
MIN_SUBJECT_ROWS = 10
SIGNIFICANT = 0.05

PROMPT_NAMES = {"medqa": "own", "lm_eval": "lm-eval's"}


def set_up_logging() -> None:
    """Send the package's notices to stderr; other libraries speak only in errors."""
    handler = logging.StreamHandler()
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.ERROR)
    logging.getLogger("medqa").setLevel(logging.INFO)


def print_json(value: Any) -> None:
    """Print one JSON object."""
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def print_rows(rows: Sequence[tuple[str, str]]) -> None:
    """Print names with what they are for."""
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        print(f"{name:<{width}}  {text}")


def print_fields(fields: Sequence[tuple[str, Any, str]]) -> None:
    """Print every setting: key, default, meaning."""
    table = Table("setting", "default", "meaning", box=None, pad_edge=False)
    for key, value, text in fields:
        table.add_row(key, escape(str(value)), escape(text))
    Console(emoji=False).print(table)


def print_trained(run: RunFolder) -> None:
    """Print what training did and what to do next."""
    training = run.record["training"]
    seconds = training["seconds"]
    print(
        f"Trained on {training['num_rows']:,} questions "
        f"in {seconds['train']:.0f} s ({training['tokens_per_second']:,.0f} tokens/s)"
    )
    print(f"Adapter   {run.path}/adapter")
    print(f"Curve     {run.path}/loss.png")
    if "report" in run.record:  # scored already, within its time
        print(f"Next      medqa ask {run.path}")
        return
    print(f"Next      medqa evaluate {run.path}")
    print(f"          medqa ask {run.path}")


def _interval(score: dict[str, Any]) -> str:
    low, high = score["accuracy_interval"]
    return f"{100 * score['accuracy']:.1f} % ({100 * low:.1f}-{100 * high:.1f})"


def print_report(report: dict[str, Any]) -> None:
    """Print the scores of base and tuned model, and the subjects."""
    console = Console(emoji=False, highlight=False)
    data = report["data"]
    title = f"{report['base_model']} on {data['name']}, {data['split']}"
    if not report["whole_split"]:
        title += f": {data['num_used']:,} of {data['num_with_key']:,} questions"
    table = Table(title=escape(title), box=box.SIMPLE_HEAD)
    for name in ("prompt", "model", "n", "accuracy (95 % CI)", "NLL", "Brier", "ECE"):
        table.add_column(name, justify="left" if name in ("prompt", "model") else "right")
    for prompt, scores in report["scores"].items():
        for model in ("base", "tuned"):
            score = scores[model]
            table.add_row(
                PROMPT_NAMES[prompt] if model == "base" else "",
                model,
                f"{score['num_questions']:,}",
                _interval(score),
                f"{score['nll']:.3f}",
                f"{score['brier']:.3f}",
                f"{score['ece']:.3f}",
            )
    console.print(table)
    for prompt, scores in report["scores"].items():
        change = scores["change"]
        console.print(
            f"Change, {PROMPT_NAMES[prompt]} prompt: {100 * change['accuracy_gain']:+.1f} points; "
            f"{change['num_fixed']} questions gained, {change['num_broken']} lost; "
            f"McNemar p = {change['mcnemar_p']:.2g}"
            + ("" if change["mcnemar_p"] < SIGNIFICANT else ": within what chance alone gives")
        )
        if scores["tuned"]["num_too_long"]:
            console.print(f"  {scores['tuned']['num_too_long']} questions were too long and not scored")
    _print_leaks(console, report)
    _print_subjects(console, report)
    predictions = report["file"].replace("report", "predictions", 1).replace(".json", ".jsonl")
    console.print(escape(f"Written to {report['run']}/{report['file']} and {predictions}"))


def _print_leaks(console: Console, report: dict[str, Any]) -> None:
    leaks = report["leaks"]
    if not leaks["looked_for"]:
        console.print(escape(f"Leaks from training were not looked for: {leaks['reason']}"))
        return
    counts = ", ".join(f"{count:,} {kind}" for kind, count in leaks["counts"].items() if count)
    console.print(
        f"Leaks: {leaks['num_flagged']:,} of {report['data']['num_used']:,} questions are flagged"
        + (f" ({counts})" if counts else "")
    )
    for prompt, scores in report["scores"].items():
        if without := scores["without_flagged"]:
            console.print(
                f"  without them, {PROMPT_NAMES[prompt]} prompt: base {_interval(without['base'])}, "
                f"tuned {_interval(without['tuned'])}"
            )


def _print_subjects(console: Console, report: dict[str, Any]) -> None:
    scores = report["scores"]["medqa"]
    base, tuned = scores["base"]["subjects"], scores["tuned"]["subjects"]
    large = {name: score for name, score in tuned.items() if score["num_questions"] >= MIN_SUBJECT_ROWS}
    if large:
        table = Table(title="By subject, own prompt", box=box.SIMPLE_HEAD)
        table.add_column("subject")
        for name in ("n", "base", "tuned (95 % CI)"):
            table.add_column(name, justify="right")
        for subject, score in large.items():
            before = f"{100 * base[subject]['accuracy']:.1f} %" if subject in base else ""
            table.add_row(escape(subject), f"{score['num_questions']:,}", before, _interval(score))
        console.print(table)
    if small := len(tuned) - len(large):
        console.print(f"{small} subjects with fewer than {MIN_SUBJECT_ROWS} questions: see report.json")


def print_answer(answer: Answer, options: Sequence[str]) -> None:
    """Print an answer: question, a bar for each option, the explanation, the notice."""
    console = Console(emoji=False, highlight=False)
    console.print(escape(answer.question))
    for letter, option in zip(LETTERS, options, strict=False):
        share = answer.probabilities[letter]
        bar = "\u2588" * round(share * BAR_WIDTH)
        mark = ">" if letter == answer.letter else " "
        console.print(f"{mark} {letter}. {share:6.1%} [cyan]{bar:<{BAR_WIDTH}}[/] {escape(option)}")
    console.print(
        f"\n[bold]Answer: {answer.letter}. {escape(answer.option)}[/] (confidence {answer.confidence:.0%})"
    )
    if answer.explanation is not None:
        console.print(escape(answer.explanation) or "(the model wrote no explanation)")
        if not answer.explanation_finished:
            console.print("[yellow](cut here: the explanation reached its length limit)[/]")
    console.print(f"\n[dim]{answer.notice}[/]")
