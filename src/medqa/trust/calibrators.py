"""Ways to turn a model's log-likelihoods into probabilities that come true: temperature, vector, isotonic.

Everything takes the log-likelihoods of N questions as an (N, L) array; a question with fewer options has
minus infinity in the places that it lacks (see `padded`), and gets probability zero there.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import scipy.optimize

from medqa.errors import CalibrationError

__all__ = [
    "CALIBRATORS",
    "Calibrator",
    "Isotonic",
    "Temperature",
    "VectorScaling",
    "cross_fitted",
    "padded",
    "row_losses",
    "softmax_rows",
]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_TEMPERATURES = (0.05, 20.0)
NUM_FOLDS = 10


def padded(rows: Sequence[Sequence[float]], fill: float = -np.inf) -> FloatArray:
    """Put rows of different lengths into one array.

    Shapes:
        Returns (N, L), L the longest row.
    """
    width = max((len(row) for row in rows), default=0)
    filled = [[*row, *[fill] * (width - len(row))] for row in rows]
    return np.array(filled, dtype=float).reshape(len(rows), width)


def softmax_rows(logits: FloatArray) -> FloatArray:
    """Turn each row into probabilities.

    Shapes:
        logits, returns: (N, L).
    """
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def row_losses(probabilities: FloatArray, answers: IntArray) -> FloatArray:
    """Give each question's negative log-likelihood, in nats; probabilities below 1e-12 count as 1e-12.

    Shapes:
        probabilities: (N, L). answers, returns: (N,).
    """
    return np.asarray(-np.log(np.maximum(probabilities[np.arange(len(answers)), answers], 1e-12)))


def _numbers(values: dict[str, Any], *names: str) -> list[tuple[float, ...]]:
    """Read lists of finite numbers, as many in each."""
    found = [tuple(map(float, values[name])) for name in names]
    sizes = {len(row) for row in found}
    if len(sizes) != 1 or 0 in sizes or not np.isfinite(found).all():
        raise CalibrationError(f"damaged parameters: {values!r}", "`medqa calibrate RUN` makes new ones")
    return found


class Calibrator(Protocol):
    """A fitted way from log-likelihoods to probabilities."""

    method: ClassVar[str]

    @classmethod
    def fit(cls, log_likelihoods: FloatArray, answers: IntArray) -> "Calibrator":
        """Fit on questions that the model never saw: (N, L) and (N,)."""
        ...

    def probabilities(self, log_likelihoods: FloatArray) -> FloatArray:
        """Turn (N, L) log-likelihoods into (N, L) probabilities."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Return the parameters as plain values."""
        ...

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Calibrator":
        """Read the parameters back."""
        ...


@dataclasses.dataclass(frozen=True)
class Temperature:
    """One divisor for all log-likelihoods: no answer changes, only how sure it is.

    Attributes:
        temperature: Above 1 the model was too sure, below 1 not sure enough.

    Source:
        Guo, Pleiss, Sun and Weinberger 2017, section 4.2.
    """

    temperature: float
    method: ClassVar[str] = "temperature"

    @property
    def at_bound(self) -> bool:
        """Whether the best temperature lies beyond those that are tried."""
        low, high = _TEMPERATURES
        return not 1.01 * low < self.temperature < 0.99 * high

    @classmethod
    def fit(cls, log_likelihoods: FloatArray, answers: IntArray) -> "Temperature":
        """Take the temperature of least negative log-likelihood."""
        values = log_likelihoods - log_likelihoods.max(axis=1, keepdims=True)
        right = values[np.arange(len(answers)), answers]
        told = np.isfinite(right)  # what has no likelihood has none at any temperature
        values, right = values[told], right[told]

        def loss(log_temperature: float) -> float:
            # Not bounded as `row_losses` is: all temperatures that are far too low would look alike.
            scale = np.exp(-log_temperature)
            return float((np.log(np.exp(values * scale).sum(axis=1)) - right * scale).sum())

        bounds = tuple(np.log(_TEMPERATURES))
        found = scipy.optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
        return cls(float(np.exp(found.x)))

    def probabilities(self, log_likelihoods: FloatArray) -> FloatArray:
        """Turn (N, L) log-likelihoods into (N, L) probabilities."""
        return softmax_rows(log_likelihoods / self.temperature)

    def to_json(self) -> dict[str, Any]:
        """Return the parameters as plain values."""
        return {"temperature": self.temperature}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Temperature":
        """Read the parameters back."""
        temperature = float(values["temperature"])
        if not _TEMPERATURES[0] / 2 < temperature < 2 * _TEMPERATURES[1]:
            raise CalibrationError(
                f"a temperature of {temperature!r}", "`medqa calibrate RUN` makes a new calibration"
            )
        return cls(temperature)


@dataclasses.dataclass(frozen=True)
class VectorScaling:
    """A scale and a bias for each letter: takes away a liking for letters, and may change the answer.

    Attributes:
        scales: What each letter's log-likelihood is multiplied by.
        biases: What is added to it; they add up to 0.

    Source:
        Guo et al. 2017, section 4.2.
    """

    scales: tuple[float, ...]
    biases: tuple[float, ...]
    method: ClassVar[str] = "vector"

    @classmethod
    def fit(cls, log_likelihoods: FloatArray, answers: IntArray) -> "VectorScaling":
        """Minimise the negative log-likelihood by L-BFGS, from the best temperature on."""
        width = log_likelihoods.shape[1]
        absent = np.isneginf(log_likelihoods)
        values = np.where(absent, 0.0, log_likelihoods - log_likelihoods.max(axis=1, keepdims=True))
        rows = np.arange(len(answers))

        def loss(parameters: FloatArray) -> tuple[float, FloatArray]:
            scales, biases = parameters[:width], parameters[width:]
            probabilities = softmax_rows(np.where(absent, -np.inf, scales * values + biases))
            error = probabilities.copy()
            error[rows, answers] -= 1
            gradient = np.concatenate([(error * values).mean(axis=0), error.mean(axis=0)])
            return float(row_losses(probabilities, answers).mean()), gradient

        temperature = Temperature.fit(log_likelihoods, answers).temperature
        start = np.repeat([1 / temperature, 0.0], width)
        found = scipy.optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 500})
        biases = found.x[width:] - found.x[width:].mean()
        return cls(tuple(map(float, found.x[:width])), tuple(map(float, biases)))

    def probabilities(self, log_likelihoods: FloatArray) -> FloatArray:
        """Turn (N, L) log-likelihoods into (N, L) probabilities; letters never seen take the mean scale."""
        width = log_likelihoods.shape[1]
        more = max(0, width - len(self.scales))
        scales = np.array([*self.scales, *[np.mean(self.scales)] * more])
        biases = np.array([*self.biases, *[0.0] * more])
        highest = log_likelihoods.max(axis=1, keepdims=True)
        absent = np.isneginf(log_likelihoods)
        values = np.where(absent, 0.0, log_likelihoods - highest)
        scaled = scales[:width] * values + biases[:width]
        return softmax_rows(np.where(absent, -np.inf, scaled))

    def to_json(self) -> dict[str, Any]:
        """Return the parameters as plain values."""
        return {"scales": list(self.scales), "biases": list(self.biases)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "VectorScaling":
        """Read the parameters back."""
        return cls(*_numbers(values, "scales", "biases"))


@dataclasses.dataclass(frozen=True)
class Isotonic:
    """One rising curve from the model's probabilities to how often options of that probability are right.

    The same curve serves all options, and they are scaled to add up to 1, so that no answer changes.

    Attributes:
        inputs: Probabilities at which the curve is known, rising.
        outputs: Its values there.

    Source:
        Zhang, Kailkhura and Han 2020 (Mix-n-Match), accuracy-preserving isotonic regression; here with
        straight lines between the middles of its steps.
    """

    inputs: tuple[float, ...]
    outputs: tuple[float, ...]
    method: ClassVar[str] = "isotonic"
    # What keeps the curve rising where the regression is flat, so that no two options become equal.
    slope: ClassVar[float] = 1e-3

    @classmethod
    def fit(cls, log_likelihoods: FloatArray, answers: IntArray) -> "Isotonic":
        """Regress whether an option is right on its probability, all options of all questions together."""
        probabilities = softmax_rows(log_likelihoods)
        there = ~np.isneginf(log_likelihoods)
        right = np.zeros_like(probabilities)
        right[np.arange(len(answers)), answers] = 1
        inputs, places = np.unique(probabilities[there], return_inverse=True)
        counts = np.bincount(places)
        shares = np.bincount(places, weights=right[there]) / counts
        fitted = scipy.optimize.isotonic_regression(shares, weights=counts)
        ends = fitted.blocks
        middles = [float(np.average(inputs[a:b], weights=counts[a:b])) for a, b in itertools.pairwise(ends)]
        levels = [float(fitted.x[a]) for a in ends[:-1]]
        return cls(tuple(middles), tuple(levels))

    def probabilities(self, log_likelihoods: FloatArray) -> FloatArray:
        """Turn (N, L) log-likelihoods into (N, L) probabilities."""
        raw = softmax_rows(log_likelihoods)
        curve = np.interp(raw, self.inputs, self.outputs) + self.slope * raw
        return np.asarray(curve * (raw > 0) / (curve * (raw > 0)).sum(axis=1, keepdims=True))

    def to_json(self) -> dict[str, Any]:
        """Return the parameters as plain values."""
        return {"inputs": list(self.inputs), "outputs": list(self.outputs)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Isotonic":
        """Read the parameters back."""
        inputs, outputs = _numbers(values, "inputs", "outputs")
        if (np.diff(inputs) < 0).any() or (np.diff(outputs) < 0).any() or outputs[0] < 0:
            raise CalibrationError("a curve that does not rise", "`medqa calibrate RUN` makes a new one")
        return cls(inputs, outputs)


CALIBRATORS: dict[str, type[Calibrator]] = {
    kind.method: kind for kind in (Temperature, VectorScaling, Isotonic)
}


def cross_fitted(
    kind: type[Calibrator], log_likelihoods: FloatArray, answers: IntArray, num_folds: int = NUM_FOLDS
) -> FloatArray:
    """Give each question the probabilities of a calibrator that was fitted without it.

    What is measured with these owes nothing to having seen the question, and yet uses all of them.

    Args:
        kind: Which calibrator to fit.
        log_likelihoods: Of each option.
        answers: Places of the right options.
        num_folds: Parts, each left out once; every so-many-th question belongs to one.

    Shapes:
        log_likelihoods, returns: (N, L). answers: (N,).
    """
    folds = np.arange(len(answers)) % min(num_folds, len(answers))
    found = np.empty_like(log_likelihoods)
    for fold in range(folds.max() + 1):
        left_out = folds == fold
        fitted = kind.fit(log_likelihoods[~left_out], answers[~left_out])
        found[left_out] = fitted.probabilities(log_likelihoods[left_out])
    return found
