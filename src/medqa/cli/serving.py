"""The verbs that put a run in front of people and programs."""

import os
from pathlib import Path
from typing import Annotated

import typer

from medqa.cli.options import Run, Settings

__all__ = ["serve"]


def serve(
    run: Run,
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than this machine's need a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 7860,
    api_key: Annotated[
        str | None,
        typer.Option(help="Key that must be sent; better in MEDQA_API_KEY, which `ps` doesn't show."),
    ] = None,
    no_api_key: Annotated[
        bool, typer.Option("--no-api-key", help="Let everybody ask who reaches the port.")
    ] = False,
    audit_log: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Record each answer in this file; questions as hashes."),
    ] = None,
    audit_text: Annotated[
        bool, typer.Option("--audit-text", help="Record questions and explanations as text, too.")
    ] = False,
    engine: Annotated[
        str | None,
        typer.Option(metavar="openai:URL", help="Server that holds the model, instead of this process."),
    ] = None,
    settings: Settings = None,
) -> None:
    """Serve a run: a web page, a JSON API and an OpenAI-style endpoint in one process.

    On loopback unless told otherwise; there is no public link and no telemetry. The page is at /, the API's
    description at /docs. Ctrl-C finishes what is going on. A base model's own code is never run here.

    \b
    Examples:
      medqa serve runs/medmcqa-1
      MEDQA_API_KEY=... medqa serve runs/medmcqa-1 --host 0.0.0.0 --audit-log answers.jsonl
      medqa serve runs/medmcqa-1 --engine openai:http://gpu-1:8000/v1
    """
    from medqa.cli.output import set_up_logging
    from medqa.errors import DependencyError
    from medqa.hardware.environment import prepare_environment
    from medqa.recipe import changed_config
    from medqa.runs import RunFolder

    folder = RunFolder.open(run)
    changed = changed_config(folder.config, settings or [], ("serve",)).serve
    if engine is None:
        prepare_environment(folder.config.model.device)
    # Before gradio is imported: it would ask home for news.
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
    try:
        import gradio  # noqa: F401
    except ModuleNotFoundError as exc:
        raise DependencyError(
            f"serving needs the package {exc.name}", 'pip install "medqa[serve]", or make quickstart once'
        ) from exc
    from medqa.serve.access import read_key
    from medqa.serve.answerer import Answerer
    from medqa.serve.run import Access
    from medqa.serve.run import serve as serve_run

    set_up_logging()  # what was imported may have changed it
    access = Access(
        host, port, read_key(api_key), allow_open=no_api_key, audit_log=audit_log, audit_text=audit_text
    )

    def load() -> Answerer:
        answerer = Answerer.load(run, engine=engine, fast=True)
        answerer.defaults = changed
        return answerer

    def started(url: str) -> None:
        print(f"Serving {run}")
        print(f"  page  {url}/")
        print(f"  API   {url}/docs")
        if access.api_key:
            print("  key   asked for; in a browser, any user name and the key as password")
        elif no_api_key:
            print("  key   none: whoever reaches this port may ask")
        print(f"  log   {access.audit_log or 'none: no question is kept'}", flush=True)

    serve_run(load, access, started)
