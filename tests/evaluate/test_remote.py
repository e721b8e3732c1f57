"""The remote engine against a small server that answers in each layout, and misbehaves in many ways."""

import dataclasses
import email.utils
import json
import logging
import math
import re
import socket
import threading
import time

import pytest
from fake_server import fake_server

from medqa.errors import EngineError, ModelError
from medqa.evaluate import remote
from medqa.evaluate.canaries import MAX_DIFFERENCE, compare_canaries, score_canaries
from medqa.evaluate.connection import KEY_VARIABLE, Connection
from medqa.evaluate.protocol import Address
from medqa.evaluate.remote import RemoteEngine, load_remote
from medqa.evaluate.score import Item, make_items
from medqa.evaluate.transport import Stop
from medqa.files import file_sha256, write_json
from medqa.model.generate import Written
from medqa.model.load import load_run_renderer
from medqa.prompts import PromptRenderer
from medqa.recipe import load_recipe
from medqa.runs import RunFolder
from medqa.testing import make_examples, make_tokenizer
from medqa.trust.store import Canary

LENGTH = 600
STYLES = ("vllm", "sglang", "llama.cpp")


def likelihoods(prompt, size=300):
    """A log-probability for each token, other ones for each prompt; the letters are among the likeliest."""
    mark = sum(place * token for place, token in enumerate(prompt, 1))
    return [-0.5 - ((mark + 37 * token) % 101) / 50 - 8 * (token < 256) for token in range(size)]


@pytest.fixture(scope="module")
def renderer(tokenizer):
    return PromptRenderer(tokenizer)


@pytest.fixture(scope="module")
def items(renderer):
    return make_items(renderer, make_examples(12), "medqa")


@pytest.fixture
def server(tokenizer):
    with fake_server(tokenizer, lambda prompt: likelihoods(prompt, len(tokenizer))) as server:
        yield server


@pytest.fixture
def connect(server, renderer, tmp_path):
    """Make engines on the server, which are closed at the end."""
    made = []

    def connect(names="", length=LENGTH, renderer=renderer, **settings):
        run = RunFolder(tmp_path / "run", {"base_model": {"max_length_tokens": length}})
        settings = {"backoff_s": 0.001, "num_tries": 3, **settings}
        address = Address.parse(f"openai:{server.url}{names}")
        connection = Connection(address.url, **settings)
        made.append(connection)
        return RemoteEngine(run, renderer, address, connection)

    yield connect
    for connection in made:
        connection.close()


def expected(item):
    values = likelihoods(item.prefix)
    return tuple(values[letter[0]] for letter in item.letters)


class Task:
    steps = 0

    def advance(self, steps=1, note=""):
        self.steps += steps


@pytest.mark.parametrize("style", STYLES)
def test_letters_are_read_from_each_layout_in_the_order_asked(server, connect, items, style):
    server.style, task = style, Task()
    found = connect().score(items, task=task)
    assert [p.log_likelihoods for p in found] == [expected(item) for item in items]
    assert [(p.id, p.answer, p.status) for p in found] == [
        (item.example.id, item.example.answer, "scored") for item in items
    ]
    assert task.steps == len(items)
    body = next(body for body in server.asked if body["prompt"] == items[0].prefix)
    assert (body["model"], body["max_tokens"], body["temperature"], body["logprobs"]) == ("tuned", 1, 0, 20)


def test_lm_eval_s_prompt_goes_the_same_way(connect, renderer):
    items = make_items(renderer, make_examples(3), "lm_eval")
    assert [p.log_likelihoods for p in connect().score(items)] == [expected(item) for item in items]


def test_no_more_requests_are_under_way_than_allowed(server, connect, items):
    server.pause = lambda: time.sleep(0.003)
    engine = connect(concurrency=3)
    assert len(engine.score(items)) == len(items)
    assert 1 < server.most_under_way <= 3


@pytest.mark.parametrize("style", STYLES)
def test_more_tokens_are_asked_for_where_a_letter_is_missing(server, connect, items, style, caplog):
    def deep(prompt):
        values = likelihoods(prompt)[: len(server.tokenizer)]
        values[items[0].letters[2][0]] = -30.0
        return values

    server.style, server.likelihoods = style, deep
    with caplog.at_level("INFO"):
        found = connect().score(items[:2])
    assert all(p.log_likelihoods[2] == -30.0 for p in found)
    assert {body["logprobs"] for body in server.asked} == {20, 500}
    assert "2 of 2 questions: a letter was not among the 20 likeliest" in caplog.text


def test_a_server_that_gives_too_few_is_told_apart(server, connect, items):
    server.likelihoods = lambda prompt: [-9.0 if token > 255 else -1.0 for token in range(300)]
    server.max_logprobs = 20
    with pytest.raises(
        EngineError, match=r"A of question 'q0' is not among.*greater than max allowed"
    ) as error:
        connect().score(items[:1])
    assert "--max-logprobs" in error.value.hint
    server.max_logprobs = None
    server.likelihoods = lambda prompt: [-1.0] * 30  # a short list, whatever is asked for
    with pytest.raises(EngineError, match="A of question 'q0' is not among"):
        connect().score(items[:1])


@pytest.mark.parametrize("style", STYLES)
def test_only_the_letters_log_probabilities_are_judged(server, connect, items, style):
    item, odd = items[0], [-math.inf, math.nan, None, 3.5]
    letters = {letter[0] for letter in item.letters}

    def deep(prompt):
        values = likelihoods(prompt, len(server.tokenizer))
        values[item.letters[2][0]] = -30.0
        return [value if token in letters else -60.0 - token for token, value in enumerate(values)]

    def layout(top, body, plain=server.layout):
        return plain([(t, v if t in letters else odd[t % len(odd)]) for t, v in top], body)

    server.style, server.likelihoods, server.layout = style, deep, layout
    [found] = connect().score([item])
    assert found.log_likelihoods == tuple(deep(item.prefix)[letter[0]] for letter in item.letters)
    for letter in letters:
        letters.remove(letter)
        with pytest.raises(EngineError, match="log-probability"):
            connect().score([item])
        letters.add(letter)


def test_letters_that_share_their_text_are_refused(server, connect, items, monkeypatch):
    server.style = "sglang"
    engine = connect()
    monkeypatch.setattr(
        type(engine.renderer.tokenizer), "batch_decode", lambda self, ids, **k: [" A"] * len(ids)
    )
    with pytest.raises(EngineError, match="' A' is that of"):
        engine.score(items[:1])


def test_letters_of_several_tokens_are_refused(connect, items):
    with pytest.raises(EngineError, match="several tokens for a letter") as error:
        connect(renderer=PromptRenderer(make_tokenizer(whole_letters=False)))
    assert "leave --engine out" in error.value.hint
    two = Item(items[0].example, items[0].prefix, [[1, 2]] * 4)
    with pytest.raises(EngineError, match="a letter takes several tokens"):
        connect().score([two])


def test_the_shorter_of_model_and_server_counts(server, connect, items, renderer):
    assert connect().max_length_tokens == LENGTH
    length = len(items[3].prefix) + 1
    server.models = [{"id": "tuned", "meta": {"n_ctx": length}}]  # llama.cpp's
    engine, task = connect(), Task()
    assert engine.max_length_tokens == length
    longer = Item(items[0].example, [*items[0].prefix] * 2, items[0].letters)
    short, long = engine.score([items[3], longer], task=task)
    assert (short.status, long.status, long.log_likelihoods) == ("scored", "too_long", ())
    assert (task.steps, len(server.asked)) == (2, 1)
    server.models = [{"id": "base", "max_model_len": 99}, {"id": "tuned", "parent": "base"}]  # vLLM's adapter
    assert connect("#tuned").max_length_tokens == 99
    server.models = [{"id": "tuned"}]
    assert connect().max_length_tokens == LENGTH
    with pytest.raises(EngineError, match="says how long an input may be"):
        connect(length=None)


def test_models_are_chosen_by_name(server, connect, items):
    server.models = [{"id": "base", "max_model_len": 99}, {"id": "tuned", "parent": "base"}]
    with pytest.raises(EngineError, match="offers several models: 'base', 'tuned'") as error:
        connect()
    assert error.value.hint.endswith("#tuned,base")
    with pytest.raises(EngineError, match="offers no model 'other', only 'base', 'tuned'"):
        connect("#other")
    alone = connect("#tuned")
    assert not alone.has_base
    with pytest.raises(EngineError, match="was not named a base model"):
        alone.score(items[:1], adapted=False)
    both = connect("#tuned,base", length=None)
    assert both.has_base
    both.score([Item(items[0].example, [5], items[0].letters)], adapted=False)
    both.score([Item(items[0].example, [5], items[0].letters)])
    assert [body["model"] for body in server.asked] == ["base", "tuned"]
    assert connect("#base:tuned,base").tuned.name == "base:tuned"  # SGLang's way
    assert connect("#tuned").device_record()["name"] == f"tuned at {server.url}"


@pytest.mark.parametrize(
    "text",
    ["", "http://host/v1", "openai:", "openai:host:8000", "openai:ftp://host/v1", "openai:http://h/v1#a,b,c"],
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(EngineError, match=re.escape(repr(text))) as error:
        Address.parse(text)
    assert "openai:http" in error.value.hint


def test_a_password_in_the_url_is_not_repeated():
    with pytest.raises(EngineError) as error:
        Address.parse("openai:http://me:secret@host/v1")
    assert "secret" not in str(error.value)
    assert KEY_VARIABLE in error.value.hint


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_what_may_pass_is_tried_again_and_told(server, connect, items, status, caplog):
    server.planned = [(status, {}, json.dumps({"error": {"message": "Loading model"}}))]
    engine = connect()
    [found] = engine.score(items[:1])
    assert found.log_likelihoods == expected(items[0])
    assert f"{status}, Loading model; try 2 of 3" in caplog.text
    assert engine.device_record()["num_retries"] == 1


class Waits(Stop):
    """Keeps how long was waited, and doesn't wait."""

    def __init__(self):
        super().__init__()
        self.seconds = []

    def wait(self, seconds):
        self.seconds.append(seconds)


def test_the_server_s_own_wait_is_kept_and_others_grow(server, connect):
    date = email.utils.formatdate(time.time() + 30, usegmt=True)
    engine, waits = connect(num_tries=6, backoff_s=1.0), Waits()
    server.planned = [(429, {"Retry-After": value}, "busy") for value in ("7", date, "soon", "")]
    engine.connection.post("completions", {"prompt": [1]}, waits)
    seven, thirty, third, fourth = waits.seconds
    assert 7 <= seven <= 7.5
    assert 20 < thirty <= 30
    assert 2 <= third <= 6
    assert 4 <= fourth <= 12
    server.planned = [(429, {"Retry-After": "3600"}, "busy")]
    with pytest.raises(EngineError, match="asks to wait 3600 s: 429, busy"):
        engine.connection.post("completions", {"prompt": [1]}, waits)


def test_a_server_that_stays_busy_ends_it(server, connect, items):
    engine = connect()
    server.planned = [(503, {}, "no more")] * 100
    with pytest.raises(EngineError, match="doesn't answer, after 3 tries: 503, no more"):
        engine.score(items)


def test_a_server_that_hangs_up_is_asked_again(server, connect, items, caplog):
    server.planned = [lambda handler: handler.hang_up()] * 2
    [found] = connect().score(items[:1])
    assert found.status == "scored"
    assert caplog.text.count("try ") == 2


def test_a_slow_server_is_given_up(server, connect, items):
    engine, go_on = connect(timeout_s=0.05, num_tries=2), threading.Event()
    server.pause = lambda: go_on.wait(5)
    try:
        with pytest.raises(EngineError, match=r"after 2 tries: silent for 0.05 s"):
            engine.score(items[:1])
    finally:
        go_on.set()


def test_a_dead_server_is_named(renderer, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        connection = Connection(url, num_tries=2, backoff_s=0.001)
        with pytest.raises(
            EngineError, match=re.escape(f"{url} doesn't answer, after 2 tries: ConnectError")
        ):
            RemoteEngine(RunFolder(tmp_path, {}), renderer, Address(url), connection)
        connection.close()


@pytest.mark.parametrize(
    ("status", "text", "said"),
    [
        (400, json.dumps({"error": {"message": "prompt too long"}}), "400, prompt too long"),
        (400, json.dumps({"message": "old vLLM", "object": "error"}), "400, old vLLM"),
        (401, json.dumps({"error": "Unauthorized"}), "401, Unauthorized"),
        (422, json.dumps({"detail": [{"loc": ["prompt"]}]}), "422, [{'loc': ['prompt']}]"),
        (404, "<html>no such\n  page</html>", "404, <html>no such page</html>"),
        (500, "", "500, no message"),
        (307, "elsewhere", "307, elsewhere"),
    ],
)
def test_what_the_server_refuses_is_told_in_its_own_words(server, connect, items, status, text, said):
    server.planned = [(status, {}, text)]
    with pytest.raises(EngineError, match=re.escape(f"refuses: {said}")):
        connect().score(items[:1])
    assert len(server.asked) == 1


BROKEN = {
    "no JSON": "<html>",
    "no choices": "{}",
    "a list": "[]",
    "no log-probabilities": '{"choices": [{"logprobs": null}]}',
    "an empty list": '{"choices": [{"logprobs": {"content": []}}]}',
    "no likeliest": '{"choices": [{"logprobs": {"top_logprobs": []}}]}',
    "not a number": '{"choices": [{"logprobs": {"top_logprobs": [{"token_id:LETTER": NaN}]}}]}',
    "infinite": '{"choices": [{"logprobs": {"top_logprobs": [{"token_id:LETTER": -Infinity}]}}]}',
    "null": '{"choices": [{"logprobs": {"top_logprobs": [{"token_id:LETTER": null}]}}]}',
    "a logit": '{"choices": [{"logprobs": {"top_logprobs": [{"token_id:LETTER": 12.5}]}}]}',
    "text": '{"choices": [{"logprobs": {"content": [{"top_logprobs": '
    '[{"id": LETTER, "token": 1, "logprob": ""}]}]}}]}',
    "an odd id": '{"choices": [{"logprobs": {"top_logprobs": [{"token_id:x": -1}]}}]}',
    "bytes": b"\xff\xfe",
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_answers_that_make_no_sense_are_refused_at_once(server, connect, items, text):
    letter = str(items[0].letters[0][0])
    server.planned = [(200, {}, text if isinstance(text, bytes) else text.replace("LETTER", letter))]
    with pytest.raises(EngineError):
        connect().score(items[:1])
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    "models", [[], [{}], [{"id": 3}], ["x"], None, [{"id": "a", "max_model_len": "long"}]]
)
def test_a_list_of_models_that_makes_no_sense_is_refused(server, connect, models):
    server.models = models
    with pytest.raises(EngineError, match="model"):
        connect()


def test_the_url_without_v1_gets_a_hint(server, renderer, tmp_path):
    url = server.url.removesuffix("/v1")
    connection = Connection(url)
    with pytest.raises(EngineError, match="404, Not Found") as error:
        RemoteEngine(RunFolder(tmp_path, {}), renderer, Address(url), connection)
    connection.close()
    assert "/v1" in error.value.hint


def test_the_key_is_sent_and_never_shown(server, connect, items, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv(KEY_VARIABLE, "sk-secret")
    engine = connect()
    echo = json.dumps({"error": {"message": "bad key sk-secret"}})
    server.planned = [(503, {}, echo), (401, {}, echo)]
    with pytest.raises(EngineError, match=r"401, bad key \*\*\*") as error:
        engine.score(items[:1])
    assert [headers["Authorization"] for headers in server.headers] == ["Bearer sk-secret"] * 3
    assert KEY_VARIABLE in error.value.hint
    seen = caplog.text + str(error.value) + repr(vars(engine)) + json.dumps(engine.device_record())
    assert "sk-secret" not in seen
    monkeypatch.setenv(KEY_VARIABLE, "sk-secr\u00e9t")
    with pytest.raises(EngineError, match=KEY_VARIABLE) as error:
        connect()
    assert "sk-" not in str(error.value)
    monkeypatch.delenv(KEY_VARIABLE)
    server.headers.clear()
    connect()
    assert "Authorization" not in server.headers[0]


def test_texts_are_written_as_on_this_machine(server, connect, renderer):
    engine, task = connect(), Task()
    prompts = [[1, 2, 3], [4] * LENGTH, [5] * (LENGTH - 2)]
    server.text, server.reason = " Since it is so.\n", "stop"
    one, none, cut = engine.write(prompts, 40, task=task)
    assert (one.text, one.finished) == (cut.text, cut.finished) == ("Since it is so.", True)
    assert (none.text, none.finished) == ("", False)
    assert task.steps == 3
    bodies = {len(body["prompt"]): body for body in server.asked}
    assert {size: body["max_tokens"] for size, body in bodies.items()} == {3: 40, LENGTH - 2: 2}
    assert bodies[3]["stop_token_ids"] == renderer.stop_ids
    assert bodies[3]["stop"] == ["<|end|>"]
    assert bodies[3]["temperature"] == 0
    assert "logprobs" not in bodies[3]
    server.reason = "length"
    assert not engine.write(prompts[:1], 40)[0].finished
    server.reason = "abort"
    with pytest.raises(EngineError, match="broke off the text: 'abort'"):
        engine.write(prompts[:1], 40)


def test_a_text_comes_in_pieces(server, connect):
    server.text = "Since it is so."
    engine = connect()
    *pieces, whole = engine.stream([1, 2], 40)
    assert pieces == ["Since", "it", "is", "so."]
    assert whole == Written("".join(pieces), True)
    assert server.asked[0]["stream"] is True
    assert list(engine.stream([1] * LENGTH, 40)) == [Written("", False)]


def test_only_line_ends_end_a_line_of_a_stream(server, connect):
    server.text = "one\u2028two\u2029three\x85four\x0bfive\x1csix"
    assert list(connect().stream([1, 2], 40)) == [server.text, Written(server.text, True)]


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ("", "broke off the text"),
        ('data: {"error": {"message": "out of memory"}}\n\n', "out of memory"),
        ('error: {"message": "gone"}\n\n', "gone"),
        ("data: {{{\n\n", "can't be read"),
        ('data: {"choices": [{"text": "", "finish_reason": "abort"}]}\n\n', "abort"),
    ],
)
def test_a_stream_that_breaks_off_is_an_error(server, connect, end, said):
    server.planned = [lambda handler: handler.stream([("Since", None)], end)]
    stream = connect().stream([1, 2], 40)
    assert next(stream) == "Since"
    with pytest.raises(EngineError, match=said):
        next(stream)


def test_a_stream_that_can_t_begin_is_tried_again(server, connect):
    server.planned = [(503, {}, "busy")]
    assert next(connect().stream([1, 2], 40)) == "Since"


def test_closing_a_stream_hangs_up(server, connect):
    gone = threading.Event()

    def endless(handler):
        try:
            handler.stream(("word", None) for _ in range(10**6))
        except OSError:
            gone.set()
            raise

    server.planned = [endless]
    stream = connect().stream([1, 2], 40)
    assert next(stream) == "word"
    stream.close()
    assert gone.wait(5)


def reversed_letters(canaries):
    """What another model might have given."""
    return [dataclasses.replace(c, log_likelihoods=c.log_likelihoods[::-1]) for c in canaries]


@pytest.fixture
def canaries(server, connect):
    """Known questions, as the tuned model gives them; the base model finds all options equal."""
    server.models = [{"id": "tuned"}, {"id": "base"}]
    engine = connect("#tuned,base", length=4000)
    found = score_canaries(engine)
    assert {body["model"] for body in server.asked} == {"tuned", "base"}
    assert len(found) == 16
    return [dataclasses.replace(c, base_log_likelihoods=(-1.5,) * len(c.log_likelihoods)) for c in found]


def test_a_server_with_another_model_is_refused(server, connect, canaries):
    engine = connect("#tuned", length=4000)
    found = engine.verify(canaries)
    assert found["mean_difference_to_base"] > 0.05
    assert (found["num_questions"], found["max_difference"], found["mean_difference"]) == (16, 0, 0)
    assert found["num_other_letters"] == 0
    assert engine.device_record()["verified"] == found
    other = compare_canaries(engine, reversed_letters(canaries))
    assert other["max_difference"] > MAX_DIFFERENCE
    with pytest.raises(EngineError, match=r"is not the model of .*, \d+ letters differ") as error:
        engine.verify(reversed_letters(canaries))
    assert f"up to {other['max_difference']:.3g}" in error.value.message
    assert f"{other['num_other_letters']} letters" in error.value.message
    engine.max_length_tokens = 10
    with pytest.raises(EngineError, match="too few for any known question"):
        engine.verify(canaries)


def test_small_differences_are_those_of_precision_unless_the_base_is_nearer(server, connect, canaries):
    engine, likelihoods = connect("#tuned", length=4000), server.likelihoods
    server.likelihoods = lambda prompt: [value * 1.01 for value in likelihoods(prompt)]
    found = engine.verify(canaries)
    assert 0 < found["max_difference"] < MAX_DIFFERENCE
    faint = [
        dataclasses.replace(c, base_log_likelihoods=tuple(1.008 * value for value in c.log_likelihoods))
        for c in canaries
    ]
    with pytest.raises(EngineError, match=r"is not the model of .*the base model is nearer \(mean"):
        engine.verify(faint)


@pytest.fixture
def run(tmp_path, tokenizer, renderer):
    """A run folder as it is copied to another machine: the base model is not there."""
    run = RunFolder.create(tmp_path / "run", load_recipe("quickstart", []), "quickstart")
    tokenizer.save_pretrained(run.path / "adapter")
    write_json(run.path / "adapter/adapter_config.json", {"base_model_name_or_path": "/not/here"})
    weights = run.path / "adapter/adapter_model.safetensors"
    weights.write_bytes(b"weights")
    run.finish(
        adapter_sha256=file_sha256(weights),
        adapter_files={},
        base_model={"name": "base", "path": "/not/here", "fingerprint": "f", "max_length_tokens": LENGTH},
        data={"files": [], "sha256": "d"},
        device={"precision": "fp32"},
        prompt=renderer.record(),
    )
    return run


def test_a_run_folder_is_all_that_is_needed(server, run, renderer, items, caplog):
    settings = {"backoff_s": 0.001}
    engine = load_remote(run.path, f"openai:{server.url}", **settings)
    assert engine.renderer.sha256 == renderer.sha256
    assert engine.max_length_tokens == LENGTH
    assert [p.log_likelihoods for p in engine.score(items[:2])] == [expected(item) for item in items[:2]]
    assert f"Not verified that {server.url} has the model of {run.path}: the run is not calib" in caplog.text
    engine.close()
    (run.path / "adapter/calibration.json").write_text("{}")
    load_remote(run.path, f"openai:{server.url}").close()
    assert "calibration.json has version None" in caplog.text
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (run.path / "adapter" / file).unlink()
    with pytest.raises(ModelError, match="no usable tokenizer"):
        load_run_renderer(run.adapter, run.record["prompt"])


def test_known_questions_in_the_calibration_are_asked_at_the_start(
    server, run, canaries, monkeypatch, caplog
):
    class File:
        canaries = ()

    monkeypatch.setattr(remote, "load_calibration", lambda run, renderer: File)
    address = f"openai:{server.url}#tuned"
    run.record["base_model"]["max_length_tokens"] = 4000
    run.save()
    engine = load_remote(run.path, address)
    assert engine.verified is None
    assert "its calibration is older than such questions" in caplog.text
    engine.close()
    File.canaries = tuple(canaries)
    engine = load_remote(run.path, address)
    assert engine.verified["max_difference"] == 0
    engine.close()
    File.canaries = tuple(reversed_letters(canaries))
    with pytest.raises(EngineError, match="is not the model of"):
        load_remote(run.path, address)


DAMAGES = {
    "no list": lambda c: None,
    "no question": lambda c: [{**c, "question": ""}],
    "a value too few": lambda c: [{**c, "log_likelihoods": c["log_likelihoods"][1:]}],
    "no base": lambda c: [{**c, "base_log_likelihoods": []}],
    "text": lambda c: [{**c, "log_likelihoods": ["x"] * len(c["options"])}],
    "no number": lambda c: [{**c, "base_log_likelihoods": [math.nan] * len(c["options"])}],
    "no options": lambda c: [{**c, "options": 3}],
}


def test_known_questions_are_read_back_as_written():
    canary = Canary(make_examples(1)[0], (-1.0, -2.0, -3.0, -4.0), (-2.0,) * 4)
    found = Canary.from_json(json.loads(json.dumps(canary.to_json())))
    assert found.log_likelihoods == canary.log_likelihoods
    assert found.base_log_likelihoods == canary.base_log_likelihoods
    assert (found.example.question, found.example.options) == (
        canary.example.question,
        canary.example.options,
    )


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_known_questions_are_refused(damage):
    whole = Canary(make_examples(1)[0], (-1.0, -2.0, -3.0, -4.0), (-2.0,) * 4).to_json()
    with pytest.raises((ValueError, KeyError, TypeError)):
        [Canary.from_json(canary) for canary in damage(whole)]
