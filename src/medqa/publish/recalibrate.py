"""Does the shipped calibration hold for an export? If not, it is fitted anew to the export itself."""

import dataclasses
import logging
from collections.abc import Collection
from pathlib import Path
from typing import cast

from medqa.evaluate.calibrate import NUM_ROWS_ON_CPU, fit_by_orders, held_back, record_of
from medqa.evaluate.engine import Engine
from medqa.evaluate.score import make_items
from medqa.provenance import provenance
from medqa.publish.parity import HeldOut, Parity, is_valid
from medqa.publish.scrub import scrub
from medqa.runs import RunFolder
from medqa.trust.fitting import MIN_ROWS
from medqa.trust.permutation import NumOrders
from medqa.trust.store import FILE_NAME, CalibrationFile

__all__ = ["recalibrate"]

log = logging.getLogger(__name__)


def recalibrate(
    run: RunFolder,
    shipped: CalibrationFile | None,
    held_out: HeldOut,
    engine: Engine,
    parity: Parity,
    out: Path,
) -> str:
    """Keep the calibration if it holds for the export, else fit it anew.

    Args:
        run: The run that was exported.
        shipped: Its calibration.
        held_out: What was held back from its training.
        engine: The export.
        parity: How it answers, beside the tuned model.
        out: The run's copy, which holds the shipped calibration.

    Returns:
        "valid", "refitted", "none", or "drifted": not valid, left out, and nothing to refit it with.
    """
    if shipped is None:
        return "none"
    if is_valid(parity):
        return "valid"
    (out / FILE_NAME).unlink(missing_ok=True)  # may share its content with the run's own
    data = held_out.data
    if data is None or len(data.calibration) < MIN_ROWS:
        log.warning(
            "The calibration does not hold for this export, and is left out: too few questions to refit it"
        )
        return "drifted"
    fit, choose = held_back(run, data, min(len(data.calibration), NUM_ROWS_ON_CPU))
    wanted: list[NumOrders] = sorted(
        {1, run.config.serve.orders, *cast("Collection[NumOrders]", shipped.by_orders)}
    )
    log.info("The calibration does not hold for this export: fitting it anew to %d questions", len(fit))
    record = {"data": record_of(data, fit, choose), "export": parity.kind, **provenance(), "command": ""}
    by_orders = fit_by_orders(engine, fit, choose, wanted)
    items = make_items(engine.renderer, [canary.example for canary in shipped.canaries], "medqa")
    canaries = tuple(
        dataclasses.replace(canary, log_likelihoods=found.log_likelihoods)
        for canary, found in zip(shipped.canaries, engine.score(items), strict=True)
        if found.status == "scored"
    )
    CalibrationFile(shipped.identity, by_orders, scrub(record), canaries).write(out)
    return "refitted"
