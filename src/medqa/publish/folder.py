"""The published folder: a run made flat, with a card, and nothing of this machine in it.

`README.md` is the card; `adapter_config.json` and `adapter_model.safetensors` are what PEFT loads, beside the
tokenizer and chat template of training; `calibration.json` says what its confidence is worth, `run.json` and
`recipe.yaml` how it was made, `report.json` how it was measured.
"""

import dataclasses
import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

from medqa.config import RunConfig
from medqa.data.prepared import corpus_of
from medqa.errors import MedQAError, PublishError
from medqa.evaluate.calibrate import refuse_other_questions
from medqa.evaluate.origin import short_name
from medqa.files import file_sha256, read_json, read_sealed, seal, write_folder, write_json, write_text
from medqa.model.embedded import LICENCE, SMOLLM2
from medqa.model.load import find_base
from medqa.publish.card import write_card
from medqa.publish.check import MODEL_FILES, check_folder
from medqa.publish.licences import Verdict, base_licence_of, judge
from medqa.publish.push import check_name
from medqa.publish.scrub import scrub, scrub_command
from medqa.recipe import dump
from medqa.runs import RUN_VERSION, RunFolder, adapter_checksums
from medqa.trust.store import FILE_NAME as CALIBRATION
from medqa.trust.store import read_values, write_values

__all__ = ["Published", "base_on_hub", "copy_run", "write_published"]

log = logging.getLogger(__name__)

# The built-in weights are a 4-bit copy of these.
_SMOLLM2_ON_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"


@dataclasses.dataclass(frozen=True)
class Published:
    """A folder as it would be on the Hub.

    Attributes:
        path: The folder.
        repo: Where it goes, ORG/NAME.
        files: Name, size in bytes and SHA-256 of each file.
        num_questions: Questions that were trained on, and were looked for in it; 0 if they weren't at hand.
    """

    path: Path
    repo: str
    files: tuple[tuple[str, int, str], ...]
    num_questions: int = 0

    @classmethod
    def of(cls, path: Path, repo: str, num_questions: int = 0) -> "Published":
        """List what is in a folder."""
        return cls(
            path,
            repo,
            tuple(
                (file.relative_to(path).as_posix(), file.stat().st_size, file_sha256(file))
                for file in sorted(path.rglob("*"))
                if file.is_file()
            ),
            num_questions,
        )


def write_published(path: Path, repo: str, out: Path, *, base: str | None = None) -> Published:
    """Write the folder that `medqa publish` sends, and check it.

    Args:
        path: Run folder, finished and measured.
        repo: Where on the Hub it is to be, ORG/NAME.
        out: Folder to write; what is there is replaced once the new one is whole and sound.
        base: Name of the base model on the Hub; needed if the run began with a local folder.

    Raises:
        PublishError: If there is no report of it, a licence forbids it, or it holds what must stay here.
        MedQAError: Of the kind that says what else is wrong.
    """
    run = RunFolder.open(path)
    run.refuse_if_published("publish")
    if base is not None:
        check_name(base)
    hub_base = base_on_hub(run, base)
    verdict = judge(_base_licence(run), run.record["data"].get("licences", ()))
    text = write_card(run, repo, hub_base, verdict)
    questions = _questions(run)
    with write_folder(out) as folder:
        copy_run(run, folder, base=base)
        _copy_report(run, folder)
        write_text(folder / "README.md", text)
        _copy_terms(run, folder, verdict)
        check_folder(folder, questions=questions)
    return Published.of(out, repo, len(questions))


def _copy_terms(run: RunFolder, out: Path, verdict: Verdict) -> None:
    """Pass on what the base model's licence wants passed on: its text, and notices."""
    notices = list(verdict.notices)
    base = None if run.record["base_model"]["name"] == SMOLLM2 else find_base(run.config.model).path
    files = sorted(base.iterdir()) if base is not None else []
    texts = [file for file in files if re.match(r"licen[cs]e", file.name, re.IGNORECASE)]
    for file in texts[:1]:
        shutil.copyfile(file, out / "LICENSE-base-model")
    if not texts and any("Pass on a copy" in text for text in verdict.base.conditions):
        log.warning(
            "The %s wants its text passed on, and %s holds no LICENSE: put it there", verdict.base.title, base
        )
    notices += [file.read_text(encoding="utf-8").strip() for file in files if file.name.startswith("NOTICE")]
    if notices:
        write_text(out / "NOTICE", "\n\n".join(dict.fromkeys(notices)) + "\n")


def base_on_hub(run: RunFolder, base: str | None = None) -> str:
    """Name the base model on the Hub.

    Args:
        run: The run.
        base: What the user says it is; needed if the run began with a local folder.

    Raises:
        PublishError: If that isn't known, or not what the run says.
    """
    name = str(run.record["base_model"]["name"])
    if name == SMOLLM2:
        return _SMOLLM2_ON_HUB
    if _is_local(run, name):
        if base is None:
            raise PublishError(
                f"this run began with a model in a folder, {name}, which others don't have",
                "say which model on the Hub that is: --base ORG/NAME",
            )
        return base
    if base not in (None, name):
        raise PublishError(f"--base {base}, but the run began with {name}", "leave --base out")
    return name


def _is_local(run: RunFolder, name: str) -> bool:
    return Path(name).is_absolute() or Path(run.record["base_model"].get("path", "")) == Path(name)


def copy_run(run: RunFolder, out: Path, *, base: str | None = None) -> None:
    """Copy a run flat, without the places of this machine: what answers, its calibration, how it was made.

    Args:
        run: The run.
        out: Folder to fill; made if need be.
        base: Name of the base model on the Hub, instead of a local folder's.
    """
    out.mkdir(exist_ok=True)
    adapter = run.adapter
    for file in sorted(adapter.iterdir()):
        # PEFT leaves a card behind that says nothing.
        if file.is_file() and file.name in MODEL_FILES and file.suffix != ".md":
            _copy(file, out / file.name)
    if (adapter / CALIBRATION).is_file():
        write_values(out, scrub(read_values(adapter)))
    name = str(run.record["base_model"]["name"])
    named = name if name == SMOLLM2 else base or short_name(name)
    record = scrub({**json.loads(json.dumps(run.record)), "command": "", "launch": None})
    record["command"] = scrub_command(str(run.record.get("command", "")))
    record["config"]["model"]["name"] = record["base_model"]["name"] = named
    settings = scrub(read_json(adapter / "adapter_config.json"))
    settings["base_model_name_or_path"] = _SMOLLM2_ON_HUB if named == SMOLLM2 else named
    settings["revision"] = run.config.model.revision
    (out / "adapter_config.json").unlink()
    write_json(out / "adapter_config.json", settings)
    record |= {"version": RUN_VERSION, "adapter_files": adapter_checksums(out)}
    write_json(out / "run.json", record)
    write_text(out / "recipe.yaml", dump(RunConfig.model_validate(record["config"])))


def _copy(source: Path, target: Path) -> None:
    """Link a file that is never written again, where the disk can do that; else copy it."""
    if source.suffix == ".safetensors":
        try:
            os.link(source.resolve(), target)
        except OSError:
            pass
        else:
            return
    shutil.copyfile(source, target)


def _copy_report(run: RunFolder, out: Path) -> None:
    """Copy the report, which holds no text of a question."""
    report: dict[str, Any] = scrub(read_sealed(run.path / "report.json"))
    report["base_model"] = read_json(out / "run.json")["base_model"]["name"]
    write_json(out / "report.json", seal(report))


def _base_licence(run: RunFolder) -> str | None:
    if run.record["base_model"]["name"] == SMOLLM2:
        return LICENCE
    return base_licence_of(find_base(run.config.model).path)


def _questions(run: RunFolder) -> list[str]:
    """Gather the questions trained on or held back, to be sure that none is published."""
    try:
        data = corpus_of(run.config.data, run.config.train.seed)
        refuse_other_questions(run, data)
        if data.record["splits"]["train"] != run.record["data"]["splits"]["train"]:
            raise PublishError("the data are not those it was trained on", "put them back as they were")
        return [example.question for example in (*data.train, *data.calibration, *data.selection)]
    except MedQAError as exc:
        log.warning("Not looked for: questions that were trained on, since %s", exc.message)
        return []
