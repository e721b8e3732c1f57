"""Which driver variables are wrong on this machine, what that does, and the line that mends it.

One table, RULES. Each rule looks at the machine and the environment and returns findings; each
names its source. Nothing here changes anything: see `environment`.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from medqa.hardware.probe import Card, Machine

__all__ = ["RULES", "Finding", "Rule", "check"]

ROCR, HIP, CUDA = "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"
HSA = "HSA_OVERRIDE_GFX_VERSION"
AOTRITON = "TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL"

# Cards without kernels of their own in ROCm's libraries, and the card whose kernels they can run.
STAND_INS = {
    **dict.fromkeys([f"gfx103{n}" for n in range(1, 7)], "10.3.0"),
    **dict.fromkeys([f"gfx110{n}" for n in range(1, 4)], "11.0.0"),
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something about the environment.

    Attributes:
        level: "error" stops training, "warning" does not, "set" is a variable that we set.
        message: What is so, what it does, and why.
        source: Where the rule comes from.
        variable: The variable to change, if any.
        value: Its right value; None to unset it.
        command: The shell line that mends it; empty if none does.
    """

    level: Literal["error", "warning", "set"]
    message: str
    source: str
    variable: str = ""
    value: str | None = None
    command: str = ""

    def record(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return dataclasses.asdict(self)


Environment = Mapping[str, str]
Check = Callable[[Machine, Environment], "list[Finding]"]


@dataclasses.dataclass(frozen=True)
class Rule:
    """A check with the source of its claim."""

    check: Check
    source: str


def check(machine: Machine, environment: Environment) -> list[Finding]:
    """Apply every rule; errors first."""
    found = [
        dataclasses.replace(finding, source=rule.source)
        for rule in RULES
        for finding in rule.check(machine, environment)
    ]
    return sorted(found, key=lambda finding: ("error", "warning", "set").index(finding.level))


def _unset(level: Literal["error", "warning"], variable: str, message: str) -> Finding:
    return Finding(level, message, "", variable, None, f"unset {variable}")


def _export(level: Literal["error", "warning", "set"], variable: str, value: str, message: str) -> Finding:
    return Finding(level, message, "", variable, value, f"export {variable}={value}")


def _family(arch: str) -> str:
    """Generation of a gfx target: gfx1103 and gfx1100 are of one, gfx942 and gfx90a are not."""
    return arch[:5] if arch.startswith("gfx1") else arch


def _override_target(value: str) -> str:
    """Turn "11.0.0" into gfx1100, as the driver does; empty if it isn't of that form."""
    match = re.fullmatch(r"(\d+)\.(\d+)\.(\d+)", value.strip())
    return f"gfx{match[1]}{match[2]}{int(match[3]):x}" if match else ""


def _archs(cards: tuple[Card, ...]) -> str:
    return ", ".join(sorted({card.arch or card.name for card in cards}))


def _picked(cards: tuple[Card, ...], environment: Environment) -> tuple[Card, ...]:
    """Cards that ROCR_VISIBLE_DEVICES leaves; all of them where it isn't a list of places."""
    parts = [part.strip() for part in environment.get(ROCR, "").split(",") if part.strip()]
    if not parts or not all(part.isdigit() for part in parts):
        return cards
    return tuple(cards[int(part)] for part in parts if int(part) < len(cards))


def _empty_override(machine: Machine, environment: Environment) -> list[Finding]:
    if environment.get(HSA, "x").strip():
        return []
    return [_unset("error", HSA, f"{HSA} is set but empty: an empty value hides every AMD GPU")]


def _malformed_override(machine: Machine, environment: Environment) -> list[Finding]:
    value = environment.get(HSA, "").strip()
    if not value or not machine.of("amd") or _override_target(value):
        return []
    return [_unset("error", HSA, f"{HSA}={value!r} is not of the form 11.0.0: the driver can't read it")]


def _wrong_override(machine: Machine, environment: Environment) -> list[Finding]:
    target = _override_target(environment.get(HSA, ""))
    cards = tuple(card for card in _picked(machine.of("amd"), environment) if card.arch)
    if not target or not cards:
        return []
    value = environment[HSA].strip()
    if len({card.arch for card in cards}) > 1:
        text = f"{HSA}={value} holds for the whole process, but this machine has {_archs(cards)}: "
        return [_unset("error", HSA, text + "kernels of the wrong kind crash or give wrong numbers")]
    card = cards[0]
    if card.arch == target:
        text = f"{HSA}={value} says what {card.name} is anyway ({card.arch}): not needed"
        return [_unset("warning", HSA, text)]
    if STAND_INS.get(card.arch) == value:
        return []
    if _family(card.arch) != _family(target):
        text = f"{HSA}={value} makes {card.name} ({card.arch}) run {target} kernels, of another family: "
        text += "it crashes or gives wrong numbers"
        right = STAND_INS.get(card.arch)
        return [_export("error", HSA, right, text) if right else _unset("error", HSA, text)]
    text = f"{HSA}={value} replaces {card.arch}'s own kernels by {target}'s: slower at best"
    return [_unset("warning", HSA, text)] if card.arch not in STAND_INS else []


def _needed_override(machine: Machine, environment: Environment) -> list[Finding]:
    cards = _picked(machine.of("amd"), environment)
    needed = {STAND_INS.get(card.arch) for card in cards}
    if HSA in environment or needed <= {None}:
        return []
    if len(needed) > 1:
        text = f"this machine has {_archs(cards)}; some need {HSA}, which holds for the whole process. "
        text += f"Choose one kind of card with {ROCR}"
        first = next(n for n, card in enumerate(machine.of("amd")) if card.arch not in STAND_INS)
        return [_export("warning", ROCR, str(first), text)]
    [value] = needed
    assert value is not None
    text = f"{cards[0].name} ({cards[0].arch}) has no kernels of its own in ROCm's libraries; "
    return [_export("set", HSA, value, text + f"it runs those of gfx{value.replace('.', '')}")]


def _double_filter(machine: Machine, environment: Environment) -> list[Finding]:
    second = HIP if HIP in environment else CUDA
    if not machine.of("amd") or ROCR not in environment or second not in environment:
        return []
    text = (
        f"{ROCR}={environment[ROCR]} filters first, then {second}={environment[second]} counts within what "
    )
    return [_unset("error", second, text + "is left: together they can hide every card. Use one of them")]


def _hip_and_cuda_differ(machine: Machine, environment: Environment) -> list[Finding]:
    both = HIP in environment and CUDA in environment
    if not machine.of("amd") or not both or environment[HIP] == environment[CUDA]:
        return []
    text = f"{HIP}={environment[HIP]} and {CUDA}={environment[CUDA]} differ, and ROCm honours both names"
    return [_unset("error", CUDA, text)]


def _lists_that_hide(machine: Machine, environment: Environment) -> list[Finding]:
    findings = []
    owners = {
        ROCR: machine.of("amd"),
        HIP: machine.of("amd"),
        CUDA: machine.of("nvidia") or machine.of("amd"),
    }
    for variable, cards in owners.items():
        value = environment.get(variable)
        if value is None or not cards:
            continue
        places = [part.strip() for part in value.split(",")]
        numbers = [int(part) for part in places if re.fullmatch(r"-?\d+", part)]
        if not value.strip():
            findings.append(_unset("error", variable, f"{variable} is set but empty: it hides every card"))
        elif any(number < 0 or number >= len(cards) for number in numbers):
            text = f"{variable}={value} names a card that isn't there: the list ends before it, "
            text += f"and this machine counts from 0 to {len(cards) - 1}"
            findings.append(_export("error", variable, "0", text))
    return findings


def _rdna_attention(machine: Machine, environment: Environment) -> list[Finding]:
    cards = [card for card in _picked(machine.of("amd"), environment) if card.is_rdna]
    if not cards:
        return []
    text = (
        f"{cards[0].name} ({cards[0].arch}) is an RDNA card: without {AOTRITON}=1, attention silently takes "
    )
    text += "the slow path (3.6 to 11.8 times slower)"
    if AOTRITON not in environment:
        return [_export("set", AOTRITON, "1", text)]
    if environment[AOTRITON] != "1":
        return [_export("warning", AOTRITON, "1", f"{AOTRITON}={environment[AOTRITON]!r}: {text}")]
    return []


def _mixed_cards(machine: Machine, environment: Environment) -> list[Finding]:
    cards = _picked(machine.of("amd"), environment)
    if len({card.arch for card in cards}) < 2:
        return []
    best = max(range(len(cards)), key=lambda n: (cards[n].is_instinct, cards[n].memory_gib or 0))
    text = f"cards of several kinds ({_archs(cards)}): torch takes the first, whichever that is"
    return [_export("warning", ROCR, str(best), text)] if ROCR not in environment else []


def _rights(machine: Machine, environment: Environment) -> list[Finding]:
    findings = []
    command = "sudo usermod -aG render,video $USER  # then log in again"
    if machine.kfd_device == "closed":
        text = "/dev/kfd is there, but this user may not open it: ROCm will see no card"
        findings.append(Finding("error", text, "", command=command))
    closed = [card for card in machine.cards if not card.usable and card.device_file]
    if closed and machine.kfd_device != "closed":
        files = ", ".join(card.device_file or "" for card in closed)
        text = f"this user may not open {files}, or it is missing (in a container: pass the device in)"
        findings.append(Finding("error", text, "", command=command))
    return findings


def _container(machine: Machine, environment: Environment) -> list[Finding]:
    if not machine.of("amd") and machine.kfd_device == "absent":
        return []
    if machine.of("amd") and machine.kfd_device == "absent":
        text = "an AMD card, but no /dev/kfd: the ROCm kernel driver is missing, or the container lacks it"
        return [Finding("error", text, "", command="docker run --device /dev/kfd --device /dev/dri ...")]
    if not machine.kfd_topology:
        text = "/dev/kfd without /sys/class/kfd (a container?): the card's kind can't be read here, "
        return [Finding("warning", text + "so no variable is proposed; torch's own view counts", "")]
    return []


_HIP_DOC = "ROCm documentation, GPU isolation techniques"
_HSA_DOC = "ROCm issue 3065; pytorch issue 119370"

RULES = (
    Rule(_rights, "ROCm installation guide, group permissions"),
    Rule(_container, "ROCm documentation, running Docker containers"),
    Rule(_empty_override, "observed by several projects: an empty value leaves zero GPUs"),
    Rule(_malformed_override, "ROCR-Runtime: the value is read as major.minor.stepping"),
    Rule(_wrong_override, _HSA_DOC),
    Rule(_needed_override, _HSA_DOC),
    Rule(_double_filter, _HIP_DOC),
    Rule(_hip_and_cuda_differ, _HIP_DOC),
    Rule(_lists_that_hide, _HIP_DOC),
    Rule(_rdna_attention, "pytorch issue 112997; measured on an RX 9060 XT, Unsloth pull request 8821"),
    Rule(_mixed_cards, _HIP_DOC),
)
