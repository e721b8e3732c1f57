"""What must be said of each recorded machine under each environment."""

import sys

import pytest

from hardware import machines
from medqa.errors import DeviceError
from medqa.hardware.environment import prepare_environment
from medqa.hardware.probe import probe
from medqa.hardware.rules import RULES, check

ROCR, HIP, CUDA = "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"
HSA, AOT = "HSA_OVERRIDE_GFX_VERSION", "TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL"

# machine, environment, (level, words of the message, command) of each finding, in order
CASES = {
    "MI300X needs nothing": (["MI300X"], {}, []),
    "MI250X needs nothing": (["MI250X"] * 2, {}, []),
    "MI355X needs nothing": (["MI355X"], {}, []),
    "MI300X, the hackathon's override": (
        ["MI300X"],
        {HSA: "9.4.2"},
        [("warning", "not needed", f"unset {HSA}")],
    ),
    "MI300X, all three as the hackathon set them": (
        ["MI300X"],
        {ROCR: "0", HIP: "0", HSA: "9.4.2"},
        [("error", "Use one of them", f"unset {HIP}"), ("warning", "not needed", f"unset {HSA}")],
    ),
    "MI300X, an RDNA override": (
        ["MI300X"],
        {HSA: "11.0.0"},
        [("error", "another family", f"unset {HSA}")],
    ),
    "MI250X, MI300X's override": (["MI250X"], {HSA: "9.4.2"}, [("error", "another family", f"unset {HSA}")]),
    "empty override": (["MI300X"], {HSA: ""}, [("error", "hides every AMD GPU", f"unset {HSA}")]),
    "blank override": (["MI300X"], {HSA: " "}, [("error", "hides every AMD GPU", f"unset {HSA}")]),
    "unreadable override": (["MI300X"], {HSA: "gfx942"}, [("error", "not of the form", f"unset {HSA}")]),
    "double filter with 1": (
        ["MI300X"] * 2,
        {ROCR: "1", HIP: "1"},
        [("error", "can hide every card", f"unset {HIP}")],
    ),
    "ROCR and CUDA lists": (
        ["MI300X"] * 2,
        {ROCR: "1", CUDA: "0"},
        [("error", "can hide every card", f"unset {CUDA}")],
    ),
    "HIP and CUDA differ": (
        ["MI300X"] * 2,
        {HIP: "0", CUDA: "1"},
        [("error", "both names", f"unset {CUDA}")],
    ),
    "HIP and CUDA agree": (["MI300X"] * 2, {HIP: "1", CUDA: "1"}, []),
    "one list is fine": (["MI300X"] * 2, {ROCR: "1"}, []),
    "a list past the end": (
        ["MI300X"],
        {ROCR: "1"},
        [("error", "counts from 0 to 0", f"export {ROCR}=0")],
    ),
    "an empty list": (["MI300X"], {HIP: ""}, [("error", "hides every card", f"unset {HIP}")]),
    "UUIDs are left alone": (["MI300X"], {ROCR: "GPU-4b2c1a9f8e7d6c5b"}, []),
    "RX 7900 XTX": (["RX 7900 XTX"], {}, [("set", "attention", f"export {AOT}=1")]),
    "RX 7900 XTX, already set": (["RX 7900 XTX"], {AOT: "1"}, []),
    "RX 7900 XTX, switched off": (["RX 7900 XTX"], {AOT: "0"}, [("warning", "slow path", f"export {AOT}=1")]),
    "RX 7600 stands in as 11.0.0": (
        ["RX 7600"],
        {},
        [("set", "runs those of gfx1100", f"export {HSA}=11.0.0"), ("set", "attention", f"export {AOT}=1")],
    ),
    "RX 7600, right by hand": (["RX 7600"], {HSA: "11.0.0", AOT: "1"}, []),
    "RX 7600, RDNA2's override": (
        ["RX 7600"],
        {HSA: "10.3.0", AOT: "1"},
        [("error", "another family", f"export {HSA}=11.0.0")],
    ),
    "RX 6700 XT stands in as 10.3.0": (
        ["RX 6700 XT"],
        {AOT: "1"},
        [("set", "runs those of gfx1030", f"export {HSA}=10.3.0")],
    ),
    "RX 9070": (["RX 9070"], {}, [("set", "attention", f"export {AOT}=1")]),
    "RX 9070, an old override": (
        ["RX 9070"],
        {HSA: "11.0.0", AOT: "1"},
        [("error", "another family", f"unset {HSA}")],
    ),
    "Radeon 780M": (
        ["Radeon 780M"],
        {},
        [("set", "runs those of gfx1100", f"export {HSA}=11.0.0"), ("set", "attention", f"export {AOT}=1")],
    ),
    "Strix Halo has its own kernels": (["Strix Halo"], {}, [("set", "attention", f"export {AOT}=1")]),
    "Strix Halo, 780M's override": (
        ["Strix Halo"],
        {HSA: "11.0.0", AOT: "1"},
        [("warning", "slower at best", f"unset {HSA}")],
    ),
    "MI300X beside a Radeon": (
        ["RX 7900 XTX", "MI300X"],
        {AOT: "1"},
        [("warning", "torch takes the first", f"export {ROCR}=1")],
    ),
    "MI300X beside a Radeon that needs a stand-in": (
        ["RX 7600", "MI300X"],
        {AOT: "1"},
        [("warning", "whole process", f"export {ROCR}=1"), ("warning", "several kinds", f"export {ROCR}=1")],
    ),
    "mixed, one kind chosen": (["RX 7600", "MI300X"], {ROCR: "1"}, []),
    "mixed, an override for all": (
        ["RX 7900 XTX", "MI300X"],
        {HSA: "11.0.0", AOT: "1"},
        [("error", "whole process", f"unset {HSA}"), ("warning", "several kinds", f"export {ROCR}=1")],
    ),
    "mixed, chosen, and the chosen one's override": (
        ["RX 7600", "MI300X"],
        {ROCR: "0", HSA: "11.0.0", AOT: "1"},
        [],
    ),
}


def said(findings):
    return [(f.level, f.command) for f in findings]


@pytest.mark.parametrize("case", CASES)
def test_amd_hosts(tmp_path, case):
    names, environment, expected = CASES[case]
    findings = check(probe(machines.amd(tmp_path, *names), system="Linux"), environment)
    assert said(findings) == [(level, command) for level, _, command in expected]
    for finding, (_, words, _) in zip(findings, expected, strict=True):
        assert words in finding.message
        assert finding.source


def test_no_rights_on_kfd(tmp_path):
    machine = probe(machines.amd(tmp_path, "MI300X"), system="Linux", may_open=lambda path: False)
    [finding] = check(machine, {})
    assert finding.level == "error"
    assert "/dev/kfd" in finding.message
    assert "usermod -aG render,video" in finding.command


def test_container_without_topology(tmp_path):
    [finding] = check(probe(machines.amd_container(tmp_path), system="Linux"), {})
    assert (finding.level, "container" in finding.message) == ("warning", True)


def test_amd_card_without_the_compute_driver(tmp_path):
    [finding] = check(probe(machines.amd_without_driver(tmp_path), system="Linux"), {})
    assert "no /dev/kfd" in finding.message


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, None),
        ({CUDA: "0"}, None),
        ({CUDA: ""}, "hides every card"),
        ({CUDA: "-1"}, "isn't there"),
        ({HSA: ""}, "empty"),
    ],
)
def test_h100(tmp_path, environment, words):
    findings = check(probe(machines.nvidia(tmp_path), system="Linux"), environment)
    assert [words in f.message for f in findings] == ([True] if words else [])


@pytest.mark.parametrize("build", [machines.cpu, machines.intel])
def test_others_need_no_variable(tmp_path, build):
    assert check(probe(build(tmp_path), system="Linux"), {}) == []


def test_a_mac_needs_no_variable(tmp_path):
    assert check(probe(tmp_path, system="Darwin", sysctl=machines.mac), {}) == []


@pytest.mark.parametrize("name", machines.AMD)
def test_never_more_than_three_variables_and_none_after_they_are_set(tmp_path, name):
    machine = probe(machines.amd(tmp_path, name), system="Linux")
    proposed = [f for f in check(machine, {}) if f.level == "set"]
    assert len(proposed) <= 3
    assert check(machine, {f.variable: f.value for f in proposed}) == []


def test_every_cure_cures(tmp_path):
    for number, (names, environment, _) in enumerate(CASES.values()):
        machine = probe(machines.amd(tmp_path / str(number), *names), system="Linux")
        mended = dict(environment)
        for _ in range(4):
            findings = [f for f in check(machine, mended) if f.variable]
            for finding in findings[:1]:
                if finding.value is None:
                    mended.pop(finding.variable)
                else:
                    mended[finding.variable] = finding.value
        assert check(machine, mended) == []


def test_every_rule_names_its_source():
    assert all(rule.source for rule in RULES)


@pytest.fixture
def no_torch(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)


def test_what_the_card_needs_is_set_and_told(tmp_path, no_torch, caplog):
    machine = probe(machines.amd(tmp_path, "RX 7600"), system="Linux")
    environment = {}
    with caplog.at_level("INFO"):
        record = prepare_environment(machine=machine, environment=environment)
    assert environment == {HSA: "11.0.0", AOT: "1"}
    assert record["variables"] == environment
    assert set(record["set_here"]) == {HSA, AOT}
    assert f"Set {HSA}=11.0.0" in caplog.text


def test_what_the_user_set_is_never_changed(tmp_path, no_torch):
    machine = probe(machines.amd(tmp_path, "RX 7600"), system="Linux")
    environment = {HSA: "11.0.2", AOT: "0"}
    prepare_environment(machine=machine, environment=environment)
    assert environment == {HSA: "11.0.2", AOT: "0"}


def test_what_is_proved_wrong_stops_with_the_cure(tmp_path):
    machine = probe(machines.amd(tmp_path, "MI300X"), system="Linux")
    with pytest.raises(DeviceError, match="hides every AMD GPU") as caught:
        prepare_environment(machine=machine, environment={HSA: ""})
    assert f"unset {HSA}" in caught.value.hint
    assert prepare_environment("cpu", machine=machine, environment={HSA: ""})["set_here"] == {}


def test_variables_that_come_too_late_are_told(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "torch", object())
    environment = {}
    machine = probe(machines.amd(tmp_path, "RX 9070"), system="Linux")
    prepare_environment(machine=machine, environment=environment)
    assert environment == {}
    assert "torch was imported before" in caplog.text
