"""An export is the tuned model, or there is none."""

import copy
import dataclasses
import json
import logging
import re

import pytest
import torch

from medqa.errors import ConfigError, ModelError, PublishError, RunError
from medqa.evaluate.calibrate import load_calibration
from medqa.evaluate.engine import LocalEngine
from medqa.evaluate.score import make_items
from medqa.model.tuned import load_tuned
from medqa.prompts import SYSTEM, PromptRenderer, question_text
from medqa.publish import export as exporting
from medqa.publish import recalibrate, subject
from medqa.publish.export import export
from medqa.publish.merge import merge, precisions_to_try, write_merged
from medqa.publish.modelfile import chat_template, modelfile
from medqa.runs import RunFolder
from medqa.testing import make_examples

BASE = "ORG/tiny"


@pytest.fixture(scope="module")
def merged(calibrated_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("exports") / "merged"
    return export(calibrated_run, "merged", out, precision="fp32", num_questions=30, base=BASE)


def letters(model, tuned, examples):
    rows = []
    for item in make_items(tuned.renderer, examples, "medqa"):
        with torch.no_grad():
            logits = model(torch.tensor([list(item.prefix)])).logits[0, -1].float()
        rows.append(logits.log_softmax(-1))
    return rows


def test_a_merged_model_answers_as_the_tuned_one(merged, calibrated_run):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert merged.parity.share_same == 1
    assert merged.parity.max_change < 1e-5
    assert merged.calibration == "valid"
    plain = AutoModelForCausalLM.from_pretrained(str(merged.path), dtype=torch.float32)
    tuned = load_tuned(calibrated_run, dtype="fp32")
    examples = make_examples(5)
    engine = LocalEngine(tuned).score(make_items(tuned.renderer, examples, "medqa"))
    tokenizer = AutoTokenizer.from_pretrained(str(merged.path))
    for example, prediction in zip(examples, engine, strict=True):
        ids = tokenizer(tuned.renderer.prefix_text(example), add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            scores = plain(torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)
        letter_ids = [ids[0] for ids in tuned.renderer.letter_ids(len(example.options))]
        expected = torch.tensor(prediction.log_likelihoods)
        torch.testing.assert_close(scores[letter_ids], expected, atol=1e-4, rtol=1e-4)
    assert plain.generation_config.do_sample is False
    assert plain.generation_config.eos_token_id == tuned.renderer.stop_ids[0]


def test_the_folder_says_what_was_compared_and_names_no_place_of_this_machine(merged, calibrated_run):
    record = json.loads((merged.path / "parity.json").read_text())
    assert record["share_same"] == 1
    assert record["bound"] == 1
    assert record["questions"] == "held back from training"
    assert set(record["files"]) == {"model.safetensors"}
    assert not (merged.path / "adapter_config.json").exists()  # transformers would add the adapter twice
    for file in merged.path.rglob("*.json"):
        assert str(calibrated_run.parent) not in file.read_text(), file


def test_the_run_goes_along(merged, calibrated_run):
    run = RunFolder.open(merged.path / "run")
    assert run.adapter == merged.path / "run"
    renderer = load_tuned(calibrated_run).renderer
    assert load_calibration(run, renderer).by_orders.keys() == {1, 4}


def test_an_adapter_is_copied_and_loaded_again(calibrated_run, tmp_path):
    made = export(calibrated_run, "adapter", tmp_path / "a", num_questions=10, base=BASE)
    assert (made.parity.share_same, made.parity.max_change) == (1, 0)
    copy = (tmp_path / "a" / "adapter_model.safetensors").read_bytes()
    assert copy == (calibrated_run / "adapter" / "adapter_model.safetensors").read_bytes()
    assert made.calibration == "valid"


def break_merge(monkeypatch, precisions):
    """Make merged models of some precisions answer otherwise."""
    real = exporting.write_merged

    def broken(model, renderer, out, precision):
        if precision in precisions:
            weight = model.get_output_embeddings().weight
            with torch.no_grad():
                weight.copy_(weight.flip(0))
        real(model, renderer, out, precision)

    monkeypatch.setattr(exporting, "write_merged", broken)


def test_a_wrong_export_is_refused_and_leaves_nothing(calibrated_run, tmp_path, monkeypatch):
    break_merge(monkeypatch, {"fp32"})
    with pytest.raises(PublishError, match="not the model that was tuned"):
        export(calibrated_run, "merged", tmp_path / "m", precision="fp32", num_questions=20, base=BASE)
    assert list(tmp_path.iterdir()) == []


def test_a_precision_that_loses_letters_gives_way_and_it_is_said(
    calibrated_run, tmp_path, monkeypatch, caplog
):
    break_merge(monkeypatch, {"bf16"})
    monkeypatch.setattr(exporting, "precisions_to_try", lambda base: ("bf16", "fp16", "fp32"))
    with caplog.at_level(logging.INFO, logger="medqa"):
        made = export(calibrated_run, "merged", tmp_path / "m", num_questions=20, base=BASE)
    assert made.parity.share_same == 1
    assert "Rounded to bf16" in caplog.text
    assert "Kept in fp16" in caplog.text
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert (config.get("dtype") or config["torch_dtype"]) == "float16"


def test_q8_0_gives_way_to_f16_where_it_loses_letters(calibrated_run, tmp_path, monkeypatch, caplog):
    def write(work, merged, folder, kind):
        """Stand for llama.cpp: a model that answers otherwise as q8_0."""
        (folder / f"model-{kind}.gguf").write_bytes(b"GGUF")
        engine = LocalEngine(load_tuned(work.path, dtype="fp32"))
        if kind == "q8_0":
            score = engine.score
            engine.score = lambda items: [
                dataclasses.replace(one, log_likelihoods=one.log_likelihoods[::-1]) for one in score(items)
            ]
        return engine

    monkeypatch.setattr(exporting, "_write_gguf", write)
    monkeypatch.setattr(exporting, "refuse_unwritable", lambda folder: None)
    monkeypatch.setattr(exporting, "llama_library", lambda: None)
    made = export(calibrated_run, "gguf", tmp_path / "g", num_questions=20, base=BASE)
    assert made.kind == "f16"
    assert "As q8_0" in caplog.text
    assert "model-q8_0.gguf" not in dict(made.files)
    with pytest.raises(PublishError, match="q8_0 has to keep 99%") as error:
        export(calibrated_run, "gguf", tmp_path / "h", quantization="q8_0", num_questions=20, base=BASE)
    assert "f32" in error.value.hint


def test_the_run_itself_is_not_overwritten(calibrated_run, tmp_path):
    made = export(calibrated_run, "adapter", tmp_path / "a", num_questions=4, base=BASE)
    with pytest.raises(RunError, match="holds the run itself"):
        export(made.path, "merged", made.path)


@pytest.mark.parametrize(
    ("to", "wrong"), [("merged", {"quantization": "q8_0"}), ("gguf", {"precision": "fp16"})]
)
def test_what_does_not_go_together_is_refused(calibrated_run, tmp_path, to, wrong):
    with pytest.raises(ConfigError, match=f"not for --to {to}"):
        export(calibrated_run, to, tmp_path / "x", **wrong)


def test_nothing_else_is_overwritten_but_an_earlier_export_is(calibrated_run, tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(RunError, match="no earlier export"):
        export(calibrated_run, "adapter", tmp_path / "mine", base=BASE)
    for _ in range(2):
        export(calibrated_run, "adapter", tmp_path / "a", num_questions=4, base=BASE)


def test_an_export_of_another_run_is_not_replaced(calibrated_run, tmp_path):
    made = export(calibrated_run, "adapter", tmp_path / "a", num_questions=20, base=BASE)
    record = json.loads((made.path / "parity.json").read_text())
    (made.path / "parity.json").write_text(json.dumps({**record, "adapter_sha256": "another"}))
    with pytest.raises(RunError, match="the export of another run"):
        export(calibrated_run, "adapter", tmp_path / "a", num_questions=20, base=BASE)


def test_a_link_is_followed_and_a_place_that_cannot_be_is_refused_first(calibrated_run, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "a").symlink_to(tmp_path / "there" / "a")
    for _ in range(2):
        made = export(calibrated_run, "adapter", tmp_path / "a", num_questions=20, base=BASE)
    assert made.path == tmp_path / "a"
    assert made.path.is_symlink()
    assert (tmp_path / "there" / "a" / "parity.json").is_file()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match="file is a file"):
        export(calibrated_run, "adapter", tmp_path / "file" / "a", base=BASE)


def test_an_adapter_nobody_could_load_is_refused(calibrated_run, tmp_path):
    with pytest.raises(PublishError, match="which others don't have") as error:
        export(calibrated_run, "adapter", tmp_path / "a")
    assert "--base" in error.value.hint


def test_a_model_that_is_no_gguf_is_refused_before_it_is_loaded(calibrated_run, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "llama_library", lambda: None)
    monkeypatch.setattr(subject, "load_to_merge", None)
    monkeypatch.setattr("medqa.publish.gguf._ARCHITECTURES", {})
    with pytest.raises(ModelError, match="a GGUF of the architecture"):
        export(calibrated_run, "gguf", tmp_path / "g", quantization="Q4_K_M")


def test_an_unknown_quantisation_is_refused_before_anything_is_loaded(tmp_path):
    with pytest.raises(ConfigError, match="q5_x") as error:
        export(tmp_path / "none", "gguf", tmp_path / "g", quantization="q5_x")
    assert "q8_0" in error.value.hint
    assert "q4_k_m" in error.value.hint


def test_precisions_begin_with_the_base_models_own(calibrated_run):
    tuned = load_tuned(calibrated_run, dtype="fp32")
    assert precisions_to_try(tuned.base)[-1] == "fp32"


def test_weights_in_half_precision_are_not_merged(calibrated_run):
    tuned = load_tuned(calibrated_run, dtype="bf16")
    with pytest.raises(ValueError, match="rounded twice"):
        merge(tuned)


def test_weights_that_are_not_finite_are_told(calibrated_run, tmp_path):
    tuned = load_tuned(calibrated_run, dtype="fp32")
    weight = next(p for n, p in tuned.model.named_parameters() if "lora_B" in n)
    with torch.no_grad():
        weight.fill_(float("inf"))
    with pytest.raises(ModelError, match="can't be merged"):
        merge(tuned)
    tuned = load_tuned(calibrated_run, dtype="fp32")
    model = merge(tuned)
    with torch.no_grad():
        model.get_output_embeddings().weight[0, 0] = 1e6
    with pytest.raises(PublishError, match="too large for fp16"):
        write_merged(model, tuned.renderer, tmp_path, "fp16")


TEMPLATE = re.compile(
    r"{{ if \.System }}(?P<start>.*?){{ \.System }}(?P<first>.*?)(?:{{ else }}(?P<later>.*?))?{{ end }}"
    r"(?P<shared>.*?){{ \.Prompt }}(?P<after>.*){{ \.Response }}",
    re.DOTALL,
)


def fill(template, turns):
    """Fill a template as Ollama does: turn by turn, the system's words in the first, the last one cut off."""
    parts = {name: text or "" for name, text in TEMPLATE.fullmatch(template).groupdict().items()}
    text = parts["start"] + SYSTEM + parts["first"]
    for number, (prompt, response) in enumerate(turns):
        text += parts["later"] if number else ""
        text += parts["shared"] + prompt + parts["after"] + response
    return text.replace('{{ "{{" }}', "{{")


def test_a_modelfile_holds_the_very_prompt_of_training(calibrated_run):
    renderer = load_tuned(calibrated_run).renderer
    first, second = make_examples(2)
    template = chat_template(renderer)
    assert fill(template, [(question_text(first), "")]) == renderer.prefix_text(first)
    whole = fill(template, [(question_text(first), " A. As it is"), (question_text(second), "")])
    between = renderer.next_turn()
    assert between.startswith(renderer.tokenizer.decode(renderer.stop_ids))
    assert whole.startswith(f"{renderer.prefix_text(first)} A. As it is{between}{question_text(second)}")
    lines = modelfile(renderer, "model-q8_0.gguf", 100_000)
    assert "FROM ./model-q8_0.gguf\n" in lines
    assert "PARAMETER num_ctx 4096\n" in lines
    assert f'PARAMETER stop "{renderer.tokenizer.decode(renderer.stop_ids)}"' in lines


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
        "{% if add_generation_prompt %}<s>assistant\n{% endif %}",
        "{% for m in messages %}{% if m.role == 'system' %}[SYS]{{ m.content }}[/SYS]"
        "{% elif m.role == 'user' %}[INST]{{ m.content }}[/INST]{% else %}{{ m.content }}</s>{% endif %}"
        "{% endfor %}",
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{% if m.role == 'user' %}{{ '{{' }}{{ m.content }}}}{% else %}{{ m.content }}</s>"
        "{% endif %}{% endfor %}",
        None,
    ],
    ids=["a turn each", "other first turn", "no system turn", "none"],
)
def test_a_second_turn_is_as_the_chat_template_has_it(calibrated_run, template):
    tokenizer = copy.deepcopy(load_tuned(calibrated_run).renderer.tokenizer)
    tokenizer.chat_template = template
    renderer = PromptRenderer(tokenizer)
    first, second = make_examples(2)
    filled = fill(chat_template(renderer), [(question_text(first), " A"), (question_text(second), "")])
    if template is None:
        stop = tokenizer.decode(renderer.stop_ids)
        assert filled == f"{renderer.prefix_text(first)} A{stop}\n\n{question_text(second)}\n\nAnswer:"
        return
    turns = [*renderer._messages(question_text(first)), {"role": "assistant", "content": "Answer: A"}]
    turns.append({"role": "user", "content": question_text(second)})
    whole = renderer._template(turns, prompt=True)
    assert filled == f"{whole}Answer:"


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_calibration_that_does_not_hold_is_fitted_anew(calibrated_run, tmp_path, monkeypatch, share):
    monkeypatch.setattr(recalibrate, "is_valid", lambda parity: False)
    if share:
        monkeypatch.setattr(recalibrate, "MIN_ROWS", 10_000)
    made = export(calibrated_run, "merged", tmp_path / "m", precision="fp32", num_questions=20, base=BASE)
    assert made.calibration == ("drifted" if share else "refitted")
    run, renderer = RunFolder.open(tmp_path / "m" / "run"), load_tuned(calibrated_run).renderer
    found, shipped = (
        load_calibration(run, renderer),
        load_calibration(RunFolder.open(calibrated_run), renderer),
    )
    if share:  # none is better than a wrong one
        assert found is None
        return
    assert found.record["export"] == "merged fp32"
    assert found.by_orders.keys() == shipped.by_orders.keys() == {1, 4}
    assert str(calibrated_run.parent) not in (run.path / "calibration.json").read_text()
    assert len(found.canaries) == len(shipped.canaries)
    assert found.canaries[0].base_log_likelihoods == shipped.canaries[0].base_log_likelihoods


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["f16", "q4_k_m"])
def test_a_gguf_of_the_built_in_model_is_run_and_compared(built_in_home, built_in_run, tmp_path, kind):
    made = export(built_in_run, "gguf", tmp_path / "g", quantization=kind, num_questions=30)
    assert made.kind == kind
    assert made.parity.num_tokenised_alike == made.parity.num_questions == 30
    assert made.parity.bound == (0.99 if kind == "f16" else None)
    assert made.parity.mean_change < (0.005 if kind == "f16" else 0.2)
    assert {name for name, _ in made.files} == {f"model-{kind}.gguf", "Modelfile", "parity.json", "run/"}
    assert f"FROM ./model-{kind}.gguf" in (tmp_path / "g" / "Modelfile").read_text()
    assert RunFolder.open(tmp_path / "g" / "run").adapter == tmp_path / "g" / "run"
    assert not list(tmp_path.glob(".*"))  # the merged model in between is gone
