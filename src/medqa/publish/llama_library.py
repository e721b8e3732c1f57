"""llama.cpp's C library, through whichever of two packages brings it: one wheel, or one built on the spot.

Both offer the functions of llama.h under their own names, one through cffi and one through ctypes; what
differs between these two is here. Functions that are used are looked up once, at the start: a library that
lacks one is refused with its version, not met in the middle of a text.
"""

import ctypes
import functools
import importlib.metadata
from collections import deque
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from medqa.errors import DependencyError, ModelError

__all__ = ["Library", "llama_library"]

_HINT = "pip install 'medqa[gguf]'; on an older system pip install llama-cpp-python, which compiles it"
_NEEDED = (
    "llama_backend_init",
    "llama_batch_free",
    "llama_batch_init",
    "llama_context_default_params",
    "llama_decode",
    "llama_free",
    "llama_get_logits_ith",
    "llama_get_memory",
    "llama_init_from_model",
    "llama_log_set",
    "llama_memory_clear",
    "llama_memory_seq_rm",
    "llama_model_default_params",
    "llama_model_desc",
    "llama_model_free",
    "llama_model_get_vocab",
    "llama_model_load_from_file",
    "llama_model_quantize",
    "llama_model_quantize_default_params",
    "llama_tokenize",
    "llama_vocab_n_tokens",
)
# ggml.h, enum ggml_log_level: warnings, errors, and what continues a line.
_WARNING = 3
_NUM_LINES = 12


class _Bridge(Protocol):
    """What cffi and ctypes do in their own ways."""

    package: str
    functions: Any

    def array(self, kind: str, size: int) -> Any:
        """Allocate `size` values of "char" or "int32_t"."""

    def address(self, value: Any) -> Any:
        """Take the address of a structure."""

    def floats(self, pointer: Any, size: int) -> Any:
        """Copy floats into an array of NumPy."""

    def is_null(self, pointer: Any) -> bool:
        """Tell whether a pointer is null."""

    def log_to(self, lines: "deque[str]") -> Any:
        """Send what the library logs to `lines` only; what is returned is to be kept."""


class _Cffi:
    """The wheel llama-cpp-py-sync."""

    package = "llama-cpp-py-sync"

    def __init__(self) -> None:
        from llama_cpp_py_sync import llama

        self.functions: Any = llama.get_lib()
        self._ffi: Any = llama.get_ffi()

    def array(self, kind: str, size: int) -> Any:
        return self._ffi.new(f"{kind}[]", size)

    def address(self, value: Any) -> Any:
        return self._ffi.addressof(value)

    def floats(self, pointer: Any, size: int) -> Any:
        return np.frombuffer(self._ffi.buffer(pointer, 4 * size), np.float32).copy()

    def is_null(self, pointer: Any) -> bool:
        return bool(pointer == self._ffi.NULL)

    def log_to(self, lines: "deque[str]") -> Any:
        def take(level: int, text: Any, user_data: Any) -> None:
            if level >= _WARNING:
                lines.append(self._ffi.string(text).decode("utf-8", "replace"))

        callback = self._ffi.callback("void(enum ggml_log_level, const char *, void *)")(take)
        self.functions.llama_log_set(callback, self._ffi.NULL)
        return callback


class _Ctypes:
    """The package llama-cpp-python."""

    package = "llama-cpp-python"

    def __init__(self) -> None:
        import llama_cpp

        self.functions: Any = llama_cpp

    def array(self, kind: str, size: int) -> Any:
        kinds: dict[str, Any] = {"char": ctypes.c_char, "int32_t": ctypes.c_int32}
        return (kinds[kind] * size)()

    def address(self, value: Any) -> Any:
        return ctypes.byref(value)

    def floats(self, pointer: Any, size: int) -> Any:
        return np.ctypeslib.as_array(pointer, (size,)).copy()

    def is_null(self, pointer: Any) -> bool:
        return not pointer

    def log_to(self, lines: "deque[str]") -> Any:
        def take(level: int, text: bytes, user_data: Any) -> None:
            if level >= _WARNING:
                lines.append(text.decode("utf-8", "replace"))

        callback = self.functions.llama_log_callback(take)
        self.functions.llama_log_set(callback, None)
        return callback


class Library:
    """llama.h, as far as it is used here.

    Attributes:
        functions: Its functions, by their names in llama.h.
        package: Name and version of the package it came with.
    """

    def __init__(self, bridge: _Bridge) -> None:
        """Look up every function, and silence the log."""
        self.functions = bridge.functions
        self.package = f"{bridge.package} {importlib.metadata.version(bridge.package)}"
        missing = [name for name in _NEEDED if not hasattr(self.functions, name)]
        if missing:
            raise DependencyError(f"{self.package} lacks {', '.join(missing)}", f"a newer one: {_HINT}")
        self.array, self.address, self.floats = bridge.array, bridge.address, bridge.floats
        self._is_null = bridge.is_null
        self._lines: deque[str] = deque(maxlen=_NUM_LINES)
        self._callback = bridge.log_to(self._lines)  # the library calls it as long as the process lives
        self.functions.llama_backend_init()

    def refusal(self, what: str, path: Path) -> ModelError:
        """Describe a failure with the last lines that the library logged."""
        said = " ".join("".join(self._lines).split()) or "it does not say why"
        return ModelError(f"llama.cpp can't {what} {path}: {said[-600:]}", "export it again")

    def load(self, path: Path) -> Any:
        """Load a GGUF on the processor; the caller frees it."""
        self._lines.clear()
        params = self.functions.llama_model_default_params()
        params.n_gpu_layers = 0
        model = self.functions.llama_model_load_from_file(str(path).encode(), params)
        if self._is_null(model):
            raise self.refusal("load", path)
        return model

    def open_context(self, model: Any, num_tokens: int, num_threads: int, path: Path) -> Any:
        """Make room for one text, with everything as exact as it goes; the caller frees it."""
        params = self.functions.llama_context_default_params()
        params.n_ctx, params.n_seq_max = num_tokens, 1
        params.n_batch = params.n_ubatch = min(num_tokens, 512)
        if hasattr(params, "n_outputs_max"):  # else it keeps room for the whole vocabulary at each token
            params.n_outputs_max = min(params.n_batch, 32)
        params.n_threads = params.n_threads_batch = num_threads
        params.flash_attn_type = 0  # off
        params.type_k = params.type_v = 0  # f32
        params.offload_kqv = params.op_offload = False
        context = self.functions.llama_init_from_model(model, params)
        if self._is_null(context):
            raise self.refusal("make room for a text in", path)
        return context

    def precision(self, model: Any) -> str:
        """Name the kind of a model's weights as llama.cpp does, such as "Q4_K - Medium"."""
        buffer = self.array("char", 256)
        length = self.functions.llama_model_desc(model, buffer, 256)
        described = b"".join(buffer[i] for i in range(min(length, 255))).decode()
        return " ".join(described.split()[2:])  # after architecture and size, of which it guesses the latter


@functools.cache
def llama_library() -> Library:
    """Load llama.cpp's library, once a process; the wheel's if it runs here.

    Raises:
        DependencyError: If neither package brings one that runs here.
    """
    reasons: list[str] = []
    bridge = _open(_Cffi, reasons) or _open(_Ctypes, reasons)
    if bridge is None:
        raise DependencyError(
            f"running or quantising a GGUF takes llama.cpp, which is not here: {'; '.join(reasons)}", _HINT
        )
    return Library(bridge)


def _open(kind: type[_Cffi] | type[_Ctypes], reasons: list[str]) -> _Bridge | None:
    try:
        return kind()
    except (ImportError, OSError, RuntimeError) as exc:
        # Also where the wheel's library was built for a newer system than this one.
        reasons.append(f"{kind.package}: {str(exc).splitlines()[0]}")
        return None
