"""A Modelfile, so that Ollama asks a GGUF as the model was trained to be asked."""

import itertools

from medqa.errors import ModelError
from medqa.prompts import SYSTEM, PromptRenderer
from medqa.records import Example

__all__ = ["chat_template", "modelfile"]

_QUESTION = Example("question-goes-here", ("a", "b"))


def modelfile(renderer: PromptRenderer, gguf_name: str, num_context: int) -> str:
    """Write a Modelfile: where the weights are, the prompt around a question, where to stop, no sampling.

    Ollama has template words of its own. What it is given here is the very text that the model learnt from,
    with its places for the system's and the user's words, so that no two readings of a chat template differ.

    Args:
        renderer: The prompt of the run.
        gguf_name: Name of the GGUF file beside it.
        num_context: Longest input of the model, in tokens.

    Raises:
        ModelError: If a Modelfile can't hold the prompt.
    """
    stops = [renderer.tokenizer.decode([token]) for token in renderer.stop_ids]
    template = chat_template(renderer)
    if '"""' in template:
        raise ModelError('a Modelfile can\'t hold a prompt with """ in it', "--to merged")
    lines = [
        "# ollama create NAME -f Modelfile",
        f"FROM ./{gguf_name}",
        f'TEMPLATE """{template}"""',
        f'SYSTEM """{SYSTEM}"""',
        *(f'PARAMETER stop "{stop}"' for stop in stops),
        "PARAMETER temperature 0",
        f"PARAMETER num_ctx {min(num_context, 4096)}",
    ]
    return "\n".join(lines) + "\n"


def chat_template(renderer: PromptRenderer) -> str:
    """Return the prompt around a question in Ollama's template words.

    Ollama fills it once for each turn, with the system's words in the first one alone, and cuts the last one
    off before the answer. So the first turn begins as in training, a later one with the end of an answer.

    Source:
        ollama, template/template.go, `Template.Execute`, for templates without `.Messages`.
    """
    user = f"{_QUESTION.question}\nA. a\nB. b"
    before, _, after = renderer.prefix_text(_QUESTION).partition(user)
    start, _, first = before.partition(SYSTEM)
    later = renderer.next_turn()
    # What both share is written once.
    pairs = zip(reversed(first), reversed(later), strict=False)
    size = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))
    shared = first[len(first) - size :]
    first, later = first.removesuffix(shared), later.removesuffix(shared)
    other = f"{{{{ else }}}}{_literal(later)}" if later else ""
    return (
        f"{{{{ if .System }}}}{_literal(start)}{{{{ .System }}}}{_literal(first)}{other}{{{{ end }}}}"
        f"{_literal(shared)}{{{{ .Prompt }}}}{_literal(after)}{{{{ .Response }}}}"
    )


def _literal(text: str) -> str:
    return text.replace("{{", '{{ "{{" }}')
