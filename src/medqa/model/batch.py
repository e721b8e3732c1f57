"""Questions as token ids, rows as batches, and the loss on the labelled positions.

Shape legend: B rows, T tokens of the longest row, N labelled positions of the batch, D width of
the hidden state, V vocabulary, C positions of one chunk.
"""

import array
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.utils.checkpoint
from torch.nn.functional import cross_entropy

from medqa.prompts import PromptRenderer
from medqa.records import Example

__all__ = [
    "AnswerLoss",
    "Batch",
    "TokenisedRow",
    "collate",
    "head_logits",
    "pad",
    "tokenise_rows",
]

CHUNK_POSITIONS = 2048
# Lists of a whole corpus's tokens would take ten times the memory of its rows.
TOKENISED_AT_ONCE = 2000


@dataclasses.dataclass(frozen=True, slots=True)
class TokenisedRow:
    """A training row: prefix, letter, the rest.

    Attributes:
        ids: All token ids, four bytes each: a corpus has millions.
        num_prefix: Tokens before the letter; they carry no loss.
        num_letter: Tokens of the letter, usually one.
        num_option: Tokens of the option's text.
        number: Which of the examples it was made of.
    """

    ids: "array.array[int]"
    num_prefix: int
    num_letter: int
    num_option: int
    number: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def has_explanation(self) -> bool:
        """Whether anything follows the option's text."""
        return len(self.ids) > self.num_prefix + self.num_letter + self.num_option

    def label_weights(self, answer_weight: float) -> list[float]:
        """Share of each label in the row's loss; they add up to 1.

        The letter's tokens share `answer_weight`, the other tokens the rest: under a plain mean, a
        hundred tokens of explanation would drown the one that decides.
        """
        num_rest = len(self) - self.num_prefix - self.num_letter
        share = answer_weight if num_rest else 1.0
        return [share / self.num_letter] * self.num_letter + [(1 - share) / max(1, num_rest)] * num_rest

    def without_explanation(self) -> "TokenisedRow":
        """End after the option's text, with no stop token: nothing says that a turn ends there."""
        end = self.num_prefix + self.num_letter + self.num_option
        return dataclasses.replace(self, ids=self.ids[:end])


def tokenise_rows(
    renderer: PromptRenderer,
    examples: Sequence[Example],
    *,
    max_length_tokens: int,
) -> tuple[list[TokenisedRow], dict[str, int]]:
    """Render training rows.

    A row without an explanation ends after the option text, with no stop token, so that the model
    never learns to stop there. Explanations past the limit are cut, also without a stop token.

    Returns:
        The rows, in the order of the examples, and how many prompts were left out and explanations
        cut for their length.
    """
    rows: list[TokenisedRow] = []
    counts = {"num_too_long": 0, "num_explanations_cut": 0}
    for start in range(0, len(examples), TOKENISED_AT_ONCE):
        parts = _pieces(renderer, examples[start : start + TOKENISED_AT_ONCE])
        for number, (prefix, letter, option, reason) in enumerate(parts, start):
            ids = [*prefix, *letter, *option]
            if len(ids) > max_length_tokens:
                counts["num_too_long"] += 1
                continue
            if reason:
                ids += [*reason, renderer.stop_ids[0]]
            if len(ids) > max_length_tokens:
                counts["num_explanations_cut"] += 1
                ids = ids[:max_length_tokens]
            widths = len(prefix), len(letter), len(option)
            rows.append(TokenisedRow(array.array("i", ids), *widths, number))
    return rows, counts


def _pieces(renderer: PromptRenderer, examples: Sequence[Example]) -> Iterator[tuple[list[int], ...]]:
    """Tokenise the pieces of some rows: prefix, letter, option text, explanation."""
    answers = [example.answer or 0 for example in examples]
    return zip(
        renderer.encode_all([renderer.prefix_text(e) for e in examples]),
        [renderer.letter_ids(len(e.options))[key] for e, key in zip(examples, answers, strict=True)],
        renderer.encode_all(
            [renderer.option_text(e.options[key]) for e, key in zip(examples, answers, strict=True)]
        ),
        renderer.encode_all([renderer.escape((e.explanation or "").strip()) for e in examples]),
        strict=True,
    )


@dataclasses.dataclass(frozen=True)
class Batch:
    """Right-padded rows without an attention mask, and where their labels are.

    Causal attention never looks right, so padding after a row can't change it, and the padded
    positions have no label. Without a mask, attention takes its fastest path.

    Shapes:
        input_ids_BT: (B, T).
        position_N: (N,) index into the flattened (B * T) of the token before each label.
        label_N: (N,) token to be predicted there.
        weight_N: (N,) share of the label in its row's loss; each row adds up to 1.
        is_answer_N: (N,) whether the label belongs to the letter.
    """

    input_ids_BT: torch.Tensor
    position_N: torch.Tensor
    label_N: torch.Tensor
    weight_N: torch.Tensor
    is_answer_N: torch.Tensor

    def to(self, device: torch.device) -> "Batch":
        """Copy all tensors to a device."""
        fields = (getattr(self, f.name) for f in dataclasses.fields(self))
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in fields))


def pad(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Pad rows of token ids on the right, with 0.

    Shapes:
        returns: (B, T).
    """
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])


def collate(rows: Sequence[TokenisedRow], answer_weight: float) -> Batch:
    """Pad rows and lay out their labels and loss weights."""
    width = max(len(row) for row in rows)
    position, label, weight, is_answer = [], [], [], []
    for number, row in enumerate(rows):
        weight += row.label_weights(answer_weight)
        for index in range(row.num_prefix, len(row)):
            position.append(number * width + index - 1)
            label.append(row.ids[index])
            is_answer.append(index < row.num_prefix + row.num_letter)
    return Batch(
        pad([row.ids for row in rows]),
        torch.tensor(position),
        torch.tensor(label),
        torch.tensor(weight),
        torch.tensor(is_answer),
    )


class AnswerLoss(torch.nn.Module):
    """A model with its loss: cross-entropy on labelled positions, weighed, summed over rows.

    The head is applied to the labelled positions alone, in chunks: with a vocabulary of 150,000,
    logits are the largest tensor of the step.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids_BT: torch.Tensor,
        position_N: torch.Tensor,
        label_N: torch.Tensor,
        weight_N: torch.Tensor,
        is_answer_N: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the summed loss of the rows, and the summed negative log-likelihood of the letters."""
        causal_lm = self.model.get_base_model()
        hidden_BTD = causal_lm.get_decoder()(input_ids_BT, use_cache=False).last_hidden_state
        hidden_ND = hidden_BTD.flatten(0, 1)[position_N]
        head = causal_lm.get_output_embeddings()
        chunks = []
        for start in range(0, len(label_N), CHUNK_POSITIONS):
            part = slice(start, start + CHUNK_POSITIONS)
            if len(label_N) <= CHUNK_POSITIONS:
                chunks.append(_nll(head, hidden_ND, label_N))
            else:
                chunks.append(
                    torch.utils.checkpoint.checkpoint(
                        _nll, head, hidden_ND[part], label_N[part], use_reentrant=False
                    )
                )
        nll_N = torch.cat(chunks)
        return (nll_N * weight_N).sum(), nll_N.detach()[is_answer_N].sum()


def head_logits(causal_lm: Any, hidden_ND: torch.Tensor) -> torch.Tensor:
    """Apply the head in fp32, whatever the precision around it: at bf16's resolution, letters would tie.

    Shapes:
        hidden_ND: (N, D); returns (N, V).
    """
    head = causal_lm.get_output_embeddings()
    with torch.autocast(hidden_ND.device.type, enabled=False):
        bias = None if head.bias is None else head.bias.float()
        return torch.nn.functional.linear(hidden_ND.float(), head.weight.float(), bias)


def _nll(head: torch.nn.Module, hidden_CD: torch.Tensor, label_C: torch.Tensor) -> torch.Tensor:
    return cross_entropy(head(hidden_CD).float(), label_C, reduction="none")
