"""A Space's server: there at once, the model when it is loaded, and calls for which a card is lent."""

import json
import pickle
import threading
import time
import types
import urllib.error
import urllib.request

import pytest

from medqa.config import ServeConfig
from medqa.errors import HubError
from medqa.evaluate.engine import LocalEngine
from medqa.evaluate.score import make_items
from medqa.model.tuned import load_tuned
from medqa.serve import space as space_module
from medqa.serve.lent import LentEngine
from medqa.serve.space import SpaceApp
from medqa.testing import make_examples
from serve.conftest import running

# Gradio 6 sets an option that pandas 3 has retired.
pytestmark = pytest.mark.filterwarnings("ignore:.*no_silent_downcasting")


def get(url, data=None):
    request = urllib.request.Request(
        url, json.dumps(data).encode() if data else None, {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status, reply.read().decode(), reply.headers
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, exc.read().decode(), exc.headers


def wait_for(look):
    for _ in range(600):
        if found := look():
            return found
        time.sleep(0.05)
    raise AssertionError("it never came")


def test_a_page_is_there_before_the_model_is(answerer):
    go = threading.Event()

    def load():
        go.wait(30)
        return answerer

    with running(SpaceApp(load, "127.0.0.1")) as url:
        status, text, _ = get(f"{url}/")
        assert status == 200
        assert "being loaded" in text
        assert 'http-equiv="refresh"' in text
        assert get(f"{url}/ready")[0] == 503
        go.set()
        wait_for(lambda: get(f"{url}/ready")[0] == 200)
        _, text, headers = get(f"{url}/")
        assert "gradio" in text
        assert (
            "frame-ancestors 'self' https://huggingface.co https://*.hf.space"
            in headers["content-security-policy"]
        )
        assert "x-frame-options" not in headers
        question = {"question": "Which vitamin?", "options": ["A", "C"], "explain": False}
        status, text, _ = get(f"{url}/v1/answer", question)
        assert status == 200, text
        assert json.loads(text)["letter"] in "AB"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (HubError("the Hub has no run '<x>'", "check HF_TOKEN"), "no run &#x27;&lt;x&gt;&#x27;\nHint: check"),
        (KeyError("secret"), "a bug, which the Space&#x27;s log shows"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_told_on_the_page(error, text):
    def load():
        raise error

    with running(SpaceApp(load, "127.0.0.1")) as url:
        status, page, _ = wait_for(lambda: (found := get(f"{url}/"))[1].count("be served") and found)
        assert status == 200
        assert text in page
        assert "refresh" not in page
        assert get(f"{url}/v1/answer", {"question": "x"})[0] == 503


class FakeSpaces:
    """What `spaces` does with a function, as far as it can be seen: arguments and results are copied."""

    def __init__(self):
        self.calls, self.started = [], False
        self.zero = types.SimpleNamespace(startup=self._start)

    def _start(self):
        self.started = True

    def GPU(self, task, *, duration):  # noqa: N802
        def lent(*args):
            self.calls.append((task.__name__, duration))
            found = task(*pickle.loads(pickle.dumps(args)))
            if isinstance(found, types.GeneratorType):
                return (pickle.loads(pickle.dumps(one)) for one in found)
            return pickle.loads(pickle.dumps(found))

        return lent


def test_calls_for_which_a_card_is_lent_give_what_the_model_gives(calibrated_run):
    local, spaces = LocalEngine(load_tuned(calibrated_run)), FakeSpaces()
    lent = LentEngine(local, spaces.GPU)
    items = make_items(local.renderer, make_examples(3), "medqa")
    assert lent.score(items) == local.score(items)
    prompt = lent.renderer.answer_ids(make_examples(1)[0], 0)
    assert lent.write([prompt], 4) == local.write([prompt], 4)
    assert list(lent.stream(prompt, 4)) == list(local.stream(prompt, 4))
    assert [name for name, _ in spaces.calls] == ["score", "write", "stream"]


def test_where_cards_are_lent_every_question_goes_through_such_a_call(calibrated_run):
    spaces = FakeSpaces()
    answerer = space_module._load(calibrated_run, spaces)
    assert spaces.started
    assert answerer.engine.way == "plain, lent"
    settings = ServeConfig(max_explanation_tokens=4)
    here = space_module._load(calibrated_run, None)
    example = make_examples(1)[0]
    found, known = (one.answer(example, settings=settings) for one in (answerer, here))
    assert found.letter == known.letter
    assert found.confidence == pytest.approx(known.confidence, abs=1e-4)
    assert "score" in {name for name, _ in spaces.calls}


def test_the_environment_says_what_to_serve_and_where(monkeypatch):
    import uvicorn

    seen = {}
    monkeypatch.setattr(uvicorn, "run", lambda app, **settings: seen.update(settings, app=app))
    monkeypatch.setattr(space_module, "_load", lambda path, spaces: seen.update(path=path, spaces=spaces))
    monkeypatch.setattr("logging.basicConfig", lambda **settings: None)
    for name in ("PORT", "GRADIO_SERVER_PORT", "GRADIO_SERVER_NAME", "MEDQA_RUN", "SPACES_ZERO_GPU"):
        monkeypatch.delenv(name, raising=False)
    space_module.main("hub:ORG/tuned")
    seen["app"]._load()
    assert (seen["host"], seen["port"], seen["path"].as_posix()) == ("0.0.0.0", 7860, "hub:ORG/tuned")
    assert seen["spaces"] is None
    monkeypatch.setenv("GRADIO_SERVER_NAME", "127.0.0.1")
    monkeypatch.setenv("GRADIO_SERVER_PORT", "7001")
    monkeypatch.setenv("MEDQA_RUN", "runs/own")
    space_module.main("hub:ORG/tuned")
    seen["app"]._load()
    assert (seen["host"], seen["port"], seen["path"].as_posix()) == ("127.0.0.1", 7001, "runs/own")


def test_spaces_is_imported_before_torch(tmp_path):
    import os
    import subprocess
    import sys

    (tmp_path / "spaces.py").write_text("import sys\nassert 'torch' not in sys.modules\nprint('first')\n")
    code = (
        "import medqa.serve.space as s, uvicorn, sys; uvicorn.run = lambda *a, **k: None\n"
        "s.main('hub:A/b'); print('spaces' in sys.modules)"
    )
    env = {**os.environ, "SPACES_ZERO_GPU": "true", "PYTHONPATH": str(tmp_path)}
    found = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["first", "True"]
