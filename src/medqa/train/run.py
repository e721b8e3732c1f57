"""A training run: settings in, run folder with adapter, plot and record out."""

import logging
import shutil
import time
from pathlib import Path
from typing import Any

from medqa.config import RunConfig
from medqa.data.prepared import Pending
from medqa.errors import CalibrationError, RunError, TrainingError
from medqa.evaluate.calibrate import calibrate_tuned
from medqa.evaluate.in_turn import InTurn
from medqa.evaluate.run import evaluate_tuned
from medqa.files import read_json, write_folder, write_json
from medqa.hardware.device import be_deterministic, choose_device
from medqa.hardware.group import Group, current_group, join_group
from medqa.hardware.selftest_record import last_selftest
from medqa.launch import launch_id
from medqa.model.lora import trainable_parameters
from medqa.model.tuned import TunedModel
from medqa.provenance import versions
from medqa.recipe import with_whole_paths
from medqa.runs import RunFolder, adapter_checksums
from medqa.train.loop import train_adapter
from medqa.train.plot import plot_loss
from medqa.train.prepare import Prepared
from medqa.train.stop import StoppedError
from medqa.train.together import refuse_different_adapters
from medqa.train.tuning import Tuning
from medqa.trust.store import FILE_NAME as CALIBRATION

__all__ = ["resume", "train"]

log = logging.getLogger(__name__)

_UNCALIBRATED = "Not calibrated"


def train(
    config: RunConfig,
    path: Path,
    recipe: str,
    environment: dict[str, Any] | None = None,
    *,
    questions: Pending | None = None,
    end: float | None = None,
    plan: dict[str, Any] | None = None,
) -> RunFolder:
    """Fine-tune an adapter into a new run folder.

    Everything that can be wrong with data or model is found before the folder is made. Where torchrun starts
    several processes anew because one was lost, they go on with the run that they began.

    Args:
        config: All settings.
        path: Run folder to make.
        recipe: Name of the recipe, for the record.
        environment: What `prepare_environment` found and set, for the record.
        questions: The corpus of these settings, if its preparation was begun before torch was imported.
        end: When everything must be done, on time.monotonic's clock: what is trained on is planned to fit,
            and base and tuned model are scored at the end. No limit if not given.
        plan: The plan of an earlier run with a limit, to do once more what came of it.

    Raises:
        MedQAError: Of the kind that says what is wrong.
    """
    if config.train.deterministic:
        be_deterministic()
    group = join_group(choose_device(config.model).torch_device)
    path = group.agree(path)
    if group.decide(lambda: _was_begun(path, config, recipe)):
        run = resume(path, config.model.trust_remote_code)
        _refuse_half_measured(run, timed=end is not None)
        return run
    config = with_whole_paths(config)
    prepared = Prepared(config, questions or InTurn(config.data, config.train.seed, group), end=end)
    _require_same(group, prepared)
    tuning = Tuning(prepared, config.train, end, plan=plan)
    run = group.decide(lambda: RunFolder.create(path, tuning.applied(config), recipe))
    _require_shared(group, run)
    write_json(path / "data.json", prepared.data.record)
    run.update(
        environment=environment or {},
        selftest=last_selftest(prepared.device),
        **({"plan": tuning.plan.record()} if tuning.plan else {"plan": plan} if plan else {}),
        **prepared.record(tuning.rows),
    )
    with run.held():
        return _train(run, tuning)


def _was_begun(path: Path, config: RunConfig, recipe: str) -> bool:
    """Tell whether this very launch began the run, before a process was lost; refuse another's."""
    if not path.exists():
        return False
    launch = launch_id()
    begun = launch is not None and (path / "run.json").is_file()
    if begun and read_json(path / "run.json").get("launch") == launch:
        return True
    RunFolder.create(path, config, recipe)  # says what to do instead
    return False


def _require_same(group: Group, prepared: Prepared) -> None:
    """Refuse processes that would train on other data, or another model; rows are dealt by number."""
    group.require_same(
        data=prepared.data.summary["sha256"],
        number_of_tokens=sum(map(len, prepared.rows)),
        base_model=prepared.base.fingerprint,
        prompt=prepared.renderer.sha256,
        precision=prepared.device.precision,
        versions=versions(),
    )


def _require_shared(group: Group, run: RunFolder) -> None:
    """Refuse hosts that do not see the first one's run folder."""
    if group.size == 1:
        return
    path = run.path / "run.json"
    seen = path.is_file() and read_json(path).get("created") == run.record["created"]
    if missing := [rank for rank, sees in enumerate(group.gather(seen)) if not sees]:
        if group.is_first:
            shutil.rmtree(run.path)  # just made: it would be in the way of the next try
        raise TrainingError(
            f"process {missing[0]} does not see {run.path.resolve()} of process 0",
            "all hosts must share the run folder: --out on a disk that they share",
        )


def resume(path: Path, trust_remote_code: str | None = None) -> RunFolder:
    """Go on with a run that was interrupted, to the result it would have had.

    A run that was given a time goes on with the plan that it had made, without a limit.

    Args:
        path: Run folder.
        trust_remote_code: Name of the base model, if its own code may run.

    Raises:
        RunError: If there is no run, or data or base model are not the ones it began with.
    """
    with RunFolder.open(path, finished=False).held():
        return _resume(path, trust_remote_code)


def _resume(path: Path, trust_remote_code: str | None) -> RunFolder:
    run = RunFolder.open(path, finished=False)  # as it is now that nobody else writes
    if run.record["status"] == "complete":
        log.warning("%s is complete already: nothing to resume", path)
        return run
    if "data" not in run.record:
        raise RunError(f"{path} ended before training began", f"delete it and train again: rm -r {path}")
    model = run.config.model.model_copy(update={"trust_remote_code": trust_remote_code})
    config = run.config.model_copy(update={"model": model})
    if config.train.deterministic:
        be_deterministic()
    group = join_group(choose_device(config.model).torch_device)
    questions = InTurn(config.data, config.train.seed, group)
    prepared = Prepared(config, questions, run.record["prompt"])
    _require_same(group, prepared)
    _require_shared(group, run)
    tuning = Tuning(prepared, run.config.train, None, plan=run.record.get("plan", {}))
    now = prepared.record(tuning.rows)
    for what, key in (("data", "sha256"), ("data", "num_tokens"), ("base_model", "fingerprint")):
        if now[what][key] != run.record[what][key]:
            raise RunError(
                f"{path}: {what} differs from what the run began with",
                "put it back as it was, or train anew with another --out",
            )
    before, device = run.record["device"], now["device"]
    if (before["name"], before["precision"]) != (device["name"], device["precision"]):
        began, goes_on = (f"{d['name']} in {d['precision']}" for d in (before, device))
        text = f"Begun on {began}, resumed on {goes_on}: the result differs in rounding"
        log.warning("%s", text)
        run.note(text)
    return _train(run, tuning)


def _refuse_half_measured(run: RunFolder, *, timed: bool) -> None:
    """Raise RunError if a process was lost after training, so that what it ends with is missing."""
    told = any(notice.startswith(_UNCALIBRATED) for notice in run.record["notices"])
    calibrated = told or (run.adapter / CALIBRATION).is_file() or run.config.data.calibration_share == 0
    missing = [] if calibrated else ["calibrate"]
    missing += ["evaluate"] if timed and not list(run.path.glob("report*.json")) else []
    if missing:
        commands = " and ".join(f"`medqa {verb} {run.path}`" for verb in missing)
        raise RunError(f"{run.path} is trained, and was stopped after that", f"{commands} do what is missing")


def _train(run: RunFolder, tuning: Tuning) -> RunFolder:
    tuning.keep_in(run)
    prepared, config, model, device = tuning.prepared, tuning.config, tuning.model, tuning.prepared.device
    clock = time.monotonic()
    num_trained = sum(p.numel() for _, p in trainable_parameters(model))
    log.info(
        "Training %s adapter weights (LoRA rank %d) on %s rows, %s: %s, %s (%s)",
        f"{num_trained:,}",
        config.lora.rank,
        f"{len(tuning.rows):,}",
        device.name,
        device.precision,
        device.torch_device,
        device.precision_reason,
    )
    try:
        state = train_adapter(
            model,
            tuning.rows,
            config,
            device,
            run.path,
            tuning.notice,
            engine=tuning.engine,
            pace=tuning.pace,
            num_steps=run.record.get("plan", {}).get("num_steps"),
        )
    except StoppedError:
        log.warning("Stopped and saved; go on with: medqa train --resume %s", run.path)
        raise
    except KeyboardInterrupt:
        log.warning("Stopped at once; from the last checkpoint goes on: medqa train --resume %s", run.path)
        raise
    if tuning.timed is not None and tuning.pace is not None:
        run.update(plan={**run.record["plan"], "changes": tuning.pace.changes})
    _save_adapter(run, model, prepared)
    group = current_group()
    if group.is_first:
        plot_loss(run.path / "metrics.jsonl", run.path / "loss.png")
    refuse_different_adapters(tuning.engine.tensors()[0], group)
    peak_gib = device.peak_memory_gib()
    checksums = group.agree(adapter_checksums(run.path / "adapter") if group.is_first else {})
    seconds = {**prepared.seconds, "training steps": state.seconds, "train": time.monotonic() - clock}
    run.finish(
        adapter_sha256=checksums["adapter_model.safetensors"],
        adapter_files=checksums,
        training={
            "num_rows": len(tuning.rows),
            "num_read_back": prepared.counts["num_read_back"],
            "num_steps": state.step,
            "num_tokens": state.num_tokens,
            "tokens_per_second": round(state.num_tokens / state.seconds, 1),
            "num_trained_parameters": num_trained,
            "num_processes": group.size,
            "micro_batch_size": state.micro_batch_size,
            "path": tuning.engine.record,
            "peak_memory_gib": peak_gib and round(peak_gib, 2),
            "seconds": {key: round(value, 1) for key, value in seconds.items()},
        },
    )
    model.eval()
    tuned = TunedModel(run, prepared.base, device, prepared.renderer, model, tuning.engine.decoder)
    try:
        _calibrate(run, tuning, tuned)
        if tuning.timed is not None:
            report = evaluate_tuned(tuned, *tuning.timed.evaluation())
            run.update(report=report["file"])
        group.wait()  # a process that ends takes the others with it: not before all is written
    except BaseException:
        missing = f"`medqa calibrate {run.path}` and `medqa evaluate {run.path}` do what is missing"
        tuning.notice(f"Stopped after training, which is whole: {missing}")
        raise
    return run


def _calibrate(run: RunFolder, tuning: Tuning, tuned: TunedModel) -> None:
    """Calibrate on what was held back; a run without is a whole run all the same, and says so."""
    plan, data = run.record.get("plan", {}), tuning.prepared.data
    if run.config.data.calibration_share == 0:  # as the settings ask for
        return
    clock = time.monotonic()
    try:
        if plan and not plan["num_calibration"]:
            raise CalibrationError("there was no time for it, or too few questions were held back")
        file = calibrate_tuned(
            tuned, data, plan.get("calibration_orders", ()), max_rows=plan.get("num_calibration")
        )
    except CalibrationError as exc:
        tuning.notice(f"{_UNCALIBRATED}: {exc.message}. `medqa calibrate {run.path}` calibrates later")
        return
    run.update(calibration={**file.summary(), "seconds": round(time.monotonic() - clock, 1)})


def _save_adapter(run: RunFolder, model: Any, prepared: Prepared) -> None:
    """Write the adapter in PEFT's own format, with the tokenizer beside it."""
    # A Hub name holds everywhere; a folder or the built-in model only here.
    name = prepared.config.model.name
    is_hub_id = not name.startswith("builtin:") and not Path(name).expanduser().exists()
    for peft_config in model.peft_config.values():
        peft_config.base_model_name_or_path = name if is_hub_id else str(prepared.base.path.resolve())
    with write_folder(run.path / "adapter") as beside:
        model.save_pretrained(str(beside), safe_serialization=True)
        prepared.renderer.tokenizer.save_pretrained(str(beside))
