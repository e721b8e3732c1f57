"""Where the answer of `medqa ask` comes from: a run's model, loaded here, or a running server."""

from collections.abc import Iterator
from pathlib import Path

from medqa.errors import ConfigError
from medqa.records import Answer, Example

__all__ = ["ask_run", "ask_server"]


def ask_run(
    run: Path, example: Example, settings: list[str], trust: str | None, *, explain: bool
) -> Iterator[Answer | str]:
    """Load the model of a run and ask it; see `Answerer.stream`."""
    from medqa.hardware.environment import prepare_environment
    from medqa.recipe import changed_config
    from medqa.runs import RunFolder

    config = RunFolder.open(run).config
    serve = changed_config(config, settings, ("serve",)).serve
    prepare_environment(config.model.device)
    from medqa.serve.answerer import Answerer

    return Answerer.load(run, trust).stream(example, explain=explain, settings=serve)


def ask_server(
    url: str, example: Example, settings: list[str], trust: str | None, *, explain: bool
) -> Iterator[Answer | str]:
    """Ask a running server; see `ServerClient.stream`.

    Raises:
        ConfigError: If something was set that only who starts the server can set.
    """
    from medqa.serve.access import read_key
    from medqa.serve.client import ServerClient, request_fields

    if trust is not None:
        raise ConfigError(
            "--trust-remote-code has no effect with --serve", "give it to `medqa serve`, or leave it out"
        )
    client = ServerClient(url, read_key(None))
    return client.stream(example, explain=explain, settings=request_fields(settings))
