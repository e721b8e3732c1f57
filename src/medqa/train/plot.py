"""The loss curve as a picture."""

import json
from pathlib import Path

from medqa.files import beside

__all__ = ["plot_loss"]


def plot_loss(metrics: Path, picture: Path) -> None:
    """Draw loss and answer loss over the steps of a metrics.jsonl into a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    steps = [line["step"] for line in lines]
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    curves = (("loss", "training loss", "C0"), ("answer_nll", "answer letter alone", "C1"))
    for key, label, colour in curves:
        values = [line[key] for line in lines]
        axes.plot(steps, values, color=colour, alpha=0.25, linewidth=1)
        axes.plot(steps, _smooth(values), color=colour, label=label)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("negative log-likelihood (nats)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    part = beside(picture)
    try:
        figure.savefig(part, format="png", dpi=120)
        part.replace(picture)
    finally:
        part.unlink(missing_ok=True)


def _smooth(values: list[float]) -> list[float]:
    """Average each value with those before it, over a tenth of the run."""
    width = max(1, len(values) // 10)
    return [
        sum(values[max(0, i - width + 1) : i + 1]) / len(values[max(0, i - width + 1) : i + 1])
        for i in range(len(values))
    ]
