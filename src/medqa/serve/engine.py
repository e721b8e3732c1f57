"""The Answerer: one loaded model, question in, Answer out. Every surface stands on it."""

from pathlib import Path

import torch

from medqa.errors import DataError
from medqa.evaluate.score import default_batch_tokens, make_items, score_items
from medqa.model.lora import compute_context
from medqa.model.tuned import TunedModel, load_tuned
from medqa.records import LETTERS, Answer, Example

__all__ = ["Answerer"]


class Answerer:
    """Answer questions with a tuned model.

    The letter is the option of highest likelihood, fixed before a word of the explanation is
    written, and the same on every call: nothing is sampled.
    """

    def __init__(self, tuned: TunedModel) -> None:
        self._tuned = tuned

    @classmethod
    def load(cls, path: Path, trust_remote_code: str | None = None) -> "Answerer":
        """Load the model of a finished run.

        Raises:
            RunError: If the run is missing or half written.
            ModelError: If the base model is not the one that the adapter was trained on.
        """
        return cls(load_tuned(path, trust_remote_code))

    def answer(self, example: Example, *, explain: bool = True) -> Answer:
        """Answer one question.

        Args:
            example: The question; its key, if it has one, is not looked at.
            explain: Whether to write the explanation too, which takes far longer than the letter.

        Raises:
            DataError: If an option is given twice, or the question is longer than the model takes.
        """
        tuned = self._tuned
        [item] = make_items(tuned.renderer, [example.require_distinct_options()], "medqa")
        [prediction] = score_items(
            tuned.model,
            [item],
            tuned.device,
            max_length_tokens=tuned.base.max_length_tokens,
            batch_tokens=default_batch_tokens(tuned.device),
        )
        if prediction.status == "too_long":
            raise DataError(
                f"the question takes {len(item.prefix)} tokens, "
                f"the model takes at most {tuned.base.max_length_tokens}",
                "shorten the question or its context",
            )
        choice, probabilities = prediction.choice, prediction.probabilities
        explanation, finished = self._explain(example, choice) if explain else (None, None)
        return Answer(
            question=example.question,
            letter=LETTERS[choice],
            option=example.options[choice],
            confidence=probabilities[choice],
            probabilities=dict(zip(LETTERS, probabilities, strict=False)),
            explanation=explanation,
            explanation_finished=finished,
            model=f"{tuned.base.name} + {tuned.run.path.name}",
        )

    def _explain(self, example: Example, choice: int) -> tuple[str, bool]:
        """Write the explanation that follows the chosen option, and say whether it ended by itself."""
        tuned = self._tuned
        ids = tuned.renderer.answer_ids(example, choice)
        room = tuned.base.max_length_tokens - len(ids)
        limit = min(tuned.run.config.serve.max_explanation_tokens, room)
        if limit < 1:
            return "", False
        inputs = torch.tensor([ids], device=tuned.device.torch_device)
        short = tuned.device.out_of_memory_is("write the explanation")
        with short, torch.inference_mode(), compute_context(tuned.model, tuned.device):
            output = tuned.model.generate(
                input_ids=inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=limit,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                eos_token_id=tuned.renderer.stop_ids,
                pad_token_id=tuned.renderer.stop_ids[0],
            )
        new = output[0, len(ids) :].tolist()
        finished = bool(new) and new[-1] in tuned.renderer.stop_ids
        text = tuned.renderer.tokenizer.decode(new, skip_special_tokens=True)
        return str(text).strip(), finished
