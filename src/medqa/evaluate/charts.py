"""Numbers as they stand on the page: as text, and as drawings that are part of the HTML."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from markupsafe import Markup, escape

__all__ = [
    "FILTERS",
    "decimal_interval",
    "decimals",
    "interval",
    "kept_chart",
    "percent",
    "point_interval",
    "points",
    "reliability_chart",
    "risk_chart",
    "signed_points",
]

# A blank that doesn't break: the sign stays with its number.
_BLANK = "\u00a0"
_NONE = "\u2013"

Record = dict[str, Any]


def percent(share: float | None, digits: int = 1) -> str:
    """Write a share in percent."""
    if share is None:
        return _NONE
    if 0 < share < 0.001:
        return f"under 0.1{_BLANK}%"
    return f"{100 * share:.{digits}f}{_BLANK}%"


def interval(ends: Sequence[float] | None) -> str:
    """Write an interval of shares in percent; nothing without one."""
    return f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}{_BLANK}%" if ends else ""


def points(share: float | None) -> str:
    """Write a difference of shares in points: hundredths."""
    return _NONE if share is None else f"{100 * share:.1f}{_BLANK}points"


def signed_points(share: float | None) -> str:
    """Write a difference of shares in points, with its sign."""
    return _NONE if share is None else f"{_signed(share)}{_BLANK}points"


def point_interval(ends: Sequence[float] | None, *, signed: bool = False) -> str:
    """Write an interval of differences in points; nothing without one."""
    if not ends:
        return ""
    low, high = (_signed(end) if signed else f"{100 * end:.1f}" for end in ends)
    return f"{low} to {high}{_BLANK}points"


def decimals(value: float | None) -> str:
    """Write a measure that is no share."""
    return _NONE if value is None else f"{value:.3f}"


def decimal_interval(ends: Sequence[float] | None) -> str:
    """Write an interval of a measure that is no share; nothing without one."""
    return f"{ends[0]:.3f} to {ends[1]:.3f}" if ends else ""


def _p_value(value: float) -> str:
    """Write a p-value, not smaller than means anything."""
    if value < 0.001:
        return f"p{_BLANK}<{_BLANK}0.001"
    return f"p{_BLANK}={_BLANK}{value:.3f}" if value < 0.995 else f"p{_BLANK}={_BLANK}1"


def _hundred(score: Record) -> str:
    """Count right answers among a hundred; among those there are, where they are fewer."""
    fewer: bool = score["num_questions"] < 100
    return f"{score['num_correct'] if fewer else round(100 * score['accuracy'])}"


def _signed(share: float) -> str:
    text = f"{100 * share:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "\u2212")


def _commands(text: str) -> Markup:
    """Set what stands between backticks as code."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(text))))


def _of(number: int, noun: str) -> str:
    """Write a number with its noun in singular or plural."""
    return f"{number:,} {noun if number == 1 else noun + 's'}"


FILTERS: dict[str, Callable[..., str]] = {
    "n": "{:,}".format,
    "of": _of,
    "commands": _commands,
    "percent": percent,
    "interval": interval,
    "points": points,
    "signed": signed_points,
    "point_interval": point_interval,
    "p": _p_value,
    "hundred": _hundred,
}
"""How the template writes numbers."""


@dataclasses.dataclass(frozen=True)
class _Plot:
    """A square of two shares with axes, on a sheet of its own units.

    Attributes:
        highest: Where the vertical axis ends.
        left: Place of the vertical axis on the sheet; the other three are its other edges.
    """

    highest: float = 1.0
    left: float = 38
    right: float = 330
    top: float = 26
    bottom: float = 276

    def x(self, value: float) -> float:
        """Place of a value on the sheet, left to right."""
        return round(self.left + (self.right - self.left) * value, 1)

    def y(self, value: float) -> float:
        """Place of a value on the sheet, bottom to top."""
        return round(self.bottom - (self.bottom - self.top) * value / self.highest, 1)

    def axes(self, across: str, upward: str) -> str:
        """Draw axes with their names."""
        parts = [_text(self.left - 30, self.top - 12, upward, "name")]
        step = 20 if self.highest > 0.7 else 10
        for tick in range(0, round(100 * self.highest) + 1, step):
            y = self.y(tick / 100)
            parts.append(_line(self.left, y, self.right, y, "grid"))
            parts.append(_text(self.left - 6, y + 4, str(tick), "end"))
        ticks = (
            _text(self.x(tick / 100), self.bottom + 15, str(tick), "middle") for tick in range(0, 101, 20)
        )
        parts.extend(ticks)
        parts.append(_line(self.left, self.bottom, self.right, self.bottom, "axis"))
        parts.append(_text(self.right, self.bottom + 31, across, "end name"))
        return "".join(parts)

    def curve(self, pairs: Iterable[tuple[float, float]], kind: str) -> str:
        """Draw a line through points; a single one as a dot."""
        places = [f"{self.x(a)},{self.y(b)}" for a, b in pairs]
        if len(places) == 1:
            x, y = places[0].split(",")
            return f'<circle class="dot {kind}" cx="{x}" cy="{y}" r="4"/>'
        return f'<polyline class="curve {kind}" points="{" ".join(places)}"/>' if places else ""

    def dot(self, a: float, b: float, kind: str, tip: str, ends: Sequence[float] | None = None) -> str:
        """Draw a point with its interval, and a text for the pointer."""
        bar = _line(self.x(a), self.y(ends[0]), self.x(a), self.y(ends[1]), f"whisker {kind}") if ends else ""
        circle = f'<circle class="dot {kind}" cx="{self.x(a)}" cy="{self.y(b)}" r="4"/>'
        return f"<g><title>{tip}</title>{bar}{circle}</g>"


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x}" y="{y}">{text}</text>'


def _sheet(height: float, label: str, *parts: str) -> Markup:
    """Put drawn parts on a sheet. All of them are made here, of numbers and fixed words."""
    return Markup(
        f'<svg class="plot" viewBox="0 0 340 {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    )


def reliability_chart(after: Sequence[Record], before: Sequence[Record] = ()) -> Markup:
    """Draw accuracy over stated confidence, with the number of questions below.

    Args:
        after: The bins to be looked at.
        before: Bins without calibration, drawn faintly; none if that is what `after` shows.
    """
    plot = _Plot()
    said = "; ".join(
        f"of {b['num_questions']:,} at {percent(b['confidence'], 0)} confidence "
        f"{percent(b['accuracy'], 0)} right"
        for b in after
    )
    parts = [
        plot.axes("confidence, %", "right, %"),
        _line(plot.x(0), plot.y(0), plot.x(1), plot.y(1), "ideal"),
    ]
    parts.append(plot.curve(((b["confidence"], b["accuracy"]) for b in before), "before"))
    parts += [plot.dot(b["confidence"], b["accuracy"], "before", _bin_tip(b)) for b in before]
    parts.append(plot.curve(((b["confidence"], b["accuracy"]) for b in after), "after"))
    parts += [
        plot.dot(b["confidence"], b["accuracy"], "after", _bin_tip(b), b.get("accuracy_interval"))
        for b in after
    ]
    most = max((b["num_questions"] for b in after), default=1)
    floor, tall = 362.0, 34.0
    for b in after:
        x, width = plot.x(b["low"]), plot.x(b["high"]) - plot.x(b["low"])
        height = round(max(1.0, tall * b["num_questions"] / most), 1)
        parts.append(
            f'<rect class="count" x="{x + 1:.1f}" y="{floor - height:.1f}" width="{width - 2:.1f}" '
            f'height="{height}"/>'
        )
        parts.append(_text(round(x + width / 2, 1), floor + 13, str(b["num_questions"]), "middle few"))
    parts.append(_text(plot.left - 30, floor - tall - 8, "questions", "name"))
    return _sheet(floor + 20, f"Share of right answers by stated confidence: {said}", *parts)


def _bin_tip(found: Record) -> str:
    return (
        f"{found['num_questions']:,} questions, mean confidence {percent(found['confidence'])}, "
        f"right {percent(found['accuracy'])} {interval(found.get('accuracy_interval'))}"
    )


def risk_chart(after: Record, base: Record | None, at: Sequence[float]) -> Markup:
    """Draw the share of wrong answers over the share of questions answered, the surest first.

    Args:
        after: Measures of the tuned model.
        base: Measures of the base model, drawn faintly; None if it was not measured.
        at: Coverages to be marked.
    """
    after_curve, base_curve = (
        [(a, b) for a, b in score["risk_coverage"]] if score else [] for score in (after, base)
    )
    top = max((risk for curve in (after_curve, base_curve) for _, risk in curve), default=1.0)
    plot = _Plot(highest=max(0.2, math.ceil(round(10 * top, 6)) / 10))
    found = [(c, after["accuracy_at_coverage"][str(c)]) for c in at]
    said = "; ".join(f"{percent(1 - right, 0)} of the surest {percent(c, 0)}" for c, right in found)
    marks = [
        plot.dot(c, 1 - right, "after", f"the surest {percent(c, 0)}: {percent(1 - right)} wrong")
        for c, right in found
    ]
    return _sheet(
        plot.bottom + 38,
        f"Share of wrong answers: {said}; {percent(1 - after['accuracy'], 0)} of all",
        plot.axes("questions answered, %", "wrong, %"),
        plot.curve(base_curve, "before"),
        plot.curve(after_curve, "after"),
        *marks,
    )


def kept_chart(rows: Sequence[Record]) -> Markup:
    """Draw how often the answer stays, and how probable it is, as more of its explanation is given."""
    plot = _Plot()
    known = [row for row in rows if row["same_answer"] is not None]

    def pairs(name: str, keep: Callable[[Record], bool]) -> list[tuple[float, float]]:
        return [(row["kept"], row[name]) for row in known if keep(row)]

    said = "; ".join(f"with {percent(r['kept'], 0)} of it {percent(r['same_answer'], 0)}" for r in known)
    return _sheet(
        plot.bottom + 38,
        f"Share of answers that stay the same: {said}",
        plot.axes("of the explanation, %", "%"),
        plot.curve(pairs("probability", lambda row: row["probability"] is not None), "before"),
        plot.curve(pairs("same_answer", lambda _: True), "after"),
        *(
            plot.dot(
                row["kept"],
                row["same_answer"],
                "after",
                f"{percent(row['kept'], 0)} of the explanation: {percent(row['same_answer'])} "
                f"{interval(row.get('interval'))} the same, probability {percent(row['probability'])}",
                row.get("interval"),
            )
            for row in known
        ),
    )
