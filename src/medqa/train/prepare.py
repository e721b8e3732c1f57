"""Everything that training needs, found and checked before a run folder is made."""

import functools
import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from medqa.config import RunConfig
from medqa.data.prepared import Pending, TrainingData
from medqa.errors import DataError, DeviceError
from medqa.evaluate.in_turn import InTurn
from medqa.hardware.device import Device, choose_device
from medqa.hardware.doctor import compare_views, torch_view
from medqa.hardware.graphs import has_graphs
from medqa.hardware.group import current_group
from medqa.hardware.probe import probe
from medqa.launch import wants_shards
from medqa.model.batch import TokenisedRow, tokenise_rows
from medqa.model.decoder import FAMILIES
from medqa.model.elementwise import Elementwise, compile_elementwise
from medqa.model.load import BaseFiles, find_base, load_model, load_renderer
from medqa.prompts import PromptRenderer
from medqa.records import Example
from medqa.train.read_back import read_back_questions

__all__ = ["Prepared"]

log = logging.getLogger(__name__)

T = TypeVar("T")

# Measured: 131e9 on two cores with AVX2. A server has ten times as much, still too little for days of work.
CPU_OPERATIONS_PER_S = 1e11
MAX_CPU_HOURS = 2.0
# Compiling pays after about a minute of training.
MIN_COMPILED_ROWS, MIN_COMPILED_S = 16_000, 120.0


def _together(*works: Callable[[], Any]) -> list[Any]:
    """Do several things at the same time; what goes wrong first is raised at once, whatever the others do."""
    done: queue.SimpleQueue[tuple[int, Any, BaseException | None]] = queue.SimpleQueue()

    def do(number: int) -> None:
        try:
            done.put((number, works[number](), None))
        except BaseException as exc:  # noqa: BLE001 - raised again in the thread that waits
            done.put((number, None, exc))

    for number in range(len(works)):
        threading.Thread(target=do, args=(number,), daemon=True).start()
    results: dict[int, Any] = {}
    while len(results) < len(works):
        number, result, exc = done.get()
        if exc is not None:
            raise exc
        results[number] = result
    return [results[number] for number in range(len(works))]


class Prepared:
    """Device, questions, base model and training rows.

    Attributes:
        config: All settings.
        device: Where to train.
        data: Questions to train on and held back.
        base: The base model's files.
        renderer: Its prompt.
        examples: The questions whose prompt is not too long.
        rows: Their tokens, with explanation where there is one.
        model: The base model, loaded.
        elementwise: Operations that were compiled meanwhile, if there was time.
        seconds: What each part took.
    """

    def __init__(
        self,
        config: RunConfig,
        questions: Pending | InTurn,
        prompt: dict[str, Any] | None = None,
        end: float | None = None,
    ) -> None:
        """Find everything; questions are prepared while the model loads.

        Args:
            config: All settings.
            questions: The corpus, its preparation begun.
            prompt: The prompt as a run recorded it, to go on with that run.
            end: When everything must be done, on time.monotonic's clock, if there is a limit.

        Raises:
            MedQAError: Of the kind that says what is wrong.
        """
        self.config, self._end = config, end
        self.seconds: dict[str, float] = {}
        clock = time.monotonic()
        self.elementwise: Elementwise | None = None
        try:
            self.device: Device = choose_device(config.model)
            self._warn_of_unused_accelerator()
            self.data: TrainingData
            wait = functools.partial(self._timed, "wait for questions", questions.result)
            load = functools.partial(self._load, prompt, questions)
            if config.model.shard or wants_shards():  # both of these need all processes
                self.data, (self.base, self.renderer, self.model) = wait(), load()
            else:
                self.data, (self.base, self.renderer, self.model) = _together(wait, load)
        finally:
            questions.cancel()
        self.seconds["questions and base model"], clock = time.monotonic() - clock, time.monotonic()
        self.examples, self.rows, self.counts = self._tokenised()
        self.seconds["tokenise"] = time.monotonic() - clock

    def _timed(self, name: str, work: Callable[[], T]) -> T:
        clock = time.monotonic()
        result = work()
        self.seconds[name] = time.monotonic() - clock
        return result

    def _load(
        self, prompt: dict[str, Any] | None, questions: Pending | InTurn
    ) -> tuple[BaseFiles, PromptRenderer, Any]:
        self.device.make_current()
        base = self._timed("find base model", lambda: find_base(self.config.model))
        renderer = load_renderer(base, frozen=prompt)
        shard = self.config.model.shard or wants_shards()
        model = self._timed("load base model", lambda: load_model(base, self.device, shard=shard))
        # Several processes don't know of each other's questions; what pays is compiled later.
        if current_group().size == 1 and not questions.is_done and self._may_be_long(model):
            # Most of it is over before the questions are prepared.
            self.elementwise, reason = self._timed(
                "compile", lambda: compile_elementwise(model.config, self.device)
            )
            log.info("Rotation and activation: %s", reason)
        return base, renderer, model

    def _may_be_long(self, model: Any) -> bool:
        """Tell whether there may be so much to train on that compiling pays; how much is not known yet."""
        most = self.config.data.max_train_rows
        return (
            self.config.train.fast_path
            and (most is None or most >= MIN_COMPILED_ROWS)
            and (self._end is None or self._end - time.monotonic() > MIN_COMPILED_S)
            and has_graphs(self.device)
            and self.device.precision != "fp16"
            and model.config.model_type in FAMILIES
        )

    def _warn_of_unused_accelerator(self) -> None:
        if self.device.is_cpu and self.config.model.device == "auto":
            for finding in compare_views(probe(), torch_view()):
                log.warning(
                    "Training on the CPU: %s. Mend: %s", finding.message, finding.command or "medqa doctor"
                )

    @property
    def limit(self) -> int:
        """Longest row, in tokens."""
        return int(min(self.config.train.max_length_tokens, self.base.max_length_tokens))

    def _tokenised(self) -> tuple[list[Example], list[TokenisedRow], dict[str, int]]:
        limit, train = self.limit, self.config.train
        examples = [
            *self.data.train,
            *read_back_questions(self.data.train, train.read_back_share, train.seed),
        ]
        rows, counts = tokenise_rows(self.renderer, examples, max_length_tokens=limit)
        if not rows:
            raise DataError(
                f"all {len(self.data.train)} prompts are longer than {limit} tokens",
                "--set train.max_length_tokens=... must leave room for a question",
            )
        counts["num_read_back"] = len(examples) - len(self.data.train)
        return [examples[row.number] for row in rows], rows, counts

    def refuse_slow_training(self, num_tokens: int) -> None:
        """Stop before hours on the CPU, unless they are wanted.

        A row's token costs 4 operations a weight: 2 forward, 2 for the gradient that passes through.

        Args:
            num_tokens: Tokens to train on, all epochs together.

        Raises:
            DeviceError: If it is estimated to take hours.
        """
        hours = 4 * self.base.num_parameters * num_tokens / CPU_OPERATIONS_PER_S / 3600
        if self.device.is_cpu and hours > MAX_CPU_HOURS and not self.config.train.allow_slow:
            raise DeviceError(
                f"{self.base.num_parameters / 1e9:.1f} billion weights on {num_tokens:,} tokens take about "
                f"{hours:,.0f} hours on the CPU ({self.device.reason})",
                "`medqa doctor` says how to get an accelerator used; or what fits into a time, with "
                "--minutes 30; or wait: --set train.allow_slow=true",
            )

    def notices(self) -> list[str]:
        """Say what was left out or cut."""
        limit = self.limit
        texts = {
            "num_too_long": "rows left out: their prompt is longer than",
            "num_explanations_cut": "explanations cut (and trained without a stop token) at",
        }
        return [
            f"{count:,} of {len(self.data.train) + self.counts['num_read_back']:,} {text} {limit} tokens"
            for key, text in texts.items()
            if (count := self.counts[key])
        ]

    def record(self, rows: list[TokenisedRow]) -> dict[str, Any]:
        """Return what run.json says of all this.

        Args:
            rows: The rows that are trained on.
        """
        return {
            "data": {**self.data.summary, **self.counts, "num_tokens": sum(map(len, rows))},
            "base_model": self.base.record(),
            "device": self.device.record(),
            "prompt": self.renderer.record(),
        }
