"""report.html: that it is whole, says what report.json says, and keeps other people's markup as text."""

import copy
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from medqa.cli.trust_output import print_report
from medqa.evaluate import charts
from medqa.evaluate.confidence import measure_calibrated, measure_orders
from medqa.evaluate.orders import OrderedPrediction
from medqa.evaluate.page import report_page, report_view
from medqa.evaluate.report import compare, summarise, without_flagged
from medqa.records import LETTERS, NOTICE, Prediction
from medqa.trust.calibration import LogLikelihoods
from medqa.trust.fitting import fit_calibration

EVIL = "<script>alert(1)</script>"
VOID = {"meta", "br"}
BLANK = "\u00a0"
SUBJECTS = ("Anatomy", "Surgery", "Anatomy", None)
SECTIONS = {"right", "trust", "abstention", "sets", "orders", "explanations", "traps", "subjects", "worst"}
SECTIONS |= {"method", "provenance"}


class Outline(HTMLParser):
    """Collects what a page holds, and checks that tags are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.ids, self.links, self.words = [], [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        values = dict(attrs)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values[name] for name in ("href", "src", "xlink:href") if name in values]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "title"} & {*self.open}:
            self.words.append(data)

    @property
    def text(self):
        """What a reader sees, with plain blanks."""
        return re.sub(r"\s+", " ", "".join(self.words))


def made(count, num_options=4, seed=0, strength=1.0):
    """Draw predictions that are right more often than by chance."""
    draw = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        answer = int(draw.integers(num_options))
        values = draw.normal(size=num_options)
        values[answer] += strength
        subject = SUBJECTS[number % 4] if number > 4 else "Rare"
        rows.append(
            Prediction(f"q{number}", subject, num_options, answer, "scored", tuple(map(float, values)))
        )
    return rows


def scores(base, tuned, flagged=frozenset(), *, intervals=False):
    return {
        "base": summarise(base, intervals=intervals),
        "tuned": summarise(tuned, intervals=intervals),
        "change": compare(base, tuned),
        "without_flagged": without_flagged(base, tuned, flagged),
    }


def made_calibration(tuned, num_options=4):
    held = made(150, num_options, 3)
    calibration = fit_calibration(
        LogLikelihoods.of(
            [p.log_likelihoods for p in held], [p.answer for p in held], [p.subject for p in held]
        )
    )
    return {
        "calibrated": True,
        "file": {
            "identity": {"adapter_sha256": "ad" * 32},
            "data": {"calibration": {"num_used": 150, "sha256": "ca" * 32}},
        },
        **measure_calibrated(tuned, calibration),
    }


def in_orders(prediction, num_same=4):
    """The same answer in so many of four orders, at one place after another."""
    other = (prediction.choice + 1) % prediction.num_options
    choices = (prediction.choice,) * num_same + (other,) * (4 - num_same)
    return OrderedPrediction(prediction, choices, (0, 1, 2, 3), 4)


def made_report(count=120):
    base, tuned = made(count, seed=1, strength=0.3), made(count, seed=2)
    calibration = made_calibration(tuned)
    ordered = [in_orders(p, (4, 3, 1)[n % 3]) for n, p in enumerate(tuned)]
    return {
        "version": 2,
        "run": "runs/some-1",
        "file": "report.json",
        "whole_split": True,
        "base_model": "some/base",
        "adapter_sha256": "ad" * 32,
        "data": {"name": "/far/away/exam", "split": "test", "num_with_key": count, "num_used": count}
        | {"sha256": "da" * 32},
        "leaks": {"looked_for": True, "counts": {"exact": 2, "near": 0}, "num_flagged": 2}
        | {"flagged": {"exact": ["q1", "q2"], "near": []}},
        "scores": {
            "medqa": scores(base, tuned, {"q1", "q2"}, intervals=True),
            "lm_eval": scores(tuned, base),
        },
        "calibration": calibration,
        "orders": measure_orders(ordered, 4, None) | {"calibrated": copy.deepcopy(calibration)},
        "explanations": {
            "num_questions": 50,
            "num_empty": 1,
            "agreement": {"num": 49, "num_agreeing": 40, "share": 40 / 49, "interval": [0.68, 0.9]},
            "names_choice": 0.812,
            "truncation": [
                {"kept": kept, "same_answer": 1 - kept / 9, "interval": [0.7, 1.0], "probability": 0.5}
                for kept in (0.0, 0.5, 1.0)
            ],
            "hint": {
                "num_questions": 50,
                "flipped": 0.432,
                "interval": [0.3, 0.57],
                "confidence_plain": 0.5,
                "confidence_hinted": 0.6,
                "num_written": 20,
                "mentions": 0.05,
                "mentions_interval": [0.01, 0.2],
            },
        },
        "traps": [trap("chance"), trap("falls", accuracy=None), trap("stays")],
        "not_measured": [],
        "scoring": "packed",
        "device": {"name": "some card", "precision": "bf16"},
        "selftest": {"passed": True},
        "seconds": 61.2,
        "versions": {"medqa": "0.1.0", "python": "3.12"},
        "platform": "some platform",
        "git": {"commit": "c0ffee", "changed": True},
        "command": "medqa evaluate runs/some-1",
    }


def trap(expected, **changes):
    return {
        "name": expected,
        "title": f"The {expected} trap.",
        "expected": expected,
        "num_questions": 40,
        "num_left_out": 3,
        "accuracy": 0.3,
        "accuracy_interval": [0.2, 0.45],
        "accuracy_plain": 0.4,
        "chance": 0.25,
        "confidence": 0.41,
        "confidence_plain": 0.62,
        "confidence_change": -0.21,
        "confidence_change_interval": [-0.25, -0.17],
        **changes,
    }


def wrong_answer(num_options=4, **changes):
    return {
        "id": "q7",
        "subject": "Anatomy",
        "question": "Which bone is meant?",
        "context": None,
        "options": [f"bone {number}" for number in range(num_options)],
        "letter": "B",
        "key": "A",
        "confidence": 0.91,
        "probabilities": [0.02, 0.91, *[0.07 / (num_options - 2)] * (num_options - 2)],
        "explanation": "It is bone 1.",
        "warning": "The explanation points to C.",
        **changes,
    }


@pytest.fixture(scope="module")
def whole():
    return made_report()


@pytest.fixture
def report(whole):
    return copy.deepcopy(whole)


def rendered(report, worst, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(report_page(report, worst), encoding="utf-8")
    text = path.read_text(encoding="utf-8")
    page = Outline(text)
    assert not SECTIONS - {*page.ids}
    assert len(page.ids) == len(set(page.ids))
    assert "script" not in page.tags
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert not re.search(r"url\(|@import|https?://|\bNone\b(?! of|: no| is shown)|\bnan\b", text)
    for drawing in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        assert ElementTree.fromstring(drawing.replace("&", "&amp;")).get("role") == "img"
    return text, page


def bare(report):
    """Leave out whatever can be left out."""
    commands = {"lm_eval": "true", "orders": 4, "explanations": 200, "traps": 500}
    report["scores"].pop("lm_eval")
    return report | {
        "whole_split": False,
        "leaks": {"looked_for": False, "reason": "the rows are gone"},
        "calibration": {"calibrated": False, "reason": "the run has none: `medqa calibrate RUN`."},
        "orders": None,
        "explanations": None,
        "traps": None,
        "selftest": None,
        "git": None,
        "not_measured": [
            f"Not measured: {key}. `medqa evaluate RUN --set evaluate.{key}={value}` does."
            for key, value in commands.items()
        ],
    }


def test_the_page_is_whole_and_loads_nothing(report, tmp_path):
    text, page = rendered(report, [wrong_answer()], tmp_path)
    assert page.tags.count("h1") == 1
    assert page.tags.count("svg") == 3
    assert page.tags.count("caption") == page.tags.count("table")
    assert NOTICE in text.replace("&#39;", "'")
    assert "Not for publishing if the questions are private" in text
    assert "holds 1 evaluation question, word for word" in page.text
    assert "prefers-color-scheme: dark" in text
    assert "/far/away" not in text


def test_the_head_says_it_in_plain_words(report, tmp_path):
    own = report["scores"]["medqa"]
    right, before = (round(100 * own[name]["accuracy"]) for name in ("tuned", "base"))
    _, page = rendered(report, [], tmp_path)
    assert f"Of 100 questions, {right} right after tuning, {before} before" in page.text
    assert f"Tuning put {own['change']['num_fixed']} answers right" in page.text


NUMBERS = [
    ("scores medqa tuned accuracy", 0.54321, "54.3 % right after tuning"),
    ("scores medqa tuned accuracy_interval", [0.512, 0.571], "51.2 to 57.1 %"),
    ("scores medqa base accuracy", 0.34567, "34.6 % right before"),
    ("scores medqa change accuracy_gain", -0.0456, "\u22124.6 points gained"),
    ("scores medqa change accuracy_gain_interval", [-0.07, 0.0132], "\u22127.0 to +1.3 points"),
    ("scores medqa change mcnemar_p", 0.0313, "p = 0.031"),
    ("scores medqa without_flagged tuned accuracy", 0.1357, "13.6 %"),
    ("scores lm_eval tuned accuracy", 0.2468, "24.7 %"),
    ("calibration score mean_confidence", 0.7531, "the tuned model says 75.3 %"),
    ("calibration score ece", 0.0654, "6.5 points"),
    ("calibration score ece_interval", [0.0111, 0.0877], "1.1 to 8.8 points"),
    ("calibration score ece_by_chance", 0.0321, "3.2 points"),
    ("calibration score auroc", 0.71234, "0.712"),
    ("calibration score aurc", 0.23456, "0.235"),
    ("calibration score nll", 1.23456, "1.235"),
    ("calibration score accuracy_at_coverage 0.3", 0.8767, "87.7 %"),
    ("calibration account num_questions", 4321, "on 4,321 questions that were held back"),
    ("calibration sets lac 0.1 coverage", 0.9191, "91.9 %"),
    ("calibration sets aps 0.05 mean_size", 3.1415, "3.14"),
    ("calibration sets lac 0.2 sizes 2", 7654, "2 options: 7,654"),
    ("orders consistency", 0.6543, "65.4 % of the orders"),
    ("orders accuracy_by_consistency always accuracy", 0.5656, "56.6 %"),
    ("orders letters B", 0.1718, "17.2 %"),
    ("explanations agreement share", 0.7373, "73.7 %"),
    ("explanations hint flipped", 0.4848, "48.5 % of the answers change"),
    ("device name", "other card", "other card, bf16"),
    ("seconds", 4567.0, "4,567 seconds"),
]


def test_numbers_are_those_of_the_report(report, tmp_path):
    _, before = rendered(report, [], tmp_path)
    for keys, value, _ in NUMBERS:
        *path, last = keys.split()
        place = report
        for key in path:
            place = place[key]
        assert last in place
        place[last] = value
    _, after = rendered(report, [], tmp_path)
    for keys, _, shown in NUMBERS:
        assert after.text.count(shown) > before.text.count(shown), keys


def test_what_was_not_measured_is_told_with_its_command(report, tmp_path):
    text, page = rendered(bare(report), [], tmp_path)
    for key in ("lm_eval", "orders", "explanations", "traps"):
        found = re.findall(rf"<code>medqa evaluate RUN --set evaluate\.{key}=\w+</code>", text)
        assert len(found) == 2, key  # in its place, and in the list of all
    assert "the run has none: <code>medqa calibrate RUN</code>. Calibration" in text
    assert "Leaks were not looked for: the rows are gone" in page.text
    assert "Only a part was scored" in page.text
    assert page.tags.count("svg") == 2
    assert "word for word. Share it" not in page.text


def test_without_a_base_model_it_stands_nowhere(report, tmp_path, capsys):
    for score in report["scores"].values():
        score |= {"base": None, "change": None}
    report["scores"]["medqa"]["without_flagged"] |= {"base": None, "change": None}
    report["engine"] = {"name": "tuned at gpu-1:8000", "precision": "its own"}
    text, page = rendered(report, [], tmp_path)
    assert "The base model was not measured" in page.text
    assert "Own prompt, without flagged questions" in page.text
    assert "not verified: the run keeps no known questions" in page.text
    assert not re.search(
        r">Base<|Gain|gained|McNemar|>base<|thin mark| before</h1>", text.replace("gained is", "")
    )
    assert page.tags.count("polyline") < rendered(made_report(), [], tmp_path)[1].tags.count("polyline")
    print_report(report | {"explanations": None})
    told = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "without them, own prompt: tuned" in told
    assert "Change" not in told


def test_no_calibration_at_all(report, tmp_path):
    report["calibration"] = None
    assert "the model was not calibrated" in rendered(report, [], tmp_path)[1].text


def test_markup_in_the_questions_stays_text(report, tmp_path):
    worst = wrong_answer(
        id=EVIL, subject=EVIL, question=EVIL, context=EVIL, options=[EVIL] * 4, explanation=EVIL, warning=EVIL
    )
    report["base_model"] = report["run"] = report["command"] = EVIL
    report["leaks"] = {"looked_for": False, "reason": EVIL}
    report["not_measured"] = [f"{EVIL} `{EVIL}` evaluate.traps="]
    report["traps"] = None
    for score in (report["scores"]["medqa"]["tuned"], report["calibration"]["score"]):
        score["subjects"] = {EVIL: next(iter(score["subjects"].values()))}
    text, _ = rendered(report, [worst], tmp_path)
    assert EVIL not in text
    assert text.count("&lt;script&gt;") > 12
    assert "&amp;lt;" not in text


def test_one_question(report, tmp_path):
    one = made(1, seed=5)
    report |= {
        "scores": {"medqa": scores(one, one)},
        "calibration": {"calibrated": False, "reason": "too few"},
        "orders": measure_orders([OrderedPrediction(one[0], (one[0].choice,), (0,), 1)], 4, None),
    }
    assert report["scores"]["medqa"]["tuned"]["auroc"] is None
    right = report["scores"]["medqa"]["tuned"]["num_correct"]
    _, page = rendered(report, [], tmp_path)
    assert f"Of 1 question, {right} right after tuning, {right} before" in page.text
    assert "too few to tell" in page.text
    assert "AUROC tells right from wrong: 0.5 not at all, 1 always\u2013\u2013" in page.text


def test_ten_options(report, tmp_path):
    tuned = made(60, num_options=10)
    report |= {
        "scores": {"medqa": scores(tuned, tuned)},
        "calibration": made_calibration(tuned, num_options=10),
        "orders": measure_orders([in_orders(p) for p in tuned], 4, None),
    }
    text, page = rendered(report, [wrong_answer(10)], tmp_path)
    assert "bone 9" in text
    assert "10 options: " in page.text
    view = report_view(report, [wrong_answer(10)])
    assert [row["letter"] for row in view["letters"]] == list(LETTERS)


def test_worst_errors_name_the_chosen_and_the_right_option(report, tmp_path):
    _, page = rendered(report, [wrong_answer()], tmp_path)
    assert f"Answered B, 91{BLANK}% sure; right is A".replace(BLANK, " ") in page.text
    assert "bone 0 ✓ right" in page.text
    assert "bone 1 ✗ chosen" in page.text
    assert "The explanation points to C." in page.text
    _, page = rendered(report, [wrong_answer(explanation=None, warning=None, key=None)], tmp_path)
    assert "✓ right" not in page.text
    assert "The model's explanation" not in page.text


def test_thresholds_that_are_missing_or_broken_are_told(report, tmp_path):
    report["calibration"]["abstention"] = [
        {"max_risk": 0.5, "threshold": 0.0, "num_answered": 120, "coverage": 1.0, "risk": 0.61}
        | {"risk_interval": [0.52, 0.69]},
        {"max_risk": 0.4, "threshold": 0.71, "num_answered": 60, "coverage": 0.5, "risk": 0.41}
        | {"risk_interval": [0.3, 0.54]},
        {"max_risk": 0.2, "threshold": 0.9, "num_answered": 0, "coverage": 0.0},
        {"max_risk": 0.1, "threshold": None},
    ]
    _, page = rendered(report, [], tmp_path)
    assert page.text.count("more than promised") == 1
    assert "71 %" in page.text
    assert "none was sure enough" in page.text
    assert "no threshold reaches it" in page.text


def test_subjects_below_their_target_by_more_than_chance_are_named(report, tmp_path):
    found = report["calibration"]["sets"]["lac"]["0.1"]
    found["subjects"]["Anatomy"]["coverage_interval"] = [0.7, 0.89]
    found["subjects"]["Surgery"]["coverage_interval"] = [0.7, 0.91]
    found["subjects"]["Rare"]["coverage_interval"] = [0.1, 0.5]
    assert found["subjects"]["Rare"]["num_questions"] < 10
    found["within_subjects"] = {"Surgery": {**found["subjects"]["Surgery"], "coverage_interval": [0.5, 0.8]}}
    rows = {row["name"]: row for row in report_view(report, [])["set_subjects"]}
    assert {name for name, row in rows.items() if row["off"] == "below"} == {"Anatomy"}
    assert rows["Surgery"]["within"]["off"] == "below"
    assert rows["Rare"]["few"]
    _, page = rendered(report, [], tmp_path)
    assert "Below the target by more than chance: Anatomy." in page.text


@pytest.mark.parametrize(
    ("expected", "changes", "marks"),
    [
        ("falls", {"accuracy": None, "accuracy_interval": None}, []),
        ("falls", {"confidence_change_interval": [-0.02, 0.01]}, ["confidence does not fall"]),
        ("chance", {}, []),
        ("chance", {"accuracy_interval": [0.26, 0.4]}, ["right more often than by chance"]),
        ("stays", {}, []),
        ("stays", {"confidence_change_interval": [0.0, 0.1]}, []),
        ("stays", {"accuracy_interval": [0.1, 0.39]}, [f"right less often than the 40.0{BLANK}% without it"]),
    ],
)
def test_traps_that_catch_the_model_are_marked(report, tmp_path, expected, changes, marks):
    report["traps"] = [trap(expected, **changes)]
    [row] = report_view(report, [])["trap_rows"]
    assert row["marks"] == marks
    _, page = rendered(report, [], tmp_path)
    assert f"{len(marks)} of 1 trap caught it" in page.text


def test_explanations_may_lack_parts(report, tmp_path):
    report["explanations"] = {"num_questions": 0, "agreement": {"num": 0, "num_agreeing": 0}}
    report["explanations"]["agreement"] |= {"share": None, "interval": None}
    report["explanations"]["truncation"] = [{"kept": 0.0, "same_answer": None, "probability": None}]
    _, page = rendered(report, [], tmp_path)
    assert "the same answer without the explanation" not in page.text
    report["explanations"]["agreement"] |= {"share_without": 0.3141, "interval_without": [0.2, 0.45]}
    assert "31.4 % 20.0 to 45.0 %" in rendered(report, [], tmp_path)[1].text


def test_no_error_is_shown_only_where_there_is_none(report, tmp_path):
    assert "None is shown on this page." in rendered(report, [], tmp_path)[1].text
    right = [p for p in made(40) if p.choice == p.answer]
    report |= {"scores": {"medqa": scores(right, right)}, "calibration": None}
    assert "None: no answer was wrong." in rendered(report, [], tmp_path)[1].text


def test_numbers_as_text():
    assert charts.percent(0.5) == f"50.0{BLANK}%"
    assert charts.percent(0.0004) == f"under 0.1{BLANK}%"
    assert charts.percent(None) == "\u2013"
    assert charts.signed_points(-0.0001) == f"0.0{BLANK}points"
    assert charts.signed_points(0.012) == f"+1.2{BLANK}points"
    assert charts.interval(None) == ""


def test_drawings_keep_to_their_sheet(report):
    score, base = report["calibration"]["score"], report["scores"]["medqa"]["base"]
    for drawing in (
        charts.reliability_chart(score["reliability"], base["reliability"]),
        charts.risk_chart(score, base, (0.1, 0.3, 0.5)),
        charts.kept_chart(report["explanations"]["truncation"]),
    ):
        sheet = ElementTree.fromstring(drawing)
        width, height = map(float, sheet.get("viewBox").split()[2:])
        for shape in sheet.iter():
            places = {name: float(shape.get(name)) for name in ("x", "x1", "x2", "cx") if shape.get(name)}
            assert all(0 <= place <= width for place in places.values())
            places = {name: float(shape.get(name)) for name in ("y", "y1", "y2", "cy") if shape.get(name)}
            assert all(0 <= place <= height for place in places.values())
        for line in sheet.iter("polyline"):
            pairs = [tuple(map(float, pair.split(","))) for pair in line.get("points").split()]
            assert all(0 <= x <= width and 0 <= y <= height for x, y in pairs)
