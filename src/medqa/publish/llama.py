"""A GGUF in this process: llama.cpp quantises it, scores questions with it and writes explanations.

Everything but the weights is computed in fp32, one text at a time, so that what differs from the tuned
model is what became of the weights, and a question's score does not depend on the questions beside it.
"""

import math
import platform
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medqa.errors import ConfigError, EngineError, ModelError
from medqa.evaluate.score import Item
from medqa.files import beside, synced
from medqa.model.generate import Written
from medqa.model.writer import Writing
from medqa.progress import Task
from medqa.prompts import PromptRenderer
from medqa.publish.llama_library import llama_library
from medqa.records import Prediction

__all__ = ["QUANTIZED", "LlamaEngine", "quantize"]

# llama.h, enum llama_ftype.
_FTYPES = {
    "q2_k": 10,
    "q3_k_s": 11,
    "q3_k_m": 12,
    "q3_k_l": 13,
    "q4_0": 2,
    "q4_1": 3,
    "q4_k_s": 14,
    "q4_k_m": 15,
    "q5_0": 8,
    "q5_1": 9,
    "q5_k_s": 16,
    "q5_k_m": 17,
    "q6_k": 18,
    "q8_0": 7,
}

# Kinds that llama.cpp makes of an f32 GGUF.
QUANTIZED = tuple(_FTYPES)

_MIN_ROOM_TOKENS = 1024


def quantize(source: Path, target: Path, kind: str, *, num_threads: int = 0) -> None:
    """Quantise a GGUF; the result is whole or not there.

    A matrix whose rows are no multiple of 256 values is quantised otherwise than the kind says: llama.cpp
    takes the nearest kind with smaller blocks, of more bits.

    Args:
        source: A GGUF in f32, f16 or bf16.
        target: File to write.
        kind: One of `QUANTIZED`.
        num_threads: Threads to work on it; 0 for all processors.

    Raises:
        ConfigError: If the kind is unknown.
        ModelError: If llama.cpp refuses the file.
        DependencyError: If llama.cpp is not installed.
    """
    if kind not in _FTYPES:
        raise ConfigError(f"the quantisation {kind!r} is unknown", f"one of {', '.join(QUANTIZED)}")
    library = llama_library()
    params = library.functions.llama_model_quantize_default_params()
    params.ftype, params.nthread = _FTYPES[kind], num_threads
    part = beside(target)
    try:
        failed = library.functions.llama_model_quantize(
            str(source).encode(), str(part).encode(), library.address(params)
        )
        if failed:
            raise library.refusal("quantise", source)
        synced(part)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


class LlamaEngine:
    """A GGUF on the processor of this machine.

    Attributes:
        path: The file.
        renderer: The prompt of the run that it was made of.
        max_length_tokens: Longest input that it takes.
        library: Name and version of the package that llama.cpp came with.
    """

    has_base = False
    way = "llama.cpp"

    def __init__(
        self,
        path: Path,
        renderer: PromptRenderer,
        *,
        max_length_tokens: int,
        num_threads: int | None = None,
    ) -> None:
        """Load a file.

        Args:
            path: A GGUF.
            renderer: The prompt of the run that it was made of.
            max_length_tokens: Longest input that it takes.
            num_threads: Threads to compute with; as many as torch uses if not given.

        Raises:
            DependencyError: If llama.cpp is not installed.
            ModelError: If llama.cpp can't load the file.
        """
        self.path, self.renderer, self.max_length_tokens = path, renderer, max_length_tokens
        self._library = llama_library()
        self.library = self._library.package
        self._llama = self._library.functions
        self._num_threads = num_threads or torch.get_num_threads()
        self._lock = threading.RLock()
        self._model: Any = self._library.load(path)
        self._context: Any = None
        self._vocab = self._llama.llama_model_get_vocab(self._model)
        self._num_tokens = self._llama.llama_vocab_n_tokens(self._vocab)
        self._precision = self._library.precision(self._model)
        self._room_tokens, self._held = 0, list[int]()

    def device_record(self) -> dict[str, Any]:
        """Say what it runs on, and in which precision its weights are."""
        return {
            "device": "cpu",
            "name": platform.processor() or platform.machine(),
            "reason": "a GGUF is run on the processor",
            "precision": self._precision,
            "library": self.library,
        }

    def tokenize(self, text: str) -> list[int]:
        """Tokenise as readers of the GGUF do: control tokens count, and what the file says is added."""
        data = text.encode()
        room = len(data) + 8  # a token is a byte at least
        with self._lock:
            self._require_open()
            buffer = self._library.array("int32_t", room)
            count = self._llama.llama_tokenize(self._vocab, data, len(data), buffer, room, True, True)
        if count < 0:
            raise ModelError(f"llama.cpp can't tokenise {text[:80]!r} with {self.path}", "export it again")
        return [int(buffer[i]) for i in range(count)]

    def score(
        self, items: Sequence[Item], *, adapted: bool = True, task: Task | None = None
    ) -> list[Prediction]:
        """Score every question, in the order given; see `score_items`."""
        if not adapted:
            raise EngineError("a merged model has no base model to ask", "compare with the run instead")
        predictions = []
        for item in items:
            length = len(item.prefix) + max(map(len, item.letters))
            fits = length <= self.max_length_tokens
            predictions.append(item.predicted(self._letters(item, length) if fits else None))
            if task:
                task.advance(1)
        return predictions

    def write(
        self, prompts: Sequence[list[int]], max_new_tokens: int, *, task: Task | None = None
    ) -> list[Written]:
        """Write the text that follows each prompt, in the order given; greedy."""
        written = []
        for prompt in prompts:
            *_, whole = self.stream(prompt, max_new_tokens)
            assert isinstance(whole, Written)
            written.append(whole)
            if task:
                task.advance(1)
        return written

    def stream(self, prompt: list[int], max_new_tokens: int) -> Iterator[str | Written]:
        """Write the text that follows one prompt: its pieces as they come, lastly the whole."""
        room = self.max_length_tokens - len(prompt)
        writing = Writing(self.renderer, prompt, max(0, min(max_new_tokens, room)))
        while writing.finished is None:
            writing.add(self._next([*prompt, *writing.ids], len(prompt) + writing.max_new_tokens))
            if piece := writing.piece():
                yield piece
        yield writing.written()

    def close(self) -> None:
        """Free the model, once the pass under way is over; once more does nothing."""
        with self._lock:
            if self._context is not None:
                self._llama.llama_free(self._context)
            if self._model is not None:
                self._llama.llama_model_free(self._model)
            self._context = self._model = None

    def _letters(self, item: Item, length: int) -> tuple[float, ...]:
        """Read the prefix once, and after it the tokens of each letter but the last one."""
        with self._lock:
            self._make_room(length)
            [first] = self._read(item.prefix, 1)
            sums = []
            for letter in item.letters:
                rows = [first]
                if len(letter) > 1:
                    rows += self._read(letter[:-1], len(letter) - 1)
                    self._forget(len(item.prefix))
                sums.append(sum(float(row[token]) for row, token in zip(rows, letter, strict=True)))
        if not all(math.isfinite(value) for value in sums):
            raise ModelError(f"{self.path} gives likelihoods that are not finite", "--quantize f32 or q8_0")
        return tuple(sums)

    def _next(self, tokens: list[int], length: int) -> int:
        """Find the likeliest token after these; what was read before them is not read again."""
        with self._lock:
            if self._held != tokens[:-1] or self._room_tokens < length:
                self._make_room(length)
            [row] = self._read(tokens[len(self._held) :], 1)
            return int(row.argmax())

    def _make_room(self, length: int) -> None:
        """Forget every text, and have room for one of `length` tokens."""
        self._require_open()
        if length > self._room_tokens:
            if self._context is not None:
                self._llama.llama_free(self._context)
                self._context = None
            # In steps, as each costs an allocation; not all at once, as some models take 128k tokens.
            room = max(_MIN_ROOM_TOKENS, 1 << (length - 1).bit_length())
            self._context = self._library.open_context(self._model, room, self._num_threads, self.path)
            self._room_tokens = room
        self._forget(0)

    def _forget(self, num_kept: int) -> None:
        memory = self._llama.llama_get_memory(self._context)
        if num_kept:
            self._llama.llama_memory_seq_rm(memory, 0, num_kept, -1)
        else:
            self._llama.llama_memory_clear(memory, False)
        del self._held[num_kept:]

    def _read(self, tokens: Sequence[int], num_rows: int) -> list[Any]:
        """Read tokens after those that are held; log-probabilities (float64) after each of the last ones."""
        self._require_open()
        rows = []
        first_row = len(tokens) - num_rows
        size = min(len(tokens), 512)
        batch = self._llama.llama_batch_init(size, 0, 1)
        try:
            for start in range(0, len(tokens), size):
                part = tokens[start : start + size]
                for place, token in enumerate(part):
                    batch.token[place], batch.pos[place] = token, len(self._held) + place
                    batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
                    batch.logits[place] = start + place >= first_row
                batch.n_tokens = len(part)
                if self._llama.llama_decode(self._context, batch):
                    raise self._library.refusal("compute with", self.path)
                self._held += part
                rows += [self._row(place) for place in range(len(part)) if start + place >= first_row]
        finally:
            self._llama.llama_batch_free(batch)
        return rows

    def _row(self, place: int) -> Any:
        logits = self._llama.llama_get_logits_ith(self._context, place)
        row = self._library.floats(logits, self._num_tokens).astype(np.float64)
        row -= row.max()
        return row - np.log(np.exp(row).sum())

    def _require_open(self) -> None:
        if self._model is None:
            raise EngineError(f"{self.path} was closed", "load it again")
