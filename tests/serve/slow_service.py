"""A service that answers slowly and without a model, for tests of the page and pictures of it."""

import asyncio
import json
from pathlib import Path

from medqa.config import ServeConfig
from medqa.errors import BusyError, DataError
from medqa.records import LETTERS, Answer
from medqa.serve.about import NEVER_MEASURED, About, Fact, Figure

EXPLANATIONS = {
    json.loads(line)["question"]: json.loads(line)
    for line in (Path(__file__).parents[2] / "src/medqa/data/starter/validation.jsonl")
    .read_text()
    .splitlines()
}
SHARES = {2: (0.7, 0.3), 3: (0.62, 0.25, 0.13), 4: (0.64, 0.2, 0.12, 0.04)}

ABOUT = About(
    "medmcqa-1",
    "Qwen2.5-Coder-1.5B-Instruct",
    (
        Fact("Made of", "Qwen2.5-Coder-1.5B-Instruct"),
        Fact("Trained on", "64,950 questions: openlifescienceai/medmcqa"),
        Fact("Trained", "23 November 2026, in 4 minutes, on NVIDIA H100 80GB HBM3"),
        Fact("Confidence corrected with", "1,695 questions held back from training"),
        Fact("Measured on", "2,071 other questions: openlifescienceai/medmcqa, validation"),
    ),
    (
        Figure("48.2\u00a0%", "of 2,071 questions answered right", "46.1 to 50.4\u00a0%"),
        Figure("36.9\u00a0%", "right before training", "34.8 to 39.0\u00a0%"),
        Figure(
            "1.4\u00a0points",
            "mean gap between how sure it says it is and how often it is right (ECE)",
            "chance alone gives 2.1\u00a0points",
        ),
        Figure(
            "90.5\u00a0%",
            "of answer sets hold the right option, where 90\u00a0% should; a set has 2.9 options on average",
            "89.1 to 91.7\u00a0%",
        ),
    ),
    (
        "Microbiology: 36.5\u00a0% of 52 right (24.8 to 50.1\u00a0%); chance can explain it",
        "Biochemistry: 39.8\u00a0% of 88 right (30.2 to 50.2\u00a0%); chance can explain it",
    ),
    (
        'The right option becomes "None of the above". 13.3\u00a0% of 458 are right, 43.9\u00a0% before.',
        "The right option is replaced by one of another question: no option is right. It does not become "
        "less sure: 46.0\u00a0% sure, 46.8\u00a0% before.",
        "Textbook questions in Hindi, not English. 25.0\u00a0% of 12 are right, 91.7\u00a0% before.",
    ),
    (NEVER_MEASURED,),
)


class SlowService:
    """Answers as a model might, word after word; what a question says decides what happens.

    Args:
        calibrated: Whether there are answer sets.
        letter_s: Seconds to the letter.
        word_s: Seconds to each word of the explanation.
    """

    def __init__(self, calibrated=True, letter_s=0.3, word_s=0.05):
        self.calibrated, self.letter_s, self.word_s = calibrated, letter_s, word_s
        self.defaults = ServeConfig(orders=4 if calibrated else 1)
        self.running, self.ended, self.asked = 0, 0, []

    async def stream(self, example, *, explain=True, settings=None):
        self.running += 1
        self.asked.append((example, explain, settings))
        try:
            await asyncio.sleep(self.letter_s)
            if "fails" in example.question:
                raise {"busy": BusyError("12 are waiting already", "try again in a moment")}.get(
                    example.question.split()[-1], RuntimeError("a secret inside")
                )
            if len(example.question) > 5000:
                raise DataError("the question takes 2,000 tokens, the model takes at most 512", "shorten it")
            yield self._answer(example, settings or self.defaults, None)
            if explain:
                text = self._text(example)
                for word in text.split(" "):
                    await asyncio.sleep(self.word_s)
                    yield f"{word} "
                yield self._answer(example, settings or self.defaults, text)
        finally:
            self.running -= 1
            self.ended += 1

    def _text(self, example):
        row = EXPLANATIONS.get(example.question)
        return (
            row["exp"]
            if row
            else f"Because <b>{example.options[0]}</b> & <script>alert(1)</script> fit best."
        )

    def _answer(self, example, settings, text):
        row, count = EXPLANATIONS.get(example.question), len(example.options)
        best = row["cop"] if row else 0
        shares = list(SHARES.get(count, (0.5, *[0.5 / (count - 1)] * (count - 1))))
        order = [best, *(place for place in range(count) if place != best)]
        probabilities = {LETTERS[place]: share for place, share in sorted(zip(order, shares, strict=True))}
        unsure = settings.max_risk is not None and settings.max_risk < 0.2
        kept = {0.2: 1, 0.1: 2, 0.05: 3}[settings.alpha]
        inside = tuple(LETTERS[place] for place in order[: min(kept, count)])
        needed = f"{shares[0]:.1%} sure, 88% is needed for at most 10 % wrong answers"
        check = {"points_to": best, "agrees": True, "warning": None}
        if row and row["subject_name"] == "Pharmacology":
            check = {"points_to": 0, "agrees": False, "warning": "The explanation points to A."}
        return Answer(
            example.question,
            LETTERS[best],
            example.options[best],
            shares[0],
            probabilities,
            text,
            None if text is None else True,
            "Qwen2.5-Coder-1.5B-Instruct + medmcqa-1",
            calibration="temperature, 1,695 questions" if self.calibrated else None,
            answer_set=inside if self.calibrated else None,
            alpha=settings.alpha if self.calibrated else None,
            abstain=unsure,
            reason=needed if unsure else None,
            caveat=None if count == 4 else f"calibrated on questions of 4 options, and this one has {count}",
            num_orders=settings.orders,
            consistency=0.75 if settings.orders > 1 else None,
            explanation_check=None if text is None else check,
        )
