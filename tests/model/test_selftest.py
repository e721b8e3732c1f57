import pytest
import torch

from medqa.config import ModelConfig
from medqa.hardware.device import choose_device
from medqa.hardware.selftest_record import last_selftest
from medqa.model import selftest
from medqa.model.selftest import BOUNDS, relative_error, run_selftest


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(selftest, "RATE_SECONDS", 0.0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_sound_device_passes_and_is_remembered(precision):
    device = choose_device(ModelConfig(device="cpu", dtype=precision))
    assert last_selftest(device) is None
    result = run_selftest(device)
    assert result["passed"], result["checks"]
    assert {check["name"] for check in result["checks"]} == {*BOUNDS[precision], "the same again"}
    assert last_selftest(device) == result


@pytest.mark.parametrize("fault", ["wrong", "nan", "unsteady"])
def test_a_faulty_device_fails(monkeypatch, fault):
    matmul, calls = selftest._matmul, []

    def faulty(device, dtype):
        result = matmul(device, dtype)
        if dtype != torch.float64:
            calls.append(1)
            if fault == "wrong":
                result[3] *= 1.5
            elif fault == "nan":
                result[0, 0] = float("nan")
            elif len(calls) > 1:
                result[5] += 1
        return result

    monkeypatch.setattr(selftest, "_matmul", faulty)
    result = run_selftest(choose_device(ModelConfig(device="cpu")))
    assert not result["passed"]
    failed = {check["name"] for check in result["checks"] if not check["passed"]}
    assert failed == (
        {"the same again"}
        if fault == "unsteady"
        else {"matmul"} | ({"the same again"} if fault == "nan" else set())
    )


def test_relative_error_by_hand():
    assert relative_error(torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0])) == pytest.approx(0.1)
    assert relative_error(torch.tensor([float("nan")]), torch.tensor([1.0])) == float("inf")
