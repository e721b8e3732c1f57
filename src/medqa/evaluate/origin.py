"""Where the numbers of a report come from, as it stands at the foot of its page."""

from pathlib import Path
from typing import Any

__all__ = ["origin_rows", "short_name"]

Record = dict[str, Any]


def short_name(name: str) -> str:
    """Shorten a folder of this machine to its own name; a name on the Hub stays whole."""
    return Path(name).name if Path(name).is_absolute() else name


def origin_rows(report: Record, calibration: Record) -> list[tuple[str, str, bool]]:
    """List where the numbers come from; the third of each says whether it is code.

    Args:
        report: The content of report.json.
        calibration: What it says of the calibration.
    """
    git, file, data = report["git"] or {}, calibration.get("file", {}), report["data"]
    identity, held = file.get("identity", {}), file.get("data", {})
    command = report["command"]
    rows = [
        ("Command", command if isinstance(command, str) else " ".join(command), True),
        ("Base model", short_name(report["base_model"]), False),
        ("Adapter, SHA-256", report.get("adapter_sha256") or identity.get("adapter_sha256"), True),
        ("Questions", f"{short_name(data['name'])}, {data['split']}", False),
        ("Questions, SHA-256", data["sha256"], True),
        *(
            (f"{name.capitalize()} questions, SHA-256", held.get(name, {}).get("sha256"), True)
            for name in ("calibration", "selection")
        ),
        *(_server(report["engine"]) if report.get("engine") else _device(report)),
        ("Scoring", f"{report['scoring']}, {report['seconds']:,.0f} seconds in all", False),
        ("Versions", ", ".join(f"{name} {version}" for name, version in report["versions"].items()), False),
        ("Platform", report["platform"], False),
        ("Source", git and f"commit {git['commit']}" + (", changed since" if git["changed"] else ""), True),
    ]
    return [(name, value, code) for name, value, code in rows if value]


def _device(report: Record) -> list[tuple[str, str, bool]]:
    device, selftest = report["device"], report["selftest"]
    passed = "not run on this device" if selftest is None else "passed" if selftest["passed"] else "FAILED"
    return [
        ("Device", f"{device['name']}, {device['precision']}", False),
        ("Self-test of the device", passed, False),
    ]


def _server(engine: Record) -> list[tuple[str, str, bool]]:
    """Say which server it was, and how far it is known to have the run's model."""
    found = engine.get("verified")
    verified = "not verified: the run keeps no known questions"
    if found:
        verified = (
            f"verified on {found['num_questions']} known questions: probabilities differ by up to "
            f"{found['max_difference']:.2g} (mean {found['mean_difference']:.2g}), "
            f"{found['num_other_letters']} with another answer"
        )
    retries = engine.get("num_retries")
    model, _, url = engine["name"].rpartition(" at ")  # llama.cpp's server names a model by its file
    return [
        ("Server", f"{short_name(model)} at {url}", True),
        ("Its precision", engine["precision"], False),
        ("Is it this run's model?", verified, False),
        ("Base model there", short_name(engine.get("base_model") or "not served"), False),
        ("Requests sent again", f"{retries:,}" if retries else "", False),
    ]
