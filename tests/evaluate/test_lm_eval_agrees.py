"""lm-eval itself, on the real built-in model: the choices, likelihoods and accuracy of our column of it."""

import json
from pathlib import Path

import pytest
import torch

import medqa.data
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

QUESTIONS = Path(medqa.data.__file__).parent / "starter" / "validation.jsonl"
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


def scored_by_lm_eval(folder, rows, model_arguments):
    """Let lm-eval's own task `medmcqa` score these rows, read from a file instead of the Hub."""
    reason = "lm-eval is not installed: pip install -e '.[lm-eval]'"
    lm_eval = pytest.importorskip("lm_eval", reason=reason)
    tasks = pytest.importorskip("lm_eval.tasks", reason=reason)
    (folder / "rows.json").write_text("\n".join(json.dumps(row) for row in rows))
    task = {
        "include": str(Path(tasks.__file__).parent / "medmcqa" / "medmcqa.yaml"),
        "task": "medmcqa_here",
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"validation": str(folder / "rows.json")},
            "cache_dir": str(folder / "cache"),
        },
        "training_split": None,
    }
    (folder / "medmcqa_here.yaml").write_text(json.dumps(task))  # JSON is YAML
    found = lm_eval.simple_evaluate(
        model="hf",
        model_args={"dtype": "float32", **model_arguments},
        tasks=["medmcqa_here"],
        task_manager=tasks.TaskManager(include_path=str(folder), include_defaults=False),
        device="cpu",
        batch_size=8,
        bootstrap_iters=0,
    )
    samples = sorted(found["samples"]["medmcqa_here"], key=lambda sample: sample["doc_id"])
    return samples, found["results"]["medmcqa_here"]["acc,none"]


@pytest.mark.parametrize(("adapted", "num_questions"), [(False, 40), (True, 20)], ids=["base", "tuned"])
def test_lm_eval_gives_the_same_choices_likelihoods_and_accuracy(parts, tmp_path, adapted, num_questions):
    base, model, device = parts
    rows = [json.loads(line) for line in QUESTIONS.read_text().splitlines()][:num_questions]
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
