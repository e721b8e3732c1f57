"""The page without a browser and without gradio: its pieces of HTML, and what happens when it is asked."""

import ast
import asyncio
import dataclasses
import importlib.util
import itertools
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from medqa.config import ServeConfig
from medqa.data.exam import split_exam
from medqa.errors import CalibrationError, EngineError, MedQAError, TimeLimitError
from medqa.prompts import question_text
from medqa.records import NOTICE, Answer, Example
from medqa.serve import page_asking, page_parts
from medqa.serve.page_asking import Form, FormError, Shown, asking, examples, read_form, stopped
from medqa.serve.page_parts import (
    Asked,
    about_part,
    after_part,
    answer_part,
    history_part,
    part,
    problem_part,
    reason_part,
    start_page,
)
from serve.slow_service import ABOUT, SlowService

EVIL = "<script>alert(1)</script>\n\n<img src=x onerror=alert(1)> **b** $x$ \" ' & \t`c`\r\n# h"
EXAMPLE = Example(EVIL, (EVIL + "A", EVIL + "B", "c", "d"), context=EVIL)
ANSWER = Answer(
    question=EVIL,
    letter="B",
    option=EXAMPLE.options[1],
    confidence=0.624,
    probabilities={"A": 0.25, "B": 0.624, "C": 0.1245, "D": 0.0015},
    explanation=EVIL,
    explanation_finished=True,
    model=EVIL,
    calibration="temperature",
    answer_set=("B", "A"),
    alpha=0.1,
    num_orders=4,
    consistency=0.75,
    explanation_check={"points_to": 1, "agrees": True, "warning": None},
)
VOID = {"img", "br", "meta", "link"}


class Read(HTMLParser):
    """Reads a piece as a browser would: its tags, its words; and checks that tags are closed in order."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.open, self.words, self.attributes = [], [], [], []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return re.sub(r"[ \u00a0\n]+", " ", "".join(self.words)).strip()


def read(html):
    # Gradio's Markdown leaves HTML alone if it begins with a block, up to the first empty line.
    assert html.startswith("<div")
    assert not {*"\n\r\t"} & {*html}
    return Read(html)


def changed(**fields):
    return dataclasses.replace(ANSWER, **fields)


PIECES = [
    answer_part(ANSWER, EXAMPLE),
    answer_part(changed(abstain=True, reason=EVIL, caveat=EVIL), EXAMPLE),
    reason_part(EVIL, "writing"),
    reason_part(EVIL, "stopped"),
    after_part(ANSWER),
    after_part(changed(explanation_check={"agrees": False, "warning": EVIL})),
    history_part([Asked(EXAMPLE, ANSWER), Asked(EXAMPLE, changed(abstain=True, reason=EVIL))]),
    problem_part(MedQAError(EVIL, EVIL)),
    part("notes", notes=[EVIL]),
    part("status", message=EVIL),
    about_part(dataclasses.replace(ABOUT, name=EVIL, base_model=EVIL, failures=(EVIL,), unmeasured=EVIL)),
]


@pytest.mark.parametrize("html", PIECES)
def test_other_peoples_text_stays_text(html):
    found = read(html)
    assert not {"script", "img"} & {*found.tags}
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    assert "alert(1)" in "".join(found.words)


def test_texts_come_out_as_they_went_in():
    assert EVIL in "".join(read(reason_part(EVIL, "done")).words)
    json = "".join(read(after_part(ANSWER)).words)
    assert '"letter": "B"' in json
    assert NOTICE in json


def test_an_answer_says_how_far_to_trust_it():
    text = read(answer_part(ANSWER, EXAMPLE)).text
    assert "62 % sure. Of 100 answers given with that confidence about 62 are right." in text
    assert "In 90 of 100 such questions the right option is among: A, B." in text
    assert "Asked with the options in 4 orders, it chose this one in 3 of them." in text
    assert "under 1 %" in text
    values = dict(ANSWER.probabilities)
    meters = [v for name, v in read(answer_part(ANSWER, EXAMPLE)).attributes if name == "aria-valuenow"]
    assert meters == [str(round(100 * share)) for share in values.values()]


@pytest.mark.parametrize(
    ("fields", "says", "never"),
    [
        ({"answer_set": ("B",)}, "Here it holds one option only: B.", "among"),
        ({"answer_set": tuple("BACD"), "alpha": 0.05}, "In 95 of 100 such questions", "one option"),
        ({"answer_set": tuple("BACD")}, "It can rule none of them out.", "one option"),
        ({"answer_set": ()}, "No option is likely enough", "such questions"),
        ({"answer_set": None, "alpha": None}, "This model was not calibrated", "are right."),
        ({"caveat": "calibrated on 4, this has 5"}, "Take care: calibrated on 4, this has 5.", "are right."),
        ({"num_orders": 1, "consistency": None}, "62 % sure", "orders"),
        ({"probabilities": {"A": 0.999, "B": 0.001}}, "over 99 %", "100 %"),
    ],
)
def test_it_says_what_is_known_and_no_more(fields, says, never):
    text = read(answer_part(changed(**fields), EXAMPLE)).text
    assert says in text
    assert never not in text


def test_not_sure_enough_is_said_first_and_the_guess_is_no_answer():
    html = answer_part(changed(abstain=True, reason="50.0% sure, 61% is needed"), EXAMPLE)
    text = read(html).text
    assert text.startswith(
        "Not sure enough to answer 50.0% sure, 61% is needed. Best guess, not an answer: B."
    )
    assert "badge" not in html
    assert "chosen" not in html


@pytest.mark.parametrize(
    ("check", "says"),
    [
        ({"points_to": 1, "agrees": True, "warning": None}, "leads to B too. That does not make it true."),
        ({"points_to": 0, "agrees": False, "warning": "The explanation points to A."}, "Do not rely on this"),
        ({"points_to": 1, "agrees": True, "warning": "It was cut."}, "It was cut."),
        ({"points_to": None, "agrees": None, "warning": None}, "was not checked"),
        (None, "was not checked"),
    ],
)
def test_the_check_of_the_explanation_is_told_and_the_notice_is_always_there(check, says):
    text = read(after_part(changed(explanation_check=check))).text
    assert says in text
    assert text.count(NOTICE) == 2  # to be read, and in the JSON
    letter_only = read(after_part(changed(explanation=None, explanation_check=None))).text
    assert "explanation was not checked" not in letter_only
    assert NOTICE in letter_only


def test_history_tells_of_each_question_and_whether_it_was_answered():
    assert "Nothing yet." in read(history_part(())).text
    long = Example("word " * 100, ("a", "b", "c", "d"))
    found = read(history_part([Asked(long, ANSWER), Asked(EXAMPLE, changed(abstain=True))]))
    assert found.tags.count("details") == 2
    assert "\u2026" in found.text
    assert "Not sure enough, best guess B:" in found.text
    assert found.text.count(NOTICE) == 2


def test_what_the_model_is_and_that_it_was_not_measured():
    text = read(about_part(ABOUT)).text
    assert "48.2 % of 2,071 questions answered right 46.1 to 50.4 %" in text
    assert "What it is known to get wrong" in text
    bare = dataclasses.replace(
        ABOUT, figures=(), weak=(), failures=(), unmeasured="Not yet. `medqa evaluate RUN` does."
    )
    html = about_part(bare)
    assert "<code>medqa evaluate RUN</code>" in html
    assert "known to get wrong" not in html


FORM = Form("Which?", ("a", "b", "", ""), " ")


def test_a_form_becomes_a_question():
    assert read_form(FORM) == Example("Which?", ("a", "b"))
    assert read_form(dataclasses.replace(FORM, context=" c ")).context == "c"


@pytest.mark.parametrize(
    ("fields", "place", "message"),
    [
        ({"question": " \n"}, "question", "no question yet"),
        ({"question": "q" * 20_001}, "question", "too long: 20,003 characters"),
        ({"context": "q" * 20_001}, "question", "too long"),
        ({"question": "\ud800"}, "question", "surrogate"),
        ({"options": ()}, "options", "at least two options"),
        ({"options": ("a", " ")}, "options", "at least two options"),
        ({"options": ("a", "", "c")}, "options", "Option B is empty"),
        ({"options": ("a", "b", " a ")}, "options", "Options A and C are the same"),
    ],
)
def test_what_is_wrong_with_a_form_is_said_where_it_is(fields, place, message):
    with pytest.raises(FormError, match=message) as error:
        read_form(dataclasses.replace(FORM, **fields))
    assert error.value.place == place


def shown_by(service, form, history=()):
    async def collect():
        return [shown async for shown in asking(service, form, history)]

    return asyncio.run(collect())


@pytest.fixture
def service(monkeypatch):
    monkeypatch.setattr(page_asking, "EVERY_S", 0.0)
    return SlowService(letter_s=0, word_s=0)


def test_the_letter_is_shown_first_and_the_explanation_grows(service):
    example = examples()[0]
    steps = shown_by(service, Form(example.question, example.options))
    assert "Asking" in steps[0].answer
    assert "badge" in steps[1].answer
    assert "being written" in steps[1].reason
    assert all(step.answer is None for step in steps[2:-1])
    grown = [step.written for step in steps[1:-1]]
    assert all(b.startswith(a) for a, b in itertools.pairwise(grown))
    assert steps[-1].written == grown[-1].strip()
    assert "leads to A too" in steps[-1].after
    assert [step.running for step in steps] == [True] * (len(steps) - 1) + [False]
    assert all(step.history is None or len(step.history) == 1 for step in steps)
    [entry] = steps[-1].history
    assert entry.answer.explanation == steps[-1].written
    assert service.running == 0


def test_without_an_explanation_the_letter_is_all(service):
    old = (Asked(EXAMPLE, ANSWER),) * page_asking.MAX_HISTORY
    steps = shown_by(service, dataclasses.replace(FORM, explain=False), old)
    assert len(steps) == 2
    assert steps[-1].reason == ""
    assert not steps[-1].running
    assert len(steps[-1].history) == page_asking.MAX_HISTORY
    assert steps[-1].history[0].example == read_form(FORM)


def test_the_run_says_how_to_answer_and_the_visitor_how_sure(service):
    shown_by(service, dataclasses.replace(FORM, alpha=0.05, max_risk=0.2))
    assert service.asked[-1][2] == ServeConfig(orders=4, alpha=0.05, max_risk=0.2)
    shown_by(service, FORM)
    assert service.asked[-1][2] == ServeConfig(orders=4)
    service.calibrated = False
    shown_by(service, dataclasses.replace(FORM, alpha=0.05, max_risk=0.2))
    assert service.asked[-1][2] == service.defaults  # nothing is known of risks


def test_what_goes_wrong_is_told_and_nothing_of_the_inside(service, caplog):
    [shown] = shown_by(service, dataclasses.replace(FORM, question=""))
    assert "no question yet" in shown.problems["question"]
    assert not shown.running
    assert not service.asked
    assert (
        "12 are waiting already."
        in shown_by(service, Form("This fails as busy", "ab"))[-1].problems["asking"]
    )
    bug = shown_by(service, Form("This fails", "ab"))[-1]
    assert "Something is wrong with this program." in bug.problems["asking"]
    assert "secret" not in bug.problems["asking"]
    assert "a secret inside" in caplog.text
    too_long = shown_by(service, Form("word " * 1500, "ab"))[-1]
    assert "at most 512. Shorten it." in read(too_long.problems["question"]).text


class Breaks(SlowService):
    def __init__(self, error, after):
        super().__init__(letter_s=0, word_s=0)
        self.error, self.after = error, after

    async def stream(self, example, *, explain=True, settings=None):
        number = 0
        async for part_ in super().stream(example, explain=explain, settings=settings):
            if number == self.after:
                raise self.error
            number += 1
            yield part_


def test_an_error_amid_the_explanation_leaves_the_letter():
    shown = shown_by(Breaks(TimeLimitError("it took longer than 60 s", "ask for the letter only"), 3), FORM)[
        -1
    ]
    assert "took longer than 60 s. Ask for the letter only." in read(shown.problems["asking"]).text
    assert shown.answer is None
    first = shown_by(Breaks(CalibrationError("no sets", "`medqa calibrate RUN`"), 0), FORM)[-1]
    assert "<code>medqa calibrate RUN</code>" in first.problems["settings"]
    assert "No answer" in first.answer


def test_the_page_tells_nothing_of_the_inside_either(caplog):
    error = EngineError("http://10.0.0.7/v1: /srv/models is gone", "look there")
    engine = shown_by(Breaks(error, 0), FORM)[-1].problems["asking"]
    assert "does not answer as it should" in engine
    assert "10.0.0.7" not in engine
    assert "/srv" not in engine
    assert error.message in caplog.text
    error = CalibrationError("/home/me/run is not calibrated", "`medqa calibrate /home/me/run`")
    settings = shown_by(Breaks(error, 0), FORM)[-1].problems["settings"]
    assert "<code>medqa calibrate RUN</code>" in settings
    assert "/home" not in settings


def test_who_stops_or_leaves_ends_the_service_at_once(service):
    async def leave():
        steps = asking(service, FORM, ())
        await anext_of(steps)
        await anext_of(steps)
        assert service.running == 1
        await steps.aclose()
        assert service.running == 0

    asyncio.run(leave())
    assert "Stopped: the explanation is not whole" in stopped("so far").reason
    assert stopped("so far").answer is None
    assert "before there was an answer" in stopped(None).answer
    assert Shown().running


async def anext_of(steps):
    return await steps.__anext__()


def test_the_questions_to_try_are_of_the_starter_and_have_no_key():
    assert len(examples()) == 4
    for example in examples():
        assert example.answer is None
        assert example.explanation is None
        assert split_exam(question_text(example)).example.options == example.options


def test_the_start_page_names_no_other_server():
    origin = importlib.util.find_spec("gradio").origin
    template = (Path(origin).parent / "templates/frontend/index.html").read_text(encoding="utf-8")
    assert "https://" in template
    page = start_page(template)
    assert not re.findall(r"""(?:href|src|content|url)\s*[=(]\s*["']?https?://[^"')]*""", page)
    assert page.count("<title>MedQA</title>") == 1
    assert "<noscript>" in page
    assert ":is(#m" in page  # the style
    assert "Ctrl+Enter" in page  # the script
    assert "</script>" not in (Path(page_parts.__file__).parent / "page.js").read_text()


def test_the_style_and_the_script_fetch_nothing_and_evaluate_nothing():
    folder = Path(page_parts.__file__).parent
    for name in ("page.css", "page.js", "page.html.j2"):
        text = (folder / name).read_text(encoding="utf-8")
        assert not re.search(
            r"https?://|@import|url\(|\beval\b|new Function|fetch\(|innerHTML|localStorage", text
        )


def test_only_two_modules_of_the_page_know_gradio():
    folder = Path(page_parts.__file__).parent
    for name in ("page_parts.py", "page_asking.py", "about.py"):
        tree = ast.walk(ast.parse((folder / name).read_text(encoding="utf-8")))
        names = [alias.name for node in tree if isinstance(node, ast.Import) for alias in node.names]
        assert "gradio" not in names
