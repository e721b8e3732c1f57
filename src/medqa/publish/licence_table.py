"""The licences that are known, and what each asks of those who pass tuned weights on."""

import dataclasses
from typing import Literal

__all__ = ["KNOWN", "Licence"]

Kind = Literal["free", "credit", "share alike", "own terms", "closed"]

_CC = "https://creativecommons.org/licenses/"
_CREDIT = "Name the authors, link the licence, and say what was changed"


@dataclasses.dataclass(frozen=True, slots=True)
class Licence:
    """What a licence means for weights that are passed on.

    Attributes:
        id: As the Hub writes it, or would.
        title: What it is called.
        kind: "free" asks for a notice at most; "credit" for the authors' names; "share alike" for the
            very same licence; "own terms" are passed on with the weights; "closed" lets nothing be passed on.
        link: Where its text is.
        conditions: What those who pass the weights on have to do, in sentences without the full stop.
        commercial: Whether the weights may be used for commercial purposes.
        listed: Whether the Hub knows the id; else it is "other" there, with a name.
        prefix: How the name of the model must begin.
        built_with: What it must be said to be built with, where it is shown.
        notice: What a file NOTICE beside the weights must say.
        why: Of a closed one: what forbids it.
    """

    id: str
    title: str
    kind: Kind
    link: str = ""
    conditions: tuple[str, ...] = ()
    commercial: bool = True
    listed: bool = True
    prefix: str = ""
    built_with: str = ""
    notice: str = ""
    why: str = ""


def _llama(version: str, name: str, link: str, *, built_with: str = "", prefix: str = "") -> Licence:
    title = f"{name} Community License"
    conditions = [
        f"Pass on a copy of the {title}",
        'Keep the file "Notice" with the words below',
        "Keep to Meta's Acceptable Use Policy, which forbids, among others, practising medicine without a "
        "licence",
    ]
    if prefix:
        conditions.insert(0, f'Show "Built with {built_with}" prominently')
        conditions.insert(1, f'Begin the name of the model with "{prefix}"')
    if version in ("3.2", "4"):
        conditions.append(
            "Of its multimodal models nothing is granted to those domiciled in the European Union"
        )
    notice = f"{name} is licensed under the {title}, Copyright © Meta Platforms, Inc. All Rights Reserved."
    own: Kind = "own terms"
    return Licence(
        f"llama{version}",
        title,
        own,
        link,
        tuple(conditions),
        prefix=prefix,
        built_with=built_with,
        notice=notice,
    )


def _qwen(id: str, title: str, *, commercial: bool) -> Licence:
    conditions = (
        f"Pass on a copy of the {title}, and say which files were changed",
        'Keep the file "Notice" with the words below',
        'Show "Built with Qwen" or "Improved using Qwen" prominently in the documentation',
    )
    return Licence(
        id,
        title,
        "own terms",
        conditions=conditions,
        commercial=commercial,
        listed=False,
        built_with="Qwen",
        notice=f"Qwen is licensed under the {title}, Copyright (c) Alibaba Cloud. All Rights Reserved.",
    )


def _creative(id: str, title: str, kind: Kind, *, commercial: bool = True, why: str = "") -> Licence:
    path = id.removeprefix("cc-").removesuffix("-4.0")
    conditions = [_CREDIT]
    if kind == "share alike":
        conditions.append("Pass on what is made of it under this same licence only, with no further terms")
    link = f"{_CC}{path}/4.0/"
    return Licence(id, title, kind, link, tuple(conditions), commercial, why=why)


# The clause is 2(a)(1)(B) of both.
_NO_DERIVATIVES = (
    'it lets you "produce and reproduce, but not Share, Adapted Material" (section 2(a)(1)(B)): tuned '
    "weights may be made and kept, not passed on"
)
_RESEARCH_ONLY = "it lets you use the material for research, and passing on what is made of it is not granted"

KNOWN: dict[str, Licence] = {
    one.id: one
    for one in (
        Licence("cc0-1.0", "CC0 1.0", "free", "https://creativecommons.org/publicdomain/zero/1.0/"),
        Licence(
            "mit",
            "MIT License",
            "free",
            "https://opensource.org/license/mit",
            ("Keep its copyright notice and text",),
        ),
        *(
            Licence(
                f"bsd-{n}-clause",
                f"BSD {n}-Clause License",
                "free",
                f"https://opensource.org/license/bsd-{n}-clause",
                ("Keep its copyright notice, conditions and disclaimer",),
            )
            for n in (2, 3)
        ),
        Licence(
            "apache-2.0",
            "Apache License 2.0",
            "free",
            "https://www.apache.org/licenses/LICENSE-2.0",
            ("Pass on a copy of it, keep its notices, and say that files were changed",),
        ),
        _creative("cc-by-4.0", "CC BY 4.0", "credit"),
        _creative("cc-by-nc-4.0", "CC BY-NC 4.0", "credit", commercial=False),
        _creative("cc-by-sa-4.0", "CC BY-SA 4.0", "share alike"),
        _creative("cc-by-nc-sa-4.0", "CC BY-NC-SA 4.0", "share alike", commercial=False),
        _creative("cc-by-nd-4.0", "CC BY-ND 4.0", "closed", why=_NO_DERIVATIVES),
        _creative("cc-by-nc-nd-4.0", "CC BY-NC-ND 4.0", "closed", commercial=False, why=_NO_DERIVATIVES),
        Licence("research-only", "research only", "closed", commercial=False, why=_RESEARCH_ONLY),
        _llama("2", "Llama 2", "https://ai.meta.com/llama/license/"),
        _llama(
            "3",
            "Meta Llama 3",
            "https://www.llama.com/llama3/license/",
            built_with="Meta Llama 3",
            prefix="Llama 3",
        ),
        *(
            _llama(
                version,
                f"Llama {version}",
                f"https://www.llama.com/llama{version.replace('.', '_')}/license/",
                built_with="Llama",
                prefix="Llama",
            )
            for version in ("3.1", "3.2", "3.3", "4")
        ),
        Licence(
            "gemma",
            "Gemma Terms of Use",
            "own terms",
            "https://ai.google.dev/gemma/terms",
            (
                "Pass on a copy of the Gemma Terms of Use, and bind those who get the weights to its use "
                "restrictions",
                "Say in the changed files that they were changed",
                'Keep the file "Notice" with the words below',
            ),
            notice="Gemma is provided under and subject to the Gemma Terms of Use found at "
            "ai.google.dev/gemma/terms",
        ),
        _qwen("qwen", "Qwen LICENSE AGREEMENT", commercial=True),
        _qwen("qwen-research", "Qwen RESEARCH LICENSE AGREEMENT", commercial=False),
        *(
            Licence(
                id,
                f"{title} license",
                "own terms",
                conditions=(
                    "Pass on a copy of the licence, and bind those who get the weights to its use "
                    "restrictions, some of which are about medical advice",
                ),
            )
            for id, title in (
                ("openrail", "OpenRAIL"),
                ("openrail++", "OpenRAIL++"),
                ("bigscience-openrail-m", "BigScience OpenRAIL-M"),
                ("bigcode-openrail-m", "BigCode OpenRAIL-M"),
                ("creativeml-openrail-m", "CreativeML OpenRAIL-M"),
            )
        ),
    )
}
