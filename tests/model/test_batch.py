"""The loss on labelled positions equals the plain one; padding and grouping change nothing."""

import pytest
import torch

import medqa.model.batch as batch_module
from medqa.config import LoraConfig, ModelConfig
from medqa.hardware.device import choose_device
from medqa.model.batch import AnswerLoss, collate, tokenise_rows
from medqa.model.load import find_base, load_model, load_renderer
from medqa.model.lora import attach_adapter, trainable_parameters
from medqa.testing import make_examples, row_of


@pytest.fixture
def parts(tiny_model):
    config = ModelConfig(name=str(tiny_model), device="cpu")
    base = find_base(config)
    model = attach_adapter(load_model(base, choose_device(config)), LoraConfig(rank=4), seed=0)
    with torch.no_grad():  # B factors start at zero: give the adapter an effect
        for _, p in trainable_parameters(model):
            p.normal_(std=0.1)
    rows, _ = tokenise_rows(load_renderer(base), make_examples(6), max_length_tokens=512)
    return model, rows


def loss_of(model, rows, weight=0.5):
    b = collate(rows, weight)
    return AnswerLoss(model)(b.input_ids_BT, b.position_N, b.label_N, b.weight_N, b.is_answer_N)


def plain_loss(model, row, weight):
    """Full logits of one unpadded row, with an attention mask, and the weights written out."""
    ids = torch.tensor([row.ids])
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, :-1]
    nll = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
    start, end = row.num_prefix - 1, row.num_prefix - 1 + row.num_letter
    rest = nll[end:].mean() * (1 - weight) if len(nll) > end else 0
    return nll[start:end].mean() * (weight if len(nll) > end else 1) + rest, nll[start:end].sum()


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_loss_equals_the_plain_one_row_by_row(parts, weight):
    model, rows = parts
    expected = [plain_loss(model, row, weight) for row in rows]
    loss, answer = loss_of(model, rows, weight)
    torch.testing.assert_close(loss, sum(e[0] for e in expected), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(answer, sum(e[1] for e in expected), rtol=1e-5, atol=1e-5)


def test_chunks_of_the_head_change_neither_loss_nor_gradient(parts, monkeypatch):
    model, rows = parts
    results = []
    for size in (10_000, 7):
        monkeypatch.setattr(batch_module, "CHUNK_POSITIONS", size)
        model.zero_grad()
        loss, _ = loss_of(model, rows)
        loss.backward()
        results.append((loss.detach(), [p.grad.clone() for _, p in trainable_parameters(model)]))
    torch.testing.assert_close(results[0], results[1])


def test_answer_only_rows_put_all_weight_on_the_letter():
    row = row_of([1, 2, 3, 4], num_prefix=3)
    assert collate([row], 0.3).weight_N.tolist() == [1.0]


def test_labels_sit_where_they_are_predicted():
    rows = [row_of([5, 6, 7, 8], 2), row_of([5, 6, 7, 8, 9, 10], 3, 2)]
    b = collate(rows, 0.5)
    assert b.input_ids_BT.tolist() == [[5, 6, 7, 8, 0, 0], [5, 6, 7, 8, 9, 10]]
    assert b.position_N.tolist() == [1, 2, 8, 9, 10]
    assert b.label_N.tolist() == [7, 8, 8, 9, 10]
    assert b.weight_N.tolist() == [0.5, 0.5, 0.25, 0.25, 0.5]
    assert b.is_answer_N.tolist() == [True, False, True, True, False]
