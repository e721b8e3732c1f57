"""Others take the published folder as it is: transformers with PEFT, and lm-eval."""

import shutil

import pytest
import torch

from lm_eval_runner import scored_by_lm_eval, starter_rows
from medqa.data.build import evaluation_set
from medqa.errors import PublishError
from medqa.evaluate.engine import LocalEngine
from medqa.evaluate.run import evaluate
from medqa.evaluate.score import make_items
from medqa.model.embedded import SMOLLM2
from medqa.model.tuned import load_tuned
from medqa.prompts import SYSTEM
from medqa.publish.folder import write_published
from medqa.recipe import load_recipe

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of these libraries, about each other
]

NUM_QUESTIONS = 20
MAX_ERROR = 1e-3


@pytest.fixture(scope="module")
def published(built_in_run, tmp_path_factory):
    place = tmp_path_factory.mktemp("peers")
    run = shutil.copytree(built_in_run, place / "run")
    with pytest.raises(PublishError) as error:
        write_published(run, "ORG/tuned", place / "published")
    whole = error.value.hint.partition("--set ")[2].partition("`")[0]
    evaluate(run, [whole, "evaluate.orders=1", "evaluate.explanations=0", "evaluate.traps=0"])
    return write_published(run, "ORG/tuned", place / "published").path


@pytest.fixture(scope="module")
def tuned(published):
    """What this package makes of the folder."""
    return load_tuned(published, device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def examples():
    return evaluation_set(load_recipe("quickstart").data, 0).examples[:NUM_QUESTIONS]


def test_transformers_and_peft_give_the_same_probabilities(published, tuned, examples):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(tuned.base.path, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(published)).eval()
    tokenizer = AutoTokenizer.from_pretrained(published)
    scored = LocalEngine(tuned).score(make_items(tuned.renderer, examples, "medqa"))
    for example, ours in zip(examples, scored, strict=True):
        letters = "ABCDEFGHIJ"[: len(example.options)]
        lines = [f"{letter}. {text}" for letter, text in zip(letters, example.options, strict=True)]
        messages = [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": "\n".join([example.question, *lines])},
        ]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        tokens = tokenizer(text + "Answer:", return_tensors="pt", add_special_tokens=False)
        with torch.no_grad():
            logits = model(**tokens).logits[0, -1]
        ids = [tokenizer(f" {letter}", add_special_tokens=False).input_ids[0] for letter in letters]
        theirs = torch.softmax(logits[ids], -1)
        assert ours.probabilities == pytest.approx(tuple(theirs.tolist()), abs=MAX_ERROR)


def test_lm_eval_takes_it(published, tuned, examples, tmp_path):
    rows = starter_rows(NUM_QUESTIONS)
    arguments = {"pretrained": str(tuned.base.path), "peft": str(published)}
    samples, accuracy = scored_by_lm_eval(tmp_path, rows, arguments)
    scored = LocalEngine(tuned).score(make_items(tuned.renderer, examples, "lm_eval"))
    assert [example.id for example in examples] == [sample["doc"]["id"] for sample in samples]
    for sample, ours in zip(samples, scored, strict=True):
        theirs = [value for value, _ in sample["filtered_resps"]]
        assert ours.log_likelihoods == pytest.approx(theirs, abs=MAX_ERROR)
    assert accuracy == pytest.approx(sum(one.choice == one.answer for one in scored) / NUM_QUESTIONS)


def test_the_folder_names_a_base_model_that_others_have(published):
    from peft import PeftConfig

    named = PeftConfig.from_pretrained(str(published)).base_model_name_or_path
    assert (named, SMOLLM2) == ("HuggingFaceTB/SmolLM2-135M-Instruct", "builtin:smollm2-135m")
