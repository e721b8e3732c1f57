"""The command line as a user meets it: in a process of its own."""

import dataclasses
import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from medqa.cli.answer_output import print_answer
from medqa.cli.app import app, main
from medqa.errors import EngineError
from medqa.records import NOTICE, Example
from medqa.serve.access import Gate
from medqa.serve.answerer import Answerer
from medqa.serve.api import build_api
from medqa.serve.desk import Desk
from medqa.serve.service import Service


def call(monkeypatch, capsys, *args):
    """Run `medqa ARGS` in this process; return exit code, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", ["medqa", *map(str, args)])
    with pytest.raises(SystemExit) as caught:
        main()
    out, err = capsys.readouterr()
    return caught.value.code, out, err


@pytest.fixture
def medqa(monkeypatch, capsys):
    return lambda *args: call(monkeypatch, capsys, *args)


TWO = ("-q", "q", "-o", "a", "-o", "b")


@pytest.mark.parametrize(
    ("args", "message", "hint"),
    [
        (("train", "medmcq"), "unknown recipe 'medmcq'", "did you mean 'medmcqa'"),
        (("train", "--set", "train.lora.rnak=4"), "Did you mean train.lora.rank?", "recipe fields"),
        (("train", "--set", "data.name=./none"), "no file or folder './none'", "data.name"),
        (("train", "--set", "data.name=builtin:starter"), "Qwen/Qwen3-1.7B", "model.name=FOLDER"),
        (("train",), "the Hub can't be reached for", "quickstart"),
        (("train", "--resume", "runs/none"), "no run folder 'runs/none'", "medqa train"),
        (("train", "--resume", "x", "--set", "a=1"), "--resume goes on", "leave out"),
        (("train", "quickstart", "--resume", "x"), "--resume goes on", "leave out"),
        (("train", "--set", "train.checkpoint_minutes=.inf"), "train.checkpoint_minutes", "recipe fields"),
        (
            ("train", "--set", "model.revision=2024-13-45", "--set", "data.name=./none"),
            "no file",
            "data.name",
        ),
        (("train", "--set", "data.name=" + "x" * 5000), "data.name", "path"),
        (("evaluate", "runs/none"), "no run folder", "medqa train"),
        (("ask", "runs/none", "-q", "q", "-o", "a", "-o", "b"), "no run folder", "medqa train"),
        (("calibrate", "runs/none"), "no run folder", "medqa train"),
        (("calibrate", "runs/none", "--orders", "7"), "--orders 7", "every rotation"),
        (("compare", "runs/none", "runs/none"), "no run folder", "medqa train"),
        (("ask", "x", "-q", "q", "-o", "a"), "1 option(s)", "each option"),
        (("ask", "x", "-q", "q", "-o", "a", "-o", "a"), "more than once", "differ"),
        (("ask", "x", "-q", " ", "-o", "a", "-o", "b"), "question is empty", "text"),
        (("ask", "x", "-o", "a", "-o", "b"), "options without a question", "-q"),
        (("ask", "x"), "no question", "--file"),
        (("ask", "-q", "q"), "neither a run nor a server", "medqa ask --serve URL"),
        (("ask", "x", "--serve", "http://a", "-q", "q"), "a run and a server", "medqa ask RUN"),
        (("ask", "--serve", "localhost:1", *TWO), "is not the address of a server", "http://127.0.0.1:7860"),
        (("ask", "--serve", "http://127.0.0.1:1", *TWO), "nothing answers at", "medqa serve RUN"),
        (
            ("ask", "--serve", "http://a", *TWO, "--set", "serve.max_explanation_tokens=4"),
            "can't be sent along",
            "serve.alpha",
        ),
        (("ask", "--serve", "http://a", *TWO, "--trust-remote-code", "m"), "no effect", "medqa serve"),
        (("ask", "x", "--file", "none.json"), "can't be read", "question"),
        (("recipe", "show", "nope"), "unknown recipe", "Known"),
        (("data", "--check", "none.csv"), "no file 'none.csv'", "path"),
        (("data", "--map", "question"), "not of the form FIELD=COLUMN", "question=stem"),
        (
            ("train", "--set", "data.name=builtin:starter", "--set", "data.skip_rules=[cite]"),
            "cite",
            "citation",
        ),
        (("recipe", "copy", "medmcqa", "own.txt"), "does not end in .yaml", "ending"),
    ],
)
def test_what_a_user_gets_wrong_is_one_clear_error(medqa, args, message, hint):
    code, out, err = medqa(*args)
    assert code == 2
    assert out == ""
    flat = " ".join(err.split())
    assert message in flat
    assert "Hint: " in flat
    assert hint in flat
    assert "Traceback" not in err


@pytest.mark.parametrize("args", [("nonsense",), ("train", "--nonsense"), ("evaluate",)])
def test_usage_errors_exit_with_2(medqa, args):
    code, _, err = medqa(*args)
    assert code == 2
    assert "Usage" in err


def test_ask_by_flags_by_file_and_as_json(medqa, finished_run, tmp_path):
    flags = ("-q", "What comes after 3?", "-o", "4", "-o", "[bold]9[/]")
    code, out, _ = medqa("ask", finished_run, *flags)
    assert code == 0
    assert "What comes after 3?" in out
    assert "[bold]9[/]" in out
    assert "Answer: " in out
    assert NOTICE in " ".join(out.split())
    file = tmp_path / "q.json"
    file.write_text(json.dumps({"question": "What comes after 3?", "options": ["4", "[bold]9[/]"]}))
    code, out, _ = medqa("ask", finished_run, "--file", file, "--json", "--no-explain")
    answer = json.loads(out)
    assert code == 0
    assert answer["notice"] == NOTICE
    assert answer["explanation"] is None
    assert set(answer["probabilities"]) == {"A", "B"}
    file.write_text(json.dumps({"question": "q", "opa": "4", "opb": "9"}))
    assert medqa("ask", finished_run, "--file", file, "--no-explain")[0] == 0


def test_ask_shows_the_letter_at_once_and_the_notice_whatever_happens(finished_run, capsys):
    answerer = Answerer.load(finished_run)
    example = Example("What comes after 3?", ("4", "9"))
    first, *_, last = answerer.stream(example)
    shown = []

    def parts(*, fails):
        yield first
        shown.append(capsys.readouterr().out)
        yield "  \x1b[31mOne [b]word[/], "
        yield "then"
        shown.append(capsys.readouterr().out)
        yield " another.\nA line " + "of words " * 20
        if fails:
            raise EngineError("it broke off")
        yield dataclasses.replace(last, explanation="...", explanation_check={"warning": "[c] is odd"})

    print_answer(parts(fails=False), example.options)
    assert "Answer: " in shown[0]
    assert NOTICE not in " ".join(shown[0].split())
    assert shown[1] == "\n[31mOne [b]word[/],"  # a word is shown once it is whole
    rest = capsys.readouterr().out
    assert rest.startswith(" then another.\nA line of words")
    assert max(map(len, rest.splitlines())) <= 80
    assert rest.index("Beware: [c] is odd") < rest.index("Not medical advice")
    with pytest.raises(EngineError):
        print_answer(parts(fails=True), example.options)
    assert NOTICE in " ".join(capsys.readouterr().out.split())


def test_ask_a_server_is_ask_without_a_model(medqa, calibrated_run, monkeypatch):
    from serve.conftest import running

    service = Service(Answerer.load(calibrated_run))
    app = Gate(
        build_api(Desk(service)), host="127.0.0.1", api_key="a-key-of-sixteen-signs", wrong_key_wait_s=0
    )
    with running(app) as url:
        flags = (*QUESTION[:-1], "--set", "serve.orders=4")
        code, _, err = medqa("ask", "--serve", url, *flags)
        assert code == 2
        assert "asks for an API key\nHint: export MEDQA_API_KEY" in err
        for more in ((), ("--no-explain",), ("--json",)):
            monkeypatch.setenv("MEDQA_API_KEY", "a-key-of-sixteen-signs")
            code, out, err = medqa("ask", "--serve", url, *flags, *more)
            assert code == 0, err
            local = medqa("ask", calibrated_run, *flags, *more)[1]
            if more == ("--json",):
                assert set(json.loads(out)) == set(json.loads(local))
                out, local = json.loads(out)["explanation"], json.loads(local)["explanation"]
            assert out == local
    service.close()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("[]", "expected one object"),
        ('{"question": "q", "options": ["a", "b"], "anser": 1}', "unknown field 'anser'"),
        ('{"question": 5, "options": ["a", "b"]}', "question is a int"),
        ('{"question": "q", "options": [1, 2], "answer_idx": "A"}', "options are not letters"),
        ('{"question": "q", "options": "abcd", "answer_idx": "A"}', "options are not letters"),
        ('{"question": "q", "choices": null, "answer": 0}', "choices is a NoneType"),
        ('{"question": "q", "choices": "wxyz", "answer": 0}', "choices is a str"),
        ('{"question": "q", "context": null, "final_decision": "yes"}', "context is a NoneType"),
        ('{"question": "\\ud800", "options": ["a", "b"]}', "half a character"),
        ("[" * 100_000, "can't be read"),
        ('{"question": "q"}', "fit no known layout"),
        ('{"question": "q", "options": []}', "0 option(s)"),
    ],
)
def test_question_files_that_are_wrong(medqa, tmp_path, row, message):
    (tmp_path / "q.json").write_text(row)
    code, _, err = medqa("ask", "x", "--file", tmp_path / "q.json")
    assert code == 2
    assert message in err


def test_ask_at_a_prompt(finished_run, monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    from medqa.cli import question

    answers = iter(["Why?", "because", "therefore", ""])
    monkeypatch.setattr(question.sys, "stdin", type("Tty", (), {"isatty": lambda self: True})())
    monkeypatch.setattr(question.typer, "prompt", lambda *a, **k: next(answers))
    example = question.read_question(None, [], None)
    assert (example.question, example.options) == ("Why?", ("because", "therefore"))


def test_train_evaluate_and_their_json(medqa, settings, tmp_path):
    flags = [part for s in settings for part in ("--set", s)]
    code, out, err = medqa("train", "--out", tmp_path / "r", "--json", *flags)
    assert code == 0
    assert json.loads(out)["status"] == "complete"
    assert "Training: 5/5" in err
    code, out, _ = medqa("evaluate", tmp_path / "r")
    assert code == 0
    assert "accuracy (95 % CI)" in out
    assert "McNemar" in out
    code, out, _ = medqa("evaluate", tmp_path / "r", "--json", "--limit", "5")
    assert json.loads(out)["scores"]["lm_eval"]["base"]["num_questions"] == 5


def test_trust_on_the_command_line(medqa, calibrated_copy):
    code, out, _ = medqa("calibrate", calibrated_copy, "--orders", "1", "--json")
    assert code == 0
    assert set(json.loads(out)["orders"]) == {"1", "4"}
    code, out, _ = medqa("calibrate", calibrated_copy, "--orders", "1", "--rows", "50")
    assert code == 0
    assert "Calibrated on 50 questions that were held back from training" in " ".join(out.split())
    code, _, err = medqa("calibrate", calibrated_copy, "--orders", "7")
    assert code == 2
    assert "--orders 7" in err
    assert "4 every rotation" in " ".join(err.split())
    code, _, err = medqa("calibrate", calibrated_copy, "--rows", "49")
    assert code == 2
    assert "at least 50 are needed" in " ".join(err.split())


QUESTION = ("-q", "What comes after 3?", "-o", "4", "-o", "9", "-o", "7", "-o", "1", "--no-explain")


def test_an_answer_that_is_not_given_is_printed_as_such(medqa, calibrated_run, finished_run):
    risk = ("--set", "serve.max_risk=0.3")
    code, out, _ = medqa("ask", calibrated_run, *QUESTION, *risk)
    flat = " ".join(out.split())
    assert code == 0
    assert "Not sure enough to answer: no confidence is enough for at most 30 % wrong answers" in flat
    assert "Best guess: " in flat
    assert "Answer: " not in flat
    assert NOTICE in flat
    answer = json.loads(medqa("ask", calibrated_run, *QUESTION, *risk, "--json")[1])
    assert answer["abstain"] is True
    flat = " ".join(medqa("ask", calibrated_run, *QUESTION, "--set", "serve.orders=4")[1].split())
    assert "Still in question, 90% sure: " in flat
    assert "of 4 option orders" in flat
    assert "not calibrated" not in flat
    two = ("-q", "What comes after 3?", "-o", "4", "-o", "9", "--no-explain")
    flat = " ".join(medqa("ask", calibrated_run, *two)[1].split())
    assert "Beware: calibrated on questions of 4 options, and this one has 2" in flat
    assert "Still in question" not in flat
    code, _, err = medqa("ask", finished_run, *QUESTION, *risk)
    assert code == 2
    assert "nothing is known of the risk" in " ".join(err.split())
    assert "the model's own: not calibrated" in " ".join(medqa("ask", finished_run, *QUESTION)[1].split())


CASES = """stem,first,second,third,fourth,solution,why
Which vitamin prevents scurvy?,Vitamin A,Vitamin C,Vitamin D,Vitamin K,2,Vitamin C is needed for collagen.
Which organ makes insulin?,Liver,Spleen,Pancreas,Kidney,3,Beta cells of the pancreas make insulin.
Which bone is the longest?,Femur,Tibia,Humerus,Radius,1,The femur is the longest bone.
Which nerve supplies the diaphragm?,Vagus,Phrenic,Ulnar,Sciatic,2,The phrenic nerve supplies it.
Which chamber fills the aorta?,Right atrium,Left atrium,Right ventricle,Left ventricle,4,The left does.
"""
OPTION_MAP = [("option_a", "first"), ("option_b", "second"), ("option_c", "third"), ("option_d", "fourth")]
COLUMNS = [("question", "stem"), *OPTION_MAP, ("answer", "solution"), ("explanation", "why")]
OWN_MAP = [part for field, column in COLUMNS for part in ("--map", f"{field}={column}")]


def test_own_data_is_checked_built_and_never_shown(medqa, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "own.csv"
    own.write_text(CASES)
    code, out, err = medqa("data", "--check", own)
    assert code == 2
    assert "--map question=stem" in err
    code, out, err = medqa("data", "--check", own, *OWN_MAP)
    assert code == 0, err
    assert "1-based" in out
    assert "Training would take it." in out
    code, out, err = medqa("data", "--set", f"data.name={own}", *OWN_MAP, "--out", "corpus")
    assert code == 0, err
    assert "--set 'data.map.question=\"stem\"'" in out
    record = (tmp_path / "corpus/data.json").read_text()
    for text in ("scurvy", "Pancreas", "collagen"):
        assert text not in out + err + record
    assert "scurvy" in (tmp_path / "corpus/data_report.html").read_text()
    code, out, err = medqa("data", "--set", f"data.name={own}", *OWN_MAP, "--out", "corpus")
    assert code == 2
    assert "is there already" in err


def test_a_file_with_problems_is_explained_by_row(medqa, tmp_path):
    own = tmp_path / "own.csv"
    own.write_text(CASES + "Which drug thins the blood?,Heparin,,Atenolol,Insulin,1,It acts on thrombin.\n")
    code, out, _ = medqa("data", "--check", own, *OWN_MAP, "--json")
    result = json.loads(out)
    assert code == 2
    assert result["broken"] == ["own.csv:7: option B is empty"]
    assert not result["trainable"]


def test_recipes_can_be_listed_shown_and_copied(medqa, tmp_path):
    assert "medmcqa" in medqa("recipe", "list")[1]
    assert "Qwen/Qwen3-1.7B" in medqa("recipe", "show", "medmcqa")[1]
    assert "warmup_fraction: 0.05" in medqa("recipe", "show", "medmcqa", "--full")[1]
    assert "train.lora.rank" in medqa("recipe", "fields")[1]
    assert json.loads(medqa("recipe", "fields", "--json")[1])["train.epochs"]["default"] == 1
    assert medqa("recipe", "copy", "medmcqa", tmp_path / "own.yaml")[0] == 0
    assert medqa("recipe", "copy", "medmcqa", tmp_path / "own.yaml")[0] == 2
    assert medqa("recipe", "show", tmp_path / "own.yaml")[0] == 0


def test_doctor_gives_its_reasons(medqa):
    code, out, _ = medqa("doctor", "--json")
    findings = json.loads(out)
    assert code in (0, 2)
    assert findings["device"]["precision_reason"]
    assert findings["versions"]["torch"]
    assert "precision" in medqa("doctor")[1]


def test_an_interrupted_command_exits_with_130(monkeypatch, capsys):
    from medqa.cli import doctor

    def interrupted(**kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "show_doctor", interrupted)
    code, _, err = call(monkeypatch, capsys, "doctor")
    assert code == 130
    assert "Interrupted" in err


def test_bugs_keep_their_traceback(monkeypatch, capsys):
    from medqa.cli import doctor

    monkeypatch.setattr(doctor, "show_doctor", lambda **kwargs: 1 / 0)
    monkeypatch.setattr(sys, "argv", ["medqa", "doctor"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("Traceback (most recent call last)")
    assert said.endswith("ZeroDivisionError: division by zero\n")


def test_text_is_shown_as_it_is(medqa, finished_run):
    _, out, _ = medqa(
        "ask", finished_run, "-q", "Ratio a:b:c in :x: [red]", "-o", ":heart:", "-o", "[b]", "--no-explain"
    )
    assert "Ratio a:b:c in :x: [red]" in out
    assert ":heart:" in out


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['medqa', '--help']\n"
        "from medqa.cli.app import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pydantic', 'pyarrow'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_every_verb_has_help_and_at_most_eight_options():
    from typer.main import get_command

    command = get_command(app)
    verbs = {**command.commands, **command.commands["recipe"].commands}
    for name, verb in verbs.items():
        assert verb.help, name
        assert len(verb.params) <= 9, name  # eight options and the argument
    assert CliRunner().invoke(app, ["train", "--help"]).exit_code == 0
