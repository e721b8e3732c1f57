"""Texts that are written together, and come and go, are the same as each by itself the plain way."""

import pytest
import torch

from medqa.config import LoraConfig, ModelConfig
from medqa.hardware.device import choose_device
from medqa.model import packed_writer
from medqa.model.decoder import PackedDecoder
from medqa.model.generate import write_explanations
from medqa.model.load import find_base, load_model, load_renderer
from medqa.model.lora import attach_adapter, trainable_parameters
from medqa.model.packed_writer import PackedWriter
from medqa.model.writer import PlainWriter, Writing
from medqa.testing import make_examples

LIMIT = 24


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
    ids = [parts[1].answer_ids(example, n % 4) for n, example in enumerate(make_examples(7))]
    return [ids[0] * 3, *ids[1:]]  # the first one passes from one view of the cache to the next


@pytest.fixture(scope="module")
def expected(parts, prompts):
    return write_explanations(*parts, prompts, max_new_tokens=LIMIT, max_length_tokens=1024, batch_rows=1)


def make_writer(kind, parts, slots=3):
    model, _, device = parts
    if kind == "plain":
        return PlainWriter(model, device)
    return PackedWriter(PackedDecoder(model), device, 1024, slots)


def drain(writer, waiting):
    """Begin texts as slots come free, until all are written."""
    waiting, going = list(waiting), []
    while waiting or any(w.finished is None for w in going):
        begun = [waiting.pop(0) for _ in range(min(writer.num_free, len(waiting), 1 + len(going) % 2))]
        writer.start(begun)
        going += begun
        writer.step()


@pytest.mark.parametrize("kind", ["plain", "packed"])
def test_texts_that_come_and_go_are_as_written_alone(kind, parts, prompts, expected):
    writer = make_writer(kind, parts)
    room = writer.num_free
    writings = [Writing(parts[1], prompt, LIMIT) for prompt in prompts]
    drain(writer, writings)
    assert [w.written() for w in writings] == expected
    assert len({text.text for text in expected}) > 3
    assert writer.num_free == room


@pytest.mark.parametrize("kind", ["plain", "packed"])
def test_a_text_that_is_stopped_gives_its_slot_back_and_harms_no_other(kind, parts, prompts, expected):
    writer = make_writer(kind, parts)
    room = writer.num_free
    one, other = (Writing(parts[1], prompt, LIMIT) for prompt in prompts[:2])
    writer.start([one, other])
    writer.step()
    writer.stop(one)
    writer.stop(one)
    assert (one.finished, len(one.ids), writer.num_free) == (None, 2, room - 1)
    drain(writer, [Writing(parts[1], prompts[2], LIMIT)])
    while other.finished is None:
        writer.step()
    assert other.written() == expected[1]
    writer.step()
    assert writer.num_free == room


@pytest.mark.parametrize("failing", ["run", "logits", "too many"])
def test_a_pass_that_fails_gives_its_slots_back(parts, prompts, expected, monkeypatch, failing):
    writer = make_writer("packed", parts)
    room = writer.num_free
    [going, *others] = [Writing(parts[1], prompt, LIMIT) for prompt in prompts]
    writer.start([going])

    def fail(*args):
        raise torch.OutOfMemoryError("out of memory")

    with monkeypatch.context() as broken:
        if failing != "too many":
            broken.setattr(writer._decoder, failing, fail)
        with pytest.raises((torch.OutOfMemoryError, IndexError)):
            writer.start(others if failing == "too many" else others[: room - 1])
    assert writer.num_free == room - 1
    drain(writer, others)
    while going.finished is None:
        writer.step()
    assert [w.written() for w in (going, *others)] == expected
    assert writer.num_free == room


def test_the_stop_token_ends_a_text_and_is_no_part_of_it(parts, prompts, monkeypatch):
    renderer = parts[1]
    [full] = write_explanations(*parts, prompts[1:2], max_new_tokens=LIMIT, max_length_tokens=1024)
    probe = Writing(renderer, prompts[1], LIMIT)
    drain(make_writer("packed", parts), [probe])
    later = next(n for n, token in enumerate(probe.ids) if n > 3 and token not in probe.ids[:n])
    monkeypatch.setattr(renderer, "stop_ids", [probe.ids[later]])
    for kind in ("plain", "packed"):
        writing = Writing(renderer, prompts[1], LIMIT)
        drain(make_writer(kind, parts), [writing])
        assert (writing.finished, writing.ids) == (True, probe.ids[:later])
        assert full.text.startswith(writing.written().text)


def test_pieces_add_up_to_the_text_and_never_split_a_character(parts):
    renderer = parts[1]
    text = " \u00e9t\u00e9 \u2014 caf\u00e9 \U0001f9e0 end "
    writing = Writing(renderer, [1], 10**6)
    pieces = []
    for token in renderer.tokenizer(text, add_special_tokens=False)["input_ids"]:
        writing.add(token)
        pieces.append(writing.piece())
    assert "".join(pieces) == text.lstrip()
    assert not any("\ufffd" in piece for piece in pieces)
    assert "" in pieces
    assert writing.written().text == text.strip()


def test_steps_over_all_slots_as_graphs_need_them_write_the_same(parts, prompts, expected, monkeypatch):
    monkeypatch.setattr(packed_writer, "has_graphs", lambda device: True)
    captured = []

    def capture(device, work):
        captured.append(work)
        for _ in range(3):  # a capture runs it beforehand
            work()
        return work

    monkeypatch.setattr(packed_writer, "capture", capture)
    writings = [Writing(parts[1], prompt, LIMIT) for prompt in prompts]
    drain(make_writer("packed", parts), writings)
    assert [w.written() for w in writings] == expected
    assert len(captured) == 2  # short texts, and longer ones


def test_a_text_without_room_is_empty_and_not_finished(parts, prompts):
    writing = Writing(parts[1], prompts[0], 0)
    for kind in ("plain", "packed"):
        make_writer(kind, parts).start([writing])
        assert (writing.written().text, writing.finished) == ("", False)


def test_room_in_a_slot_is_for_prompt_and_text(parts):
    writer = make_writer("packed", parts)
    assert writer.length == 1024
    assert writer.fits(Writing(parts[1], [1] * 1000, 24))
    assert not writer.fits(Writing(parts[1], [1] * 1000, 25))
    long = Writing(parts[1], [7, 8] * 498, 28)  # looks at every place of its slot
    plain = Writing(parts[1], [7, 8] * 498, 28)
    drain(writer, [long])
    drain(make_writer("plain", parts), [plain])
    assert long.ids == plain.ids
