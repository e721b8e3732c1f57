r"""The one rendering of a question, for training, scoring and asking.

A rendered question is four pieces of token ids, always tokenised apart and joined, so that what
the model is scored on is, token for token, what it was trained on:

    prefix       the model's own chat template around the question, then "Answer:"
    letter       " B"
    option text  ". Metformin\n\n"
    explanation  the reason, then the token that ends the model's turn

Scoring compares the letters after the prefix. Asking fixes the letter first and generates the
explanation after the option text. lm-eval's own prompt is here too, for scores that compare.

Torch-free: a tokenizer is anything with `apply_chat_template`, `__call__` and `decode`.
"""

import functools
import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any

from medqa.errors import ModelError
from medqa.records import LETTERS, Example

__all__ = [
    "SYSTEM",
    "PromptRenderer",
    "lm_eval_prompt",
    "question_text",
]

SYSTEM = "Medical exam. Give the best option, then the reason."

_SENTINEL = "explanation-goes-here"


def question_text(example: Example) -> str:
    """Lay out context, question and lettered options as the user's message."""
    lines = [f"Context: {example.context.strip()}"] if example.context else []
    lines.append(example.question.strip())
    lines += [f"{letter}. {option.strip()}" for letter, option in zip(LETTERS, example.options, strict=False)]
    return "\n".join(lines)


def lm_eval_prompt(example: Example) -> tuple[str, list[str]]:
    """Render a question exactly as lm-eval's `medmcqa` task does.

    Returns:
        The context, and one continuation for each option.

    Source:
        EleutherAI/lm-evaluation-harness, lm_eval/tasks/medmcqa: text untouched, no chat template,
        target delimiter " ". Questions with another number of options follow the same pattern.
    """
    letters = LETTERS[: len(example.options)]
    options = "".join(f"{a}. {b}\n" for a, b in zip(letters, example.options, strict=True))
    context = f"Context: {example.context}\n" if example.context else ""
    prompt = f"{context}Question: {example.question}\nChoices:\n{options}Answer:"
    return prompt, [f" {letter}" for letter in letters]


class PromptRenderer:
    """Render questions for one tokenizer, as found out from it or as a run recorded it.

    Attributes:
        tokenizer: The tokenizer of the base model.
        style: "chat" (system and user turn), "chat, no system turn" for templates that refuse one,
            or "plain" for tokenizers without a chat template.
        stop_ids: Token ids that end the model's turn, as the template writes them.
    """

    def __init__(self, tokenizer: Any, frozen: dict[str, Any] | None = None) -> None:
        self.tokenizer = tokenizer
        control = sorted(
            {str(t) for t in tokenizer.added_tokens_decoder.values()} | set(tokenizer.all_special_tokens)
        )
        self._control = re.compile("|".join(re.escape(t) for t in control if len(t.strip()) > 1) or r"(?!)")
        if frozen is not None:
            self._thaw(frozen)
            return
        self.style = self._find_style()
        self.stop_ids = self._find_stop_ids()
        # The template is the same around every question: run it once, not once per row.
        self._before, self._after = self._surround()

    def record(self) -> dict[str, Any]:
        """Return the prompt as it is now, for run.json: templates may hold today's date."""
        return {
            "style": self.style,
            "before": self._before,
            "after": self._after,
            "stop_ids": self.stop_ids,
        }

    @property
    def sha256(self) -> str:
        """Checksum of the prompt around a question."""
        return hashlib.sha256(json.dumps(self.record(), sort_keys=True).encode()).hexdigest()

    def _thaw(self, frozen: dict[str, Any]) -> None:
        try:
            self.style, self._before = str(frozen["style"]), str(frozen["before"])
            self._after, self.stop_ids = str(frozen["after"]), [int(i) for i in frozen["stop_ids"]]
        except (KeyError, TypeError, ValueError) as exc:
            raise ModelError(f"the run's record of its prompt is damaged: {exc!r}", "train again") from exc

    def _messages(self, user: str) -> list[dict[str, str]]:
        if self.style == "chat, no system turn":
            return [{"role": "user", "content": f"{SYSTEM}\n\n{user}"}]
        return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": user}]

    def _template(self, messages: list[dict[str, str]], *, prompt: bool) -> str:
        # Templates without a thinking switch ignore the argument.
        return str(
            self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=prompt, enable_thinking=False
            )
        )

    def _find_style(self) -> str:
        if not self.tokenizer.chat_template:
            return "plain"
        self.style = "chat"
        try:
            text = self._template(self._messages(_SENTINEL), prompt=True)
        except Exception as exc:
            if "system" not in str(exc).lower():
                raise ModelError(
                    f"the tokenizer's chat template fails: {exc}",
                    "use a tokenizer with a working chat template",
                ) from exc
            return "chat, no system turn"
        return "chat" if SYSTEM in text else "chat, no system turn"

    def _find_stop_ids(self) -> list[int]:
        eos = self.tokenizer.eos_token_id
        if self.style != "plain":
            turn = [*self._messages("question"), {"role": "assistant", "content": _SENTINEL}]
            after = self._template(turn, prompt=False).partition(_SENTINEL)[2]
            ids = self._encode(after.strip())
            if ids and ids[0] in self.tokenizer.all_special_ids:
                return [ids[0]]
        if eos is None:
            raise ModelError(
                "the tokenizer has no token that ends a turn",
                "use an instruct model, or a tokenizer with an eos_token",
            )
        return [int(eos)]

    def _surround(self) -> tuple[str, str]:
        if self.style == "plain":
            return f"{SYSTEM}\n\n", "\n\nAnswer:"
        text = self._template(self._messages(_SENTINEL), prompt=True)
        before, _, after = text.partition(_SENTINEL)
        return before, after + "Answer:"

    def next_turn(self) -> str:
        """Return what stands between an answer and the next question of a conversation."""
        if self.style != "plain":
            turns = [*self._messages("question"), {"role": "assistant", "content": _SENTINEL}]
            turns.append({"role": "user", "content": "next-question"})
            between = self._template(turns, prompt=False).partition(_SENTINEL)[2]
            return between.partition("next-question")[0]
        return str(self.tokenizer.decode(self.stop_ids)) + "\n\n"

    def _encode(self, text: str) -> list[int]:
        return self.encode_all([text])[0]

    def encode_all(self, texts: list[str]) -> list[list[int]]:
        """Tokenise many texts at once, adding nothing to them."""
        return list(self.tokenizer(texts, add_special_tokens=False)["input_ids"]) if texts else []

    def escape(self, text: str) -> str:
        """Break up control tokens such as <|im_end|>, so that a text can't leave its place."""
        return self._control.sub(lambda m: m[0][0] + " " + m[0][1:], text)

    def prefix_text(self, example: Example) -> str:
        """Render everything up to and including "Answer:"."""
        return self._before + self.escape(question_text(example)) + self._after

    def prefix_ids(self, example: Example) -> list[int]:
        """Tokenise everything up to and including "Answer:"."""
        return self._encode(self.prefix_text(example))

    @functools.cached_property
    def _letter_ids(self) -> list[list[int]]:
        return [self._encode(f" {letter}") for letter in LETTERS]

    def letter_ids(self, num_options: int) -> list[list[int]]:
        """Tokenise each option's letter as it follows the prefix; usually one token each."""
        return self._letter_ids[:num_options]

    def option_text(self, option: str) -> str:
        """Write what follows the letter, up to where the explanation begins."""
        return self.escape(f". {option.strip()}\n\n")

    def answer_ids(self, example: Example, choice: int) -> list[int]:
        """Tokenise everything before the explanation: prefix, letter and option text."""
        option = self._encode(self.option_text(example.options[choice]))
        return self.prefix_ids(example) + self._letter_ids[choice] + option

    def lm_eval_ids(self, examples: Sequence[Example]) -> list[tuple[list[int], list[list[int]]]]:
        """Tokenise lm-eval's prompts and their continuations as lm-eval does.

        Source:
            lm-eval `TemplateLM._encode_pair`: context and continuation are tokenised together and
            cut at the length of the context's own tokens; no special tokens are added.
        """
        prompts = [lm_eval_prompt(example) for example in examples]
        contexts = self.encode_all([context for context, _ in prompts])
        wholes = iter(self.encode_all([context + text for context, texts in prompts for text in texts]))
        return [
            (ids, [next(wholes)[len(ids) :] for _ in texts])
            for ids, (_, texts) in zip(contexts, prompts, strict=True)
        ]
