"""What reads words and files from outside, as functions of bytes: for the corpus, hypothesis and atheris."""

import contextlib
import json
from pathlib import Path

import numpy as np

from medqa.cli.question import read_question
from medqa.config import ModelConfig, SourceConfig
from medqa.data.check import check_file
from medqa.data.exam import split_exam
from medqa.data.sources import read_split
from medqa.errors import MedQAError
from medqa.model.load import find_base, load_renderer
from medqa.recipe import load_recipe
from medqa.runs import RunFolder
from medqa.serve.bulk_read import read_chunks, survey
from medqa.trust.store import CalibrationFile, Identity

CORPUS = Path(__file__).with_name("corpus")
# Files of a base model, the smallest that are taken: none of its weights are read here.
BASE_MODEL = {
    "config.json": b'{"model_type": "qwen3", "max_position_embeddings": 64}',
    "tokenizer.json": json.dumps(
        {
            "version": "1.0",
            "added_tokens": [],
            "pre_tokenizer": {
                "type": "ByteLevel",
                "add_prefix_space": False,
                "trim_offsets": True,
                "use_regex": True,
            },
            "decoder": {
                "type": "ByteLevel",
                "add_prefix_space": True,
                "trim_offsets": True,
                "use_regex": True,
            },
            "model": {
                "type": "BPE",
                "vocab": {symbol: i for i, symbol in enumerate("\u0120ABCDEFGHIJnswer:.")},
                "merges": [],
            },
        }
    ).encode(),
    "tokenizer_config.json": b'{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "A"}',
    "model.safetensors": b"\x08" + bytes(7) + b"{}      ",
}


def refuses(work, *arguments):
    """Do it; an error that is not the user's to mend gets through."""
    with contextlib.suppress(MedQAError):
        return work(*arguments)
    return None


def text_of(data):
    return data.decode("utf-8", "replace")


def rows_of(suffix):
    def parse(data, folder):
        file = folder / f"train.{suffix}"
        file.write_bytes(data)
        config = SourceConfig(name=str(folder))
        refuses(read_split, config, "train")
        refuses(check_file, config, file)
        if found := refuses(survey, file, {}):
            # What was read through once is read again without a fault.
            chunks = read_chunks(file, found.layout, {}, 3, lambda number: True)
            assert sum(len(rows) for _, rows in chunks) == found.num_rows
        file.unlink()

    return parse


def question(data, folder):
    file = folder / "question.json"
    file.write_bytes(data)
    if found := refuses(read_question, None, [], file):
        assert len(found.options) >= 2


def recipe(data, folder):
    file = folder / "own.yaml"
    file.write_bytes(data)
    refuses(load_recipe, str(file), [])


def settings(data, folder):
    refuses(load_recipe, "quickstart", text_of(data).split("\n"))


def exam(data, folder):
    if found := refuses(split_exam, text_of(data)):
        assert all(option.strip() for option in found.example.options)


def calibration(data, folder):
    file = folder / "calibration.json"
    file.write_bytes(data)
    try:
        identity = Identity(**json.loads(data)["identity"])
    except (ValueError, TypeError, KeyError, RecursionError):
        identity = Identity("", "", "")
    if found := refuses(CalibrationFile.read, folder, identity):
        for number in found.by_orders:
            found.for_orders(number).probabilities(np.array([[-1.0, -2.0, -3.0, -4.0]]))


def run(data, folder):
    (folder / "run.json").write_bytes(data)
    if found := refuses(RunFolder.open, folder):
        assert found.config


def base_model(folder, name, data):
    """Look at a folder that holds a model, one of whose files is replaced."""
    for file, content in {**BASE_MODEL, name: data}.items():
        (folder / file).write_bytes(content)
    if base := refuses(find_base, ModelConfig(name=str(folder))):
        refuses(load_renderer, base)


def index(data, folder):
    """The index of a model in several files."""
    for file, content in BASE_MODEL.items():
        (folder / file.replace("model.safetensors", "x.safetensors")).write_bytes(content)
    (folder / "model.safetensors").unlink(missing_ok=True)
    (folder / "model.safetensors.index.json").write_bytes(data)
    refuses(find_base, ModelConfig(name=str(folder)))


def model_file(name):
    return lambda data, folder: base_model(folder, name, data)


PARSERS = {
    **{suffix: rows_of(suffix) for suffix in ("jsonl", "json", "csv", "tsv", "parquet", "xlsx")},
    "question": question,
    "recipe": recipe,
    "settings": settings,
    "exam": exam,
    "calibration": calibration,
    "run": run,
    "index": index,
    **{Path(name).stem: model_file(name) for name in BASE_MODEL},
}
