"""The README's lines are run as they stand there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from medqa.prompts import SYSTEM
from medqa.records import Example
from medqa.serve.answerer import Answerer

README = (Path(__file__).parents[1] / "README.md").read_text()
[LINES] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def readme_code(adapter):
    code = LINES.replace('"runs/quickstart-1/adapter"', repr(str(adapter)))
    assert code != LINES
    return code


def letter_by_readme(adapter):
    code = readme_code(adapter)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def letter_by_medqa(run):
    text = re.search(r'question = "(.*)"', LINES)[1]
    question, *options = text.split("\\n")
    example = Example(question, tuple(option[3:] for option in options))
    return Answerer.load(run).answer(example, explain=False).letter


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of the libraries, about each other
def test_plain_transformers_and_peft_give_the_same_letter(finished_run, capsys):
    exec(readme_code(finished_run / "adapter"), {})  # in this process: another would import torch for seconds
    assert capsys.readouterr().out.strip() == letter_by_medqa(finished_run)


def test_the_readme_s_prompt_is_the_prompt():
    assert f'"{SYSTEM}"' in LINES
    assert len(LINES.splitlines()) <= 15


@pytest.mark.slow
def test_the_same_with_the_real_built_in_model(built_in_run):
    assert letter_by_readme(built_in_run / "adapter") == letter_by_medqa(built_in_run)


def test_links_lead_somewhere():
    root = Path(__file__).parents[1]
    for page in [root / "README.md", *root.glob("*.md"), *root.glob("docs/**/*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page}: {link}"


def test_commands_in_the_readme_exist():
    from typer.main import get_command

    from medqa.cli.app import app

    verbs = get_command(app).commands
    for verb in re.findall(r"^medqa (\w+)", README, re.MULTILINE):
        assert verb in verbs
