"""Calibrate a run on questions that were held back from its training, never on those it is measured on."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medqa.config import RunConfig
from medqa.data.corpus import TrainingData
from medqa.data.draw import examples_hash, sample
from medqa.errors import CalibrationError
from medqa.evaluate.canaries import score_canaries
from medqa.evaluate.engine import Engine, LocalEngine
from medqa.evaluate.in_turn import InTurn
from medqa.evaluate.orders import OrderedPrediction, count_askings, score_orders
from medqa.evaluate.score import make_items
from medqa.hardware.device import choose_device
from medqa.hardware.group import current_group, join_group
from medqa.model.tuned import TunedModel, load_tuned
from medqa.progress import track
from medqa.prompts import PromptRenderer
from medqa.provenance import provenance, versions
from medqa.records import Example
from medqa.runs import RunFolder
from medqa.trust.calibration import Calibration, LogLikelihoods
from medqa.trust.calibrators import Temperature
from medqa.trust.fitting import MIN_ROWS, fit_calibration
from medqa.trust.permutation import NumOrders
from medqa.trust.store import CalibrationFile, Identity

__all__ = [
    "calibrate",
    "calibrate_tuned",
    "fit_by_orders",
    "held_back",
    "identity_of",
    "load_calibration",
    "num_calibration_rows",
    "record_of",
    "refuse_other_questions",
    "usual_orders",
]

log = logging.getLogger(__name__)

# Scored at about 4 questions a second on two cores: as much time as a short training.
NUM_ROWS_ON_CPU = 300


def calibrate(
    path: Path,
    orders: Sequence[NumOrders] = (),
    *,
    max_rows: int | None = None,
    trust_remote_code: str | None = None,
) -> CalibrationFile:
    """Calibrate a finished run anew; see `calibrate_tuned`.

    Args:
        path: Run folder.
        orders: Numbers of option orders to calibrate for; as `usual_orders` if none.
        max_rows: Calibrate on at most this many questions; as the run's settings say if not given.
        trust_remote_code: Name of the base model, if its own code may run.

    Raises:
        CalibrationError: If the held-back questions are not the run's own any more, or too few.
        MedQAError: Of the kind that says what else is wrong.
    """
    run = RunFolder.open(path)
    run.refuse_if_published("calibrate")
    device = choose_device(run.config.model)
    group = join_group(device.torch_device)
    group.require_same(
        precision=device.precision,
        adapter=run.record["adapter_sha256"],
        versions=versions(),
    )
    questions = InTurn(run.config.data, run.config.train.seed, group)
    with run.held():
        try:
            tuned = load_tuned(path, trust_remote_code)
            data = questions.result()
        finally:
            questions.cancel()
        refuse_other_questions(run, data)
        return calibrate_tuned(tuned, data, orders, max_rows=max_rows)


def refuse_other_questions(run: RunFolder, data: TrainingData) -> None:
    """Raise CalibrationError if the held-back questions are not those of a run's training."""
    for name in ("calibration", "selection"):
        if data.record["splits"][name] != run.record["data"]["splits"][name]:
            raise CalibrationError(
                f"{run.path}: the {name} questions are not those that were held back from its training",
                "put the data back as it was, or train again; other questions may have been trained on",
            )


def num_calibration_rows(tuned: TunedModel, data: TrainingData, max_rows: int | None = None) -> int:
    """Say how many questions to calibrate on: all that were held back, or as many as the settings say."""
    asked = max_rows or tuned.run.config.evaluate.calibration_rows
    if asked == "auto":
        asked = NUM_ROWS_ON_CPU if tuned.device.is_cpu else len(data.calibration)
    return min(asked, len(data.calibration))


def calibrate_tuned(
    tuned: TunedModel,
    data: TrainingData,
    orders: Sequence[NumOrders] = (),
    *,
    max_rows: int | None = None,
) -> CalibrationFile:
    """Fit calibrations to the held-back questions, and write calibration.json into the adapter folder.

    Args:
        tuned: The model.
        data: Its training questions, of which those for calibration and selection are used.
        orders: Numbers of option orders to calibrate for; `usual_orders` if none. The order as given
            is always among them.
        max_rows: Calibrate on at most this many questions; as the run's settings say if not given.

    Raises:
        CalibrationError: If too few questions were held back.
    """
    start, num_rows = time.monotonic(), num_calibration_rows(tuned, data, max_rows)
    if num_rows < MIN_ROWS:
        raise CalibrationError(
            f"{num_rows} questions to calibrate on, at least {MIN_ROWS} are needed: "
            f"{len(data.calibration):,} were held back from training",
            "hold back more and train again: --set data.calibration_share=0.2",
        )
    if num_rows < len(data.calibration):
        log.info(
            "Calibrating on %s of %s held-back questions; all of them: --rows %d",
            *(f"{n:,}" for n in (num_rows, len(data.calibration))),
            len(data.calibration),
        )
    fit, choose = held_back(tuned.run, data, num_rows)
    wanted = sorted({1, *(orders or usual_orders(tuned.run.config))})
    engine = LocalEngine.fastest(tuned, make_items(tuned.renderer, fit, "medqa"))
    by_orders = fit_by_orders(engine, fit, choose, wanted)
    record = record_of(data, fit, choose)
    file = CalibrationFile(
        identity_of(tuned.run, tuned.renderer),
        {**_kept(tuned, record), **by_orders},
        {"data": record, "seconds": round(time.monotonic() - start, 1), **provenance()},
        score_canaries(engine),
    )
    file.write(tuned.run.adapter)
    current_group().wait()  # it is read again
    if (tuned.run.path / "report.json").is_file():
        log.info("report.json was measured before this calibration: `medqa evaluate %s`", tuned.run.path)
    return file


def held_back(run: RunFolder, data: TrainingData, num_rows: int) -> tuple[list[Example], list[Example]]:
    """Draw so many of the questions held back to calibrate on, and as large a share of those to choose by."""
    seed, share = run.config.train.seed, num_rows / max(1, len(data.calibration))
    return (
        sample(data.calibration, num_rows, seed, "calibration"),
        sample(data.selection, round(share * len(data.selection)), seed, "calibration"),
    )


def fit_by_orders(
    engine: Engine, fit: Sequence[Example], choose: Sequence[Example], wanted: Sequence[NumOrders]
) -> dict[int, Calibration]:
    """Fit a calibration for each number of option orders to what an engine makes of the questions."""
    by_orders: dict[int, Calibration] = {}
    with track("Calibrating", sum(count_askings([*fit, *choose], number) for number in wanted)) as task:
        known = None
        for number in wanted:
            scored = score_orders(engine, [*fit, *choose], number, known=known, task=task)
            if number == 1:
                known = [one.prediction for one in scored]
            elif known is not None:  # the first order was scored already
                task.advance(len(known))
            by_orders[number] = _fit(fit, choose, scored)
    return by_orders


def record_of(data: TrainingData, fit: Sequence[Example], choose: Sequence[Example]) -> dict[str, Any]:
    """Say which questions a calibration was fitted to, without their texts."""
    return {
        "name": data.record["name"],
        "num_used": {"calibration": len(fit), "selection": len(choose)},
        "sha256_used": examples_hash([*fit, *choose]),
        **{name: data.record["splits"][name] for name in ("calibration", "selection")},
    }


def usual_orders(config: RunConfig) -> tuple[NumOrders, ...]:
    """Say for how many option orders a run is calibrated: those that its answers and its report take."""
    numbers: set[NumOrders] = {1, config.evaluate.orders, config.serve.orders}
    return tuple(sorted(numbers))


def _kept(tuned: TunedModel, record: dict[str, Any]) -> dict[int, Calibration]:
    """Keep what was fitted before to the same questions, for other numbers of option orders."""
    try:
        before = load_calibration(tuned.run, tuned.renderer)
    except CalibrationError:
        return {}
    return before.by_orders if before and before.record["data"] == record else {}


def identity_of(run: RunFolder, renderer: PromptRenderer) -> Identity:
    """Say which adapter, base model and prompt a calibration of this run holds for."""
    record = run.record
    return Identity(record["adapter_sha256"], record["base_model"]["fingerprint"], renderer.sha256)


def load_calibration(run: RunFolder, renderer: PromptRenderer) -> CalibrationFile | None:
    """Read the calibration shipped with the adapter; None if there is none.

    Raises:
        CalibrationError: If it is damaged or another model's.
    """
    return CalibrationFile.read(run.adapter, identity_of(run, renderer))


def _fit(
    fit: Sequence[Example], choose: Sequence[Example], scored: Sequence[OrderedPrediction]
) -> Calibration:
    def values(examples: Sequence[Example], found: Sequence[OrderedPrediction]) -> LogLikelihoods:
        kept = [
            (one.prediction.log_likelihoods, e.answer, e.subject)
            for e, one in zip(examples, found, strict=True)
            if one.prediction.status == "scored" and e.answer is not None
        ]
        if len(kept) < len(examples):
            log.warning("%d held-back questions are too long to calibrate on", len(examples) - len(kept))
        return LogLikelihoods.of([k[0] for k in kept], [k[1] for k in kept], [k[2] for k in kept])

    calibration = fit_calibration(values(fit, scored[: len(fit)]), values(choose, scored[len(fit) :]))
    kept = calibration.calibrator
    if isinstance(kept, Temperature) and kept.at_bound:
        log.warning(
            "Temperature %.3g is as far as it goes: this model's confidence says little", kept.temperature
        )
    return calibration
