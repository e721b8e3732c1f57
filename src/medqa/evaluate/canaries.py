"""Known questions: what a tuned model makes of them tells it from any other.

They are kept in calibration.json, so that a server which is said to have the model can be asked for proof.
"""

import logging
from collections.abc import Sequence
from typing import Any

from medqa.config import SourceConfig
from medqa.data.places import STARTER
from medqa.data.sources import read_split
from medqa.errors import EngineError
from medqa.evaluate.engine import Engine
from medqa.evaluate.score import make_items
from medqa.records import softmax
from medqa.trust.store import Canary

__all__ = ["MAX_DIFFERENCE", "NUM_CANARIES", "compare_canaries", "score_canaries", "verify_canaries"]

log = logging.getLogger(__name__)

NUM_CANARIES = 16

# Largest difference in an option's probability that precision explains. With the built-in model it was up to
# 0.06 in 16 and in 8 bits, 0.19 and more in 4; docs/scale.md has the table.
MAX_DIFFERENCE = 0.1


def score_canaries(engine: Engine) -> tuple[Canary, ...]:
    """Score some of the built-in questions, always the same, with and without the adapter.

    One that is too long for the model is left out.
    """
    examples = read_split(SourceConfig(name=STARTER), "validation").examples
    chosen = examples[:: len(examples) // NUM_CANARIES][:NUM_CANARIES]
    items = make_items(engine.renderer, chosen, "medqa")
    tuned, base = (engine.score(items, adapted=adapted) for adapted in (True, False))
    canaries = tuple(
        Canary(example, with_it.log_likelihoods, without.log_likelihoods)
        for example, with_it, without in zip(chosen, tuned, base, strict=True)
        if with_it.status == "scored"
    )
    if len(canaries) < len(chosen):
        num_long = len(chosen) - len(canaries)
        log.warning("%d of %d known questions are too long for the model", num_long, len(chosen))
    return canaries


def compare_canaries(engine: Engine, canaries: Sequence[Canary]) -> dict[str, Any]:
    """Ask an engine known questions again.

    Returns:
        Of the largest difference in an option's probability, for each question, the maximum and the mean, and
        the mean of that to the base model; the number of questions, and of those with another letter.

    Raises:
        EngineError: If they are all too long for the engine.
    """
    items = make_items(engine.renderer, [canary.example for canary in canaries], "medqa")
    asked = [
        (canary, prediction.log_likelihoods)
        for canary, prediction in zip(canaries, engine.score(items), strict=True)
        if prediction.status == "scored"
    ]
    if not asked:
        raise EngineError(
            f"the server takes at most {engine.max_length_tokens} tokens, too few for any known question",
            "let it take more: vLLM --max-model-len, llama.cpp's server --ctx-size",
        )
    tuned = [_difference(canary.log_likelihoods, found) for canary, found in asked]
    base = [_difference(canary.base_log_likelihoods, found) for canary, found in asked]
    return {
        "num_questions": len(asked),
        "max_difference": max(tuned),
        "mean_difference": sum(tuned) / len(tuned),
        "mean_difference_to_base": sum(base) / len(base),
        "num_other_letters": sum(
            canary.log_likelihoods.index(max(canary.log_likelihoods)) != found.index(max(found))
            for canary, found in asked
        ),
    }


def verify_canaries(engine: Engine, canaries: Sequence[Canary], server: str, run: str) -> dict[str, Any]:
    """Ask an engine known questions again, and refuse it if it has another model.

    Args:
        engine: What is said to have the tuned model.
        canaries: From the run's calibration.
        server: What to call the engine.
        run: What to call the run.

    Returns:
        As `compare_canaries`.

    Raises:
        EngineError: If an option's probability differs by more than `MAX_DIFFERENCE`, or the base model's are
            nearer than the tuned one's.
    """
    found = compare_canaries(engine, canaries)
    told = (
        f"on {found['num_questions']} known questions, probabilities differ by up to "
        f"{found['max_difference']:.3g} (mean {found['mean_difference']:.2g}), "
        f"{found['num_other_letters']} letters differ"
    )
    base = found["mean_difference_to_base"] < found["mean_difference"]
    if base or not found["max_difference"] <= MAX_DIFFERENCE:
        nearer = f"; the base model is nearer (mean {found['mean_difference_to_base']:.2g})" if base else ""
        raise EngineError(
            f"{server} is not the model of {run}: {told}{nearer}",
            "serve this run's adapter on its own base model, in 16 or 8 bits: docs/scale.md",
        )
    log.info("%s is the model of %s: %s", server, run, told)
    return found


def _difference(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Return the largest difference in an option's probability."""
    return max(abs(a - b) for a, b in zip(softmax(one), softmax(other), strict=True))
