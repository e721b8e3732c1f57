"""The library as others take it: light to import, all of it in one place, its page true."""

import importlib
import inspect
import math
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
import scipy.stats

import medqa.trust

PAGE = (Path(__file__).parents[2] / "docs/trust.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
# What is kept beside an adapter is this program's own, not the library's.
MODULES = [m.name for m in pkgutil.iter_modules(medqa.trust.__path__) if m.name != "store"]


@pytest.mark.slow  # the layers' own test shows in every run that torch is not needed
def test_it_is_imported_without_the_heavy_libraries():
    heavy = ("torch", "transformers", "peft", "accelerate", "pydantic", "sklearn", "pandas", "matplotlib")
    code = f"import sys, medqa.trust; sys.exit(', '.join(set({heavy!r}) & set(sys.modules)) or 0)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_public_names_are_sorted():
    names = medqa.trust.__all__
    assert list(names) == sorted(names, key=lambda n: (not n.isupper(), not n[0].isupper(), n))
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", MODULES)
def test_every_function_and_class_of_a_module_is_in_the_library(name):
    module = importlib.import_module(f"medqa.trust.{name}")
    own = {
        key
        for key, value in vars(module).items()
        if not key.startswith("_")
        and (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__ == module.__name__
    }
    assert own <= set(medqa.trust.__all__)
    assert own <= set(module.__all__)
    for key in own:
        assert getattr(medqa.trust, key) is getattr(module, key)


def test_the_page_names_every_function_of_the_library():
    named = set(re.findall(r"`(\w+)`", PAGE.partition("## Functions")[2]))
    functions = {name for name in medqa.trust.__all__ if inspect.isfunction(getattr(medqa.trust, name))}
    assert functions <= named
    assert {name for name in named if name in medqa.trust.__all__} >= {
        "Temperature",
        "VectorScaling",
        "Isotonic",
    }


def test_the_page_s_code_runs_as_it_stands_there(capsys):
    assert len(BLOCKS) == 5
    names = {}
    for block in BLOCKS:
        exec(block, names)
    assert "Temperature(temperature=" in capsys.readouterr().out
    assert names["calibration"].calibrator.temperature == pytest.approx(2, abs=0.3)
    covered = names["coverage_of_sets"](names["sets"], names["key"])
    assert covered["coverage"] == pytest.approx(0.9, abs=0.03)
    after = names["expected_calibration_error"](names["confidence"], names["correct"])
    before = names["expected_calibration_error"](names["new"].max(axis=1), names["correct"])
    assert after < before / 3


def test_the_page_s_spread_of_coverage_is_the_law_s():
    text = "With 100 of these, nine in ten calibrations for 90 % cover 85 to 94 %; with 1,000, 88 to 92 %."
    assert text in " ".join(PAGE.split())
    for n, found in ((100, [85, 94]), (1000, [88, 92])):
        rank = math.ceil((n + 1) * 0.9)
        law = scipy.stats.beta(rank, n + 1 - rank)
        assert [round(100 * law.ppf(q)) for q in (0.05, 0.95)] == found
