"""The page of `medqa serve`: a form, the answer as it comes, and what the model is.

Gradio draws the form and carries the events; what stands on the page is made in page_parts, what happens in
page_asking. What a visitor asks is kept in memory for that visitor only; nothing is written to disk.
"""

import contextlib
import functools
from collections.abc import AsyncIterator, Sequence
from typing import Any

import gradio as gr

from medqa.data.exam import split_exam
from medqa.errors import DataError, MedQAError
from medqa.records import LETTERS, Example
from medqa.serve.about import About
from medqa.serve.page_asking import PLACES, Answering, Form, Shown, asking, examples, stopped
from medqa.serve.page_parts import about_part, history_part, part, problem_part
from medqa.trust.calibration import ALPHAS

__all__ = ["build_page"]

NUM_OPTIONS = 4
"""Options that the form begins with."""
RISKS = (0.3, 0.2, 0.1)
MAX_SESSIONS = 1000
"""Visitors whose questions are kept in memory; the longest gone are forgotten first."""

_LAYOUT = "A 45-year-old ...?\nA. ...\nB. ...\nC. ...\nD. ..."
_UNCALIBRATED = (
    "How sure it has to be can't be chosen: this model was not calibrated, so nobody knows how often its "
    "percentages come true. `medqa calibrate RUN` finds out."
)

Updates = dict[Any, Any]


def build_page(service: Answering, about: About) -> gr.Blocks:
    """Build the page; `medqa.serve.page_mount` puts it into an application.

    Args:
        service: Answers the questions of all visitors.
        about: What is known of the model.
    """
    blocks = gr.Blocks(title="MedQA", analytics_enabled=False)
    with blocks:
        _html(part("head"), "head")
        with gr.Row(elem_id="columns", equal_height=False):
            with gr.Column(elem_id="form", min_width=300):
                form = _Form(service)
            with gr.Column(elem_id="result", min_width=300):
                result = _Result()
        _html(about_part(about), "about-model")
        form.connect()
        _connect(service, form, result)
    # The service has a queue of its own, which all surfaces share.
    blocks.queue(default_concurrency_limit=None, api_open=False)
    blocks.state_session_capacity = MAX_SESSIONS
    return blocks


def _html(value: str = "", elem_id: str | None = None) -> gr.Markdown:
    """Show a piece that page_parts made; everything in it is escaped already."""
    return gr.Markdown(
        value, elem_id=elem_id, sanitize_html=False, latex_delimiters=[], container=False, padding=False
    )


class _Form:
    """What a visitor fills in."""

    def __init__(self, service: Answering) -> None:
        self.problems = {}
        with gr.Accordion("Paste a whole question", open=False, elem_id="paste"):
            self.pasted = gr.Textbox(
                "",
                label="Question with its options",
                placeholder=_LAYOUT,
                lines=6,
                max_lines=12,
                elem_id="pasted",
            )
            self.split = gr.Button("Fill in the form", size="sm", elem_id="split")
        self.notes = _html(elem_id="notes")
        with gr.Row(elem_id="examples"):
            _html(part("label", text="Try one:"))
            self.examples = [gr.Button(example.subject or example.id, size="sm") for example in examples()]
        self.question = gr.Textbox("", label="Question", lines=4, max_lines=16, elem_id="question")
        self.problems["question"] = _html(elem_id="problem-question")
        with gr.Accordion("Add context", open=False, elem_id="more") as self.fold:
            self.context = gr.Textbox(
                "",
                label="Context, such as an abstract that the question is about",
                lines=3,
                max_lines=16,
                elem_id="context",
            )
        self._options()
        self._trust(service)
        with gr.Row(elem_id="buttons"):
            self.ask = gr.Button("Ask", variant="primary", elem_id="ask")
            self.stop = gr.Button("Stop", interactive=False, elem_id="stop")
        self.problems["asking"] = _html(elem_id="problem-asking")

    def _options(self) -> None:
        self.count = gr.State(NUM_OPTIONS)
        self.rows, self.options, self.removes = [], [], []
        with gr.Column(elem_id="options"):
            _html(part("label", text="Options"))
            for place, letter in enumerate(LETTERS):
                with gr.Row(visible=place < NUM_OPTIONS, elem_classes="option") as row:
                    self.options.append(
                        gr.Textbox("", label=letter, lines=1, max_lines=1, elem_id=f"option-{letter}")
                    )
                    self.removes.append(gr.Button(f"Remove {letter}", size="sm", elem_classes="remove"))
                self.rows.append(row)
            self.add = gr.Button("Add an option", size="sm", elem_id="add")
        self.problems["options"] = _html(elem_id="problem-options")

    def _trust(self, service: Answering) -> None:
        defaults = service.defaults
        self.explain = gr.Checkbox(label="Write an explanation", value=True, elem_id="explain")
        with gr.Accordion("How sure it has to be", open=False, elem_id="trust"):
            if not service.calibrated:
                _html(part("hint", text=_UNCALIBRATED))
            self.alpha = gr.Radio(
                [(f"{100 * (1 - alpha):g} of 100", alpha) for alpha in ALPHAS],
                value=defaults.alpha,
                label="The answer set holds the right option in",
                visible=service.calibrated,
                elem_id="alpha",
            )
            risks = sorted({*RISKS, *([defaults.max_risk] if defaults.max_risk else [])}, reverse=True)
            self.risk = gr.Radio(
                [("any number", 0.0), *((f"{100 * risk:g} of 100", risk) for risk in risks)],
                value=defaults.max_risk or 0.0,
                label="Of the answers it gives, there may be wrong",
                info="Where it can't keep to that, it says \u201cnot sure\u201d.",
                visible=service.calibrated,
                elem_id="risk",
            )
        self.problems["settings"] = _html(elem_id="problem-settings")

    def connect(self) -> None:
        """Let the buttons do what they say."""
        fields = [self.question, self.context, self.fold, self.notes, self.count, *self.rows, *self.options]
        fields += [*self.problems.values()]
        _on(self.split.click, self._split, [self.pasted], fields)
        for example, button in zip(examples(), self.examples, strict=True):
            _on(button.click, functools.partial(self.filled, example), [], fields)
        shape = [self.count, self.add, *self.rows, *self.options, self.problems["options"]]
        _on(self.add.click, self._add, [self.count], shape)
        for place, button in enumerate(self.removes):
            _on(button.click, functools.partial(self._remove, place), [self.count, *self.options], shape)

    def filled(self, example: Example, notes: Sequence[str] = ()) -> Updates:
        """Fill in a question, in place of what is there."""
        return {
            self.question: example.question,
            self.context: example.context or "",
            self.fold: gr.Accordion(open=bool(example.context)),
            self.notes: part("notes", notes=notes) if notes else "",
            **dict.fromkeys(self.problems.values(), ""),
            **self._shown(example.options, len(example.options)),
        }

    def _shown(self, options: Sequence[str], count: int) -> Updates:
        texts = [*options, *[""] * (len(LETTERS) - len(options))]
        return {
            self.count: count,
            **{row: gr.Row(visible=place < count) for place, row in enumerate(self.rows)},
            **dict(zip(self.options, texts, strict=True)),
        }

    def _split(self, pasted: str) -> Updates:
        try:
            found = split_exam(pasted)
        except DataError as exc:
            return {self.notes: problem_part(exc)}
        said = (
            f"The form is filled in with {len(found.example.options)} options. Look it over, then press Ask."
        )
        return self.filled(found.example, (said, *found.notes))

    def _add(self, count: int) -> Updates:
        count = min(count + 1, len(LETTERS))
        return {
            self.count: count,
            self.rows[count - 1]: gr.Row(visible=True),
            self.add: gr.Button(interactive=count < len(LETTERS)),
            self.problems["options"]: "",
        }

    def _remove(self, place: int, count: int, *options: str) -> Updates:
        if count <= 2:
            error = MedQAError("A question needs at least two options.", "Change this one instead.")
            return {self.problems["options"]: problem_part(error)}
        left = [*options[:place], *options[place + 1 :]]
        return {
            **self._shown(left, count - 1),
            self.add: gr.Button(interactive=True),
            self.problems["options"]: "",
        }


class _Result:
    """What came of it, now and before."""

    def __init__(self) -> None:
        self.status = _html(elem_id="status")
        self.answer = _html(part("start"), "answer")
        self.reason = _html(elem_id="reason")
        self.after = _html(elem_id="after")
        self.written = gr.State(None)
        self.entries = gr.State(())
        with gr.Column(elem_id="visit"):
            self.history = _html(history_part(()), "history")
            self.clear = gr.Button("Forget these", size="sm", visible=False, elem_id="clear")


def _connect(service: Answering, form: _Form, result: _Result) -> None:
    """Let Ask and Stop do what they say."""

    async def ask(
        question: str,
        context: str,
        explain: bool,
        alpha: float,
        risk: float,
        count: int,
        entries: Any,
        *options: str,
    ) -> AsyncIterator[Updates]:
        # What is folded away and was never opened may come as None.
        texts = [option or "" for option in options[:count]]
        filled = Form(question or "", texts, context or "", explain, alpha, risk or None)
        async with contextlib.aclosing(asking(service, filled, entries)) as steps:
            async for shown in steps:
                yield _updates(shown, form, result)

    outputs = [result.status, result.answer, result.reason, result.after, result.written, result.entries]
    outputs += [result.history, result.clear, form.ask, form.stop, *form.problems.values()]
    inputs = [form.question, form.context, form.explain, form.alpha, form.risk, form.count, result.entries]
    triggers = [form.ask.click, form.question.submit, form.context.submit]
    triggers += [option.submit for option in form.options]
    event = _on(triggers, ask, [*inputs, *form.options], outputs)
    _on(
        form.stop.click,
        lambda written: _updates(stopped(written), form, result),
        [result.written],
        outputs,
        [event],
    )
    _on(result.clear.click, lambda: _entries((), result), [], [result.entries, result.history, result.clear])


def _updates(shown: Shown, form: _Form, result: _Result) -> Updates:
    html = {result.status: shown.status and part("status", message=shown.status)}
    html |= {result.answer: shown.answer, result.reason: shown.reason, result.after: shown.after}
    return {
        **{piece: text for piece, text in html.items() if text is not None},
        **({} if shown.history is None else _entries(shown.history, result)),
        **{form.problems[place]: shown.problems.get(place, "") for place in PLACES},
        result.written: shown.written,
        form.ask: gr.Button(interactive=not shown.running),
        form.stop: gr.Button(interactive=shown.running),
    }


def _entries(entries: tuple[Any, ...], result: _Result) -> Updates:
    shown = {result.entries: entries, result.history: history_part(entries)}
    return {**shown, result.clear: gr.Button(visible=bool(entries))}


def _on(trigger: Any, fn: Any, inputs: Any, outputs: Any, cancels: Any = None) -> Any:
    """Connect an event; none is published as an API, and none waits for another visitor's."""
    return gr.on(
        trigger,
        fn,
        inputs,
        outputs,
        cancels=cancels,
        api_visibility="private",
        show_progress="hidden",
        concurrency_limit=None,
    )
