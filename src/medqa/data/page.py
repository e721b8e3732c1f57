"""The page that shows a reader who has never seen the questions what was done to them: data_report.html.

One file that loads nothing from anywhere. What is on it is put together here; `page.html.j2` lays it out.
"""

import datetime
import importlib.resources
from pathlib import Path
from typing import Any

import jinja2
import yaml

from medqa import __version__
from medqa.config import DataConfig
from medqa.data.corpus import Corpus
from medqa.data.diff import compare, marked_loss
from medqa.data.distributions import distributions
from medqa.data.findings import card, doubtful_keys, leaks, same_questions
from medqa.data.flow import trace
from medqa.data.rules import NUM_SAMPLES
from medqa.files import write_text
from medqa.records import Example

__all__ = ["page_view", "write_page"]

NUM_ROWS_SHOWN, NUM_WORDS_SHOWN, NUM_BROKEN_SHOWN = 3, 40, 20
_REPAIR_RULE = "lost letters"
_TELLING_WORDS = range(20, 70)
_SPLITS = {
    "train": "The model learns from these.",
    "calibration": "Held back: they tell how far the model's confidence can be believed.",
    "selection": "Held back: choices are made by them, such as that of a way to calibrate.",
}


def write_page(corpus: Corpus, config: DataConfig, path: Path) -> None:
    """Write the page.

    Args:
        corpus: What was built.
        config: The settings it was built by.
        path: The HTML file.
    """
    folder = importlib.resources.files("medqa.data")
    names = ("page.html.j2", "page.css")
    environment = jinja2.Environment(
        loader=jinja2.DictLoader({name: (folder / name).read_text(encoding="utf-8") for name in names}),
        autoescape=True,  # the questions are other people's text, and may hold markup
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"n": "{:,}".format, "percent": _percent, "of": _of}
    write_text(path, environment.get_template(names[0]).render(page_view(corpus, config)))


def page_view(corpus: Corpus, config: DataConfig) -> dict[str, Any]:
    """Put together everything that the page shows.

    Args:
        corpus: What was built.
        config: The settings it was built by.
    """
    account, record = corpus.account, corpus.record
    return {
        "name": config.name,
        "flow": trace(corpus),
        "num_explained": record["num_with_explanation"],
        "num_train": len(corpus.train),
        "cards": [card(example) for example in _telling_rows(corpus.train)],
        "clean": config.clean,
        "skipped": config.skip_rules,
        "rules": _rules(corpus),
        "words": _words(corpus),
        "same": same_questions(account),
        "doubtful": doubtful_keys(account),
        "leaks": leaks(account, config),
        "eval_split": config.eval_split,
        "charts": distributions(account, corpus.train),
        "splits": [
            {"name": name.replace("_", " "), "meaning": meaning, **record["splits"][name]}
            for name, meaning in _SPLITS.items()
        ],
        "sources": [
            {**source, "broken": source["broken"][:NUM_BROKEN_SHOWN]} for source in record["sources"]
        ],
        "version": __version__,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%d %B %Y, %H:%M UTC"),
        "settings": yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        "sha256": record["sha256"],
    }


def _telling_rows(examples: list[Example]) -> list[Example]:
    """Choose rows that show what one looks like: explained, of readable length, each of another subject."""

    def rank(example: Example) -> tuple[bool, bool, str]:
        fits = example.explanation is not None and len(example.explanation.split()) in _TELLING_WORDS
        return not fits, example.subject is None, example.content_hash()

    ranked = sorted(examples, key=rank)
    first_of_subject = {example.subject: example for example in reversed(ranked)}
    chosen = sorted(first_of_subject.values(), key=rank)[:NUM_ROWS_SHOWN]
    return [*chosen, *(e for e in ranked[: 2 * NUM_ROWS_SHOWN] if e not in chosen)][:NUM_ROWS_SHOWN]


def _rules(corpus: Corpus) -> list[dict[str, Any]]:
    rules = []
    for rule in corpus.account.rules:
        result = corpus.account.results[rule.name]
        samples = []
        for row, field, before, after in result.changed[:NUM_SAMPLES]:
            old, new = compare(before, after)
            samples.append({"id": row, "field": field[:1].upper() + field[1:], "before": old, "after": new})
        rules.append(
            {
                "name": rule.name,
                "meaning": rule.meaning,
                "num_changed": result.num_changed,
                "num_dropped": len(result.dropped),
                "samples": samples,
                "dropped": [
                    {"card": card(example, 300), "reason": drop.reason}
                    for example, drop in result.dropped[:NUM_SAMPLES]
                ],
            }
        )
    return rules


def _words(corpus: Corpus) -> dict[str, Any]:
    lexicon, results = corpus.account.lexicon, corpus.account.results
    repairs = sorted(lexicon.repairs.values(), key=lambda r: (-r.num_rows, r.damaged)) if lexicon else []
    return {
        "num": len(repairs),
        "num_rows": results[_REPAIR_RULE].num_changed if _REPAIR_RULE in results else 0,
        "shown": [
            {
                "damaged": repair.damaged,
                "whole": marked_loss(repair.whole, repair.lost),
                "num_rows": repair.num_rows,
                "in_context": repair.in_context,
            }
            for repair in repairs[:NUM_WORDS_SHOWN]
        ],
    }


def _percent(share: float) -> str:
    # A blank that doesn't break: the sign stays with its number.
    return "under 0.1\u00a0%" if 0 < share < 0.1 else f"{share:.1f}\u00a0%"


def _of(number: int, noun: str) -> str:
    """Write a number with its noun in singular or plural."""
    return f"{number:,} {noun if number == 1 else noun + 's'}"
