"""lm-eval itself, on the real built-in model: the choices, likelihoods and accuracy of our column of it."""

import pytest
import torch

from lm_eval_runner import scored_by_lm_eval, starter_rows
from medqa.config import LoraConfig, ModelConfig
from medqa.data.build import evaluation_set
from medqa.evaluate.report import summarise
from medqa.evaluate.score import make_items, score_items
from medqa.hardware.device import choose_device
from medqa.model.embedded import SMOLLM2
from medqa.model.load import find_base, load_model, load_renderer
from medqa.model.lora import attach_adapter, trainable_parameters
from medqa.recipe import load_recipe

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of lm-eval and its libraries, about each other
]

# Nats. Both compute in fp32, but in batches of other shapes.
MAX_ERROR = 1e-3


@pytest.fixture(scope="module")
def parts():
    """The built-in model in fp32, with an adapter that has an effect."""
    config = ModelConfig(name=SMOLLM2, device="cpu", dtype="fp32")
    base, device = find_base(config), choose_device(config)
    model = attach_adapter(load_model(base, device), LoraConfig(rank=4), seed=0).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in trainable_parameters(model):
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    return base, model, device


@pytest.mark.parametrize(("adapted", "num_questions"), [(False, 40), (True, 20)], ids=["base", "tuned"])
def test_lm_eval_gives_the_same_choices_likelihoods_and_accuracy(parts, tmp_path, adapted, num_questions):
    base, model, device = parts
    rows = starter_rows(num_questions)
    arguments = {"pretrained": str(base.path)}
    if adapted:
        model.save_pretrained(tmp_path / "adapter")
        arguments["peft"] = str(tmp_path / "adapter")
    samples, accuracy = scored_by_lm_eval(tmp_path, rows, arguments)

    by_id = {example.id: example for example in evaluation_set(load_recipe("quickstart").data, 0).examples}
    items = make_items(load_renderer(base), [by_id[row["id"]] for row in rows], "lm_eval")
    ours = score_items(
        model,
        items,
        device,
        max_length_tokens=base.max_length_tokens,
        batch_tokens=2048,
        adapted=adapted,
    )
    assert len(samples) == len(ours) == num_questions
    for sample, row, prediction in zip(samples, rows, ours, strict=True):
        assert sample["doc"]["id"] == row["id"] == prediction.id
        assert sample["target"] == prediction.answer
        theirs = [value for value, _ in sample["filtered_resps"]]
        assert prediction.log_likelihoods == pytest.approx(theirs, abs=MAX_ERROR)
        assert prediction.choice == max(range(4), key=theirs.__getitem__)
        assert (prediction.choice == prediction.answer) == bool(sample["acc"])
    assert summarise(ours)["accuracy"] == pytest.approx(accuracy)


def test_the_adapter_of_these_tests_has_an_effect(parts):
    base, model, device = parts
    examples = evaluation_set(load_recipe("quickstart").data, 0).examples[:2]
    items = make_items(load_renderer(base), examples, "lm_eval")
    base_logs, tuned_logs = (
        [
            prediction.log_likelihoods
            for prediction in score_items(
                model, items, device, max_length_tokens=2048, batch_tokens=2048, adapted=adapted
            )
        ]
        for adapted in (False, True)
    )
    assert all(abs(a[0] - b[0]) > 0.05 for a, b in zip(base_logs, tuned_logs, strict=True))
