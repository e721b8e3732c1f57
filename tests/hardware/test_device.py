"""Device, precision and memory, under simulated back ends."""

import contextlib

import pytest
import torch

from hardware import machines
from medqa.config import ModelConfig
from medqa.errors import DeviceError
from medqa.hardware.device import Device, choose_device, torch_build
from medqa.hardware.doctor import compare_views, diagnose
from medqa.hardware.memory import default_batch, plan_memory
from medqa.hardware.probe import probe

AOT = "TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL"


class Properties:
    def __init__(self, name, arch):
        self.name, self.gcnArchName, self.total_memory = name, arch, 192 * 2**30


@pytest.fixture
def rocm(monkeypatch):
    """Pretend that torch is a ROCm build with one card."""

    def pretend(name, arch, bf16=True):
        properties = Properties(name, arch)
        monkeypatch.setattr(torch.version, "hip", "7.2.0", raising=False)
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device=None: properties)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (100 * 2**30, 192 * 2**30))
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16)

    return pretend


def test_a_rocm_build_takes_the_hip_path(rocm):
    rocm("AMD Instinct MI300X", "gfx942:sramecc+:xnack-")
    device = choose_device(ModelConfig())
    assert torch_build() == "hip"
    assert (str(device.torch_device), device.name) == ("cuda:0", "AMD Instinct MI300X")
    assert (device.precision, device.weight_dtype) == ("bf16", torch.bfloat16)
    assert "fastest" in device.attention
    assert device.memory_gib == 192
    assert device.free_memory_gib() == 100


def test_rdna_attention_is_named_slow_without_its_variable(rocm, monkeypatch):
    rocm("AMD Radeon RX 7900 XTX", "gfx1100")
    monkeypatch.delenv(AOT, raising=False)
    assert "slow math path" in choose_device(ModelConfig()).attention
    monkeypatch.setenv(AOT, "1")
    assert "fastest" in choose_device(ModelConfig()).attention


def test_cards_without_bf16_get_fp16_products_on_fp32_weights(rocm):
    rocm("AMD Radeon RX 6900 XT", "gfx1030", bf16=False)
    device = choose_device(ModelConfig())
    assert (device.precision, device.weight_dtype) == ("fp16", torch.float32)
    assert "no native bf16" in device.precision_reason


@pytest.fixture
def two_cards(rocm, monkeypatch):
    """Pretend that there are two cards; what is made the current one."""
    current = []
    rocm("AMD Instinct MI300X", "gfx942")
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "set_device_index", current.append)
    return current


def test_each_process_of_torchrun_has_a_card_of_its_own(two_cards, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert str(choose_device(ModelConfig()).torch_device) == "cuda:0"
    assert two_cards == []
    monkeypatch.setenv("LOCAL_RANK", "1")
    device = choose_device(ModelConfig())
    assert (str(device.torch_device), device.reason) == ("cuda:1", "accelerator 1, by torchrun's LOCAL_RANK")
    assert two_cards == [1]


@pytest.mark.parametrize("rank", ["2", "-1", "first"])
def test_more_processes_than_cards_are_refused(two_cards, monkeypatch, rank):
    monkeypatch.setenv("LOCAL_RANK", rank)
    with pytest.raises(DeviceError, match=f"LOCAL_RANK is '{rank}', and torch sees 2 accelerators") as error:
        choose_device(ModelConfig())
    assert "--nproc-per-node 2" in error.value.hint
    assert choose_device(ModelConfig(device="cpu")).is_cpu
    assert two_cards == []


def test_precision_can_be_set_and_the_scaler_is_for_fp16_alone():
    for precision in ("bf16", "fp16", "fp32"):
        device = choose_device(ModelConfig(device="cpu", dtype=precision))
        assert (device.precision, device.precision_reason) == (precision, "set by model.dtype")
        assert device.grad_scaler().is_enabled() == (precision == "fp16")


def plan(free_gib, longest=512, batch=16, precision="bf16"):
    device = Device(torch.device("cpu"), "x", "", precision, "", "", free_gib)
    widths = type("Widths", (), {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28})
    return plan_memory(device, widths, longest, batch)


def test_memory_plan_by_hand():
    # 28 blocks * (12 * 1536 + 4 * 8960) values * 2 bytes * 512 tokens = 1.449 GiB a row
    assert plan(80).rows == 16
    assert plan(14.5).rows == 8
    assert plan(2).rows == 1
    assert not plan(2).checkpointing
    assert plan(1).checkpointing
    assert plan(14.5, precision="fp32").rows == 4
    assert plan(14.5, longest=1024).rows == 4
    assert "1.45 GiB a row" in plan(14.5).reason
    assert plan(None).rows == 16


def test_the_default_batch_counts_the_weights(rocm):
    rocm("AMD Instinct MI300X", "gfx942")
    assert default_batch(choose_device(ModelConfig())).startswith(
        "16 rows a pass for Qwen3-1.7B: 96.8 GiB free"
    )
    small = Device(torch.device("cpu"), "x", "", "fp32", "", "", 4.0)
    assert default_batch(small).startswith("none: Qwen3-1.7B's weights take 6.4 GiB")


CPU = {"version": "2.13.0+cpu", "build": "cpu", "devices": []}
CUDA = {"version": "2.13.0+cu130", "build": "cuda", "devices": ["NVIDIA H100"]}
HIP = {"version": "2.13.0+rocm7.2", "build": "hip", "devices": ["AMD Instinct MI300X"]}
NONE = {"error": "torch can't be imported: No module named 'torch'"}


@pytest.mark.parametrize(
    ("build", "view", "words", "command"),
    [
        (lambda r: machines.amd(r, "MI300X"), CPU, "built for cpu", "--torch-backend=rocm7.2"),
        (lambda r: machines.amd(r, "MI300X"), {**CUDA, "devices": []}, "built for cuda", "rocm7.2"),
        (lambda r: machines.amd(r, "MI300X"), {**HIP, "devices": []}, "sees no card", ""),
        (lambda r: machines.amd(r, "MI300X"), HIP, None, ""),
        (lambda r: machines.amd(r, "MI300X", "MI300X"), HIP, "1 of 2 cards", ""),
        (machines.nvidia, CPU, "built for cpu", "--torch-backend=auto"),
        (machines.nvidia, HIP, "built for hip", "--torch-backend=auto"),
        (machines.nvidia, CUDA, None, ""),
        (machines.nvidia, NONE, "NVIDIA H100", "--torch-backend=auto"),
        (machines.intel, CPU, "built for cpu", "--torch-backend=xpu"),
        (lambda r: machines.intel(r, "0x7d55"), CPU, None, ""),
        (machines.cpu, CPU, None, ""),
        (machines.cpu, NONE, "can't be imported", "pip install torch"),
    ],
)
def test_where_torch_and_the_machine_differ_and_why(tmp_path, build, view, words, command):
    findings = compare_views(probe(build(tmp_path), system="Linux"), view)
    if words is None:
        assert findings == []
    else:
        [finding] = findings
        assert words in finding.message
        assert command in finding.command


def test_diagnosis_of_a_recorded_machine(tmp_path, monkeypatch):
    machine = probe(machines.amd(tmp_path, "RX 7600"), system="Linux")
    findings = diagnose(machine, {"HSA_OVERRIDE_GFX_VERSION": ""}, CPU)
    assert not findings["ok"]
    assert [f["level"] for f in findings["findings"]] == ["error", "error", "set"]
    assert diagnose(probe(machines.cpu(tmp_path / "c"), system="Linux"), {}, CPU)["ok"]


def test_doctor_starts_without_torch(tmp_path):
    """In a process where torch can't be imported at all."""
    import subprocess
    import sys

    code = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['medqa', 'doctor']\n"
        "from medqa.cli.app import main\nmain()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "torch can't be imported" in result.stdout
    assert "pip install" in result.stdout
    assert "Traceback" not in result.stderr


def test_env_prints_lines_to_evaluate(tmp_path, monkeypatch, capsys):
    from medqa.cli import doctor as doctor_command

    machine = probe(machines.amd(tmp_path, "RX 7600"), system="Linux")
    monkeypatch.setattr(
        doctor_command, "diagnose", lambda: diagnose(machine, {"HIP_VISIBLE_DEVICES": ""}, CPU)
    )
    assert doctor_command.show_doctor(as_json=False, env=True, selftest=False) is False
    assert capsys.readouterr().out.splitlines() == [
        "unset HIP_VISIBLE_DEVICES",
        "export HSA_OVERRIDE_GFX_VERSION=11.0.0",
        f"export {AOT}=1",
    ]


@contextlib.contextmanager
def simulated(**changes):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in changes.items():
            patch.setattr(torch.version, name, value, raising=False)
        yield


def test_builds_are_told_apart():
    with simulated(hip="7.2", cuda=None):
        assert torch_build() == "hip"
    with simulated(hip=None, cuda="13.0"):
        assert torch_build() == "cuda"
    with simulated(hip=None, cuda=None, xpu="2025"):
        assert torch_build() == "xpu"
