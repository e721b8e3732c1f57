"""Recorded machines: /sys and /proc as the kernel lays them out, written for these tests."""

from pathlib import Path

GIB = 2**30

# name: gfx_target_version, memory in GiB
AMD = {
    "MI300X": (90402, 192),
    "MI250X": (90010, 64),
    "MI355X": (90500, 288),
    "RX 7900 XTX": (110000, 24),
    "RX 7600": (110002, 8),
    "RX 9070": (120001, 16),
    "Radeon 780M": (110003, 4),
    "Strix Halo": (110501, 96),
    "RX 6700 XT": (100301, 12),
    "RX 6900 XT": (100300, 16),
}


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def cpu(root: Path) -> Path:
    write(root / "proc/cpuinfo", "processor\t: 0\nmodel name\t: AMD EPYC 9654\nprocessor\t: 1\n")
    write(root / "proc/meminfo", f"MemTotal:       {64 * 2**20} kB\nMemFree: 1 kB\n")
    return root


def amd(root: Path, *names: str, driver: str = "6.12.12", rocm: str = "7.2.0") -> Path:
    """A ROCm host: one processor node, then a node per card."""
    cpu(root)
    nodes = root / "sys/class/kfd/kfd/topology/nodes"
    write(nodes / "0/properties", "cpu_cores_count 96\nsimd_count 0\ngfx_target_version 0\n")
    write(nodes / "0/mem_banks/0/properties", f"heap_type 0\nsize_in_bytes {64 * GIB}\n")
    for number, name in enumerate(names, 1):
        version, gib = AMD[name]
        minor = 127 + number
        lines = f"cpu_cores_count 0\nsimd_count 1216\nvendor_id 4098\ndrm_render_minor {minor}\n"
        write(nodes / f"{number}/properties", lines + f"gfx_target_version {version}\n")
        write(nodes / f"{number}/mem_banks/0/properties", f"heap_type 1\nsize_in_bytes {gib * GIB}\n")
        write(root / f"sys/class/drm/renderD{minor}/device/vendor", "0x1002\n")
        write(root / f"sys/class/drm/renderD{minor}/device/product_name", f"{name}\n")
        write(root / f"dev/dri/renderD{minor}", "")
    write(root / "dev/kfd", "")
    write(root / "sys/module/amdgpu/version", f"{driver}\n")
    write(root / "opt/rocm/.info/version", f"{rocm}\n")
    return root


def amd_container(root: Path) -> Path:
    """A ROCm container with its devices passed in, but without the topology in /sys."""
    cpu(root)
    write(root / "dev/kfd", "")
    write(root / "dev/dri/renderD128", "")
    write(root / "opt/rocm/.info/version", "7.2.0\n")
    return root


def amd_without_driver(root: Path) -> Path:
    """An AMD card under the desktop driver alone: no KFD."""
    cpu(root)
    write(root / "sys/class/drm/renderD128/device/vendor", "0x1002\n")
    write(root / "sys/class/drm/renderD128/device/device", "0x744c\n")
    write(root / "sys/class/drm/renderD128/device/mem_info_vram_total", f"{24 * GIB}\n")
    write(root / "dev/dri/renderD128", "")
    (root / "sys/module/amdgpu").mkdir(parents=True)
    return root


def nvidia(root: Path, count: int = 1, module: str = "Open Kernel Module for x86_64") -> Path:
    """The module's other name is "x86_64 Kernel Module"."""
    cpu(root)
    version = f"NVRM version: NVIDIA UNIX {module}  580.159.04  Release Build  (root)\nGCC version: gcc 12\n"
    write(root / "proc/driver/nvidia/version", version)
    for number in range(count):
        text = f"Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 90\nDevice Minor: \t {number}\n"
        write(root / f"proc/driver/nvidia/gpus/0000:{number:02d}:00.0/information", text)
        write(root / f"dev/nvidia{number}", "")
    return root


def intel(root: Path, device_id: str = "0x56a0", driver: str = "xe") -> Path:
    """0x56a0 is an Arc A770, 0x7d55 the graphics inside a Core Ultra."""
    cpu(root)
    write(root / "sys/class/drm/renderD128/device/vendor", "0x8086\n")
    write(root / "sys/class/drm/renderD128/device/device", f"{device_id}\n")
    write(root / "dev/dri/renderD128", "")
    (root / f"sys/module/{driver}").mkdir(parents=True)
    return root


def mac(key: str) -> str:
    """A MacBook Pro's kernel values."""
    values = {
        "machdep.cpu.brand_string": "Apple M3 Max",
        "hw.memsize": str(64 * GIB),
        "kern.osproductversion": "15.6",
    }
    return values.get(key, "")
