"""A tokenizer.json as a GGUF holds it: tokens, merges, how text is cut before merging, chat template.

A GGUF names the way text is cut, and llama.cpp knows what the name means. A wrong name still gives tokens,
only other ones, so a way that is not known here is refused.
"""

from pathlib import Path
from typing import Any

from gguf import GGUFWriter, SpecialVocab, TokenType

from medqa.errors import ModelError
from medqa.files import read_json

__all__ = ["OTHER_CONVERTER", "refuse_unwritable_tokenizer", "write_tokenizer"]

OTHER_CONVERTER = "--to merged, then llama.cpp's own convert_hf_to_gguf.py, which knows more kinds of models"

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_BYTES = ("ByteLevel", False)
# Steps before merging, and whether a whole word that is a token is taken at once; then llama.cpp's name.
_KNOWN: dict[tuple[tuple[tuple[Any, ...], ...], bool], str] = {
    ((("ByteLevel", True),), False): "gpt-2",
    ((("Digits", True), ("ByteLevel", True)), False): "smollm",
    ((("Split", _WORDS + r"\p{N}" + _REST, "Isolated", False), _BYTES), False): "qwen2",
    ((("Split", _WORDS + r"\p{N}{1,3}" + _REST, "Isolated", False), _BYTES), True): "llama-bpe",
}


def refuse_unwritable_tokenizer(folder: Path) -> None:
    """Raise ModelError if llama.cpp would tokenise otherwise than the tokenizer of a model's folder."""
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(f"{folder} has no tokenizer.json", OTHER_CONVERTER)
    tokenizer = read_json(folder / "tokenizer.json")
    _tokens(tokenizer)
    _pre_tokenizer(tokenizer)


def write_tokenizer(writer: GGUFWriter, folder: Path, vocab_size: int, stop_token_id: int) -> None:
    """Add the tokenizer of a model's folder to a GGUF.

    Args:
        writer: Of the GGUF.
        folder: Holds tokenizer.json, and the chat template where there is one.
        vocab_size: Rows of the embedding; those without a token are filled up.
        stop_token_id: What the model ends its turn with.

    Raises:
        ModelError: If llama.cpp would tokenise otherwise.
    """
    refuse_unwritable_tokenizer(folder)
    tokenizer = read_json(folder / "tokenizer.json")
    found = _tokens(tokenizer)
    if max(found) >= vocab_size:
        raise ModelError(
            f"the tokenizer has the id {max(found)}, the model's embedding only {vocab_size} rows",
            "give the tokenizer that belongs to the model",
        )
    filled = [found.get(n, (f"[PAD{n}]", TokenType.UNUSED)) for n in range(vocab_size)]
    tokens, types = [text for text, _ in filled], [int(kind) for _, kind in filled]
    if not 0 <= stop_token_id < len(tokens):
        raise ModelError(f"the stop token {stop_token_id} is none of {len(tokens)}", "train again")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_pre_tokenizer(tokenizer))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    special = SpecialVocab(folder, load_merges=True, n_vocab=vocab_size)
    # llama.cpp stops at this one; the base model's may be another, such as the end of a document.
    special.special_token_ids["eos"] = stop_token_id
    # Training added nothing to the template's own text, which holds a first token where one is wanted.
    special.add_special_token.update(bos=False, eos=False)
    special.add_to_gguf(writer, quiet=True)


def _pre_tokenizer(tokenizer: dict[str, Any]) -> str:
    """Find llama.cpp's name for the way that text is cut before merging."""
    steps = tuple(_steps(tokenizer.get("pre_tokenizer")))
    whole_words = bool(tokenizer["model"].get("ignore_merges"))
    name = _KNOWN.get((steps, whole_words))
    normalizer = (tokenizer.get("normalizer") or {"type": "NFC"})["type"]
    if name is None or normalizer != "NFC":
        found = tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer")
        raise ModelError(
            f"the tokenizer cuts text in a way that is not known here: {str(found)[:300]}", OTHER_CONVERTER
        )
    return name


def _steps(part: Any) -> list[tuple[Any, ...]]:
    """Lay a pre-tokenizer out as what matters of each of its steps."""
    if not isinstance(part, dict):
        return [("None",)]
    kind = part.get("type")
    if kind == "Sequence":
        return [step for inner in part["pretokenizers"] for step in _steps(inner)]
    if kind == "ByteLevel" and not part.get("add_prefix_space"):
        return [(kind, bool(part.get("use_regex", True)))]
    if kind == "Digits":
        return [(kind, bool(part.get("individual_digits")))]
    if kind == "Split":
        return [(kind, part["pattern"].get("Regex"), part["behavior"], bool(part.get("invert")))]
    return [(str(kind), "?")]


def _tokens(tokenizer: dict[str, Any]) -> dict[int, tuple[str, TokenType]]:
    """Give every token with its type, by id."""
    model = tokenizer.get("model", {})
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        kind = f"{model.get('type')}{', byte fallback' if model.get('byte_fallback') else ''}"
        raise ModelError(f"the tokenizer is {kind}; only byte-level BPE is written", OTHER_CONVERTER)
    if not model.get("merges"):
        raise ModelError("the tokenizer has no merges, which llama.cpp refuses", OTHER_CONVERTER)
    tokens = {number: (text, TokenType.NORMAL) for text, number in model["vocab"].items()}
    for added in tokenizer.get("added_tokens", []):
        if added.get("lstrip") or added.get("rstrip") or added.get("single_word"):
            raise ModelError(f"the token {added['content']!r} takes blanks around it", OTHER_CONVERTER)
        text = added["content"]
        control = added["special"] or (text.startswith("<|") and text.endswith("|>"))
        tokens[added["id"]] = (text, TokenType.CONTROL if control else TokenType.USER_DEFINED)
    return tokens
