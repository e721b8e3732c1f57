"""Recorded machines are read as they are."""

import pytest

from hardware import machines
from medqa.hardware.probe import gfx_name, probe


@pytest.mark.parametrize(
    ("number", "name"),
    [(90402, "gfx942"), (90010, "gfx90a"), (90500, "gfx950"), (110501, "gfx1151"), (100300, "gfx1030")],
)
def test_gfx_names(number, name):
    assert gfx_name(number) == name


@pytest.mark.parametrize("name", machines.AMD)
def test_amd_cards(tmp_path, name):
    machine = probe(machines.amd(tmp_path, name), system="Linux")
    [card] = machine.cards
    version, gib = machines.AMD[name]
    assert (card.name, card.arch, card.memory_gib) == (name, gfx_name(version), gib)
    assert card.device_file == "/dev/dri/renderD128"
    assert card.is_instinct == name.startswith("MI")
    assert card.is_rdna != card.is_instinct
    assert machine.drivers == {"amdgpu": "6.12.12", "rocm": "7.2.0"}
    assert (machine.kfd_device, machine.kfd_topology) == ("open", True)
    assert (machine.processor, machine.memory_gib) == ("AMD EPYC 9654", 64)


def test_cards_are_counted_as_the_driver_counts_them(tmp_path):
    names = ["MI300X", "RX 7900 XTX", *["MI300X"] * 9]
    machine = probe(machines.amd(tmp_path, *names), system="Linux")
    assert [card.name for card in machine.cards] == names  # node 10 after node 9


def test_h100_intel_mac_and_cpu(tmp_path):
    machine = probe(machines.nvidia(tmp_path / "h100", 2), system="Linux")
    assert [(c.vendor, c.name, c.device_file) for c in machine.cards] == [
        ("nvidia", "NVIDIA H100 80GB HBM3", "/dev/nvidia0"),
        ("nvidia", "NVIDIA H100 80GB HBM3", "/dev/nvidia1"),
    ]
    assert machine.drivers == {"nvidia": "580.159.04"}
    closed = machines.nvidia(tmp_path / "closed", module="x86_64 Kernel Module")
    assert probe(closed, system="Linux").drivers == {"nvidia": "580.159.04"}
    arc = probe(machines.intel(tmp_path / "arc"), system="Linux")
    assert "with its own memory" in arc.cards[0].name
    assert arc.drivers == {"xe": "in-tree"}
    inside = probe(machines.intel(tmp_path / "ultra", "0x7d55"), system="Linux")
    assert "inside the processor" in inside.cards[0].name
    mac = probe(tmp_path, system="Darwin", sysctl=machines.mac)
    assert (mac.cards[0].name, mac.cards[0].memory_gib) == ("Apple M3 Max GPU", 64)
    assert mac.drivers == {"macos": "15.6"}
    assert probe(machines.cpu(tmp_path / "cpu"), system="Linux").cards == ()


def test_old_macs_have_no_usable_gpu(tmp_path):
    assert probe(tmp_path, system="Darwin", sysctl=lambda key: "Intel(R) Core(TM) i7").cards == ()


def test_rights_are_asked_of_the_device_files(tmp_path):
    machine = probe(machines.amd(tmp_path, "MI300X"), system="Linux", may_open=lambda path: False)
    assert machine.kfd_device == "closed"
    assert not machine.cards[0].usable


def test_an_amd_card_without_kfd_is_seen_through_the_graphics_driver(tmp_path):
    machine = probe(machines.amd_without_driver(tmp_path), system="Linux")
    assert [(c.vendor, c.arch, c.memory_gib) for c in machine.cards] == [("amd", "", 24)]
    assert machine.kfd_device == "absent"


def test_nothing_there_is_nothing_found_not_an_error(tmp_path):
    machine = probe(tmp_path, system="Linux")
    assert (machine.cards, machine.memory_gib, machine.drivers) == ((), None, {})


def test_this_very_machine_can_be_probed():
    assert probe().record()["system"]
