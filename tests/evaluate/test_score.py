"""Fast scoring equals plain scoring: padding, batching, one token or several."""

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from medqa.config import ModelConfig
from medqa.errors import DataError, DeviceError, ModelError, RunError
from medqa.evaluate import score as score_module
from medqa.evaluate.report import compare, summarise
from medqa.evaluate.run import evaluate
from medqa.evaluate.score import choose_decoder, make_items, score_items
from medqa.files import read_sealed
from medqa.hardware.device import choose_device
from medqa.model.load import find_base, load_model, load_renderer
from medqa.model.lora import without_adapter
from medqa.model.tuned import load_tuned
from medqa.records import Example, Prediction
from medqa.testing import make_examples, make_tiny_model, make_tokenizer

EXAMPLES = [
    *make_examples(9),
    Example("Long? " * 30, ("a", "b"), answer=0),
    Example("Ten?", tuple("abcdefghij"), answer=9),
]


@pytest.fixture(scope="module", params=[True, False], ids=["letters of one token", "of two"])
def parts(request, tmp_path_factory):
    """A tiny model with an adapter that has an effect."""
    from medqa.config import LoraConfig
    from medqa.model.lora import attach_adapter, trainable_parameters

    tokenizer = make_tokenizer(whole_letters=request.param)
    folder = make_tiny_model(tmp_path_factory.mktemp("tiny"), tokenizer=tokenizer)
    config = ModelConfig(name=str(folder), device="cpu")
    base, device = find_base(config), choose_device(config)
    model = attach_adapter(load_model(base, device), LoraConfig(rank=4), seed=0).eval()
    with torch.no_grad():
        for _, p in trainable_parameters(model):
            p.normal_(std=0.2)
    return model, load_renderer(base), device


def plain(model, item):
    """One unpadded sequence per option, all logits, an attention mask."""
    result = []
    for letter in item.letters:
        ids = torch.tensor([item.prefix + letter])
        logs = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].log_softmax(-1)
        start = len(item.prefix) - 1
        result.append(sum(logs[start + k, token].item() for k, token in enumerate(letter)))
    return result


@pytest.mark.parametrize("prompt", ["medqa", "lm_eval"])
@pytest.mark.parametrize("batch_tokens", [1, 700, 10_000])
def test_batched_scores_equal_plain_ones(parts, prompt, batch_tokens):
    model, renderer, device = parts
    items = make_items(renderer, EXAMPLES, prompt)
    predictions = score_items(model, items, device, max_length_tokens=2000, batch_tokens=batch_tokens)
    for item, prediction in zip(items, predictions, strict=True):
        assert prediction.id == item.example.id
        assert prediction.log_likelihoods == pytest.approx(plain(model, item), abs=1e-4)


def test_the_adapter_can_be_switched_off(parts, tmp_path):
    model, renderer, device = parts
    items = make_items(renderer, EXAMPLES, "medqa")
    tuned = score_items(model, items, device, max_length_tokens=2000, batch_tokens=999)
    with without_adapter(model):
        base = score_items(model, items, device, max_length_tokens=2000, batch_tokens=999)
    assert all(a.log_likelihoods != b.log_likelihoods for a, b in zip(tuned, base, strict=True))


def test_too_long_prompts_are_counted_apart_never_cut(parts):
    model, renderer, device = parts
    items = make_items(renderer, EXAMPLES, "medqa")
    limit = max(len(item.prefix) for item in items)  # the letter itself needs one more
    predictions = score_items(model, items, device, max_length_tokens=limit, batch_tokens=999)
    assert [p.status for p in predictions].count("too_long") == 1
    assert summarise(predictions)["num_too_long"] == 1
    assert summarise(predictions)["num_questions"] == len(EXAMPLES) - 1


@pytest.mark.parametrize(
    ("prompt", "batch_tokens", "adapted"),
    [("medqa", 1, True), ("lm_eval", 700, False), ("medqa", 10_000, False), ("lm_eval", 10_000, True)],
)
def test_packed_scores_equal_plain_ones(parts, prompt, batch_tokens, adapted):
    model, renderer, device = parts
    items = make_items(renderer, EXAMPLES, prompt)
    settings = {"max_length_tokens": 2000, "batch_tokens": batch_tokens, "adapted": adapted}
    decoder = choose_decoder(model, items, device, max_length_tokens=2000)
    assert decoder is not None
    packed = score_items(model, items, device, decoder=decoder, **settings)
    for a, b in zip(packed, score_items(model, items, device, **settings), strict=True):
        assert a.log_likelihoods == pytest.approx(b.log_likelihoods, abs=1e-4)


def test_a_decoder_that_scores_otherwise_is_not_taken(parts, monkeypatch, caplog):
    model, renderer, device = parts
    monkeypatch.setattr("medqa.model.decoder.rotate", lambda x, *rest: x)
    items = make_items(renderer, EXAMPLES, "medqa")
    assert choose_decoder(model, items, device, max_length_tokens=2000) is None
    assert "Scoring the plain way, slower" in caplog.text


@pytest.mark.parametrize("way", ["packed", "plain"])
def test_short_memory_halves_the_pass(parts, monkeypatch, way):
    model, renderer, device = parts
    items = make_items(renderer, EXAMPLES, "medqa")
    whole = score_items(model, items, device, max_length_tokens=2000, batch_tokens=10_000)
    hidden = score_module._hidden
    decoder = choose_decoder(model, items, device, max_length_tokens=2000) if way == "packed" else None

    def short_of_memory(model, rows, *rest):
        if len(rows) > 10:
            raise torch.OutOfMemoryError("out of memory")
        return hidden(model, rows, *rest)

    monkeypatch.setattr(score_module, "_hidden", short_of_memory)
    halved = score_items(model, items, device, max_length_tokens=2000, batch_tokens=10_000, decoder=decoder)
    for a, b in zip(whole, halved, strict=True):
        assert a.log_likelihoods == pytest.approx(b.log_likelihoods, abs=1e-4)


def prediction(answer, logs, subject="S", status="scored"):
    return Prediction("i", subject, 2, answer, status, logs)


def test_summary_by_hand():
    rows = [
        prediction(0, (0.0, -1.0), "S"),
        prediction(1, (0.0, -1.0), "T"),
        prediction(0, (), "T", "too_long"),
    ]
    summary = summarise(rows)
    assert (summary["num_questions"], summary["num_correct"], summary["num_too_long"]) == (2, 1, 1)
    assert summary["subjects"]["S"]["accuracy"] == 1
    assert summary["subjects"]["T"]["num_questions"] == 1
    assert summary["mean_confidence"] == pytest.approx(0.7310586)
    with pytest.raises(DataError, match="none of 1 questions"):
        summarise(rows[2:])


def test_comparison_by_hand():
    right, wrong = prediction(0, (0.0, -1.0)), prediction(0, (-1.0, 0.0))
    lost = prediction(0, (), status="too_long")
    change = compare([right, wrong, wrong, wrong, lost], [right, right, right, wrong, right])
    assert (change["num_questions"], change["num_fixed"], change["num_broken"]) == (4, 2, 0)
    assert change["accuracy_gain"] == 0.5
    assert change["mcnemar_p"] == 0.5


def test_evaluate_writes_report_and_predictions(finished_run):
    report = evaluate(finished_run, ["evaluate.orders=4"])
    assert json.loads(json.dumps(report)) == read_sealed(finished_run / "report.json")
    lines = [json.loads(line) for line in (finished_run / "predictions.jsonl").read_text().splitlines()]
    ordered = [line for line in lines if "num_orders" in line]
    lines = [line for line in lines if "num_orders" not in line]
    assert (len(lines), len(ordered)) == (20 * 2 * 2, 20)
    assert {(line["prompt"], line["model"], line["num_orders"]) for line in ordered} == {
        ("medqa", "tuned", 4)
    }
    assert np.mean([line["consistency"] for line in ordered]) == report["orders"]["consistency"]
    assert {(line["prompt"], line["model"]) for line in lines} == {
        (p, m) for p in ("medqa", "lm_eval") for m in ("base", "tuned")
    }
    for prompt in ("medqa", "lm_eval"):
        score = report["scores"][prompt]["tuned"]
        mine = [line for line in lines if (line["prompt"], line["model"]) == (prompt, "tuned")]
        right = sum(
            max(range(4), key=lambda o, row=line: row["log_likelihoods"][o]) == line["answer"]
            for line in mine
        )
        assert score["num_correct"] == right
        assert sum(s["num_questions"] for s in score["subjects"].values()) == 20


def test_a_part_is_measured_apart_and_leaves_the_whole_report(finished_run):
    whole = evaluate(finished_run)
    part = evaluate(finished_run, max_rows=7)
    assert (part["data"]["num_used"], part["whole_split"], whole["whole_split"]) == (7, False, True)
    assert read_sealed(finished_run / "report-7.json") == part
    assert read_sealed(finished_run / "report.json") == whole


def test_training_rows_are_not_measured_on(settings, tmp_path, small_data):
    from medqa.recipe import load_recipe
    from medqa.train.run import train

    config = load_recipe("medmcqa", [*settings, f"data.name={small_data / 'train.jsonl'}"])
    train(config, tmp_path / "run", "medmcqa")
    with pytest.raises(DataError, match="was trained on"):
        evaluate(tmp_path / "run")


def test_a_head_with_a_bias_is_scored_with_it(tmp_path):
    from transformers import PhiConfig, PhiForCausalLM

    from medqa.config import LoraConfig
    from medqa.model.lora import attach_adapter

    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    phi = PhiForCausalLM(
        PhiConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )
    torch.nn.init.normal_(phi.lm_head.bias, std=3.0)
    phi.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config = ModelConfig(name=str(tmp_path), device="cpu")
    base, device = find_base(config), choose_device(config)
    model = attach_adapter(load_model(base, device), LoraConfig(rank=4), seed=0).eval()
    [item] = make_items(load_renderer(base), EXAMPLES[:1], "medqa")
    [prediction] = score_items(model, [item], device, max_length_tokens=2000, batch_tokens=999)
    assert prediction.log_likelihoods == pytest.approx(plain(model, item), abs=1e-4)


def test_short_memory_with_one_question_is_an_error(parts, monkeypatch):
    model, renderer, device = parts

    def no_memory(*args):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(score_module, "_hidden", no_memory)
    items = make_items(renderer, EXAMPLES[:3], "medqa")
    with pytest.raises(DeviceError, match="single question"):
        score_items(model, items, device, max_length_tokens=2000, batch_tokens=999)


def test_likelihoods_that_are_not_finite_are_an_error(parts, monkeypatch):
    model, renderer, device = parts
    hidden = score_module._hidden
    monkeypatch.setattr(score_module, "_hidden", lambda *args: hidden(*args) * float("nan"))
    items = make_items(renderer, EXAMPLES[:3], "medqa")
    with pytest.raises(ModelError, match="not finite"):
        score_items(model, items, device, max_length_tokens=2000, batch_tokens=999)


def copy_of(run, folder):
    return Path(shutil.copytree(run, folder / "copy"))


def test_an_adapter_that_is_not_what_training_wrote_is_refused(finished_run, tmp_path):
    run = copy_of(finished_run, tmp_path)
    file = run / "adapter" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(RunError, match="checksum differs"):
        load_tuned(run)


def test_the_prompt_stays_the_one_trained_on(finished_run, tmp_path, tiny_model):
    """The base model's template may change, or hold today's date; the run's does not."""
    run = copy_of(finished_run, tmp_path)
    base = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    record = json.loads((run / "run.json").read_text())
    record["config"]["model"]["name"] = str(base)
    (run / "run.json").write_text(json.dumps(record))
    (base / "chat_template.jinja").write_text("{{ 'another template' }}")
    before, after = load_tuned(finished_run), load_tuned(run)
    for example in EXAMPLES:
        assert before.renderer.prefix_ids(example) == after.renderer.prefix_ids(example)


def test_a_run_folder_cannot_make_its_model_s_code_run(finished_run, tmp_path, tiny_model):
    run = copy_of(finished_run, tmp_path)
    base = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    (base / "evil.py").write_text(f"open({str(tmp_path / 'hacked')!r}, 'w').close()")
    settings = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**settings, "auto_map": {"AutoConfig": "evil.Evil"}}))
    record = json.loads((run / "run.json").read_text())
    record["config"]["model"].update(name=str(base), trust_remote_code=str(base))
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(ModelError, match="code of its own"):
        load_tuned(run)
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.pop("config"),
        lambda r: r["config"].update(train=5),
        lambda r: r.pop("base_model"),
        lambda r: r.update(base_model=[]),
        lambda r: r.update(data={}),
        lambda r: r.update(status=5),
        lambda r: r.pop("notices"),
        lambda r: r.update(adapter_sha256=None),
    ],
)
def test_a_run_record_that_was_edited_is_refused(finished_run, tmp_path, change):
    run = copy_of(finished_run, tmp_path)
    record = json.loads((run / "run.json").read_text())
    change(record)
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(RunError, match="is damaged"):
        load_tuned(run)


def test_another_base_model_is_refused(finished_run, tmp_path):
    run = json.loads((finished_run / "run.json").read_text())
    run["config"]["model"]["name"] = str(make_tiny_model(tmp_path / "other", seed=1))
    copy = copy_of(finished_run, tmp_path)
    (copy / "run.json").write_text(json.dumps(run))
    with pytest.raises(ModelError, match="is not the base model"):
        load_tuned(copy)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no run.json"),
        ("{", "can't be read"),
        ("[]", "expected an object"),
        ('{"version": 99}', "version 99"),
        ('{"version": 2}', "version 2, this program reads 3 and 4"),
        ('{"version": 3, "status": "running", "notices": [], "config": {}}', "half written"),
        ('{"version": 3, "status": "complete", "notices": [], "config": {}}', "is damaged"),
    ],
)
def test_broken_run_folders(tmp_path, content, message):
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(RunError, match=message):
        load_tuned(tmp_path)
    with contextlib.suppress(FileNotFoundError):
        assert (tmp_path / "run.json").read_text() == content
