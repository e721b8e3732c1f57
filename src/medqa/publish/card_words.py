"""How a model card writes what comes out of a run's files: safe for Markdown, and nothing of this machine."""

import re
from collections.abc import Callable
from typing import Any

from medqa.evaluate.charts import (
    FILTERS,
    decimal_interval,
    decimals,
    point_interval,
    points,
)
from medqa.publish.licence_table import Licence
from medqa.publish.scrub import scrub_text
from medqa.runs import RunFolder

__all__ = [
    "CARD_FILTERS",
    "auroc",
    "ece",
    "git_state",
    "is_hub_dataset",
    "licensed",
    "recipe_rows",
    "snippet",
    "source_name",
    "version_list",
]

Record = dict[str, Any]

_NOT_MEASURED = "not measured"
_ENTITY = re.compile(r"&(?=#?\w+;)")
_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~$])")

_SETTINGS = {
    "epochs": "Times through the questions, at most",
    "batch_size": "Questions in a step",
    "learning_rate": "Learning rate, at its highest",
    "warmup_fraction": "Share of the steps that it rises in",
    "weight_decay": "Weight decay",
    "max_grad_norm": "Gradient norm, at most",
    "answer_weight": "Weight of the letter in the loss",
    "explanation_share": "Share of the questions with their explanation",
    "read_back_share": "Share of further rows that teach to read an answer from an explanation",
    "max_length_tokens": "Tokens in a row, at most",
    "seed": "Seed",
}
_LORA = {"rank": "LoRA rank", "alpha": "LoRA alpha", "dropout": "LoRA dropout", "targets": "LoRA on"}
_DONE = {
    "num_steps": "Steps",
    "num_rows": "Rows trained on, those to read an answer from an explanation among them",
    "num_tokens": "Tokens trained on",
    "num_trained_parameters": "Weights trained",
}


def _plain(text: str) -> str:
    """Write a text so that Markdown shows it as it is, on one line."""
    return _escaped(" ".join(str(text).split()))


def _quoted(text: str) -> str:
    """As `_plain`, and nothing is taken out: no dose is to be changed."""
    return _marked(" ".join(str(text).split()))


def _code(text: str) -> str:
    """Write a text that goes between backticks, in a table too."""
    return scrub_text(" ".join(str(text).split())).replace("`", "'").replace("|", "/")


def _command(text: str | list[str]) -> str:
    """Write a command as anyone would type it."""
    line = text if isinstance(text, str) else " ".join(text)
    return _code(re.sub(r"^\S*(?:__main__\.py|[/\\]medqa(?:\.exe)?)(?=\s|$)", "medqa", line))


def _own_words(text: str) -> str:
    """Keep the commands of a sentence as they are, and nothing else that Markdown might take for its own."""
    parts = str(text).split("`")
    return "".join(f"`{_code(p)}`" if place % 2 else _escaped(p) for place, p in enumerate(parts))


def _escaped(text: str) -> str:
    """As `_plain`, with the blanks at both ends."""
    return _marked(scrub_text(text))


def _marked(text: str) -> str:
    return _MARKUP.sub(r"\\\1", _ENTITY.sub("&amp;", text))


CARD_FILTERS: dict[str, Callable[..., str]] = {
    **FILTERS,
    "text": _plain,
    "quoted": _quoted,
    "code": _code,
    "command": _command,
    "own_words": _own_words,
}


def ece(score: Record | None) -> str:
    """Write the calibration error of one column, with its interval."""
    if score is None:
        return _NOT_MEASURED
    ends = point_interval(score.get("ece_interval"))
    return points(score["ece"]) + (f" ({ends})" if ends else "")


def auroc(score: Record | None) -> str:
    """Write how well confidence tells right from wrong."""
    if score is None or score.get("auroc") is None:
        return _NOT_MEASURED
    ends = decimal_interval(score.get("auroc_interval"))
    return decimals(score["auroc"]) + (f" ({ends})" if ends else "")


def licensed(licence: Licence) -> str:
    """Name a licence, linked where its text is known to be."""
    return f"[{licence.title}]({licence.link})" if licence.link else licence.title


def version_list(versions: Record) -> str:
    """List the versions of the programs."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def git_state(git: Record | None) -> str:
    """Say which state of the program it was."""
    if not git:
        return "the installed package"
    return f"commit `{git['commit']}`" + (", changed since" if git["changed"] else "")


def source_name(name: str, files: list[str]) -> str:
    """Name a source of questions: by its id on the Hub, else by the last part of its folder."""
    if name == "builtin:starter":
        return "MedQA's built-in questions"
    if is_hub_dataset(name, files):
        return name
    return f"a folder named {scrub_text(name).rstrip('/').rpartition('/')[2] or name}"


def is_hub_dataset(name: str, files: list[str]) -> bool:
    """Tell whether a name is a data set's id on the Hub: the Hub's cache, where its files lie, bears it."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return False
    return any(f"datasets--{name.replace('/', '--')}" in re.split(r"[\\/]", file) for file in files)


def recipe_rows(record: Record) -> list[tuple[str, str]]:
    """List how it was trained: the settings, and what came of them."""
    settings, training = record["config"]["train"], record.get("training") or {}
    rows = [
        *((words, settings.get(name)) for name, words in _SETTINGS.items()),
        *((words, settings["lora"].get(name)) for name, words in _LORA.items()),
        *((words, training.get(name)) for name, words in _DONE.items()),
    ]
    return [(words, _value(value)) for words, value in rows if value is not None]


def _value(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _plain(str(value))
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def snippet(run: RunFolder, repo: str, base: str, temperature: float | None) -> str:
    """Write the lines that ask the model without MedQA, by the prompt it was trained with."""
    prompt, revision = run.record["prompt"], run.config.model.revision
    at = f", revision={revision!r}" if revision else ""
    scores = f"(scores / {temperature!r})" if temperature else "scores"
    note = "# Divided by the temperature that corrects its confidence.\n" if temperature else ""
    return f'''import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{repo}")
base = AutoModelForCausalLM.from_pretrained("{base}"{at}, dtype="auto")
model = PeftModel.from_pretrained(base, "{repo}").eval()

question = """Lack of which vitamin causes scurvy?
A. Vitamin A
B. Vitamin B12
C. Vitamin C
D. Vitamin D"""
before = {prompt["before"]!r}
after = {prompt["after"]!r}

ids = tokenizer(before + question + after, add_special_tokens=False, return_tensors="pt").input_ids
letters = [tokenizer.encode(f" {{letter}}", add_special_tokens=False)[0] for letter in "ABCD"]
with torch.inference_mode():
    scores = model(input_ids=ids).logits[0, -1, letters].float()
{note}probabilities = {scores}.softmax(dim=0).tolist()
print(dict(zip("ABCD", probabilities)))'''
