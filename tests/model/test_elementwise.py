"""Compiled operations equal those launched one by one."""

import types

import pytest
import torch

from medqa.config import ModelConfig
from medqa.hardware.device import choose_device
from medqa.model import elementwise
from medqa.model.elementwise import LAUNCHED, Elementwise, compile_elementwise

WHOLE = Elementwise(
    elementwise._rotate_whole,
    elementwise._rotate_back_whole,
    elementwise._swiglu_whole,
    elementwise._swiglu_back_whole,
)
WIDTHS = types.SimpleNamespace(
    num_attention_heads=4, num_key_value_heads=2, head_dim=8, intermediate_size=24, hidden_size=32
)
CPU = (WIDTHS, choose_device(ModelConfig(device="cpu")))


def test_what_is_compiled_computes_the_same():
    assert elementwise._error(WHOLE, CPU[1], (4, 2, 8), 24, 50) < 1e-6


def without_compiler(monkeypatch, change):
    monkeypatch.setattr(torch, "compile", change)


def test_a_sound_compiler_is_used(monkeypatch):
    without_compiler(monkeypatch, lambda operation: operation)
    found, reason = compile_elementwise(*CPU)
    assert found == WHOLE
    assert reason.startswith("compiled in ")


def test_a_faulty_compiler_is_not(monkeypatch):
    without_compiler(monkeypatch, lambda operation: lambda *args: operation(*args) * 1.01)
    assert compile_elementwise(*CPU) == (LAUNCHED, "compiled, they are off by 1.0% here")


@pytest.mark.parametrize("error", [RuntimeError("no compiler\nmore"), ImportError("no triton"), OSError("x")])
def test_without_a_compiler_the_reason_is_told(monkeypatch, error):
    def refuse(operation):
        raise error

    without_compiler(monkeypatch, refuse)
    found, reason = compile_elementwise(*CPU)
    assert found is LAUNCHED
    assert str(error).splitlines()[0] in reason


@pytest.mark.slow
def test_the_compiler_of_this_machine_is_right_or_refused():
    found, reason = compile_elementwise(*CPU)
    assert found is not LAUNCHED or "can't be compiled here" in reason
