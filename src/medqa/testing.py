"""A tiny random model and a byte tokenizer, for tests of this package and of code that uses it.

They are written as ordinary folders, so that everything under test takes the same path as with a
real model. Their answers mean nothing.
"""

import array
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medqa.records import LETTERS, Example

if TYPE_CHECKING:
    from medqa.model.batch import TokenisedRow

__all__ = ["CHAT_TEMPLATE", "make_examples", "make_tiny_model", "make_tokenizer", "row_of", "write_medmcqa"]

CHAT_TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)

MAX_LENGTH_TOKENS = 1024


def make_tokenizer(*, whole_letters: bool = True, chat_template: str | None = CHAT_TEMPLATE) -> Any:
    """Make a tokenizer of bytes.

    Args:
        whole_letters: Give each option's letter, with its blank, a token of its own; else " A" takes
            two tokens.
        chat_template: Jinja template, or None for a tokenizer without one.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {byte: i for i, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = [("\u0120", letter) for letter in LETTERS] if whole_letters else []  # the blank's symbol
    for blank, letter in merges:
        vocabulary[blank + letter] = len(vocabulary)
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken("<|start|>", special=True), AddedToken("<|end|>", special=True)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|end|>", pad_token="<|end|>", chat_template=chat_template
    )


def make_tiny_model(folder: Path, *, seed: int = 0, tokenizer: Any = None) -> Path:
    """Write a random Qwen3 of two blocks, with its tokenizer, to a folder.

    Returns:
        The folder.
    """
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = tokenizer or make_tokenizer()
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=MAX_LENGTH_TOKENS,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
            pad_token_id=tokenizer.eos_token_id,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_examples(count: int) -> list[Example]:
    """Make small arithmetic questions with keys that go round the letters."""
    examples = []
    for number in range(count):
        key = number % 4
        options = [str(number + 100 + shift) for shift in (10, 20, 30, 40)]
        options[key] = str(number + 1)
        examples.append(
            Example(
                question=f"What comes after {number}?",
                options=tuple(options),
                answer=key,
                id=f"q{number}",
                subject=("Counting", "Ordering")[number % 2],
                explanation=f"The number after {number} is {number + 1}, since one is added to it.",
                source="tests",
                licence="apache-2.0",
            )
        )
    return examples


def row_of(ids: list[int], num_prefix: int, num_letter: int = 1, num_option: int = 0) -> "TokenisedRow":
    """Make a training row of token ids."""
    from medqa.model.batch import TokenisedRow

    return TokenisedRow(array.array("i", ids), num_prefix, num_letter, num_option)


def write_medmcqa(file: Path, examples: list[Example]) -> Path:
    """Write examples as JSONL in MedMCQA's columns.

    Returns:
        The file.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8") as out:
        for example in examples:
            row: dict[str, Any] = {
                "id": example.id,
                "question": example.question,
                "cop": example.answer,
                "exp": example.explanation,
                "subject_name": example.subject,
            }
            for letter, option in zip(LETTERS.lower(), example.options, strict=False):
                row[f"op{letter}"] = option
            out.write(json.dumps(row) + "\n")
    return file
