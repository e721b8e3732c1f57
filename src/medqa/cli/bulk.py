"""The verb that answers a file of questions."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medqa.cli.options import Json, Run, Settings, Trust
from medqa.errors import ConfigError

if TYPE_CHECKING:
    from medqa.config import ServeConfig
    from medqa.runs import RunFolder
    from medqa.serve.bulk import AnswerMany

__all__ = ["answer"]

# Rows that are answered and kept at once, which is what a kill can cost: with the built-in model on two cores
# some 15 s, and a minute or two with explanations.
ROWS_CPU, ROWS_ACCELERATOR = 64, 4096
EXPLAINED_ROWS_CPU, EXPLAINED_ROWS_ACCELERATOR = 8, 256


def answer(
    run: Run,
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="Questions: JSONL, CSV, parquet or what else `data` reads.")
    ],
    target: Annotated[
        Path, typer.Argument(metavar="OUT", help="File to make: .jsonl, .csv, .tsv or .parquet.")
    ],
    explain: Annotated[
        bool, typer.Option("--explain", help="Write the explanations too, which takes far longer.")
    ] = False,
    settings: Settings = None,
    mapping: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="FIELD=COLUMN", help="Name of one of the file's own columns."),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(metavar="openai:URL", help="Server that holds the model, instead of this process."),
    ] = None,
    trust: Trust = None,
    as_json: Json = False,
) -> None:
    """Answer a file of questions, row by row, into another file.

    Columns: question, options (or option_a, option_b, ...), context, id, or those of MedMCQA, MedQA, MMLU
    and PubMedQA; a key is not looked at. OUT has the file's own columns, then the answer's; one of the
    file's that bears such a name is called input_NAME. A row that can't be answered keeps its place, with
    the reason in `error`.

    What is done is kept in OUT.parts: after a kill, the same command goes on there. Several processes share
    the work and write one OUT.

    \b
    Examples:
      medqa answer runs/medmcqa-1 questions.jsonl answers.jsonl
      medqa answer runs/medmcqa-1 exam.csv answers.parquet --map question=stem --set serve.orders=4
      torchrun --nproc-per-node 2 -m medqa answer runs/medmcqa-1 questions.parquet answers.parquet
    """
    from medqa.cli.output import print_json
    from medqa.evaluate.protocol import Address
    from medqa.hardware.environment import prepare_environment
    from medqa.recipe import changed_config
    from medqa.runs import RunFolder

    folder = RunFolder.open(run)
    serve = changed_config(folder.config, settings or [], ("serve",)).serve
    columns = _mapping(mapping or [])
    rank, world_size, launch = _processes()
    if engine is None:
        prepare_environment(folder.config.model.device)
    else:
        Address.parse(engine)  # refuses a password, before anything is written down
    from medqa.serve.bulk import answer_file

    found = answer_file(
        source,
        target,
        lambda: _load(run, engine, trust, serve, explain=explain),
        chunk_rows=lambda: _chunk_rows(folder, engine, serve.orders, explain=explain),
        settings=_what_decides(folder, engine, serve, explain=explain),
        mapping=columns,
        rank=rank,
        world_size=world_size,
        launch=launch,
    )
    if not found["finished"]:
        return  # another process of this launch says what was done
    if as_json:
        print_json(found)
    else:
        _print_summary(found)


def _load(
    run: Path, engine: str | None, trust: str | None, serve: "ServeConfig", *, explain: bool
) -> "AnswerMany":
    from medqa.serve.answerer import Answerer

    answerer = Answerer.load(run, trust, engine=engine, fast=True)
    return lambda examples: answerer.answer_many(examples, explain=explain, settings=serve)


def _chunk_rows(folder: "RunFolder", engine: str | None, orders: int, *, explain: bool) -> int:
    """Choose how many rows are kept at once: enough to fill the device, few enough to lose little."""
    if engine is None:
        from medqa.hardware.device import choose_device

        on_cpu = choose_device(folder.config.model).is_cpu
    else:
        on_cpu = False
    if explain:
        rows = EXPLAINED_ROWS_CPU if on_cpu else EXPLAINED_ROWS_ACCELERATOR
    else:
        rows = ROWS_CPU if on_cpu else ROWS_ACCELERATOR
    return max(rows // orders, EXPLAINED_ROWS_CPU)


def _what_decides(
    folder: "RunFolder", engine: str | None, serve: "ServeConfig", *, explain: bool
) -> dict[str, Any]:
    """Return all that decides the answers, so that a job never mixes two kinds."""
    from medqa.files import file_sha256

    calibration = folder.adapter / "calibration.json"
    return {
        "adapter": folder.record["adapter_sha256"],
        "base_model": folder.record["base_model"]["fingerprint"],
        "calibration": file_sha256(calibration) if calibration.is_file() else None,
        "engine": engine,
        "explain": explain,
        "serve": serve.model_dump(mode="json"),
    }


def _mapping(items: Sequence[str]) -> dict[str, str]:
    mapping: dict[str, str] = {}
    for item in items:
        field, equals, column = item.partition("=")
        if not equals or not field.strip() or not column:
            raise ConfigError(
                f"--map {item!r} is not of the form FIELD=COLUMN", "such as --map question=stem"
            )
        mapping[field.strip()] = column
    return mapping


def _processes() -> tuple[int, int, str]:
    """Say which of how many processes this is, as torchrun has it, and the name of a launch of several."""
    values = {name: os.environ.get(name, default) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"))}
    try:
        rank, world_size = (int(value) for value in values.values())
    except ValueError as exc:
        raise ConfigError(
            f"RANK and WORLD_SIZE are {values}, expected numbers", "torchrun sets them"
        ) from exc
    if not 0 <= rank < world_size:
        raise ConfigError(
            f"RANK={rank} with WORLD_SIZE={world_size}", "ranks count from 0; torchrun sets them"
        )
    if world_size == 1:
        return 0, 1, ""
    # One starter's processes have one parent; on several machines they share the meeting point.
    names = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")
    meeting = " ".join(os.environ[name] for name in names if os.environ.get(name))
    return rank, world_size, f"{world_size} processes started together ({meeting or os.getppid()})"


def _print_summary(found: Mapping[str, Any]) -> None:
    num_errors = found["rows"] - found["answered"]
    sure = f", {found['abstained']:,} of them not sure enough" if found["abstained"] else ""
    print(f"Answered  {found['answered']:,} of {found['rows']:,} rows{sure}")
    if num_errors:
        print(f"Errors    {num_errors:,} row{'s' * (num_errors > 1)}, kept with the reason in `error`:")
        place = "row" if Path(found["source"]).suffix.lower() == ".parquet" else "line"
        for error in sorted(found["errors"], key=lambda one: -one["count"]):
            places = ", ".join(map(str, error["lines"])) + ", ..." * (error["count"] > len(error["lines"]))
            print(f"          {error['count']:,} x {error['reason']} ({place} {places})")
    for name, new in found["renamed_columns"].items():
        print(f"Column    the file's own {name!r} is called {new!r}")
    if found["rows_per_second"]:
        print(f"Rate      {found['rows_per_second']:,} rows/s")
    print(f"Answers   {found['target']}")
