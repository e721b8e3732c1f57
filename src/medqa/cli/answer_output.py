"""How an answer looks on a terminal, while it comes."""

import re
from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape

from medqa.records import LETTERS, Answer

__all__ = ["print_answer"]

BAR_WIDTH = 24

# Text of a model or of a server must not steer the terminal.
_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def print_answer(parts: Iterable[Answer | str], options: Sequence[str]) -> None:
    """Print an answer as it comes: the letter at once, the explanation as it is written, the notice.

    Args:
        parts: What `Answerer.stream` gives.
        options: The options of the question.
    """
    console = Console(emoji=False, highlight=False)
    answer: Answer | None = None
    flow = _Flow(console)
    try:
        for part in parts:
            if isinstance(part, str):
                flow.add(part)
                continue
            if answer is None:
                _print_letter(console, part, options)
            answer = part
    finally:
        # Whatever ended it: no letter stands there without the notice.
        flow.end()
        if answer is not None:
            _print_end(console, answer)


def _print_letter(console: Console, answer: Answer, options: Sequence[str]) -> None:
    """Print the question, a bar for each option, and how far to trust the letter."""
    console.print(_shown(answer.question))
    for letter, option in zip(LETTERS, options, strict=False):
        share = answer.probabilities[letter]
        bar = "\u2588" * round(share * BAR_WIDTH)
        mark = ">" if letter == answer.letter else " "
        console.print(f"{mark} {letter}. {share:6.1%} [cyan]{bar:<{BAR_WIDTH}}[/] {_shown(option)}")
    console.print()
    _print_verdict(console, answer)


def _print_verdict(console: Console, answer: Answer) -> None:
    confidence = f"confidence {answer.confidence:.0%}"
    if answer.calibration is None:
        confidence += ", the model's own: not calibrated"
    best = f"{answer.letter}. {_shown(answer.option)}"
    if answer.abstain:
        console.print(f"[bold yellow]Not sure enough to answer[/]: {_shown(answer.reason or '')}")
        console.print(f"Best guess: {best} ({confidence})")
    else:
        console.print(f"[bold]Answer: {best}[/] ({confidence})")
        if answer.reason:
            console.print(f"Sure enough: {_shown(answer.reason)}")
    if answer.caveat:
        console.print(f"[yellow]Beware: {_shown(answer.caveat)}[/]")
    elif answer.answer_set is not None and answer.alpha is not None:
        console.print(f"Still in question, {1 - answer.alpha:.0%} sure: {' or '.join(answer.answer_set)}")
    if answer.consistency is not None:
        console.print(f"The same answer in {answer.consistency:.0%} of {answer.num_orders} option orders")


def _print_end(console: Console, answer: Answer) -> None:
    """Print what was found of the explanation, and the notice."""
    if answer.explanation == "":
        console.print("\n(the model wrote no explanation)")
    if warning := (answer.explanation_check or {}).get("warning"):
        console.print(f"[yellow]Beware: {_shown(str(warning))}[/]")
    console.print(f"\n[dim]{_shown(answer.notice)}[/]")


def _shown(text: str) -> str:
    return escape(_STEERING.sub("", text))


class _Flow:
    """Text printed word by word as it comes, its lines broken between words."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._space, self._word = "", ""
        self._column: int | None = None  # None: nothing was printed

    def add(self, text: str) -> None:
        """Print the words that `text` completes."""
        for part in re.findall(r"\s+|\S+", _STEERING.sub("", text)):
            if part.isspace():
                self._print_word()
                self._space += part
            else:
                self._word += part
                if cell_len(self._word) >= self._console.width:  # writing without blanks
                    self._print_word()

    def end(self) -> None:
        """Print the last word, and end the line."""
        self._print_word()
        if self._column is not None:
            self._console.out("", highlight=False)
        self._column, self._space = None, ""

    def _print_word(self) -> None:
        if not self._word:
            return
        width = cell_len(self._word)
        if self._column is None:
            space, self._column = "\n", 0  # blanks before the first word are not shown
        elif "\n" in self._space:
            space, self._column = "\n" * self._space.count("\n"), 0
        elif self._column + len(self._space) + width > self._console.width:
            space, self._column = "\n", 0
        else:
            space = self._space
            self._column += len(space)
        self._console.out(space + self._word, highlight=False, end="")
        self._column += width
        self._space = self._word = ""
