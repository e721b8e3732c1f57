"""The page in a real browser. MEDQA_PAGE_URL=http://127.0.0.1:PORT/ points it at a server that runs already.

Only the tests that need nothing of the service but that it answers run against such a server.
"""

import json
import os
import re
import shutil
import time
import urllib.error
import urllib.request

import pytest

pytestmark = [
    pytest.mark.slow,
    # Gradio 6 sets an option that pandas 3 has retired.
    pytest.mark.filterwarnings("ignore:.*no_silent_downcasting"),
]

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
WAIT_MS = 30_000
EVIL = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script> **bold** $x$ `y` & <b>z</b>'
PASTE = "12. A man cannot see. Which vitamin is low?\nA) Retinol\nB) Thiamine\nC) Niacin\n\nAnswer: A"


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("needs Chromium: chromium, chromium-browser or google-chrome on the PATH")
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def service():
    """The service without a model; None where a real server was named."""
    if "MEDQA_PAGE_URL" in os.environ:
        return None
    from serve.slow_service import SlowService

    return SlowService()


@pytest.fixture(scope="module")
def base_url(service):
    if service is None:
        yield os.environ["MEDQA_PAGE_URL"]
        return
    from serve.page_server import serving

    with serving(service) as url:
        yield url


@pytest.fixture
def fake(service):
    """For tests that depend on what the service without a model answers."""
    if service is None:
        pytest.skip("a real server answers what it will")
    service.asked.clear()
    return service


class Visit:
    """One visitor's page, with what went wrong on it."""

    def __init__(self, browser, url, **settings):
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **settings})
        self.context.set_default_timeout(WAIT_MS)
        self.page = self.context.new_page()
        self.errors, self.foreign = [], []
        self.page.on(
            "console", lambda m: self.errors.append(m.text) if m.type in ("error", "warning") else None
        )
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self._see(request.url, url))
        self.page.on(
            "response", lambda r: self.errors.append(f"{r.status} {r.url}") if r.status >= 400 else None
        )
        self.page.goto(url)
        self.find("#question textarea").wait_for()

    def _see(self, asked, own):
        if not asked.startswith((own, "data:", "blob:")):
            self.foreign.append(asked)

    def find(self, selector, **more):
        return self.page.locator(selector, **more)

    def text(self, selector):
        return re.sub(r"\s+", " ", self.find(selector).inner_text()).strip()

    def button(self, name):
        return self.page.get_by_role("button", name=name, exact=True)

    def field(self, name):
        return self.page.get_by_label(name, exact=True)

    def fill(self, question, *options):
        self.field("Question").fill(question)
        for letter, option in zip("ABCDEFGHIJ", options, strict=False):
            self.field(letter).fill(option)

    def take(self, example):
        self.button(example).click()
        self.wait(lambda: self.field("Question").input_value())

    def ask(self):
        """Press Ask and wait for the whole answer."""
        self.button("Ask").click()
        self.find("#ask[disabled]").wait_for()
        self.find("#ask:not([disabled])").wait_for()

    def wait(self, holds, seconds=WAIT_MS / 1000):
        # The page forbids evaluating code, so waiting happens out here.
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, "it did not happen in time"
            self.page.wait_for_timeout(50)

    def close(self):
        self.context.close()
        assert not self.errors
        assert not self.foreign


@pytest.fixture
def visit(browser, base_url):
    made = []

    def begin(**settings):
        made.append(Visit(browser, base_url, **settings))
        return made[-1]

    yield begin
    for one in made:
        one.close()


def test_the_letter_comes_first_then_the_explanation_grows(visit):
    v = visit()
    assert v.page.title() == "MedQA"
    v.take("Psychiatry")
    assert v.field("B").input_value() == "Alcoholic hallucinosis"
    v.button("Ask").click()
    v.find("#answer .bars").wait_for()
    assert v.find(".writing").count() == 1
    assert v.button("Ask").is_disabled()
    lengths = []
    while v.find("#ask").is_disabled():
        lengths.append(sum(map(len, v.find("#reason .written").all_inner_texts())))
        v.page.wait_for_timeout(60)
    assert len(set(lengths)) > 3
    assert lengths == sorted(lengths)
    assert v.find("#answer .bars li").count() == 4
    assert v.find("#answer [role=meter]").count() == 4
    assert "such questions the right option is" in v.text("#answer") or "not calibrated" in v.text("#answer")
    assert "Not medical advice." in v.text("#after")
    assert v.find("#after .agrees, #after .warning").count() == 1
    assert v.find(".writing").count() == 0
    assert v.button("Stop").is_disabled()


def test_what_the_answer_says(visit, fake):
    v = visit()
    v.take("Psychiatry")
    v.ask()
    assert v.text("#answer h2") == "Answer: A. Delirium tremens"
    assert "64 % sure. Of 100 answers given with that confidence about 64 are right." in v.text("#answer")
    assert "In 90 of 100 such questions the right option is among: A, B." in v.text("#answer")
    assert "in 4 orders, it chose this one in 3 of them" in v.text("#answer")
    assert "leads to A too" in v.text("#after")
    assert "Delirium tremens appears about two to four days" in v.text("#reason")
    v.take("Pharmacology")
    v.wait(lambda: v.field("D").input_value() == "DNA gyrase")
    v.button("How sure it has to be").click()
    v.page.get_by_label("95 of 100").check()
    v.page.get_by_label("Write an explanation").uncheck()
    v.ask()
    assert "In 95 of 100 such questions the right option is among: A, B, D." in v.text("#answer")
    assert v.text("#reason") == ""
    assert [(explain, s.alpha, s.max_risk) for _, explain, s in fake.asked] == [
        (True, 0.1, None),
        (False, 0.05, None),
    ]
    v.page.get_by_label("Write an explanation").check()
    v.ask()
    assert "Do not rely on this explanation. The explanation points to A." in v.text("#after")


def test_not_sure_enough_is_no_answer(visit, fake):
    v = visit()
    v.take("Psychiatry")
    v.button("How sure it has to be").click()
    v.page.get_by_label("10 of 100", exact=True).check()
    v.ask()
    assert v.text("#answer h2") == "Not sure enough to answer"
    assert "88% is needed for at most 10 % wrong answers." in v.text("#answer")
    assert "Best guess, not an answer: A. Delirium tremens" in v.text("#answer .guess")
    assert v.find("#answer .badge, #answer .chosen").count() == 0
    assert v.find("#history .badge.none").count() == 1


def test_bad_input_is_said_beside_it_and_nothing_is_lost(visit, fake):
    v = visit()
    long = "word " * 2000
    for place, message, question, options in (
        ("question", "There is no question yet.", "  ", ()),
        ("options", "A question needs at least two options.", "Which?", ("one",)),
        ("options", "Option B is empty.", "Which?", ("one", "", "three")),
        ("options", "Options A and C are the same.", "Which?", ("one", "two", "one")),
        ("question", "The question is too long: 25", "word " * 5000, ("one", "two", "three")),
        ("question", "The question takes 2,000 tokens", long, ("one", "two", "three")),
        (
            "asking",
            "12 are waiting already. Try again in a moment.",
            "This fails as it is busy",
            ("one", "two", "three"),
        ),
        ("asking", "Something is wrong with this program.", "This fails because", ("one", "two", "three")),
    ):
        v.fill(question, *options)
        v.button("Ask").click()
        problem = v.find(f"#problem-{place} [role=alert]", has_text=message)
        problem.wait_for()
        assert v.find("[role=alert]").count() == 1
        assert v.field("Question").input_value() == question
        v.find("#ask:not([disabled])").wait_for()
    assert "secret" not in v.page.content()
    assert v.find(".toast-body").count() == 0
    v.fill("Which?", "one", "two", "three")
    v.ask()
    assert v.find("[role=alert]").count() == 0
    assert "calibrated on questions of 4 options" in v.text("#answer .caveat")


def test_options_are_added_and_removed(visit):
    v = visit()
    v.fill("Which?", "a1", "b2", "c3", "d4")
    for letter in "EFGHIJ":
        v.button("Add an option").click()
        v.field(letter).wait_for()
    v.wait(lambda: v.button("Add an option").is_disabled())
    v.field("J").fill("j10")
    v.button("Remove B").click()
    v.field("J").wait_for(state="hidden")
    assert [v.field(letter).input_value() for letter in "ABCI"] == ["a1", "c3", "d4", "j10"]
    assert v.button("Add an option").is_enabled()
    for letter in "IHGFEDC":
        v.button(f"Remove {letter}").click()
        v.field(letter).wait_for(state="hidden")
    v.button("Remove A").click()
    v.find("#problem-options [role=alert]", has_text="at least two options").wait_for()
    assert v.field("B").input_value() == "c3"


def test_a_whole_question_is_pasted(visit):
    v = visit()
    v.button("Paste a whole question").click()
    v.field("Question with its options").fill("no question at all")
    v.button("Fill in the form").click()
    v.find("#notes [role=alert]", has_text="No options were found in the text.").wait_for()
    assert v.field("Question with its options").input_value() == "no question at all"
    v.field("Question with its options").fill(PASTE)
    v.button("Fill in the form").click()
    v.find("#notes [role=status]").wait_for()
    assert "The answer key in the text was left out." in v.text("#notes")
    v.wait(lambda: v.field("Question").input_value() == "A man cannot see. Which vitamin is low?")
    assert [v.field(letter).input_value() for letter in "ABC"] == ["Retinol", "Thiamine", "Niacin"]
    v.field("D").wait_for(state="hidden")
    v.field("Question with its options").fill("Context: A trial.\nDid it work?\nA. yes\nB. no")
    v.button("Fill in the form").click()
    v.find("#context textarea").wait_for()
    v.wait(lambda: v.find("#context textarea").input_value() == "A trial.")


def test_each_visitor_has_a_history_of_their_own(visit, browser, base_url):
    first, second = visit(), visit()
    first.take("Psychiatry")
    second.take("Anatomy")
    first.button("Ask").click()
    second.button("Ask").click()  # both at once
    for v in (first, second):
        v.find("#ask:not([disabled])").wait_for()
        v.wait(lambda v=v: v.find("#history details").count() == 1)
    first.take("Pathology")
    first.wait(lambda: "iron" in first.field("B").input_value().lower())
    first.ask()
    assert [first.find("#history details").count(), second.find("#history details").count()] == [2, 1]
    assert "insects on the wall" not in second.page.content()
    entry = first.find("#history details").last
    entry.locator("summary").click()
    assert "insects on the wall" in entry.inner_text()
    assert "Not medical advice." in entry.inner_text()
    first.button("Forget these").click()
    first.find("#history details").first.wait_for(state="detached")
    second.page.reload()
    second.find("#question textarea").wait_for()
    assert second.find("#history details").count() == 0


def test_stop_ends_the_writing_and_the_letter_stands(visit, fake):
    v = visit()
    fake.word_s, before = 0.5, fake.ended
    try:
        v.take("Psychiatry")
        v.button("Ask").click()
        v.find("#reason .written").wait_for()
        v.button("Stop").click()
        v.find("#reason .warning", has_text="Stopped: the explanation is not whole").wait_for()
        v.wait(lambda: fake.running == 0)
        assert fake.ended == before + 1
        assert v.text("#answer h2") == "Answer: A. Delirium tremens"
        v.find("#ask:not([disabled])").wait_for()
        assert v.find("#history details").count() == 1
        v.button("Ask").click()
        v.find("#reason .written").wait_for()
        assert not v.errors
        v.page.goto("about:blank")  # who leaves is forgotten as well
        v.wait(lambda: fake.running == 0)
        v.errors.clear()  # gradio's script says that it was cut off
    finally:
        fake.word_s = 0.05


@pytest.mark.parametrize("clipboard", ["open", "closed"])
def test_the_answer_is_copied_as_json(visit, clipboard):
    v = visit(permissions=["clipboard-read", "clipboard-write"])
    if clipboard == "closed":  # as it is without https
        v.page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    v.take("Pathology")
    v.ask()
    v.page.get_by_text("This answer as JSON").click()
    shown = v.find("#after textarea").input_value()
    answer = json.loads(shown)
    assert answer["letter"] in "ABCD"
    assert answer["notice"].startswith("Not medical advice.")
    v.button("Copy").click()
    v.find("[data-copied]", has_text="Copied.").wait_for()
    if clipboard == "open":
        assert v.page.evaluate("navigator.clipboard.readText()") == shown
    v.page.evaluate("document.execCommand = () => false; navigator.clipboard || 0")
    if clipboard == "closed":
        v.button("Copy").click()
        v.find("[data-copied]", has_text="press Ctrl+C").wait_for()
        assert v.page.evaluate("getSelection().toString() || document.activeElement.value") == shown


def test_everything_can_be_done_with_the_keyboard(visit):
    v = visit()
    names = []
    for _ in range(40):
        v.page.keyboard.press("Tab")
        name = v.page.evaluate(
            "(() => { const e = document.activeElement; const s = getComputedStyle(e);"
            " return [/TEXTAREA|INPUT/.test(e.tagName) ? e.labels?.[0]?.innerText : e.innerText,"
            " parseFloat(s.outlineWidth) > 0 && s.outlineStyle !== 'none'] })()"
        )
        if name[0] is None or name[0].strip() == "MedQA":
            break
        assert name[1], f"focus on {name[0]!r} can't be seen"
        names.append(name[0].strip())
        if name[0].strip() == "Ask":
            break
    wanted = [
        "What this model is, and how often it is right",
        "Paste a whole question",
        "Psychiatry",
        "Question",
    ]
    wanted += [
        "Add context",
        "A",
        "Remove A",
        "D",
        "Add an option",
        "Write an explanation",
        "How sure it has to be",
    ]
    places = [names.index(name) for name in [*wanted, "Ask"]]
    assert places == sorted(places)
    # Enter in a line asks, Ctrl+Enter asks from everywhere.
    v.field("Question").focus()
    v.page.keyboard.type("Which?")
    v.field("A").focus()
    for text in ("one", "two"):
        v.page.keyboard.type(text)
        v.page.keyboard.press("Tab")
        v.page.keyboard.press("Tab")
    v.field("B").focus()
    v.page.keyboard.press("Enter")
    v.find("#history details").wait_for()
    v.find("#ask:not([disabled])").wait_for()
    v.field("Question").focus()
    v.page.keyboard.press("Control+Enter")
    v.wait(lambda: v.find("#history details").count() == 2)
    v.find("#ask:not([disabled])").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_every_screen_in_light_and_dark_and_is_accessible(visit, scheme, width):
    axe = pytest.importorskip("axe_core_python.sync_playwright").Axe()
    v = visit(viewport={"width": width, "height": 844}, color_scheme=scheme)

    def check():
        assert v.page.evaluate("document.documentElement.scrollWidth") <= width
        v.page.wait_for_timeout(300)
        found = axe.run(v.page)["violations"]
        grave = [
            (f["id"], [n["html"][:200] for n in f["nodes"]])
            for f in found
            if f["impact"] in ("serious", "critical")
        ]
        assert not grave

    check()
    background = v.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, re.findall(r"\d+", background)[:3])) < 60) == (scheme == "dark")
    for fold in ("Paste a whole question", "Add context", "How sure it has to be"):
        v.button(fold).click()
    v.button("Ask").click()
    v.find("[role=alert]").first.wait_for()
    check()
    v.take("Psychiatry")
    v.button("Ask").click()
    v.find("#answer .bars").wait_for()
    check()
    v.find("#ask:not([disabled])").wait_for()
    v.page.get_by_text("This answer as JSON").click()
    v.find("#history summary").click()
    check()
    if width == 390:  # the answer is below the form, and the page goes there
        assert v.page.evaluate("scrollY") > 0


def test_texts_are_shown_and_never_run(visit):
    v = visit()
    v.fill(EVIL, EVIL + " A", "two\u2028lines", "</textarea><script>window.hacked=1</script>", "&lt;b&gt;")
    v.ask()
    v.find("#history summary").click()
    assert v.page.evaluate("window.hacked") is None
    assert v.find("#result img, #result script, #result .bars b").count() == 0
    assert EVIL in v.find("#history .entry > .written").first.inner_text()
    shown = [v.find("#answer .bars .text").nth(n).inner_text() for n in range(4)]
    assert shown[0].startswith(f"{EVIL} A")
    assert shown[2].startswith("</textarea><script>")
    assert shown[3].startswith("&lt;b&gt;")
    assert json.loads(v.find("#after textarea").input_value())["question"] == EVIL


def test_what_the_page_does_not_need_is_closed(base_url, fake):
    for path in (
        "gradio_api/upload",
        "gradio_api/file=/etc/passwd",
        "gradio_api/info",
        "gradio_api/run/predict",
        "config",
        "gradio_api/runs",
        "monitoring",
        "gradio_api/call/ask",
        "gradio_api/openapi.json",
    ):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(base_url + path)
    page = urllib.request.urlopen(base_url).read().decode()
    assert not re.findall(r"(?:href|src|content)=\"https?://[^\"]*", page)
    assert "/work/" not in page


def test_without_a_calibration_nothing_can_be_chosen(browser):
    from serve.page_server import serving
    from serve.slow_service import SlowService

    with serving(SlowService(calibrated=False)) as url:
        v = Visit(browser, url)
        v.button("How sure it has to be").click()
        v.page.get_by_text("How sure it has to be can't be chosen").wait_for()
        assert v.find("input[type=radio]:visible").count() == 0
        v.take("Psychiatry")
        v.ask()
        assert "This model was not calibrated" in v.text("#answer")
        assert "Of 100 answers" not in v.text("#answer")
        v.close()
