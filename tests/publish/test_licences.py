"""Which weights may be passed on, and under which licence."""

import re

import pytest

from medqa.errors import PublishError
from medqa.publish.licence_table import KNOWN
from medqa.publish.licences import base_licence_of, judge, known, may_quote

FREE = "apache-2.0"
CLOSED = [one.id for one in KNOWN.values() if one.kind == "closed"]


@pytest.mark.parametrize(
    ("base", "data", "licence"),
    [
        ("mit", ["cc0-1.0"], "mit"),
        ("mit", ["apache-2.0", "bsd-3-clause"], "apache-2.0"),
        (FREE, ["cc-by-4.0", "mit"], "cc-by-4.0"),
        (FREE, ["cc-by-sa-4.0", "cc-by-4.0"], "cc-by-sa-4.0"),
        (FREE, ["cc-by-nc-4.0", "cc-by-4.0"], "cc-by-nc-4.0"),
        (FREE, ["cc-by-nc-4.0", "cc-by-nc-sa-4.0"], "cc-by-nc-sa-4.0"),
        ("gemma", ["mit"], "gemma"),
        ("llama3.1", ["cc-by-4.0"], "llama3.1"),
        ("qwen-research", ["cc-by-nc-4.0"], "qwen-research"),
        ("llama3.1", ["cc-by-nc-4.0"], "llama3.1-and-cc-by-nc-4.0"),
        ("Apache 2.0", ["CC_BY-4.0"], "cc-by-4.0"),
    ],
)
def test_the_strictest_licence_holds(base, data, licence):
    verdict = judge(base, data)
    assert verdict.licence == licence
    assert verdict.commercial == all(known(id).commercial for id in (base, *data))
    assert {verdict.base.id, *(one.id for one in verdict.data)} <= KNOWN.keys()
    told = " ".join(verdict.conditions)
    for id in (base, *data):
        assert all(text in told for text in known(id).conditions)


def test_the_order_of_the_questions_licences_does_not_matter():
    ids = ["mit", "cc-by-nc-4.0", "cc-by-4.0", "cc0-1.0"]
    assert judge("gemma", ids).licence == judge("gemma", ids[::-1]).licence == "gemma-and-cc-by-nc-4.0"


@pytest.mark.parametrize("id", [*CLOSED, None, "", "unknown", "other", "my own"])
def test_what_forbids_it_or_is_not_known_is_refused(id):
    for base, data in ((id, [FREE]), (FREE, [FREE, id])):
        with pytest.raises(PublishError) as error:
            judge(base, data)
        assert error.value.hint
        if id in CLOSED:
            assert id in error.value.message
        assert ("base model" in error.value.message) == (base != FREE)


def test_no_questions_licence_at_all_is_refused_and_the_hint_names_the_setting():
    with pytest.raises(PublishError) as error:
        judge(FREE, [])
    assert "data.licence=ID" in error.value.hint


def test_no_derivatives_are_refused_with_the_clause():
    for id in ("cc-by-nd-4.0", "cc-by-nc-nd-4.0"):
        with pytest.raises(PublishError, match=r"not Share, Adapted Material") as error:
            judge(FREE, [id])
        assert "2(a)(1)(B)" in error.value.message


@pytest.mark.parametrize(
    ("base", "data"),
    [
        (FREE, ["cc-by-sa-4.0", "cc-by-nc-sa-4.0"]),
        (FREE, ["cc-by-sa-4.0", "cc-by-nc-4.0"]),
        ("gemma", ["cc-by-sa-4.0"]),
        ("llama3.2", ["cc-by-nc-sa-4.0"]),
        ("qwen-research", ["cc-by-sa-4.0"]),
        ("gemma", ["openrail"]),
    ],
)
def test_licences_that_contradict_are_refused(base, data):
    with pytest.raises(PublishError, match="can't both be kept") as error:
        judge(base, data)
    assert all(id in error.value.message for id in data)


def test_names_and_notices_that_a_licence_wants():
    verdict = judge("llama3.3", ["mit"])
    assert (verdict.prefix, verdict.built_with) == ("Llama", "Llama")
    assert judge("llama3", ["mit"]).prefix == "Llama 3"
    assert judge("llama2", ["mit"]).prefix == ""
    assert "Llama 3.3 Community License" in verdict.notices[0]
    assert "Copyright © Meta Platforms, Inc." in verdict.notices[0]
    assert judge("qwen-research", ["mit"]).built_with == "Qwen"
    assert not judge(FREE, ["mit"]).notices


def test_every_licence_says_what_it_is():
    for id, one in KNOWN.items():
        assert id == one.id == id.lower()
        assert one.title
        assert one.kind != "closed" or one.why
        assert not one.prefix or any(one.prefix in text for text in one.conditions)
        assert ("nc" in id.split("-")) <= (not one.commercial)
        assert not one.link or re.fullmatch(r"https://[\w./-]+", one.link)


def test_questions_are_quoted_under_open_licences_only():
    assert may_quote(["apache-2.0", "cc-by-sa-4.0"])
    assert not may_quote([])
    for id in ("unknown", "cc-by-nc-4.0", "cc-by-nd-4.0", "gemma", "other"):
        assert not may_quote(["mit", id])


@pytest.mark.parametrize(
    ("files", "licence"),
    [
        ({"README.md": "---\nlicense: apache-2.0\n---\n# A"}, "apache-2.0"),
        ({"README.md": "---\nlicense: [mit]\n---\n"}, "mit"),
        ({"README.md": "---\nlicense: [mit, gemma]\n---\n"}, None),
        ({"README.md": "---\nlicense: other\nlicense_name: qwen-research\n---\n"}, "qwen-research"),
        ({"README.md": "---\nlicense: other\n---\n", "LICENSE": "Gemma Terms of Use\n"}, "gemma"),
        ({"README.md": "---\nlicense: other\n---\n", "LICENSE": "Ours.\n"}, "other"),
        ({"README.md": "---\nlicense: [\n---\n"}, None),
        ({"README.md": "no head"}, None),
        ({"LICENSE": "          Apache License\n    Version 2.0, January 2004\n"}, "apache-2.0"),
        ({"LICENSE.txt": "LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\n"}, "llama3.1"),
        ({"LICENSE": "META LLAMA 3 COMMUNITY LICENSE AGREEMENT\n"}, "llama3"),
        ({"LICENSE": "Qwen RESEARCH LICENSE AGREEMENT\n"}, "qwen-research"),
        ({"LICENSE": "Attribution-NonCommercial-NoDerivatives 4.0 International"}, "cc-by-nc-nd-4.0"),
        ({"LICENSE": "Attribution-NonCommercial 4.0 International"}, "cc-by-nc-4.0"),
        ({"LICENSE": "Permission is hereby granted, free of charge, to any person obtaining"}, "mit"),
        ({"LICENSE": "All rights reserved."}, None),
        ({}, None),
    ],
)
def test_a_base_models_licence_is_read_from_its_folder(tmp_path, files, licence):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert base_licence_of(tmp_path) == licence
