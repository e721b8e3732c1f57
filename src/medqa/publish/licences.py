"""May tuned weights be passed on, and under which licence.

Whether weights are an adaptation of the texts they were trained on is not settled in law. This takes the
careful reading: what the licence of base model or questions asks of an adaptation is asked of the adapter.
"""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from medqa.errors import PublishError
from medqa.publish.licence_table import KNOWN, Licence

__all__ = ["Verdict", "base_licence_of", "judge", "known", "may_quote"]


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """Under what the weights may be passed on.

    Attributes:
        licence: Id of the strictest licence; of several whose terms all hold, joined by "-and-".
        title: What it is called.
        link: Where its text is; empty if that is not known.
        listed: Whether the Hub knows the id.
        commercial: Whether the weights may be used for commercial purposes.
        conditions: What those who pass the weights on have to do, in sentences without the full stop.
        prefix: How the name of the model must begin.
        built_with: What it must be said to be built with, where it is shown; empty if nothing.
        notices: What a file NOTICE beside the weights must say.
        base: The base model's licence.
        data: The licences of the questions.
    """

    licence: str
    title: str
    link: str
    listed: bool
    commercial: bool
    conditions: tuple[str, ...]
    prefix: str
    built_with: str
    notices: tuple[str, ...]
    base: Licence
    data: tuple[Licence, ...]


# What a LICENSE file begins with; the first that fits, so narrow ones come first.
_TEXTS = (
    (r"qwen research license", "qwen-research"),
    (r"qwen license agreement", "qwen"),
    (r"gemma terms of use", "gemma"),
    (r"attribution-noncommercial-noderivatives 4\.0", "cc-by-nc-nd-4.0"),
    (r"attribution-noncommercial-sharealike 4\.0", "cc-by-nc-sa-4.0"),
    (r"attribution-noncommercial 4\.0", "cc-by-nc-4.0"),
    (r"attribution-noderivatives 4\.0", "cc-by-nd-4.0"),
    (r"attribution-sharealike 4\.0", "cc-by-sa-4.0"),
    (r"attribution 4\.0 international", "cc-by-4.0"),
    (r"cc0 1\.0 universal", "cc0-1.0"),
    (r"apache license,? version 2\.0", "apache-2.0"),
    (r"permission is hereby granted, free of charge, to any person", "mit"),
)
_OPEN = ("free", "credit", "share alike")
_SOLE = "Free of their own terms are apache-2.0, mit, bsd-3-clause, cc0-1.0 and cc-by-4.0."


def known(id: str | None) -> Licence | None:
    """Find a licence by its id, however it is written."""
    plain = re.sub(r"[\s_]+", "-", (id or "").strip().lower())
    return KNOWN.get(
        {"apache2.0": "apache-2.0", "apache-2": "apache-2.0", "cc0": "cc0-1.0"}.get(plain, plain)
    )


def may_quote(licences: Sequence[str]) -> bool:
    """Tell whether questions under these licences may be shown to everyone: open ones, all of them."""
    found = [known(id) for id in licences]
    return bool(found) and all(one and one.commercial and one.kind in _OPEN for one in found)


def judge(base_licence: str | None, data_licences: Sequence[str]) -> Verdict:
    """Find the licence that holds for the adapter: the strictest of its base model's and its questions'.

    Args:
        base_licence: Of the base model; None if it names none.
        data_licences: Of the questions it was trained on.

    Raises:
        PublishError: If one of them forbids passing it on, isn't known, or they contradict each other.
    """
    base = _allowed(
        base_licence,
        "the base model",
        "read its licence; if it allows passing tuned weights on, name it in the head of README.md in the "
        "base model's folder, `license: ID`; else begin with another one, under apache-2.0 for example",
    )
    hint = (
        "train on questions that may be passed on; or name their licence, if you know it: data.licence=ID in "
        'training, "licences": ["ID"] under "data" in run.json afterwards'
    )
    if not data_licences:
        _allowed(None, "the questions", hint)
    data = tuple(_allowed(id, "the questions", hint) for id in data_licences)
    both = tuple({one.id: one for one in (base, *data)}.values())
    _refuse_contradictions(both)
    return _strictest(both, base, data)


def _allowed(id: str | None, whose: str, hint: str) -> Licence:
    found = known(id)
    if found is None:
        named = (
            "no licence is named for"
            if id in (None, "", "unknown")
            else f"{id!r} is no licence known here, of"
        )
        raise PublishError(f"{named} {whose}: without leave, weights made of them may not be passed on", hint)
    if found.kind == "closed":
        raise PublishError(f"{whose} {_be(whose)} under {found.id}, and {found.why}", _closed_hint(whose))
    return found


def _be(whose: str) -> str:
    return "are" if whose.endswith("s") else "is"


def _closed_hint(whose: str) -> str:
    return f"keep the run to yourself, ask the authors of {whose} for leave, or train with others. {_SOLE}"


def _refuse_contradictions(licences: Sequence[Licence]) -> None:
    alike = [one for one in licences if one.kind == "share alike"]
    own = [one for one in licences if one.kind == "own terms"]
    others = [one for one in licences if one not in alike and (one in own or not one.commercial)]
    if len(alike) > 1:
        clash, why = alike, "each wants to be the only licence of what is made of it"
    elif alike and (bad := [one for one in others if one in own or alike[0].commercial]):
        clash = [alike[0], *bad]
        why = f"{alike[0].id} lets no terms be added to its own, and the other ones must be"
    elif len(own) > 1:
        clash, why = own, "each has terms of its own to be passed on, and no one licence holds both"
    else:
        return
    ids = " and ".join(one.id for one in clash)
    raise PublishError(
        f"the licences {ids} can't both be kept: {why}",
        f"train with questions or a base model under a licence that goes with the rest. {_SOLE}",
    )


def _strictest(licences: Sequence[Licence], base: Licence, data: tuple[Licence, ...]) -> Verdict:
    """Take the strictest; own terms and a ban on commerce, from different ones, hold side by side."""
    rank = {"free": 0, "credit": 1, "own terms": 2, "share alike": 3}
    order = list(KNOWN)
    by_rank = sorted(licences, key=lambda one: (rank[one.kind], not one.commercial, order.index(one.id)))
    top = by_rank[-1]
    commercial = all(one.commercial for one in licences)
    holding = [top]
    if top.commercial and not commercial:
        holding.append(next(one for one in reversed(by_rank) if not one.commercial))
    return Verdict(
        licence="-and-".join(one.id for one in holding),
        title=" and ".join(one.title for one in holding),
        link=next((one.link for one in holding if one.link), ""),
        listed=len(holding) == 1 and top.listed,
        commercial=commercial,
        conditions=tuple(f"{text} ({one.title})" for one in reversed(by_rank) for text in one.conditions),
        prefix=next((one.prefix for one in reversed(by_rank) if one.prefix), ""),
        built_with=next((one.built_with for one in reversed(by_rank) if one.built_with), ""),
        notices=tuple(one.notice for one in reversed(by_rank) if one.notice),
        base=base,
        data=data,
    )


def base_licence_of(folder: Path) -> str | None:
    """Read a base model's licence from its folder: the head of README.md, else a LICENSE file.

    Args:
        folder: The base model's.

    Returns:
        The id, known here or not; None if the folder names none, or several.
    """
    named = _in_readme(folder / "README.md")
    if named is not None and named.lower() not in ("other", "unknown"):
        return named
    for name in ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE"):
        text = re.sub(r"\s+", " ", _read(folder / name)[:4000].lower())
        if llama := re.search(r"\bllama ([234](?:\.\d)?) community license", text):
            return f"llama{llama[1]}"
        for pattern, id in _TEXTS:
            if re.search(pattern, text):
                return id
    return named


def _in_readme(file: Path) -> str | None:
    lines = _read(file).splitlines()
    try:
        front = yaml.safe_load("\n".join(lines[1 : lines.index("---", 1)])) if lines[:1] == ["---"] else None
    except (ValueError, yaml.YAMLError):
        return None
    found = front.get("license") if isinstance(front, dict) else None
    if isinstance(found, list):
        found = found[0] if len(found) == 1 else None
    if isinstance(front, dict) and found == "other" and isinstance(front.get("license_name"), str):
        found = front["license_name"]
    return found.strip() or None if isinstance(found, str) else None


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
