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
from medqa.trust.store import Canary

__all__ = ["NUM_CANARIES", "compare_canaries", "score_canaries"]

log = logging.getLogger(__name__)

NUM_CANARIES = 16


def score_canaries(engine: Engine) -> tuple[Canary, ...]:
    """Score some of the built-in questions, always the same; none that is too long for the model."""
    examples = read_split(SourceConfig(name=STARTER), "validation").examples
    chosen = examples[:: len(examples) // NUM_CANARIES][:NUM_CANARIES]
    found = zip(chosen, engine.score(make_items(engine.renderer, chosen, "medqa")), strict=True)
    canaries = tuple(Canary(e, p.log_likelihoods) for e, p in found if p.status == "scored")
    if len(canaries) < len(chosen):
        log.warning(
            "%d of %d known questions are too long for the model", len(chosen) - len(canaries), len(chosen)
        )
    return canaries


def compare_canaries(engine: Engine, canaries: Sequence[Canary]) -> dict[str, Any]:
    """Ask an engine known questions again.

    Returns:
        How many could be asked, the largest difference in an option's probability and the mean over the
        questions of the largest of each, and the number of questions with another letter.

    Raises:
        EngineError: If they are all too long for the engine.
    """
    items = make_items(engine.renderer, [canary.example for canary in canaries], "medqa")
    asked = [
        (canary, prediction)
        for canary, prediction in zip(canaries, engine.score(items), strict=True)
        if prediction.status == "scored"
    ]
    if not asked:
        raise EngineError(
            f"the server takes at most {engine.max_length_tokens} tokens, too few for any known question",
            "let it take more: vLLM --max-model-len, llama.cpp's server --ctx-size",
        )
    differences = [
        max(abs(a - b) for a, b in zip(canary.probabilities, found.probabilities, strict=True))
        for canary, found in asked
    ]
    return {
        "num_questions": len(asked),
        "max_difference": max(differences),
        "mean_difference": sum(differences) / len(differences),
        "num_other_letters": sum(canary.choice != found.choice for canary, found in asked),
    }
