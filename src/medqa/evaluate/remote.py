"""A tuned model behind an OpenAI-compatible server, `openai:URL`: vLLM, SGLang, llama.cpp's.

Prompts go as token ids, so that the server sees what the model was trained on, token for token. The letters'
log-probabilities are among those of the likeliest first tokens. Needs the run folder, not the base model.
"""

import contextlib
import itertools
import logging
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from medqa.errors import CalibrationError, EngineError, RefusedByEngineError
from medqa.evaluate.calibrate import load_calibration
from medqa.evaluate.canaries import verify_canaries
from medqa.evaluate.connection import Connection
from medqa.evaluate.letters import NUM_TOP, LetterReader
from medqa.evaluate.protocol import (
    Address,
    ServedModel,
    choose_model,
    read_event,
    read_models,
    read_text,
)
from medqa.evaluate.score import Item
from medqa.evaluate.transport import Stop, Stream
from medqa.model.generate import Written
from medqa.model.load import load_run_renderer
from medqa.progress import Task
from medqa.prompts import PromptRenderer
from medqa.records import LETTERS, Prediction
from medqa.runs import RunFolder
from medqa.trust.store import Canary

__all__ = ["RemoteEngine", "load_remote"]

log = logging.getLogger(__name__)


class RemoteEngine:
    """A server that has the tuned model of a run.

    Attributes:
        run: The run folder.
        renderer: Its prompt.
        address: Where the server is.
        connection: To the server.
        tuned: The tuned model there.
        base: The base model there; None if it isn't served.
        max_length_tokens: Longest input that both the model and the server take.
        verified: What `verify` found; None before.
    """

    way = "server"

    def __init__(
        self, run: RunFolder, renderer: PromptRenderer, address: Address, connection: Connection
    ) -> None:
        """Ask the server for its models.

        Raises:
            EngineError: If it can't be reached, or its models don't do.
        """
        self.run, self.renderer, self.address, self.connection = run, renderer, address, connection
        if any(len(letter) != 1 for letter in renderer.letter_ids(len(LETTERS))):
            raise EngineError(
                "this model's tokenizer takes several tokens for a letter, and a server scores one",
                "leave --engine out: the model on this machine scores them all",
            )
        models = read_models(connection.get("models"))
        self.tuned = choose_model(models, address.tuned, address.url)
        self.base = choose_model(models, address.base, address.url) if address.base else None
        self.max_length_tokens = self._max_length()
        self._letters = LetterReader(connection, renderer.tokenizer)
        self.verified: dict[str, Any] | None = None

    def close(self) -> None:
        """Hang up everything that is under way, from any thread; once more does nothing.

        Whoever waits for the server gets an EngineError at once, and so does whoever asks later: no thread
        is left that would keep this process from ending.
        """
        self.connection.close()

    @property
    def has_base(self) -> bool:
        """Whether the server offers the base model too."""
        return self.base is not None

    def device_record(self) -> dict[str, Any]:
        """Say which server it is, and what was found of its model."""
        return {
            "device": "server",
            "name": f"{self.tuned.name} at {self.address.url}",
            "reason": "--engine",
            "precision": "the server's own",
            "base_model": self.base.name if self.base else None,
            "verified": self.verified,
            "num_retries": self.connection.num_retries,
        }

    def _max_length(self) -> int:
        own = self.run.record["base_model"].get("max_length_tokens")
        told = [own, self.tuned.max_length_tokens, self.base and self.base.max_length_tokens]
        lengths = [length for length in told if length is not None]
        if not lengths:
            raise EngineError(
                f"neither the run nor the server at {self.address.url} says how long an input may be",
                "train the run again with this version of medqa, or take a server that says it",
            )
        return int(min(lengths))

    def _model(self, adapted: bool) -> ServedModel:
        if adapted:
            return self.tuned
        if self.base is None:
            raise EngineError(
                f"the server at {self.address.url} was not named a base model",
                "vLLM offers it beside an adapter: --engine openai:URL#TUNED,BASE",
            )
        return self.base

    def score(
        self, items: Sequence[Item], *, adapted: bool = True, task: Task | None = None
    ) -> list[Prediction]:
        """Score every question, in the order given.

        A question whose prompt is too long for the model or the server is not cut: its status says so.

        Raises:
            EngineError: If the server can't be reached, or answers with something else.
            RefusedByEngineError: If it doesn't give the letters' log-probabilities for one or more of the
                questions. The others were asked all the same, and may be asked again without these.
        """
        model = self._model(adapted)
        if any(len(letter) != 1 for item in items for letter in item.letters):
            raise EngineError(
                "under this prompt a letter takes several tokens, and a server scores one",
                "leave --engine out: the model on this machine scores them all",
            )
        fits = [len(item.prefix) + 1 <= self.max_length_tokens for item in items]
        asked = list(itertools.compress(items, fits))

        def ask(item: Item, stop: Stop) -> tuple[tuple[float, ...], bool]:
            return self._letters.ask(model.name, item, stop)

        found = self.connection.each(ask, asked, task)
        if task:
            task.advance(len(items) - len(asked))
        if wide := sum(more for _, more in found):
            log.info(
                "%d of %d questions: a letter was not among the %d likeliest", wide, len(asked), NUM_TOP[0]
            )
        scored = iter(found)
        return [
            item.predicted(next(scored)[0] if fit else None) for item, fit in zip(items, fits, strict=True)
        ]

    def write(
        self,
        prompts: Sequence[list[int]],
        max_new_tokens: int,
        *,
        adapted: bool = True,
        task: Task | None = None,
    ) -> list[Written]:
        """Write the text that follows each prompt, in the order given; greedy, as on this machine.

        A prompt that leaves no room has an empty text that is not finished.

        Raises:
            EngineError: If the server can't be reached, or breaks off.
            RefusedByEngineError: If it refuses one or more of the prompts; see `score`.
        """
        model = self._model(adapted)

        def ask(place: int, stop: Stop) -> Written:
            try:
                return write(prompts[place], stop)
            except RefusedByEngineError as exc:
                name = f"text {place + 1} of {len(prompts)}"
                raise RefusedByEngineError(f"{name}: {exc.message}", exc.hint) from exc

        def write(prompt: list[int], stop: Stop) -> Written:
            body = self._writing(model, prompt, max_new_tokens)
            if body["max_tokens"] <= 0:
                return Written("", False)
            text, finished = read_text(self.connection.post("completions", body, stop))
            return Written(text.strip(), finished)

        return self.connection.each(ask, range(len(prompts)), task)

    def stream(
        self, prompt: list[int], max_new_tokens: int, *, adapted: bool = True
    ) -> Stream[str | Written]:
        """Write the text that follows a prompt: its pieces as they come, lastly the whole.

        The server is asked when the first piece is. What is returned is an iterator for one thread, which any
        thread may `close` to hang up.

        Raises:
            EngineError: From the iterator: if the server can't be reached, breaks off, or `close` is called
                on this engine.
            RefusedByEngineError: From the iterator: if the server refuses the prompt.
        """
        body = {**self._writing(self._model(adapted), prompt, max_new_tokens), "stream": True}
        stop = Stop()
        return Stream(self._parts(body, stop), stop)

    def _parts(self, body: dict[str, Any], stop: Stop) -> Generator[str | Written, None, None]:
        finished = None if body["max_tokens"] > 0 else False
        pieces: list[str] = []
        if finished is None:
            with contextlib.closing(self.connection.stream("completions", body, stop)) as lines:
                for event in map(read_event, lines):
                    if event is not None:
                        if event[0]:
                            pieces.append(event[0])
                            yield event[0]
                        finished = event[1] if event[1] is not None else finished
        if finished is None:
            raise EngineError(f"{self.address.url} broke off the text", "look at the server's own log")
        yield Written("".join(pieces).strip(), finished)

    def _writing(self, model: ServedModel, prompt: list[int], max_new_tokens: int) -> dict[str, Any]:
        stop = self.renderer.stop_ids
        texts = [str(self.renderer.tokenizer.decode([token], skip_special_tokens=False)) for token in stop]
        return {
            "model": model.name,
            "prompt": prompt,
            "max_tokens": min(max_new_tokens, self.max_length_tokens - len(prompt)),
            "temperature": 0,
            # vLLM takes other values from the model's generation_config.json unless they are given.
            "repetition_penalty": 1.0,
            "stop_token_ids": stop,  # vLLM and SGLang; llama.cpp's server ends at those its file names
            "stop": texts,
        }

    def verify(self, canaries: Sequence[Canary]) -> dict[str, Any]:
        """Ask questions whose answers are known: is it the model of this run? See `verify_canaries`."""
        name = f"{self.tuned.name} at {self.address.url}"
        self.verified = verify_canaries(self, canaries, name, str(self.run.path))
        return self.verified


def load_remote(path: Path, engine: str, **settings: Any) -> RemoteEngine:
    """Connect to a server that has the tuned model of a run, and make sure that it has.

    Args:
        path: Run folder. Neither its base model nor a device is needed here.
        engine: `openai:URL`, `openai:URL#TUNED` or `openai:URL#TUNED,BASE`.
        settings: As `Connection` takes them.

    Raises:
        RunError: If the run is missing or half written.
        EngineError: If the server can't be reached, answers wrongly or has another model.
    """
    run, address = RunFolder.open(path), Address.parse(engine)
    renderer = load_run_renderer(run.adapter, run.record["prompt"])
    with contextlib.ExitStack() as closing:
        connection = Connection(address.url, **settings)
        closing.callback(connection.close)
        remote = RemoteEngine(run, renderer, address, connection)
        canaries, reason = _known_questions(run, renderer)
        if canaries:
            remote.verify(canaries)
        else:
            log.warning(
                "Not verified that %s has the model of %s: %s. `medqa calibrate %s` where that model is",
                *(address.url, path, reason, path),
            )
        closing.pop_all()
    return remote


def _known_questions(run: RunFolder, renderer: PromptRenderer) -> tuple[tuple[Canary, ...], str]:
    """Read them from the run's calibration; or say why there are none."""
    try:
        file = load_calibration(run, renderer)
    except CalibrationError as exc:
        return (), exc.message
    if file is None:
        return (), "the run is not calibrated"
    return file.canaries, "its calibration is older than such questions"
