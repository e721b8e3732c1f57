"""The verb that makes a run's model loadable elsewhere."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from medqa.cli.options import Json, Run, Trust

__all__ = ["export"]


def export(
    run: Run,
    to: Annotated[Literal["adapter", "merged", "gguf"], typer.Option(help="What to make.")],
    quantize: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="Of a GGUF: f32, f16, bf16, q8_0, q4_k_m or others; else q8_0, or f16 if too coarse.",
        ),
    ] = None,
    dtype: Annotated[
        Literal["auto", "bf16", "fp16", "fp32"],
        typer.Option(help="Of a merged model; auto: the base model's, or wider where that changes a letter."),
    ] = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder to make; exports/RUN-KIND if not given.")] = None,
    questions: Annotated[int, typer.Option(min=20, help="Held-back questions to compare by.")] = 200,
    base: Annotated[
        str | None,
        typer.Option(metavar="ORG/NAME", help="The base model on the Hub, if it was a local folder."),
    ] = None,
    trust: Trust = None,
    as_json: Json = False,
) -> None:
    """Export a run as adapter, merged model or GGUF, and show that it is the model that was tuned.

    Every export is asked held-back questions beside the tuned model. One that answers otherwise is not kept:
    merged has to keep every letter, q8_0 99 % of them; what less precise ones keep is reported.

    \b
    Examples:
      medqa export runs/medmcqa-1 --to merged
      medqa export runs/medmcqa-1 --to gguf --quantize q4_k_m
    """
    from medqa.cli.output import print_json, set_up_logging
    from medqa.hardware.environment import prepare_environment
    from medqa.runs import RunFolder

    folder = RunFolder.open(run)
    prepare_environment(folder.config.model.device)
    from medqa.publish.export import export as export_run

    set_up_logging()  # what was imported may have changed it
    path = out or Path("exports") / f"{folder.name.replace('/', '--')}-{(quantize or to).lower()}"
    made = export_run(
        run,
        to,
        path,
        quantization=quantize,
        precision=None if dtype == "auto" else dtype,
        num_questions=questions,
        base=base,
        trust_remote_code=trust,
    )
    if as_json:
        print_json(made.to_json())
        return
    width = max(len(name) for name, _ in made.files)
    print(f"Exported {run} to {made.path}")
    for name, size in made.files:
        print(f"  {name:<{width}}  {size / 2**20:>9,.1f} MiB")
    print(f"Same model?  {made.parity}")
    print(f"             on {made.parity.num_questions:,} questions {made.parity.questions}")
    print(f"Calibration  {_CALIBRATION[made.calibration]}")
    print(f"Next         {_next(made.kind, made.path)}")


_CALIBRATION = {
    "none": "none: confidence is the model's own",
    "valid": "holds for the export too",
    "refitted": "fitted anew to the export: run/calibration.json",
    "drifted": "left out: it does NOT hold for this export; too few questions to fit it anew",
}


def _next(kind: str, path: Path) -> str:
    if kind == "adapter":
        return f"medqa ask {path}"
    if kind.startswith("merged"):
        return f"vllm serve {path}, then medqa serve {path}/run --engine openai:http://localhost:8000/v1"
    return f"ollama create NAME -f {path}/Modelfile, or llama-server -m {path}/model-{kind}.gguf"
