"""The remote engine against a server that others wrote: llama.cpp's, with the built-in model and an adapter.

Weights, attention and caches are in fp32 there as here, so that what differs is the order of additions.
"""

import pytest
from llama_server import serving, write_gguf

from medqa.config import SourceConfig
from medqa.data.places import STARTER
from medqa.data.sources import read_split
from medqa.errors import EngineError
from medqa.evaluate.calibrate import load_calibration
from medqa.evaluate.engine import LocalEngine
from medqa.evaluate.orders import score_orders
from medqa.evaluate.remote import load_remote
from medqa.evaluate.score import Item, make_items
from medqa.model.embedded import _gguf_path
from medqa.model.tuned import load_tuned
from medqa.recipe import load_recipe
from medqa.train.run import train

pytestmark = pytest.mark.slow

# Of an option's probability. Measured: 4e-6. Two options that are as near to each other may change places.
BOUND = 1e-4
NUM_WORDS = 12  # of an explanation, at least: greedy choices may part where two tokens are as near
CONTEXT = 512


@pytest.fixture(scope="module")
def examples():
    config = SourceConfig(name=STARTER)
    return [e for split in ("validation", "train") for e in read_split(config, split).examples][:100]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that has learnt enough to choose among the letters, in a few minutes; it is calibrated."""
    settings = ["train.read_back_share=0", "evaluate.orders=1"]
    return train(
        load_recipe("quickstart", settings), tmp_path_factory.mktemp("runs") / "run", "quickstart"
    ).path


@pytest.fixture(scope="module")
def local(run):
    return LocalEngine(load_tuned(run))


@pytest.fixture(scope="module")
def remote(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned")
    write_gguf(_gguf_path(), folder / "tuned.gguf", run / "adapter")
    with serving(folder / "tuned.gguf", folder / "log", context=CONTEXT) as url:
        engine = load_remote(run, f"openai:{url}")
        yield engine
        engine.close()


@pytest.fixture(scope="module")
def scored(local, remote, examples):
    assert len(examples) == 100
    return [engine.score(make_items(engine.renderer, examples, "medqa")) for engine in (local, remote)]


def nearest(probabilities):
    """How far the likeliest option is from the next."""
    first, second = sorted(probabilities, reverse=True)[:2]
    return first - second


def test_letters_and_probabilities_are_those_of_this_machine(scored):
    here, there = scored
    assert [p.id for p in here] == [p.id for p in there]
    for ours, theirs in zip(here, there, strict=True):
        assert ours.status == theirs.status == "scored"
        assert theirs.probabilities == pytest.approx(ours.probabilities, abs=BOUND)
        assert theirs.log_likelihoods == pytest.approx(ours.log_likelihoods, abs=1e-2)
        assert theirs.choice == ours.choice or nearest(ours.probabilities) < 2 * BOUND
    assert len({p.choice for p in here}) > 1


def test_calibrated_answers_are_those_of_this_machine(scored, run, local):
    calibration = load_calibration(local.tuned.run, local.renderer).for_orders(1)
    for ours, theirs in zip(*scored, strict=True):
        a, b = (calibration.judge(p.log_likelihoods, max_risk=0.5) for p in (ours, theirs))
        assert b.probabilities == pytest.approx(a.probabilities, abs=0.01)
        if nearest(ours.probabilities) >= 2 * BOUND:
            assert (a.choice, a.answer_set, a.abstain) == (b.choice, b.answer_set, b.abstain)


def test_orders_are_asked_there_too(local, remote, examples):
    here, there = (score_orders(engine, examples[:5], 4) for engine in (local, remote))
    for ours, theirs in zip(here, there, strict=True):
        assert theirs.num_orders == ours.num_orders == 4
        assert theirs.prediction.probabilities == pytest.approx(ours.prediction.probabilities, abs=BOUND)


def test_explanations_begin_alike(local, remote, examples):
    renderer = remote.renderer
    prompts = [renderer.answer_ids(example, example.answer) for example in examples[:6]]
    here, there = (engine.write(prompts, 60) for engine in (local, remote))
    for ours, theirs in zip(here, there, strict=True):
        assert theirs.text.split()[:NUM_WORDS] == ours.text.split()[:NUM_WORDS]
        if theirs.text == ours.text:
            assert theirs.finished == ours.finished
    assert any(written.finished for written in there)
    *pieces, whole = remote.stream(prompts[0], 60)
    assert ("".join(pieces).strip(), whole) == (there[0].text, there[0])
    begun = remote.stream(prompts[0], 200)
    next(begun)
    begun.close()
    assert remote.write(prompts[:1], 60) == there[:1]


def test_what_the_server_does_not_take_is_too_long(remote, examples):
    [item] = make_items(remote.renderer, examples[:1], "medqa")
    assert remote.max_length_tokens == CONTEXT
    fills = [
        Item(item.example, [*item.prefix] + [198] * (n - len(item.prefix)), item.letters) for n in (511, 512)
    ]
    assert [p.status for p in remote.score(fills)] == ["scored", "too_long"]


def test_a_server_without_the_adapter_is_refused(remote, run, tmp_path):
    assert remote.verified["max_difference"] < BOUND
    assert remote.verified["num_other_letters"] == 0
    write_gguf(_gguf_path(), tmp_path / "base.gguf")
    with serving(tmp_path / "base.gguf", tmp_path / "log", context=CONTEXT) as url:
        with pytest.raises(EngineError, match="is not the model of") as error:
            load_remote(run, f"openai:{url}")
        assert "16 known questions" in str(error.value)
