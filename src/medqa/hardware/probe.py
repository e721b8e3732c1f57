"""What accelerators the machine has, read from the kernel's own files, before torch is imported.

Reads /sys and /proc only (and `sysctl` on a Mac); needs no rights, no driver tools, no torch. Says
nothing about what to do: see `rules`. Every path hangs below one root, so that a recorded machine
can be probed as well as this one.
"""

import dataclasses
import os
import platform
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

__all__ = ["Card", "Machine", "probe"]

Vendor = Literal["amd", "nvidia", "intel", "apple"]

PCI_VENDORS: dict[str, Vendor] = {"0x1002": "amd", "0x10de": "nvidia", "0x8086": "intel"}

# Intel cards with memory of their own (Arc A and B, Data Center Max and Flex), by PCI device id.
# Source: linux/include/drm/intel/pciids.h. Other Intel ids are graphics inside the processor.
INTEL_DISCRETE = re.compile(r"0x(56[0-9a-f]{2}|e2[0-9a-f]{2}|0b[d-f][0-9a-f]|490[5-8])")
VRAM_HEAPS = ("1", "2")  # HSA_HEAPTYPE_FRAME_BUFFER_PUBLIC and _PRIVATE in the KFD's header


@dataclasses.dataclass(frozen=True)
class Card:
    """One accelerator.

    Attributes:
        vendor: Who made it.
        name: What to call it.
        arch: AMD's gfx target, such as "gfx942"; empty for others.
        memory_gib: Its own memory in GiB, or None if not known.
        device_file: The file that programs open for it, or None.
        usable: Whether this user may open that file.
    """

    vendor: Vendor
    name: str
    arch: str = ""
    memory_gib: float | None = None
    device_file: str | None = None
    usable: bool = True

    @property
    def is_instinct(self) -> bool:
        """Whether this is one of AMD's data-centre cards (CDNA)."""
        return self.arch in ("gfx908", "gfx90a", "gfx940", "gfx941", "gfx942", "gfx950")

    @property
    def is_rdna(self) -> bool:
        """Whether this is one of AMD's RDNA cards or processors."""
        return self.vendor == "amd" and self.arch.startswith(("gfx10", "gfx11", "gfx12"))


@dataclasses.dataclass(frozen=True)
class Machine:
    """What was found.

    Attributes:
        system: "Linux", "Darwin" or "Windows".
        cards: Accelerators, in the order in which their drivers count them.
        processor: Name of the processor.
        memory_gib: Main memory in GiB, or None.
        drivers: Versions of drivers and runtimes, by name.
        kfd_device: State of /dev/kfd: absent, there but closed to this user, or open.
        kfd_topology: Whether the KFD lists its nodes; it does not in some containers.
    """

    system: str
    cards: tuple[Card, ...]
    processor: str
    memory_gib: float | None
    drivers: dict[str, str]
    kfd_device: Literal["absent", "closed", "open"] = "absent"
    kfd_topology: bool = False

    def of(self, vendor: Vendor) -> tuple[Card, ...]:
        """Return the cards of one vendor."""
        return tuple(card for card in self.cards if card.vendor == vendor)

    def record(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return dataclasses.asdict(self)


def _may_open(path: Path) -> bool:
    return os.access(path, os.R_OK | os.W_OK)


def _sysctl(key: str) -> str:
    try:
        result = subprocess.run(["sysctl", "-n", key], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return result.stdout.strip()


def probe(
    root: Path = Path("/"),
    *,
    system: str | None = None,
    may_open: Callable[[Path], bool] = _may_open,
    sysctl: Callable[[str], str] = _sysctl,
) -> Machine:
    """Look at a machine.

    Args:
        root: Where /sys, /proc, /dev and /opt hang; another folder for a recorded machine.
        system: Name of the operating system; this one's if not given.
        may_open: Tells whether this user may read and write a device file.
        sysctl: Reads a Mac's kernel value by its name.
    """
    system = system or platform.system()
    if system == "Darwin":
        return _probe_mac(sysctl)
    kfd = root / "dev/kfd"
    amd = _amd_cards(root, may_open)
    others = [card for card in _pci_cards(root, may_open) if card.vendor != "amd" or not amd]
    return Machine(
        system=system,
        cards=(*amd, *_nvidia_cards(root, may_open), *others),
        processor=_first(r"model name\s*:\s*(.+)", _text(root / "proc/cpuinfo")) or platform.machine(),
        memory_gib=_meminfo(root),
        drivers=_drivers(root),
        kfd_device="absent" if not kfd.exists() else "open" if may_open(kfd) else "closed",
        kfd_topology=(root / "sys/class/kfd/kfd/topology/nodes").is_dir(),
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _first(pattern: str, text: str) -> str:
    match = re.search(pattern, text, re.MULTILINE)
    return match[1].strip() if match else ""


def _properties(path: Path) -> dict[str, str]:
    pairs = (line.split(maxsplit=1) for line in _text(path).splitlines())
    return {pair[0]: pair[1].strip() for pair in pairs if len(pair) == 2}


def gfx_name(target_version: int) -> str:
    """Turn the KFD's number into AMD's name: 90402 is gfx942, 90010 is gfx90a, 110501 is gfx1151.

    Source:
        ROCR-Runtime: major * 10000 + minor * 100 + stepping; the name writes the stepping in hex.
    """
    major, rest = divmod(target_version, 10_000)
    minor, stepping = divmod(rest, 100)
    return f"gfx{major}{minor}{stepping:x}"


def _amd_cards(root: Path, may_open: Callable[[Path], bool]) -> list[Card]:
    nodes = root / "sys/class/kfd/kfd/topology/nodes"
    found = sorted((p for p in nodes.glob("*") if p.name.isdigit()), key=lambda p: int(p.name))
    cards = []
    for node in found:
        properties = _properties(node / "properties")
        if properties.get("simd_count", "0") == "0":  # a processor, not a GPU
            continue
        arch = gfx_name(int(properties.get("gfx_target_version", "0")))
        banks = (_properties(bank) for bank in node.glob("mem_banks/*/properties"))
        memory = sum(int(b.get("size_in_bytes", 0)) for b in banks if b.get("heap_type") in VRAM_HEAPS)
        minor = properties.get("drm_render_minor", "")
        device = root / "dev/dri" / f"renderD{minor}"
        name = _text(root / f"sys/class/drm/renderD{minor}/device/product_name").strip()
        cards.append(
            Card(
                "amd",
                name or _text(node / "name").strip() or f"AMD {arch}",
                arch,
                memory / 2**30 if memory else None,
                f"/dev/dri/renderD{minor}" if minor else None,
                not minor or (device.exists() and may_open(device)),
            )
        )
    return cards


def _nvidia_cards(root: Path, may_open: Callable[[Path], bool]) -> list[Card]:
    cards = []
    for number, folder in enumerate(sorted((root / "proc/driver/nvidia/gpus").glob("*"))):
        information = _text(folder / "information")
        minor = _first(r"^Device Minor:\s*(\d+)", information) or str(number)
        device = root / f"dev/nvidia{minor}"
        name = _first(r"^Model:\s*(.+)$", information) or "NVIDIA GPU"
        usable = device.exists() and may_open(device)
        cards.append(Card("nvidia", name, device_file=f"/dev/nvidia{minor}", usable=usable))
    return cards


def _pci_cards(root: Path, may_open: Callable[[Path], bool]) -> list[Card]:
    """Cards that the graphics drivers list: Intel's, and AMD's where the KFD lists nothing."""
    cards = []
    for card in sorted((root / "sys/class/drm").glob("renderD*")):
        vendor = PCI_VENDORS.get(_text(card / "device/vendor").strip())
        device_id = _text(card / "device/device").strip()
        if vendor == "intel":
            kind = "with its own memory" if INTEL_DISCRETE.fullmatch(device_id) else "inside the processor"
            name = f"Intel graphics {kind} ({device_id})"
        elif vendor == "amd":
            name = f"AMD card ({device_id})"
        else:
            continue
        device = root / "dev/dri" / card.name
        usable = device.exists() and may_open(device)
        memory = _text(card / "device/mem_info_vram_total").strip()
        gib = int(memory) / 2**30 if memory.isdigit() else None
        cards.append(Card(vendor, name, "", gib, f"/dev/dri/{card.name}", usable))
    return cards


def _drivers(root: Path) -> dict[str, str]:
    sources = {
        "amdgpu": (r"^(\S+)", "sys/module/amdgpu/version"),
        "rocm": (r"^(\S+)", "opt/rocm/.info/version"),
        "nvidia": (r"Kernel Module.*?\s(\d+\.[\d.]+)", "proc/driver/nvidia/version"),
        "xe": (r"^(\S+)", "sys/module/xe/version"),
        "i915": (r"^(\S+)", "sys/module/i915/version"),
    }
    found = {name: _first(pattern, _text(root / path)) for name, (pattern, path) in sources.items()}
    for name in ("amdgpu", "xe", "i915"):  # in-tree modules carry no version of their own
        if not found[name] and (root / f"sys/module/{name}").is_dir():
            found[name] = "in-tree"
    return {name: version for name, version in found.items() if version}


def _meminfo(root: Path) -> float | None:
    kib = _first(r"^MemTotal:\s*(\d+)", _text(root / "proc/meminfo"))
    return int(kib) / 2**20 if kib else None


def _probe_mac(sysctl: Callable[[str], str]) -> Machine:
    chip = sysctl("machdep.cpu.brand_string")
    size = sysctl("hw.memsize")
    memory_gib = int(size) / 2**30 if size.isdigit() else None
    is_apple = chip.startswith("Apple")
    cards = (Card("apple", f"{chip} GPU", memory_gib=memory_gib),) if is_apple else ()
    version = sysctl("kern.osproductversion")
    return Machine("Darwin", cards, chip or "Mac", memory_gib, {"macos": version} if version else {})
