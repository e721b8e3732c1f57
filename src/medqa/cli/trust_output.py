"""How calibrations, reports and comparisons look on a terminal."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from medqa.trust.store import CalibrationFile

__all__ = ["print_calibration", "print_comparison", "print_report"]

MIN_SUBJECT_ROWS = 10
SIGNIFICANT = 0.05

PROMPT_NAMES = {"medqa": "own", "lm_eval": "lm-eval's"}


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
        for number, model in enumerate(name for name in ("base", "tuned") if scores[name]):
            score = scores[model]
            table.add_row(
                "" if number else PROMPT_NAMES[prompt],
                model,
                f"{score['num_questions']:,}",
                _interval(score),
                f"{score['nll']:.3f}",
                f"{score['brier']:.3f}",
                f"{score['ece']:.3f}",
            )
    console.print(table)
    for prompt, scores in report["scores"].items():
        if change := scores["change"]:
            console.print(
                f"Change, {PROMPT_NAMES[prompt]} prompt: {100 * change['accuracy_gain']:+.1f} points; "
                f"{change['num_fixed']} questions gained, {change['num_broken']} lost; "
                f"McNemar p = {change['mcnemar_p']:.2g}"
                + ("" if change["mcnemar_p"] < SIGNIFICANT else ": within what chance alone gives")
            )
        if scores["tuned"]["num_too_long"]:
            console.print(f"  {scores['tuned']['num_too_long']} questions were too long and not scored")
    _print_leaks(console, report)
    _print_trust(console, report)
    _print_subjects(console, report)
    if engine := report.get("engine"):
        console.print(escape(f"Measured through a server: {engine['name']}"))
    for text in report["not_measured"]:
        console.print(escape(text))
    page = report["file"].replace(".json", ".html")
    console.print(escape(f"Written to {report['run']}/{page} and {report['file']}"))


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _range(interval: Sequence[float]) -> str:
    return f"({100 * interval[0]:.1f}-{100 * interval[1]:.1f})"


def _print_trust(console: Console, report: dict[str, Any]) -> None:
    """Say how far the tuned model's answers can be trusted."""
    _print_calibrated(console, report["calibration"])
    if orders := report["orders"]:
        console.print(
            f"Option orders: asked in up to {orders['num_orders']}, a question has the same answer in "
            f"{_share(orders['consistency'])} of them ({_share(orders['consistency_when_right'])} where "
            f"it is right, {_share(orders['consistency_when_wrong'])} where it is wrong)"
        )
    if found := report["explanations"]:
        agreement = found["agreement"]
        console.print(
            f"Explanations, {found['num_written']} of them: {_share(agreement['share'])} point to the given "
            f"answer when read alone, {_share(found['names_choice'])} name it, {_share(found['finished'])} "
            f"end by themselves, {_share(found['loops'])} repeat themselves"
        )
    if report["traps"]:
        table = Table(title="Traps: the same questions, spoilt", box=box.SIMPLE_HEAD)
        for name in ("trap", "n", "accuracy", "confidence", "before"):
            table.add_column(name, justify="left" if name == "trap" else "right")
        for trap in report["traps"]:
            table.add_row(
                escape(trap["title"].rstrip(".")),
                str(trap["num_questions"]),
                _share(trap["accuracy"]),
                _share(trap["confidence"]),
                _share(trap["confidence_plain"]),
            )
        console.print(table)


def _print_calibrated(console: Console, found: dict[str, Any]) -> None:
    if not found["calibrated"]:
        console.print(escape(f"Not calibrated: {found['reason']}. Confidence is the model's own"))
        return
    score = found["score"]
    low, high = score["ece_interval"]
    console.print(
        f"Calibrated ({found['method']}): ECE {score['ece']:.3f} ({low:.3f}-{high:.3f}; chance alone gives "
        f"{score['ece_by_chance']:.3f}), confidence {_share(score['mean_confidence'])} on average"
    )
    surest = score["accuracy_at_coverage"].items()
    console.print("Right among the surest: " + ", ".join(f"{float(c):.0%}: {_share(a)}" for c, a in surest))
    for one in found["sets"]["lac"].values():
        console.print(
            f"Answer sets of {one['target']:.0%}: {_share(one['coverage'])} "
            f"{_range(one['coverage_interval'])} hold the right option, {one['mean_size']:.2f} options on "
            "average"
        )
    for row in found["abstention"]:
        if row.get("num_answered"):
            console.print(
                f"At most {row['max_risk']:.0%} wrong: answers from {row['threshold']:.0%} confidence on, "
                f"{_share(row['coverage'])} of the questions; {_share(row['risk'])} "
                f"{_range(row['risk_interval'])} of them wrong"
            )
    if missed := [f"{row['max_risk']:.0%}" for row in found["abstention"] if row["threshold"] is None]:
        console.print(f"At most {' or '.join(missed)} wrong: no confidence is enough to promise that")


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
            found = [f"{name} {_interval(without[name])}" for name in ("base", "tuned") if without[name]]
            console.print(f"  without them, {PROMPT_NAMES[prompt]} prompt: {', '.join(found)}")


def _print_subjects(console: Console, report: dict[str, Any]) -> None:
    scores = report["scores"]["medqa"]
    base, tuned = scores["base"] and scores["base"]["subjects"], scores["tuned"]["subjects"]
    large = {name: score for name, score in tuned.items() if score["num_questions"] >= MIN_SUBJECT_ROWS}
    if large:
        table = Table(title="By subject, own prompt", box=box.SIMPLE_HEAD)
        table.add_column("subject")
        for name in ("n", *(["base"] if base else []), "tuned (95 % CI)"):
            table.add_column(name, justify="right")
        for subject, score in large.items():
            before = [_share(base.get(subject, {}).get("accuracy"))] if base else []
            table.add_row(escape(subject), f"{score['num_questions']:,}", *before, _interval(score))
        console.print(table)
    if small := len(tuned) - len(large):
        console.print(f"{small} subjects with fewer than {MIN_SUBJECT_ROWS} questions: see {report['file']}")


def print_calibration(run: Path, file: CalibrationFile) -> None:
    """Print what calibration found, for each number of option orders."""
    console = Console(emoji=False, highlight=False)
    used = file.record["data"]["num_used"]
    console.print(
        f"Calibrated on {used['calibration']:,} questions that were held back from training; the method was "
        f"chosen by {used['selection']:,} others"
    )
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("orders", "method", "accuracy", "confidence", "ECE", "NLL"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for number, found in sorted(file.by_orders.items()):
        before, after = found.account["before"], found.account["after"]
        values = found.calibrator.to_json().items()
        numbers = ", ".join(f"{name} {value:.3f}" for name, value in values if isinstance(value, float))
        table.add_row(
            str(number),
            numbers or found.calibrator.method,
            _share(after["accuracy"]),
            f"{_share(before['mean_confidence'])} -> {_share(after['mean_confidence'])}",
            f"{before['ece']:.3f} -> {after['ece']:.3f}",
            f"{before['nll']:.3f} -> {after['nll']:.3f}",
        )
    console.print(table)
    console.print(escape(f"Written to {run}/adapter/calibration.json"))


def print_comparison(found: dict[str, Any]) -> None:
    """Print two runs on the same questions."""
    console = Console(emoji=False, highlight=False)
    for name, run, base in zip("AB", found["runs"], found["base_models"], strict=True):
        console.print(escape(f"{name}  {run}  ({base})"))
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("measure", "A", "B", "B - A (95 % CI)", "p"):
        table.add_column(name, justify="left" if name == "measure" else "right")
    for prompt, one in found["prompts"].items():
        low, high = one["accuracy_gain_interval"]
        table.add_row(
            f"accuracy, {PROMPT_NAMES[prompt]} prompt",
            *map(_share, one["accuracy"]),
            f"{100 * one['accuracy_gain']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})",
            f"{one['mcnemar_p']:.2g}",
        )
    for key, name in (("nll", "NLL"), ("brier", "Brier"), ("ece", "ECE")):
        one = found["confidence"][key]
        low, high = one["change_interval"]
        change = f"{one['change']:+.3f} ({low:+.3f} to {high:+.3f})"
        table.add_row(name, *(f"{value:.3f}" for value in one["each"]), change, "")
    console.print(table)
    if raw := [n for n, done in zip("AB", found["confidence"]["calibrated"], strict=True) if not done]:
        console.print(
            f"Not calibrated: {' and '.join(raw)}; those measures are of the model's own confidence"
        )
    one = found["prompts"]["medqa"]
    console.print(
        f"{one['num_fixed']} questions only B has right, {one['num_broken']} only A"
        + ("" if one["mcnemar_p"] < SIGNIFICANT else ": within what chance alone gives")
    )
