"""Many explanations at once are the same as one by one."""

import pytest
import torch

from medqa.config import LoraConfig, ModelConfig
from medqa.errors import DeviceError
from medqa.hardware.device import choose_device
from medqa.model import generate as generate_module
from medqa.model.generate import Written, write_explanations
from medqa.model.load import find_base, load_model, load_renderer
from medqa.model.lora import attach_adapter, trainable_parameters
from medqa.testing import make_examples

EXAMPLES = make_examples(7)


class Counter:
    def __init__(self):
        self.done = 0

    def advance(self, steps=1, note=""):
        self.done += steps

    def resize(self, total):
        pass


@pytest.fixture(scope="module")
def parts(tiny_model):
    """A tiny model with an adapter that has an effect."""
    config = ModelConfig(name=str(tiny_model), device="cpu", dtype="fp32")
    base, device = find_base(config), choose_device(config)
    model = attach_adapter(load_model(base, device), LoraConfig(rank=4), seed=0).eval()
    with torch.no_grad():
        for _, p in trainable_parameters(model):
            p.normal_(std=0.2)
    return model, load_renderer(base), device


@pytest.fixture(scope="module")
def prompts(parts):
    ids = [parts[1].answer_ids(example, n % 4) for n, example in enumerate(EXAMPLES)]
    return [ids[0] + ids[1], *ids[1:]]  # of rather different lengths, the longest first


def write(parts, prompts, **settings):
    settings = {"max_new_tokens": 12, "max_length_tokens": 1024, **settings}
    return write_explanations(*parts, prompts, **settings)


@pytest.fixture
def calls(parts, monkeypatch):
    """What the model was asked to write."""
    seen, generate = [], parts[0].generate

    def spy(**kwargs):
        output = generate(**kwargs)
        seen.append({**kwargs, "output": output})
        return output

    monkeypatch.setattr(parts[0], "generate", spy)
    return seen


@pytest.mark.parametrize("adapted", [True, False])
@pytest.mark.parametrize("batch_rows", [1, 3, None])
def test_a_batch_writes_the_tokens_that_each_row_has_by_itself(parts, prompts, calls, batch_rows, adapted):
    together = write(parts, prompts, batch_rows=batch_rows, adapted=adapted)
    rows = {}
    for call in calls:
        width = call["input_ids"].shape[1]
        for mask, ids, new in zip(
            call["attention_mask"], call["input_ids"], call["output"][:, width:], strict=True
        ):
            rows[tuple(ids[mask.bool()].tolist())] = new.tolist()
    for prompt, written in zip(prompts, together, strict=True):
        calls.clear()
        [alone] = write(parts, [prompt], adapted=adapted)
        new = calls[0]["output"][0, len(prompt) :].tolist()
        assert rows[tuple(prompt)][: len(new)] == new
        assert alone == written
    assert len({written.text for written in together}) > 1


def test_the_adapter_has_a_say(parts, prompts):
    assert write(parts, prompts) != write(parts, prompts, adapted=False)


def test_it_is_the_likeliest_token_at_each_step(parts, prompts, calls):
    write(parts, prompts[:1], max_new_tokens=5)
    ids = torch.tensor([prompts[0]])
    for _ in range(5):
        ids = torch.cat([ids, parts[0](input_ids=ids).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert calls[0]["output"].tolist() == ids.tolist()


def test_a_penalty_of_the_base_model_does_not_reach_the_rows(parts, prompts, monkeypatch):
    plain = write(parts, prompts)
    monkeypatch.setattr(parts[0].get_base_model().generation_config, "repetition_penalty", 3.0)
    assert write(parts, prompts) == plain


def test_a_stop_token_ends_a_row_and_not_the_others(parts, prompts, monkeypatch):
    _, renderer, _ = parts
    stop, letter = renderer.stop_ids[0], renderer.letter_ids(1)[0][0]

    def fake(input_ids, max_new_tokens, **_):
        new = torch.full((len(input_ids), max_new_tokens), letter)
        new[1, 2:] = stop
        new[2, -1] = stop
        return torch.cat([input_ids, new], dim=1)

    monkeypatch.setattr(parts[0], "generate", fake)
    same = [prompts[1]] * 3
    assert write(parts, same, max_new_tokens=4) == [
        Written("A A A A", False),
        Written("A A", True),
        Written("A A A", True),
    ]


def test_a_stop_token_at_once_is_a_finished_empty_explanation(parts, prompts, monkeypatch):
    stop = parts[1].stop_ids[0]
    monkeypatch.setattr(
        parts[0],
        "generate",
        lambda input_ids, **_: torch.cat([input_ids, torch.full((len(input_ids), 1), stop)], dim=1),
    )
    assert write(parts, prompts[1:2]) == [Written("", True)]


def test_rows_that_leave_less_room_do_not_cut_the_others(parts, prompts, calls):
    limit = len(prompts[0]) + 4
    written = write(parts, prompts, max_length_tokens=limit)
    assert written[1:] == write(parts, prompts[1:])
    assert written[:1] == write(parts, prompts[:1], max_new_tokens=4)
    assert [call["max_new_tokens"] for call in calls[:2]] == [4, 12]
    for call in calls[:2]:
        lengths = call["attention_mask"].sum(1)
        assert int(lengths.max()) + call["max_new_tokens"] <= limit


def test_prompts_without_room_are_empty_and_counted(parts, prompts):
    task = Counter()
    written = write(parts, prompts, max_length_tokens=len(prompts[0]), task=task)
    assert written[0] == Written("", False)
    assert all(w.text for w in written[1:])
    assert task.done == len(prompts)
    assert write(parts, prompts, max_new_tokens=0) == [Written("", False)] * len(prompts)
    assert write(parts, []) == []


def test_short_memory_halves_the_batch_and_says_so(parts, prompts, monkeypatch, caplog):
    whole, task, sizes = write(parts, prompts), Counter(), []
    inner = generate_module._write

    def short_of_memory(model, renderer, device, rows, limit, *, adapted):
        sizes.append(len(rows))
        if len(rows) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return inner(model, renderer, device, rows, limit, adapted=adapted)

    monkeypatch.setattr(generate_module, "_write", short_of_memory)
    assert write(parts, prompts, batch_rows=5, task=task) == whole
    assert sizes == [5, 2, 2, 2, 1]
    assert "going on with 2 explanations" in caplog.text
    assert task.done == len(prompts)


def test_other_errors_and_a_single_row_without_memory_are_not_retried(parts, prompts, monkeypatch):
    def fail(exc):
        def raise_it(*_, **__):
            raise exc

        monkeypatch.setattr(generate_module, "_write", raise_it)

    fail(torch.OutOfMemoryError("out of memory"))
    with pytest.raises(DeviceError, match="write the explanation"):
        write(parts, prompts)
    fail(RuntimeError("something else"))
    with pytest.raises(RuntimeError, match="something else"):
        write(parts, prompts)
