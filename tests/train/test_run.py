import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from medqa.errors import DataError, DeviceError, ModelError, RunError, TrainingError
from medqa.files import file_sha256, seal, unsealed
from medqa.hardware.memory import MemoryPlan
from medqa.recipe import load_recipe
from medqa.train import engine, fast, loop
from medqa.train.run import resume, train


@pytest.fixture(autouse=True)
def ordinary_signals():
    """As in the foreground: a shell lets jobs in the background ignore Ctrl-C."""
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def adapter_of(path):
    return load_file(path / "adapter" / "adapter_model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_leaves_what_it_should(finished_run):
    names = {p.name for p in finished_run.iterdir()}
    assert {"run.json", "recipe.yaml", "metrics.jsonl", "loss.png", "adapter"} <= names
    record = json.loads((finished_run / "run.json").read_text())
    assert record["status"] == "complete"
    assert record["device"]["precision_reason"]
    assert record["base_model"]["fingerprint"]
    assert record["data"]["sha256"]
    assert record["config"]["train"]["seed"] == 0
    assert {"torch", "transformers", "peft"} <= record["versions"].keys()
    assert record["training"]["num_steps"] == 5
    assert (finished_run / "loss.png").read_bytes().startswith(b"\x89PNG")
    lines = [json.loads(line) for line in (finished_run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]


def test_the_recipe_in_the_run_gives_the_same_adapter_again(finished_run, tmp_path):
    config = load_recipe(str(finished_run / "recipe.yaml"))
    again = train(config, tmp_path / "again", "x").path
    assert same(adapter_of(again), adapter_of(finished_run))


def test_training_learns(settings, tmp_path):
    config = load_recipe("medmcqa", [*settings, "train.epochs=3", "train.learning_rate=0.03"])
    run = train(config, tmp_path / "run", "medmcqa")
    losses = [json.loads(line)["loss"] for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.slow
@pytest.mark.parametrize("targets", ["all-linear", pytest.param("[q_proj, v_proj]", marks=pytest.mark.slow)])
def test_batch_times_accumulation_does_not_change_the_result(settings, tmp_path, targets):
    weights = []
    for size in (8, 3, 1):
        extra = [f"train.micro_batch_size={size}", f"train.lora.targets={targets}"]
        run = train(load_recipe("medmcqa", [*settings, *extra]), tmp_path / f"r{size}", "medmcqa")
        weights.append(adapter_of(run.path))
    for other in weights[1:]:
        for name, tensor in weights[0].items():
            torch.testing.assert_close(other[name], tensor, rtol=1e-3, atol=1e-5)


@pytest.fixture(params=["fast", pytest.param("plain", marks=pytest.mark.slow)])
def path_settings(request, settings):
    """Settings that take the one or the other path through a step."""
    return [*settings, f"train.fast_path={request.param == 'fast'}"]


def replace_batches(monkeypatch, change):
    """Put `change(make, rows, ...)` in the place of what makes a pass's batch, on both paths."""
    for module, name in ((engine, "collate"), (fast, "pack")):
        make = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, make=make: change(make, *args))


def test_out_of_memory_halves_the_pass_says_so_and_gives_the_same_result(
    path_settings, tmp_path, monkeypatch
):
    expected = train(load_recipe("medmcqa", path_settings), tmp_path / "expected", "medmcqa").path

    def short_of_memory(make, rows, *rest):
        if len(rows) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return make(rows, *rest)

    replace_batches(monkeypatch, short_of_memory)
    run = train(load_recipe("medmcqa", path_settings), tmp_path / "run", "medmcqa")
    assert [text[:38] for text in run.record["notices"]] == [
        "Memory ran out with 8 rows a pass at s",
        "Memory ran out with 4 rows a pass at s",
    ]
    assert run.record["training"]["micro_batch_size"] == 2
    for name, tensor in adapter_of(expected).items():
        torch.testing.assert_close(adapter_of(run.path)[name], tensor, rtol=1e-3, atol=1e-5)


def test_out_of_memory_with_one_row_is_an_error(path_settings, tmp_path, monkeypatch):
    def no_memory(make, *args):
        raise torch.OutOfMemoryError("out of memory")

    replace_batches(monkeypatch, no_memory)
    with pytest.raises(TrainingError, match="single row") as caught:
        train(load_recipe("medmcqa", path_settings), tmp_path / "run", "medmcqa")
    assert "max_length_tokens" in caught.value.hint


@pytest.mark.slow
@pytest.mark.parametrize(
    "extra",
    ["serve.max_explanation_tokens=8", pytest.param("train.lora.last_blocks=1", marks=pytest.mark.slow)],
)
def test_recomputed_activations_give_the_same_result(path_settings, tmp_path, monkeypatch, extra):
    config = load_recipe("medmcqa", [*path_settings, extra])
    plain = train(config, tmp_path / "plain", "medmcqa")
    monkeypatch.setattr(engine, "plan_memory", lambda *args: MemoryPlan(8, True, "tests"))
    again = train(config, tmp_path / "again", "medmcqa")
    for name, tensor in adapter_of(plain.path).items():
        torch.testing.assert_close(adapter_of(again.path)[name], tensor, rtol=1e-4, atol=1e-6)


def test_short_memory_with_one_row_recomputes_before_it_gives_up(path_settings, tmp_path, monkeypatch):
    seen = []

    def short_of_memory(make, rows, *rest):
        seen.append(len(rows))
        if len(seen) < 3:
            raise torch.OutOfMemoryError("out of memory")
        return make(rows, *rest)

    replace_batches(monkeypatch, short_of_memory)
    run = train(load_recipe("medmcqa", [*path_settings, "train.batch_size=2"]), tmp_path / "run", "medmcqa")
    assert seen[:4] == [2, 1, 1, 1]
    assert "activations are recomputed" in run.record["notices"][1]


@pytest.mark.slow
def test_fp16_scales_the_loss_and_follows_fp32(settings, tmp_path):
    whole = train(load_recipe("medmcqa", [*settings, "train.fast_path=false"]), tmp_path / "fp32", "medmcqa")
    run = train(load_recipe("medmcqa", [*settings, "model.dtype=fp16"]), tmp_path / "run", "medmcqa")
    lines, expected = (
        [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        for path in (run.path, whole.path)
    )
    assert [line["loss"] for line in lines] == pytest.approx([line["loss"] for line in expected], rel=0.02)
    assert {t.dtype for t in adapter_of(run.path).values()} == {torch.float32}


@pytest.mark.slow
def test_fp16_resumes_with_its_scale(settings, tmp_path, monkeypatch):
    config = load_recipe("medmcqa", [*settings, "model.dtype=fp16"])
    whole = train(config, tmp_path / "whole", "medmcqa")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "cut", "medmcqa")
    assert same(adapter_of(resume(tmp_path / "cut").path), adapter_of(whole.path))


def test_hours_on_the_cpu_are_refused_unless_wanted(settings, tmp_path, monkeypatch):
    monkeypatch.setattr("medqa.train.prepare.CPU_OPERATIONS_PER_S", 1e3)
    with pytest.raises(DeviceError, match="hours on the CPU") as caught:
        train(load_recipe("medmcqa", settings), tmp_path / "run", "medmcqa")
    assert "allow_slow" in caught.value.hint
    assert not (tmp_path / "run").exists()
    assert train(load_recipe("medmcqa", [*settings, "train.allow_slow=true"]), tmp_path / "run", "medmcqa")


def test_an_accelerator_that_torch_cannot_see_is_told(settings, tmp_path, monkeypatch, caplog):
    from hardware import machines
    from medqa.hardware.probe import probe

    machine = probe(machines.amd(tmp_path / "root", "MI300X"), system="Linux")
    monkeypatch.setattr("medqa.train.prepare.probe", lambda: machine)
    train(load_recipe("medmcqa", [*settings, "model.device=auto"]), tmp_path / "run", "medmcqa")
    assert "Training on the CPU" in caplog.text
    assert "--torch-backend=rocm7.2" in caplog.text


def test_the_run_keeps_environment_and_selftest(settings, tmp_path):
    from medqa.hardware.device import choose_device
    from medqa.hardware.selftest_record import keep_selftest

    config = load_recipe("medmcqa", settings)
    keep_selftest(choose_device(config.model), {"passed": True})
    run = train(config, tmp_path / "run", "medmcqa", {"set_here": {"X": "why"}})
    assert run.record["selftest"] == {"passed": True}
    assert run.record["environment"] == {"set_here": {"X": "why"}}


def interrupt_at(monkeypatch, step, number=signal.SIGINT):
    """Send this process a signal in the middle of a step."""
    original = loop._Loop._gradients

    def interrupted(self, *rows):
        if self.state.step == step:
            signal.raise_signal(number)
        return original(self, *rows)

    monkeypatch.setattr(loop._Loop, "_gradients", interrupted)


@pytest.mark.parametrize(
    "extra",
    [
        [],
        pytest.param(["train.fast_path=false"], marks=pytest.mark.slow),
        pytest.param(["train.lora.dropout=0.3"], marks=pytest.mark.slow),
    ],
    ids=["fast", "plain", "dropout"],
)
def test_an_interrupted_run_resumes_to_the_same_bits(settings, tmp_path, monkeypatch, extra):
    config = load_recipe("medmcqa", [*settings, "train.epochs=2", *extra])
    whole = train(config, tmp_path / "whole", "medmcqa")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "cut", "medmcqa")
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 6, "lost": tr')
    resumed = resume(tmp_path / "cut")
    assert same(adapter_of(resumed.path), adapter_of(whole.path))
    lines = [
        [json.loads(line)["loss"] for line in (r.path / "metrics.jsonl").read_text().splitlines()]
        for r in (whole, resumed)
    ]
    assert lines[0] == lines[1]


def test_a_terminated_run_is_saved_too(settings, tmp_path, monkeypatch):
    interrupt_at(monkeypatch, 2, signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        train(load_recipe("medmcqa", settings), tmp_path / "run", "medmcqa")
    assert (tmp_path / "run" / "checkpoints" / "step-000003").is_dir()


def test_handlers_are_put_back_and_ignored_signals_stay_ignored(settings, tmp_path, monkeypatch):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with monkeypatch.context() as patch:
            interrupt_at(patch, 2, signal.SIGTERM)
            run = train(load_recipe("medmcqa", settings), tmp_path / "run", "medmcqa")
        assert run.record["status"] == "complete"
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    "when",
    ["after", *(pytest.param(w, marks=pytest.mark.slow) for w in ("before it is decided", "while it is"))],
)
def test_a_signal_at_the_end_of_a_step_is_neither_lost_nor_said_to_be_saved_when_it_is_not(
    settings, tmp_path, monkeypatch, when
):
    config = load_recipe("medmcqa", [*settings, "train.epochs=3"])
    original = loop._Loop._decide

    def decide(self, due):
        mine = self.state.step == 2
        if mine and when == "before it is decided":
            signal.raise_signal(signal.SIGTERM)
        if mine and when == "while it is":
            group, real = self.group, self.group.most

            def most(*numbers):
                signal.raise_signal(signal.SIGTERM)
                return real(*numbers)

            with monkeypatch.context() as patch:
                patch.setattr(group, "most", most, raising=False)
                return original(self, due)
        found = original(self, due)
        if mine and when == "after":
            signal.raise_signal(signal.SIGTERM)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(loop._Loop, "_decide", decide)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "run", "medmcqa")
    [checkpoint] = (tmp_path / "run" / "checkpoints").glob("step-*")
    steps = (tmp_path / "run" / "metrics.jsonl").read_text().count("\n")
    assert checkpoint.name == f"step-{steps:06d}" == ("step-000002" if "before" in when else "step-000003")
    assert resume(tmp_path / "run").record["status"] == "complete"


def damage(path, change):
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def test_damaged_checkpoints_are_named(settings, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            train(load_recipe("medmcqa", settings), tmp_path / "run", "medmcqa")
    checkpoint = tmp_path / "run" / "checkpoints" / "step-000003"
    # Copies: what is loaded may lie in the file, which is written over.
    whole = {k: v.clone() for k, v in load_file(checkpoint / "optimizer.safetensors").items()}
    moments = {k: v for k, v in whole.items() if "exp_avg_sq" not in k}
    save_file(moments, checkpoint / "optimizer.safetensors")
    with pytest.raises(RunError, match=r"optimizer.*its checksum differs"):
        resume(tmp_path / "run")
    state = unsealed(json.loads((checkpoint / "state.json").read_text()))
    state["files"]["optimizer.safetensors"] = file_sha256(checkpoint / "optimizer.safetensors")
    (checkpoint / "state.json").write_text(json.dumps(seal(state)))
    with pytest.raises(RunError, match="another adapter"):
        resume(tmp_path / "run")
    save_file(whole, checkpoint / "optimizer.safetensors")
    damage(checkpoint / "state.json", lambda state: state["state"].update(step=3_000))
    with pytest.raises(RunError, match="is damaged"):
        resume(tmp_path / "run")
    (checkpoint / "optimizer.safetensors").write_bytes(b"x")
    with pytest.raises(RunError, match="is damaged"):
        resume(tmp_path / "run")


def test_another_precision_on_resume_is_told(settings, tmp_path, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            train(load_recipe("medmcqa", settings), tmp_path / "run", "medmcqa")
    damage(tmp_path / "run" / "run.json", lambda run: run["device"].update(precision="bf16"))
    assert "differs in rounding" in resume(tmp_path / "run").record["notices"][-1]


def test_memory_that_runs_out_in_the_optimizer_is_an_error_too(settings, tmp_path, monkeypatch):
    def no_memory(self, *args):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(torch.optim.AdamW, "step", no_memory)
    with pytest.raises(TrainingError, match="outside the passes"):
        train(load_recipe("medmcqa", settings), tmp_path / "run", "medmcqa")


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_an_adapted_embedding_takes_the_plain_path(settings, tmp_path):
    targets = "train.lora.targets=[embed_tokens, q_proj]"
    run = train(load_recipe("medmcqa", [*settings, targets]), tmp_path / "run", "x")
    assert run.record["training"]["path"] == {"path": "plain", "reason": "the adapter is of a special kind"}


def test_a_fast_path_that_cannot_run_is_told_and_left(settings, tmp_path, monkeypatch):
    def missing(*args):
        raise NotImplementedError("aten::silu_backward is not there\nand more")

    monkeypatch.setattr("medqa.model.decoder.swiglu", missing)
    run = train(load_recipe("medmcqa", settings), tmp_path / "run", "x")
    assert run.record["training"]["path"]["path"] == "plain"
    assert run.record["notices"] == [
        "Plain path, slower: the fast one does not run here: aten::silu_backward is not there"
    ]


def test_what_turns_up_while_it_trains_is_kept(settings, tmp_path, monkeypatch):
    from medqa.model import decoder as decoder_module

    def refuse(device, work):
        raise RuntimeError("not now")

    monkeypatch.setattr(fast, "has_graphs", lambda device: True)
    monkeypatch.setattr(fast, "capture", refuse)
    monkeypatch.setattr(fast, "MIN_PASSES", 1)
    original = decoder_module.attend
    monkeypatch.setattr(decoder_module, "choose_kernel", lambda *args: ("varlen", "tests"))
    monkeypatch.setattr(decoder_module, "attend", lambda *args: original(*args[:-1], "row by row"))
    run = train(load_recipe("medmcqa", settings), tmp_path / "run", "x")
    assert run.record["notices"][-1].endswith("a pass can't be a graph here: not now")
    assert run.record["training"]["path"]["graph"] == "not now"


def test_the_head_cannot_be_adapted(settings, tmp_path):
    with pytest.raises(ModelError, match="adapts the head"):
        train(load_recipe("medmcqa", [*settings, "train.lora.targets=[lm_head]"]), tmp_path / "run", "x")


def test_a_non_finite_loss_stops_at_once_and_keeps_the_checkpoint(path_settings, tmp_path, monkeypatch):
    config = load_recipe("medmcqa", [*path_settings, "train.checkpoint_minutes=1e-9"])
    calls = []

    def poisoned(make, *args):
        calls.append(1)
        batch = make(*args)
        if len(calls) == 4:
            getattr(batch, "weight_N" if hasattr(batch, "weight_N") else "weight_M")[0] = float("nan")
        return batch

    with monkeypatch.context() as patch:
        replace_batches(patch, poisoned)
        with pytest.raises(TrainingError, match="step 4: loss nan") as caught:
            train(config, tmp_path / "run", "medmcqa")
    assert "step-000003" in caught.value.message
    assert "train.learning_rate=" in caught.value.hint
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3
    assert resume(tmp_path / "run").record["status"] == "complete"


def test_runs_are_never_overwritten(settings, finished_run):
    with pytest.raises(RunError, match="is there already") as caught:
        train(load_recipe("medmcqa", settings), finished_run, "medmcqa")
    assert "--resume" in caught.value.hint


def test_bad_data_leaves_no_run_folder(settings, tmp_path):
    with pytest.raises(DataError, match="longer than 20 tokens"):
        train(load_recipe("medmcqa", [*settings, "train.max_length_tokens=20"]), tmp_path / "run", "x")
    assert not (tmp_path / "run").exists()


def test_what_was_cut_is_told_and_kept(settings, tmp_path, caplog):
    config = load_recipe("medmcqa", [*settings, "train.max_length_tokens=180"])
    run = train(config, tmp_path / "run", "medmcqa")
    assert run.record["data"]["num_explanations_cut"] > 0
    assert "explanations cut" in run.record["notices"][0]
    assert "explanations cut" in caplog.text


def test_resume_refuses_other_data_and_missing_runs(settings, tmp_path, monkeypatch, small_data):
    import shutil

    data = shutil.copytree(small_data, tmp_path / "data")
    config = load_recipe("medmcqa", [*settings, f"data.name={data}"])
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "run", "medmcqa")
    lines = (data / "train.jsonl").read_text().splitlines(keepends=True)
    (data / "train.jsonl").write_text("".join(lines[1:]))
    with pytest.raises(RunError, match="data differs"):
        resume(tmp_path / "run")
    with pytest.raises(RunError, match="no run folder"):
        resume(tmp_path / "none")


def test_resuming_a_complete_run_changes_nothing(finished_run):
    before = (finished_run / "run.json").read_text()
    resume(finished_run)
    assert (finished_run / "run.json").read_text() == before


@pytest.mark.slow
def test_kill_9_and_resume_gives_the_uninterrupted_result(settings, tmp_path):
    """A real process, really killed, in the middle of a run with a checkpoint at every step."""
    more = [*settings, "train.epochs=12", "train.checkpoint_minutes=1e-9"]
    whole = train(load_recipe("medmcqa", more), tmp_path / "whole", "medmcqa")
    command = [sys.executable, "-m", "medqa", "train", "medmcqa", "--out", str(tmp_path / "cut")]
    command += [part for setting in more for part in ("--set", setting)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    metrics = tmp_path / "cut" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") >= 15):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert json.loads((tmp_path / "cut" / "run.json").read_text())["status"] == "running"
    resumed = resume(tmp_path / "cut")
    assert same(adapter_of(resumed.path), adapter_of(whole.path))


def test_a_run_that_lost_a_process_while_it_was_measured_says_so(settings, tmp_path, monkeypatch):
    """torchrun starts it anew, which must not pass for a whole run."""
    monkeypatch.setattr("medqa.train.run.launch_id", lambda: "this launch")
    monkeypatch.setattr("medqa.runs.launch_id", lambda: "this launch")
    config = load_recipe("medmcqa", settings)
    run = train(config, tmp_path / "run", "medmcqa")
    assert train(config, run.path, "medmcqa").record == run.record  # whole: nothing to do
    with pytest.raises(RunError, match="was stopped after that") as error:
        train(config, run.path, "medmcqa", end=1e12)
    assert error.value.hint == f"`medqa evaluate {run.path}` do what is missing"
    monkeypatch.setattr("medqa.train.run.launch_id", lambda: "another")
    with pytest.raises(RunError, match="is there already"):
        train(config, run.path, "medmcqa")
