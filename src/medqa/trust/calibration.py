"""The calibration of one model: how sure it may be, which options stay in question, and when not to answer.

`fit_calibration` makes it from questions that the model never saw; `Calibration` is what is kept of it, in
calibration.json beside the adapter, and turns log-likelihoods into a `Judgement`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from medqa.errors import CalibrationError
from medqa.trust.calibrators import (
    CALIBRATORS,
    Calibrator,
    padded,
)
from medqa.trust.conformal import (
    SetMethod,
    prediction_sets,
)
from medqa.trust.selective import RiskCounts, threshold_for_risk

__all__ = ["ALPHAS", "Calibration", "Judgement", "LogLikelihoods"]

ALPHAS = (0.2, 0.1, 0.05)
"""Shares of answer sets that may miss the right option: sets of 80, 90 and 95 %."""

MIN_COUNT_ROWS = 20
"""Questions of some number of options without which nothing is known of such: fewer have no set of 95 %."""

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class LogLikelihoods:
    """What a model made of questions with a key.

    Attributes:
        values: Log-likelihood of each option, minus infinity where a question has fewer: (N, L).
        answers: Places of the right options: (N,).
        subjects: Of each question, None where there is none.
    """

    values: FloatArray
    answers: IntArray
    subjects: tuple[str | None, ...]

    @classmethod
    def of(
        cls,
        values: Sequence[Sequence[float]],
        answers: Sequence[int],
        subjects: Sequence[str | None] | None = None,
    ) -> "LogLikelihoods":
        """Take them from plain lists; questions may differ in their number of options."""
        return cls(
            padded(values), np.array(answers, dtype=np.int64), tuple(subjects or [None] * len(answers))
        )

    def __len__(self) -> int:
        return len(self.answers)


@dataclasses.dataclass(frozen=True, slots=True)
class Judgement:
    """How far to trust one answer.

    Attributes:
        choice: Place of the chosen option.
        confidence: Its probability, in [0, 1].
        probabilities: Of every option; they add up to 1.
        answer_set: Places of the options that stay in question, the likeliest first.
        abstain: Whether the model is not sure enough for the risk that was stated; False if none was.
        reason: Why so, in a sentence; None if no risk was stated.
        caveat: Why even the confidence is in doubt, in a sentence; None if nothing is known against it.
    """

    choice: int
    confidence: float
    probabilities: tuple[float, ...]
    answer_set: tuple[int, ...]
    abstain: bool
    reason: str | None
    caveat: str | None = None


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What was learnt of one model's confidence, for questions asked in one number of option orders.

    Attributes:
        calibrator: From log-likelihoods to probabilities.
        quantiles: For each set method and each of `ALPHAS`, by its text, the score up to which options belong
            to a set; infinite where there were too few questions.
        subject_quantiles: The same for each subject with questions enough.
        option_counts: How many questions of how many options it was fitted on; any number of options is taken
            as known if this is empty.
        count_quantiles: Quantiles for each number of options, where there are several with questions enough.
        risk: What was answered, and wrongly, at each threshold.
        account: How the calibrator was chosen and what it changed, for people to read.
    """

    calibrator: Calibrator
    quantiles: dict[str, dict[str, float]]
    subject_quantiles: dict[str, dict[str, dict[str, float]]]
    risk: RiskCounts
    account: dict[str, Any]
    option_counts: dict[int, int] = dataclasses.field(default_factory=dict)
    count_quantiles: dict[int, dict[str, dict[str, float]]] = dataclasses.field(default_factory=dict)

    def knows(self, num_options: int) -> bool:
        """Say whether there were questions enough with so many options to say anything of such sets."""
        return not self.option_counts or self.option_counts.get(num_options, 0) >= MIN_COUNT_ROWS

    def probabilities(self, log_likelihoods: FloatArray) -> FloatArray:
        """Turn (N, L) log-likelihoods into (N, L) probabilities, above 0 for every option there is."""
        found = self.calibrator.probabilities(log_likelihoods)
        return np.where(np.isneginf(log_likelihoods), 0.0, np.maximum(found, 1e-300))

    def sets(
        self,
        probabilities: FloatArray,
        alpha: float,
        method: SetMethod = "lac",
        subjects: Sequence[str | None] | None = None,
    ) -> npt.NDArray[np.bool_]:
        """Say which options stay in question: all of them where the number of options is not known.

        Args:
            probabilities: After calibration.
            alpha: Share of the sets that may miss the right option: one of `ALPHAS`.
            method: As `conformity_scores` takes it.
            subjects: Of each question, for sets that hold within each subject that had questions enough; the
                others, and all if not given, go by the quantile over all.

        Shapes:
            probabilities, returns: (N, L).

        Raises:
            CalibrationError: If alpha is none of those that were fitted.
        """
        if str(alpha) not in self.quantiles[method]:
            raise CalibrationError(
                f"no answer sets for alpha {alpha!r}", f"fitted are {', '.join(self.quantiles[method])}"
            )
        counts = [int(count) for count in (probabilities > 0).sum(axis=1)]
        limits = np.array([self._quantile(count, method, str(alpha)) for count in counts])
        for row, subject in enumerate(subjects or ()):
            own = self.subject_quantiles.get(subject or "", {}).get(method, {})
            if self.knows(counts[row]):
                limits[row] = own.get(str(alpha), limits[row])
        return prediction_sets(probabilities, limits, method)

    def _quantile(self, num_options: int, method: SetMethod, alpha: str) -> float:
        if not self.knows(num_options):
            return np.inf
        return self.count_quantiles.get(num_options, self.quantiles)[method][alpha]

    def threshold(self, max_risk: float, delta: float = 0.05) -> float | None:
        """Find the confidence from which answers are wrong at most so often; see `threshold_for_risk`.

        Raises:
            CalibrationError: If the risk is not in (0, 1).
        """
        if not 0 < max_risk < 1:
            raise CalibrationError(f"a risk of {max_risk!r}", "0.2 stands for at most 20 % wrong answers")
        return threshold_for_risk(self.risk, max_risk, delta)

    def judge(
        self,
        log_likelihoods: Sequence[float],
        *,
        alpha: float = 0.1,
        max_risk: float | None = None,
        subject: str | None = None,
    ) -> Judgement:
        """Say how far to trust the answer to one question.

        Args:
            log_likelihoods: Of each option.
            alpha: Share of answer sets that may miss the right option.
            max_risk: Share of the given answers that may be wrong; abstains below the confidence that takes.
            subject: Of the question, for a set that holds within it, if it had questions enough.

        Raises:
            CalibrationError: If alpha was not fitted, or the risk is not in (0, 1).
        """
        [row] = self.probabilities(np.array([log_likelihoods], dtype=float))
        [inside] = self.sets(row[None], alpha, subjects=[subject])
        choice = int(row.argmax())
        abstain, reason = self._abstain(float(row[choice]), max_risk)
        caveat = None
        if not self.knows(len(log_likelihoods)):
            seen = " or ".join(str(n) for n in sorted(self.option_counts) if self.knows(n)) or "no number of"
            caveat = f"calibrated on questions of {seen} options, and this one has {len(log_likelihoods)}"
            abstain, reason = max_risk is not None, None if max_risk is None else caveat
        return Judgement(
            choice,
            float(row[choice]),
            tuple(map(float, row)),
            tuple(int(place) for place in np.argsort(-row, kind="stable") if inside[place]),
            abstain,
            reason,
            caveat,
        )

    def _abstain(self, confidence: float, max_risk: float | None) -> tuple[bool, str | None]:
        if max_risk is None:
            return False, None
        threshold = self.threshold(max_risk)
        asked = f"for at most {100 * max_risk:g} % wrong answers"
        if threshold is None:
            return (
                True,
                f"no confidence is enough {asked}, as far as {self.risk.num_questions:,} questions can tell",
            )
        below = confidence < threshold
        return below, f"{confidence:.1%} sure, {threshold:.0%} is needed {asked}"

    def to_json(self) -> dict[str, Any]:
        """Return plain values; an infinite quantile is null."""

        def plain(quantiles: dict[str, dict[str, float]]) -> dict[str, dict[str, float | None]]:
            return {
                method: {alpha: value if np.isfinite(value) else None for alpha, value in values.items()}
                for method, values in quantiles.items()
            }

        return {
            "method": self.calibrator.method,
            "parameters": self.calibrator.to_json(),
            "quantiles": plain(self.quantiles),
            "subject_quantiles": {name: plain(values) for name, values in self.subject_quantiles.items()},
            "risk": dataclasses.asdict(self.risk),
            "option_counts": {str(count): num for count, num in sorted(self.option_counts.items())},
            "count_quantiles": {str(count): plain(values) for count, values in self.count_quantiles.items()},
            "account": self.account,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Calibration":
        """Read it back.

        Raises:
            CalibrationError: If the values are not such.
        """

        def quantiles(found: dict[str, dict[str, float | None]]) -> dict[str, dict[str, float]]:
            return {
                method: {a: np.inf if value is None else finite(value) for a, value in by_alpha.items()}
                for method, by_alpha in found.items()
            }

        def finite(value: float) -> float:
            if isinstance(value, bool) or not np.isfinite(value):
                raise ValueError(f"a quantile of {value!r}")
            return float(value)

        try:
            return cls(
                CALIBRATORS[values["method"]].from_json(values["parameters"]),
                quantiles(
                    {m: {str(a): values["quantiles"][m][str(a)] for a in ALPHAS} for m in ("lac", "aps")}
                ),
                {name: quantiles(found) for name, found in values["subject_quantiles"].items()},
                RiskCounts.from_json(values["risk"]),
                dict(values["account"]),
                {int(count): int(num) for count, num in values["option_counts"].items()},
                {int(count): quantiles(found) for count, found in values["count_quantiles"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as exc:
            raise CalibrationError(
                f"a damaged calibration: {exc!r}", "`medqa calibrate RUN` makes a new one"
            ) from exc
