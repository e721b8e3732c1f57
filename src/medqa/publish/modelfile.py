"""A Modelfile, so that Ollama asks a GGUF as the model was trained to be asked."""

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
    """
    stops = [renderer.tokenizer.decode([token]) for token in renderer.stop_ids]
    lines = [
        "# ollama create NAME -f Modelfile",
        f"FROM ./{gguf_name}",
        f'TEMPLATE """{chat_template(renderer)}"""',
        f'SYSTEM """{SYSTEM}"""',
        *(f'PARAMETER stop "{stop}"' for stop in stops),
        "PARAMETER temperature 0",
        f"PARAMETER num_ctx {min(num_context, 4096)}",
    ]
    return "\n".join(lines) + "\n"


def chat_template(renderer: PromptRenderer) -> str:
    """Return the prompt around a question in Ollama's template words."""
    user = f"{_QUESTION.question}\nA. a\nB. b"
    before, _, after = renderer.prefix_text(_QUESTION).partition(user)
    return f"{before.replace(SYSTEM, '{{ .System }}')}{{{{ .Prompt }}}}{after}"
