"""A server with the page and a service that answers slowly without a model, for tests and pictures.

`python tests/serve/page_server.py PORT` serves it until it is stopped.
"""

import asyncio
import contextlib
import json
import sys
import threading
from pathlib import Path

import fastapi
import uvicorn

from medqa.config import ServeConfig
from medqa.errors import BusyError, DataError
from medqa.records import LETTERS, Answer
from medqa.serve.about import About, Fact, Figure
from medqa.serve.access import CONTENT_SECURITY_POLICY
from medqa.serve.page import build_page
from medqa.serve.page_mount import mount_page

EXPLANATIONS = {
    json.loads(line)["question"]: json.loads(line)
    for line in (Path(__file__).parents[2] / "src/medqa/data/starter/validation.jsonl")
    .read_text()
    .splitlines()
}
SHARES = {2: (0.7, 0.3), 3: (0.62, 0.25, 0.13), 4: (0.64, 0.2, 0.12, 0.04)}

ABOUT = About(
    "medmcqa-1",
    "Qwen2.5-Coder-1.5B-Instruct",
    (
        Fact("Made of", "Qwen2.5-Coder-1.5B-Instruct"),
        Fact("Trained on", "64,950 questions: openlifescienceai/medmcqa"),
        Fact("Trained", "23 November 2026, in 4 minutes, on NVIDIA H100 80GB HBM3"),
        Fact("Confidence corrected with", "1,695 questions held back from training"),
        Fact("Measured on", "2,071 other questions: openlifescienceai/medmcqa, validation"),
    ),
    (
        Figure("48.2\u00a0%", "of 2,071 questions answered right", "46.1 to 50.4\u00a0%"),
        Figure("37.1\u00a0%", "right before training", "35.0 to 39.2\u00a0%"),
    ),
    ("Microbiology: 36.5\u00a0% of 52 right (24.8 to 50.1\u00a0%); chance can explain it",),
    ("No option is right. It does not become less sure: 46.0\u00a0% sure, 46.8\u00a0% before.",),
)


class SlowService:
    """Answers as a model might, word after word; what a question says decides what happens.

    Args:
        calibrated: Whether there are answer sets.
        letter_s: Seconds to the letter.
        word_s: Seconds to each word of the explanation.
    """

    def __init__(self, calibrated=True, letter_s=0.3, word_s=0.05):
        self.calibrated, self.letter_s, self.word_s = calibrated, letter_s, word_s
        self.defaults = ServeConfig(orders=4 if calibrated else 1)
        self.running, self.ended, self.asked = 0, 0, []

    async def stream(self, example, *, explain=True, settings=None):
        self.running += 1
        self.asked.append((example, explain, settings))
        try:
            await asyncio.sleep(self.letter_s)
            if "fails" in example.question:
                raise {"busy": BusyError("12 are waiting already", "try again in a moment")}.get(
                    example.question.split()[-1], RuntimeError("a secret inside")
                )
            if len(example.question) > 5000:
                raise DataError("the question takes 2,000 tokens, the model takes at most 512", "shorten it")
            yield self._answer(example, settings or self.defaults, None)
            if explain:
                text = self._text(example)
                for word in text.split(" "):
                    await asyncio.sleep(self.word_s)
                    yield f"{word} "
                yield self._answer(example, settings or self.defaults, text)
        finally:
            self.running -= 1
            self.ended += 1

    def _text(self, example):
        row = EXPLANATIONS.get(example.question)
        return (
            row["exp"]
            if row
            else f"Because <b>{example.options[0]}</b> & <script>alert(1)</script> fit best."
        )

    def _answer(self, example, settings, text):
        row, count = EXPLANATIONS.get(example.question), len(example.options)
        best = row["cop"] if row else 0
        shares = list(SHARES.get(count, (0.5, *[0.5 / (count - 1)] * (count - 1))))
        order = [best, *(place for place in range(count) if place != best)]
        probabilities = {LETTERS[place]: share for place, share in sorted(zip(order, shares, strict=True))}
        unsure = settings.max_risk is not None and settings.max_risk < 0.2
        kept = {0.2: 1, 0.1: 2, 0.05: 3}[settings.alpha]
        inside = tuple(LETTERS[place] for place in order[: min(kept, count)])
        needed = f"{shares[0]:.1%} sure, 88% is needed for at most 10 % wrong answers"
        check = {"points_to": best, "agrees": True, "warning": None}
        if row and row["subject_name"] == "Pharmacology":
            check = {"points_to": 0, "agrees": False, "warning": "The explanation points to A."}
        return Answer(
            example.question,
            LETTERS[best],
            example.options[best],
            shares[0],
            probabilities,
            text,
            None if text is None else True,
            "Qwen2.5-Coder-1.5B-Instruct + medmcqa-1",
            calibration="temperature, 1,695 questions" if self.calibrated else None,
            answer_set=inside if self.calibrated else None,
            alpha=settings.alpha if self.calibrated else None,
            abstain=unsure,
            reason=needed if unsure else None,
            caveat=None if count == 4 else f"calibrated on questions of 4 options, and this one has {count}",
            num_orders=settings.orders,
            consistency=0.75 if settings.orders > 1 else None,
            explanation_check=None if text is None else check,
        )


def make_app(service, about=ABOUT):
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def policy(request, call_next):
        response = await call_next(request)
        response.headers["content-security-policy"] = CONTENT_SECURITY_POLICY
        return response

    mount_page(app, build_page(service, about))
    return app


@contextlib.contextmanager
def serving(service, about=ABOUT, port=0):
    """Serve the page on a free port of this machine; gives its address."""
    config = uvicorn.Config(
        make_app(service, about), port=port, log_level="warning", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise RuntimeError("the server did not start")
        thread.join(0.05)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join(10)


if __name__ == "__main__":
    with serving(SlowService("uncalibrated" not in sys.argv), port=int(sys.argv[1])) as url:
        print(url, flush=True)
        threading.Event().wait()
