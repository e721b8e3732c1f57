"""The fast path's trajectory equals the plain one's: losses, weights, moments, captured or not."""

import functools

import pytest
import torch

from medqa.config import LoraConfig, ModelConfig, TrainConfig
from medqa.hardware.device import choose_device
from medqa.hardware.group import Group
from medqa.model import decoder as decoder_module
from medqa.model.batch import tokenise_rows
from medqa.model.decoder import PackedDecoder
from medqa.model.load import find_base, load_model, load_renderer
from medqa.model.lora import attach_adapter, trainable_parameters
from medqa.testing import make_examples, row_of
from medqa.train import fast
from medqa.train.choice import choose_engine
from medqa.train.engine import PlainEngine, own_passes
from medqa.train.fast import PackedEngine, _passes
from medqa.train.schedule import plan_steps

CONFIG = TrainConfig(batch_size=4, epochs=4, learning_rate=0.005, weight_decay=0.01, lora=LoraConfig(rank=4))


class Bench:
    """A tiny model and rows, a fresh adapter each time."""

    def __init__(self, folder):
        self.config = ModelConfig(name=str(folder), device="cpu")
        self.device = choose_device(self.config)
        base = find_base(self.config)
        self.base = base
        self.rows, _ = tokenise_rows(load_renderer(base), make_examples(16), max_length_tokens=512)
        for number in range(0, 16, 3):
            self.rows[number] = self.rows[number].without_explanation()
        plan = plan_steps([len(row) for row in self.rows], CONFIG, balanced=True)
        self.steps = [[self.rows[index] for index in step] for step in plan]
        self.notices = []

    def model(self):
        return attach_adapter(load_model(self.base, self.device), CONFIG.lora, seed=0)

    @functools.cached_property
    def expected(self):
        """The plain path's trajectory."""
        return self.run(self.plain())

    def plain(self):
        return PlainEngine(self.model(), CONFIG, self.device)

    def packed(self):
        engine = PackedEngine(PackedDecoder(self.model()), CONFIG, self.device, self.notices.append)
        engine.expect(self.steps, CONFIG.batch_size)
        return engine

    def run(self, engine, steps=None, rows_a_pass=4):
        results = []
        steps = steps or self.steps
        for number, step in enumerate(steps):
            # Every third step comes without a word of the next, or with one that turns out wrong.
            following = [[], steps[0], *steps[number + 1 : number + 2]][: 1 + number % 3][-1]
            results.append(engine.gradients(step, rows_a_pass, following))
            engine.update(CONFIG.learning_rate)
        return results


@pytest.fixture(scope="module")
def shared_bench(tiny_model):
    return Bench(tiny_model)


@pytest.fixture
def bench(shared_bench):
    shared_bench.notices = []
    return shared_bench


def assert_same(ours, expected, rel=1e-4):
    for field in ("loss", "answer_nll", "grad_norm"):
        assert [getattr(r, field) for r in ours] == pytest.approx(
            [getattr(r, field) for r in expected], rel=rel
        )
    assert [r.num_tokens for r in ours] == [r.num_tokens for r in expected]


def assert_same_weights(ours, expected):
    for name, tensor in expected.tensors()[0].items():
        torch.testing.assert_close(ours.tensors()[0][name], tensor, rtol=1e-3, atol=1e-4, msg=name)


def test_the_trajectory_is_that_of_the_plain_path(bench):
    plain, packed = bench.plain(), bench.packed()
    expected, ours = bench.run(plain), bench.run(packed)
    assert expected[-1].loss < 0.96 * expected[0].loss  # it learns: the steps are not all alike
    assert max(r.grad_norm for r in expected) > 1  # and gradients are clipped
    assert_same(ours, expected)
    assert_same_weights(packed, plain)


@pytest.mark.parametrize("rows_a_pass", [1, 3])
def test_accumulated_passes_give_the_same(bench, rows_a_pass):
    assert_same(bench.run(bench.packed(), rows_a_pass=rows_a_pass), bench.run(bench.packed()))


@pytest.mark.slow
def test_one_way_goes_on_where_the_other_stopped(bench):
    whole = bench.plain()
    expected = bench.run(whole)
    for first, second in ((bench.plain(), bench.packed()), (bench.packed(), bench.plain())):
        bench.run(first, bench.steps[:7])
        weights, optimizer = first.tensors()
        second.load(weights, {name: dict(fields) for name, fields in optimizer.items()})
        assert_same(bench.run(second, bench.steps[7:]), expected[7:])
        assert_same_weights(second, whole)


def test_the_model_holds_the_weights_at_the_end(bench):
    model = bench.model()
    engine = PackedEngine(PackedDecoder(model), CONFIG, bench.device, bench.notices.append)
    bench.run(engine, bench.steps[:3])
    engine.finish()
    weights, _ = engine.tensors()
    assert all(torch.equal(p.detach(), weights[name]) for name, p in trainable_parameters(model))


def attend_by_bounds(q, k, v, batch, kernel):
    """Attention that finds the rows in the tensor, as a captured kernel does, never on the host."""
    row = torch.searchsorted(batch.bound_S, torch.arange(len(q), dtype=torch.int32), right=True)
    place = torch.arange(len(q))
    seen = (row[:, None] == row) & (place[:, None] >= place)
    groups = q.shape[1] // k.shape[1]
    q, k, v = (x.transpose(0, 1) for x in (q, k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    return out.transpose(0, 1)


@pytest.fixture
def graphs(monkeypatch):
    """A device that captures: work is run twice, and its replay reads the same tensors again."""
    captured = []

    def capture(device, work):
        work()
        work()
        captured.append(work)
        return work

    monkeypatch.setattr(fast, "has_graphs", lambda device: True)
    monkeypatch.setattr(fast, "capture", capture)
    monkeypatch.setattr(decoder_module, "choose_kernel", lambda *args: ("varlen", "tests"))
    monkeypatch.setattr(decoder_module, "attend", attend_by_bounds)
    return captured


@pytest.mark.slow
def test_captured_passes_of_one_shape_give_the_plain_trajectory(bench, graphs):
    expected = bench.expected
    assert_same(bench.run(bench.packed()), expected)
    assert len(graphs) == 1  # one shape for all batches
    assert not bench.notices


def test_a_smaller_pass_is_captured_anew(bench, graphs):
    engine = bench.packed()
    engine.expect(bench.steps, 2)
    assert_same(bench.run(engine, rows_a_pass=2), bench.expected)
    assert len(graphs) == 1


def test_few_passes_are_not_captured(bench, graphs):
    engine = bench.packed()
    engine.expect(bench.steps[:3], 4)
    bench.run(engine, bench.steps[:3])
    assert not graphs


BROKEN = {
    "nothing": lambda work: lambda: None,
    "twice": lambda work: lambda: (work(), work()),
}


@pytest.mark.parametrize("kind", [pytest.param("nothing", marks=pytest.mark.slow), "twice"])
def test_a_replay_that_differs_is_found_and_told(bench, graphs, monkeypatch, kind):
    monkeypatch.setattr(fast, "capture", lambda device, work: BROKEN[kind](work))
    assert_same(bench.run(bench.packed()), bench.expected)
    assert len(bench.notices) == 1
    assert "its result is off by" in bench.notices[0]


def test_a_replay_that_is_not_a_number_is_found(bench, graphs, monkeypatch):
    engine = bench.packed()

    def poisoned(device, work):
        return lambda: engine._sums.fill_(float("nan"))

    monkeypatch.setattr(fast, "capture", poisoned)
    assert_same(bench.run(engine), bench.expected)
    assert "its result is off" in bench.notices[0]


def test_what_cannot_be_captured_runs_uncaptured_and_says_so(bench, graphs, monkeypatch):
    def refuse(device, work):
        work()
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(fast, "capture", refuse)
    assert_same(bench.run(bench.packed()), bench.expected)
    assert bench.notices[0].endswith("operation not permitted when stream is capturing")


def test_the_path_is_chosen_with_its_reason(bench, caplog):
    caplog.set_level("INFO")
    cases = (
        (CONFIG, PackedEngine, "equals the plain one on your own rows"),
        (CONFIG.model_copy(update={"fast_path": False}), PlainEngine, "set by train.fast_path"),
        (CONFIG.model_copy(update={"lora": LoraConfig(rank=2, dropout=0.1)}), PlainEngine, "dropout"),
    )
    for config, kind, reason in cases:
        model = attach_adapter(load_model(bench.base, bench.device), config.lora, seed=0)
        assert isinstance(choose_engine(model, bench.rows, config, bench.device, bench.notices.append), kind)
        assert reason in caplog.text
    assert not bench.notices


def test_a_path_that_differs_is_not_taken(bench, monkeypatch):
    monkeypatch.setattr(decoder_module, "rotate", lambda x, *rest: x)
    engine = choose_engine(bench.model(), bench.rows, CONFIG, bench.device, bench.notices.append)
    assert isinstance(engine, PlainEngine)
    assert "the fast one differs from it here (loss off by" in bench.notices[0]


def test_a_process_without_rows_makes_no_pass_or_an_empty_one():
    rows = [row_of([1, 2, 3], 2)]
    assert _passes(rows, 4, Group(rank=1, size=2)) == []
    assert own_passes(rows, 4, Group(rank=1, size=2)) == [[]]
    assert _passes(rows, 4, Group(rank=0, size=2)) == own_passes(rows, 4, Group(rank=0, size=2)) == [rows]
