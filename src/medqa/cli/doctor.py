"""What `medqa doctor` prints."""

from typing import Any

from rich.console import Console
from rich.markup import escape

from medqa.cli.output import print_json
from medqa.hardware.doctor import diagnose

__all__ = ["show_doctor"]

LEVELS = {"error": "[bold red]Error[/]", "warning": "[yellow]Warning[/]", "set": "Set by medqa"}


def show_doctor(*, as_json: bool, env: bool, selftest: bool) -> bool:
    """Print the diagnosis.

    Returns:
        Whether training would run on the accelerator that the machine has, and rightly.
    """
    findings = diagnose()
    ok = bool(findings["ok"])
    if selftest and findings["device"] is not None:
        from medqa.model.selftest import run_selftest

        findings["selftest"] = run_selftest()
        ok = ok and findings["selftest"]["passed"]
    if as_json:
        print_json({**findings, "ok": ok})
    elif env:
        _print_env(findings["findings"])
    else:
        _print_all(findings)
    return ok


def _print_env(findings: list[dict[str, Any]]) -> None:
    for finding in findings:
        if finding["variable"] and finding["level"] != "warning":
            print(finding["command"])


def _print_all(findings: dict[str, Any]) -> None:
    console = Console(emoji=False, highlight=False)
    machine, view, device = findings["machine"], findings["torch"], findings["device"]
    console.print("[bold]Machine[/]")
    memory = f", {machine['memory_gib']:.0f} GiB" if machine["memory_gib"] else ""
    console.print(f"  {machine['system']}, {escape(machine['processor'])}{memory}")
    for card in machine["cards"]:
        size = f", {card['memory_gib']:.0f} GiB" if card["memory_gib"] else ""
        arch = f" ({card['arch']})" if card["arch"] else ""
        closed = "" if card["usable"] else ", not open to this user"
        console.print(f"  {escape(card['name'])}{arch}{size}{closed}")
    if not machine["cards"]:
        console.print("  no accelerator")
    for name, version in machine["drivers"].items():
        console.print(f"  driver {name} {version}")
    console.print("[bold]torch[/]")
    if "error" in view:
        console.print(f"  {escape(view['error'])}")
    else:
        seen = ", ".join(view["devices"]) or "no accelerator"
        console.print(f"  {view['version']}, built for {view['build']}; sees {escape(seen)}")
    if device:
        console.print("[bold]Training would use[/]")
        size = f", {device['memory_gib']} GiB" if device["memory_gib"] else ""
        console.print(f"  device     {device['device']}, {escape(device['name'])}{size}: {device['reason']}")
        console.print(f"  precision  {device['precision']}: {device['precision_reason']}")
        console.print(f"  attention  {escape(device['attention'])}")
        console.print(f"  batch      {escape(device['batch'])}")
    if findings["findings"]:
        console.print("[bold]Findings[/]")
    for finding in findings["findings"]:
        console.print(f"  {LEVELS[finding['level']]}: {escape(finding['message'])}")
        if finding["command"]:
            console.print(f"    [cyan]{escape(finding['command'])}[/]", soft_wrap=True)
        console.print(f"    [dim]source: {escape(finding['source'])}[/]")
    if "selftest" in findings:
        _print_selftest(console, findings["selftest"])
    versions = ", ".join(f"{name} {version}" for name, version in findings["versions"].items())
    console.print(
        f"[bold]Versions[/]\n  {escape(versions)}\n  built-in model: {escape(findings['built_in_model'])}"
    )


def _print_selftest(console: Console, result: dict[str, Any]) -> None:
    verdict = "[green]passed[/]" if result["passed"] else "[bold red]FAILED[/]: do not trust this device"
    console.print(f"[bold]Self-test[/] {verdict} ({result['seconds']:.0f} s, {result['precision']})")
    for check in result["checks"]:
        mark = "ok  " if check["passed"] else "[bold red]FAIL[/]"
        console.print(
            f"  {mark} {check['name']}: relative error {check['error']:.1e}, allowed {check['bound']:.0e}"
        )
    for name, value in result["rates"].items():
        console.print(f"       {name}: {value}")
