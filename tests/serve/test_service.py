"""Many askers and one model: everyone gets the answer that one would get alone."""

import asyncio
import dataclasses
import threading
import time

import pytest

from medqa.config import ServeConfig
from medqa.errors import (
    BusyError,
    CalibrationError,
    DataError,
    DeviceError,
    RefusedByEngineError,
    TimeLimitError,
)
from medqa.model.generate import Written
from medqa.records import Answer
from medqa.serve import service as service_module
from medqa.serve.answerer import Answerer
from medqa.serve.service import Service
from medqa.serve.texts import TextsHere
from medqa.serve.waiting import Line, Question, Text
from medqa.testing import make_examples

EXAMPLES = make_examples(12)


@pytest.fixture
def serve(answerer):
    """Make services, and close them."""
    made = []

    def make(of=answerer, **settings):
        made.append(Service(of, **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()


def ask(service, *examples, **how):
    async def all_at_once():
        return await asyncio.gather(*(service.answer(e, **how) for e in examples), return_exceptions=True)

    return asyncio.run(all_at_once())


def close_to(one, other):
    """Rows of a pass round differently from one alone: the same answer up to that."""
    assert one.probabilities == pytest.approx(other.probabilities, abs=1e-4)
    rounded = dict.fromkeys(("confidence", "probabilities"))
    return dataclasses.replace(one, **rounded) == dataclasses.replace(other, **rounded)


def test_together_they_get_what_each_would_get_alone(serve, answerer):
    found = ask(serve(), *EXAMPLES, explain=True)
    for example, one in zip(EXAMPLES, found, strict=True):
        assert close_to(one, answerer.answer(example))
        assert one.explanation
        assert one.explanation_check["points_to"] in range(4)


def test_who_waits_is_scored_in_one_pass(serve, answerer, monkeypatch):
    passes, first, score = [], threading.Event(), service_module.score_each

    def slow(engine, examples, numbers):
        passes.append(len(examples))
        first.wait(5)
        return score(engine, examples, numbers)

    monkeypatch.setattr(service_module, "score_each", slow)
    monkeypatch.setattr(answerer.engine, "batch_tokens", 32768)  # as on an accelerator
    service = serve()

    async def one_then_many():
        one = asyncio.ensure_future(service.answer(EXAMPLES[0]))
        while not passes:
            await asyncio.sleep(0.001)
        many = [asyncio.ensure_future(service.answer(e, settings=ServeConfig(orders=o)))
                for e in EXAMPLES for o in (1, 4)]  # fmt: skip
        while service.num_waiting < len(many):
            await asyncio.sleep(0.001)
        first.set()
        return await asyncio.gather(one, *many)

    found = asyncio.run(one_then_many())
    assert passes == [1, 2 * len(EXAMPLES)]
    assert [one.num_orders for one in found[1:]] == [1, 4] * len(EXAMPLES)
    assert close_to(found[2], answerer.answer(EXAMPLES[0], explain=False, settings=ServeConfig(orders=4)))


def test_a_stream_is_the_letter_then_pieces_then_the_whole(serve, answerer):
    service = serve()

    async def parts():
        return [part async for part in service.stream(EXAMPLES[0])]

    first, *pieces, last = asyncio.run(parts())
    assert isinstance(first, Answer)
    assert first.explanation is None
    assert len(pieces) > 1
    assert "".join(pieces).strip() == last.explanation
    assert last == dataclasses.replace(
        first,
        explanation=last.explanation,
        explanation_finished=last.explanation_finished,
        explanation_check=last.explanation_check,
    )
    assert close_to(last, answerer.answer(EXAMPLES[0]))


def test_who_leaves_is_not_written_for(serve):
    service = serve()
    long = ServeConfig(max_explanation_tokens=500)

    async def leave():
        parts = service.stream(EXAMPLES[0], settings=long)
        seen = [await anext(parts), await anext(parts)]
        await parts.aclose()
        while service.num_writing:
            await asyncio.sleep(0.001)
        return seen

    assert isinstance(asyncio.run(leave())[1], str)
    assert isinstance(ask(service, EXAMPLES[1], explain=True)[0], Answer)


def test_a_full_queue_refuses_and_says_when_to_come_again(serve, monkeypatch):
    held, score = threading.Event(), service_module.score_each

    def slow(*args):
        held.wait(5)
        return score(*args)

    monkeypatch.setattr(service_module, "score_each", slow)
    service = serve(max_waiting=3)

    async def crowd():
        waiting = [asyncio.ensure_future(service.answer(e)) for e in EXAMPLES]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        held.set()
        return await asyncio.gather(*waiting, return_exceptions=True)

    found = asyncio.run(crowd())
    refused = [one for one in found if isinstance(one, BusyError)]
    assert refused
    assert all(one.retry_after_s > 0 for one in refused)
    assert len(refused) + sum(isinstance(one, Answer) for one in found) == len(EXAMPLES)


def test_what_takes_too_long_is_told_and_forgotten(serve):
    service = serve(time_limit_s=0.2)
    [error] = ask(service, EXAMPLES[0], explain=True, settings=ServeConfig(max_explanation_tokens=100_000))
    assert isinstance(error, TimeLimitError)
    assert "0.2 s" in str(error)
    service.time_limit_s = 60
    assert isinstance(ask(service, EXAMPLES[0])[0], Answer)
    for _ in range(500):
        if not service.num_writing:
            break
        time.sleep(0.01)
    assert service.num_writing == 0


def test_bad_questions_are_refused_before_they_wait(serve):
    service = serve()
    twice = dataclasses.replace(EXAMPLES[0], options=("a", "a"))
    huge = dataclasses.replace(EXAMPLES[0], question="x" * 60_000)
    long = dataclasses.replace(EXAMPLES[0], question="long " * 2000)
    found = ask(service, twice, huge, long, EXAMPLES[0])
    assert [type(one) for one in found] == [DataError, DataError, DataError, Answer]
    assert "more than once" in str(found[0])
    assert "60," in str(found[1])
    assert "tokens" in str(found[2])
    [error] = ask(service, EXAMPLES[0], settings=ServeConfig(orders=24))
    assert isinstance(error, CalibrationError)


@pytest.mark.parametrize("explain", [False, True])
def test_a_failure_reaches_who_waits_and_the_next_is_served(serve, answerer, monkeypatch, explain):
    service = serve()
    broken = "score" if not explain else "begin"

    def fail(*args, **kwargs):
        raise DeviceError("memory ran out", "less")

    with monkeypatch.context() as patch:
        patch.setattr(answerer.engine, broken, fail, raising=True)
        found = ask(service, *EXAMPLES[:3], explain=explain)
        assert [type(one) for one in found] == [DeviceError] * 3
    assert all(isinstance(one, Answer) for one in ask(service, *EXAMPLES[:3], explain=explain))
    assert service.ready


def test_closing_finishes_what_there_is_and_takes_no_more(serve):
    service = serve()

    async def close_meanwhile():
        waiting = [asyncio.ensure_future(service.answer(e, explain=True)) for e in EXAMPLES[:4]]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        closing = asyncio.ensure_future(asyncio.to_thread(service.close))
        return await asyncio.gather(*waiting, return_exceptions=True), await closing

    found, _ = asyncio.run(close_meanwhile())
    assert all(isinstance(one, Answer | BusyError) for one in found)
    assert not service.ready
    [late] = ask(service, EXAMPLES[0])
    assert isinstance(late, BusyError)
    assert "shutting down" in str(late)


class Elsewhere:
    """An engine that is not on this machine: as the local one, but for how it is driven."""

    has_base, way = False, "server"

    def __init__(self, local):
        self._local, self.closed = local, 0
        self.renderer, self.max_length_tokens = local.renderer, local.max_length_tokens
        self.score = local.score

    def close(self):
        """Nothing goes on by itself."""

    def stream(self, prompt, max_new_tokens):
        try:
            yield from ("some ", "text")
            yield Written("some text", True)
        finally:
            self.closed += 1


def test_an_engine_elsewhere_is_asked_in_the_same_way(serve, answerer):
    engine = Elsewhere(answerer.engine)
    found = ask(serve(Answerer(engine, answerer.run)), *EXAMPLES[:5], explain=True)
    assert {one.explanation for one in found} == {"some text"}
    assert all(one.explanation_check["finished"] for one in found)
    assert engine.closed == 5


def asked(example, orders=1):
    """Make a question outside a service."""

    async def make():
        return Question(example, orders)

    return asyncio.run(make())


def test_a_long_question_waits_as_long_as_it_takes_and_goes_alone():
    line, short = Line(max_number=3, max_cost=2000), [asked(e) for e in EXAMPLES[:5]]
    long = asked(dataclasses.replace(EXAMPLES[0], question="x" * 5000))
    line.took([long], seconds=5.0)
    assert line.wait_s(long.cost) == pytest.approx(5.0)
    for question in (long, *short):
        line.add(question)
    assert line.take() == short[:3]
    assert line.take() == short[3:]
    late = asked(EXAMPLES[6])
    late.since += 10  # longer than the long one takes
    line.add(late)
    assert line.take() == [long]
    line.leave(late)
    line.leave(late)
    assert len(line) == 0
    assert line.wait_s() == 0


def test_what_can_not_be_done_in_time_is_refused_at_once(serve):
    service = serve(time_limit_s=2.0)
    service._line.took([asked(EXAMPLES[0])], seconds=1.5)
    long = dataclasses.replace(EXAMPLES[0], context="and so on " * 400)
    [error] = ask(service, long)
    assert isinstance(error, BusyError)
    assert "takes too long to read" in str(error)
    assert isinstance(ask(service, EXAMPLES[0])[0], Answer)


def test_one_question_that_the_engine_refuses_spoils_no_other(serve, answerer, monkeypatch, caplog):
    score, bad = answerer.engine.score, EXAMPLES[2].question

    def fussy(items, **how):
        if any(bad in item.example.question for item in items):
            raise RefusedByEngineError("content filter", "rephrase it")
        return score(items, **how)

    monkeypatch.setattr(answerer.engine, "score", fussy)
    expected = [RefusedByEngineError if n == 2 else Answer for n in range(5)]
    assert [type(one) for one in ask(serve(), *EXAMPLES[:5])] == expected
    assert [type(one) for one in answerer.answer_many(EXAMPLES[:5])] == expected
    assert "asking each by itself" in caplog.text


def test_an_explanation_that_is_written_is_checked_however_full_the_queue(serve, monkeypatch):
    service = serve(max_waiting=1)

    async def explain():
        parts = service.stream(EXAMPLES[0])
        await anext(parts)
        monkeypatch.setattr(service, "_max_waiting", 0)  # as full as can be
        with pytest.raises(BusyError):
            await service.answer(EXAMPLES[1])
        monkeypatch.setattr(service, "_max_waiting", 1)
        piece = await anext(parts)
        monkeypatch.setattr(service, "_max_waiting", 0)
        return [piece, *[part async for part in parts]]

    last = asyncio.run(explain())[-1]
    assert last.explanation_check["points_to"] in range(4)


def test_a_text_without_a_free_place_holds_up_no_other(answerer, monkeypatch):
    class Full:
        num_free = 0

    class Free:
        num_free = 1

        def start(self, writings):
            pass

    monkeypatch.setattr(answerer.engine, "writer_for", lambda w: Full() if len(w.prompt) > 3 else Free())
    texts = TextsHere(answerer.engine, threading.Condition())

    async def begin():
        for prompt in ([1] * 9, [1] * 8, [1, 2], [1] * 7):
            texts.add(Text(prompt, 5))
        texts._begin()

    asyncio.run(begin())
    assert [len(text.prompt) for text in texts._writing] == [2]
    assert [len(text.prompt) for text in texts._waiting] == [9, 8, 7]
