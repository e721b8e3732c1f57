"""A calibration that was damaged on disk is refused, never believed."""

import copy
import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medqa.errors import CalibrationError
from medqa.trust.calibration import Calibration, Judgement, LogLikelihoods
from medqa.trust.calibrators import CALIBRATORS
from medqa.trust.fitting import fit_calibration


def made(name):
    """A calibration with this method, as read from disk; one subject has quantiles of its own."""
    rng = np.random.default_rng(0)
    found = LogLikelihoods(
        rng.normal(0, 2, (200, 4)), rng.integers(0, 4, 200), ("Surgery",) * 150 + (None,) * 50
    )
    fitted = fit_calibration(found)
    chosen = dataclasses.replace(fitted, calibrator=CALIBRATORS[name].fit(found.values, found.answers))
    return json.loads(json.dumps(chosen.to_json()))


def leaves(value, path=()):
    """Every place in nested lists and dicts."""
    yield path
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(part, (*path, key))


WHOLE = {name: made(name) for name in sorted(CALIBRATORS)}
JUNK = st.sampled_from(
    [None, "x", "", [], {}, [1], {"a": 1}, math.nan, math.inf, -math.inf, -1, 10**400, True]
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(CALIBRATORS)), st.data(), st.booleans(), JUNK)
def test_whatever_is_damaged_either_raises_or_still_judges(name, data, delete, junk):
    values = copy.deepcopy(WHOLE[name])
    *way, last = data.draw(st.sampled_from([path for path in leaves(values) if path]))
    place = values
    for key in way:
        place = place[key]
    if delete:
        del place[last]
    else:
        place[last] = junk
    try:
        found = Calibration.from_json(values)
        judged = found.judge([-0.1, -2.0], max_risk=0.3)
    except CalibrationError:
        return
    assert isinstance(judged, Judgement)
    assert math.fsum(judged.probabilities) == pytest.approx(1)
    assert all(0 <= p <= 1 for p in judged.probabilities)


DAMAGES = {
    "no method": lambda v: v.pop("method"),
    "unknown method": lambda v: v.update(method="magic"),
    "another method": lambda v: v.update(method="vector"),
    "a method that is a list": lambda v: v.update(method=[]),
    "no parameters": lambda v: v.pop("parameters"),
    "parameters of text": lambda v: v["parameters"].update(temperature="hot"),
    "a temperature of zero": lambda v: v["parameters"].update(temperature=0),
    "no number": lambda v: v["parameters"].update(temperature=math.nan),
    "a number without end": lambda v: v["parameters"].update(temperature=10**400),
    "no quantiles": lambda v: v.pop("quantiles"),
    "quantiles of one method": lambda v: v["quantiles"].pop("aps"),
    "a quantile that is no number": lambda v: v["quantiles"]["lac"].update({"0.1": math.nan}),
    "a quantile below all": lambda v: v["quantiles"]["lac"].update({"0.1": -math.inf}),
    "subjects in a list": lambda v: v.update(subject_quantiles=[1]),
    "no quantile for an alpha": lambda v: v["quantiles"]["lac"].pop("0.05"),
    "no counts of options": lambda v: v.pop("option_counts"),
    "counts of options that are no numbers": lambda v: v.update(option_counts={"four": 9}),
    "no quantiles by number of options": lambda v: v.pop("count_quantiles"),
    "a quantile of text by number of options": lambda v: v.update(
        count_quantiles={"4": {"lac": {"0.1": "x"}}}
    ),
    "no risk": lambda v: v.pop("risk"),
    "too few counts": lambda v: v["risk"].update(num_answered=[5], num_wrong=[1]),
    "counts of two lengths": lambda v: v["risk"]["num_wrong"].pop(),
    "more wrong than answered": lambda v: v["risk"]["num_wrong"].__setitem__(0, 10**6),
    "endless counts": lambda v: v["risk"].update(num_questions=math.inf),
    "no account": lambda v: v.update(account=3),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_values_raise_with_a_way_out(damage):
    values = copy.deepcopy(WHOLE["temperature"])
    damage(values)
    with pytest.raises(CalibrationError) as error:
        Calibration.from_json(values)
    assert "medqa calibrate RUN" in error.value.hint


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("vector", {"scales": [1.0, 1.0], "biases": [0.0]}),
        ("vector", {"scales": [], "biases": []}),
        ("vector", {"scales": [1.0, math.nan], "biases": [0.0, 0.0]}),
        ("isotonic", {"inputs": [0.1, 0.5], "outputs": [0.2]}),
        ("isotonic", {"inputs": [0.5, 0.1], "outputs": [0.2, 0.3]}),
        ("isotonic", {"inputs": [0.1, 0.5], "outputs": [0.4, 0.3]}),
        ("isotonic", {"inputs": [0.1, 0.5], "outputs": [-0.4, 0.3]}),
        ("isotonic", {"inputs": [0.1, math.inf], "outputs": [0.2, 0.3]}),
    ],
)
def test_damaged_parameters_raise(name, parameters):
    with pytest.raises(CalibrationError):
        Calibration.from_json({**WHOLE[name], "parameters": parameters})


@pytest.mark.parametrize("values", [None, [], "x", 3, {}])
def test_what_is_no_calibration_at_all_raises(values):
    with pytest.raises(CalibrationError, match="damaged"):
        Calibration.from_json(values)
