"""lm-eval itself, on questions from a file."""

import json
from pathlib import Path

import pytest

import medqa.data

_QUESTIONS = Path(medqa.data.__file__).parent / "starter" / "validation.jsonl"


def starter_rows(num):
    """The first of the built-in questions that are measured on, in MedMCQA's columns."""
    return [json.loads(line) for line in _QUESTIONS.read_text().splitlines()][:num]


def scored_by_lm_eval(folder, rows, model_arguments):
    """Let lm-eval's own task `medmcqa` score these rows, read from a file instead of the Hub."""
    reason = "lm-eval is not installed: pip install -e '.[lm-eval]'"
    lm_eval = pytest.importorskip("lm_eval", reason=reason)
    tasks = pytest.importorskip("lm_eval.tasks", reason=reason)
    (folder / "rows.json").write_text("\n".join(json.dumps(row) for row in rows))
    task = {
        "include": str(Path(tasks.__file__).parent / "medmcqa" / "medmcqa.yaml"),
        "task": "medmcqa_here",
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"validation": str(folder / "rows.json")},
            "cache_dir": str(folder / "cache"),
        },
        "training_split": None,
    }
    (folder / "medmcqa_here.yaml").write_text(json.dumps(task))  # JSON is YAML
    found = lm_eval.simple_evaluate(
        model="hf",
        model_args={"dtype": "float32", **model_arguments},
        tasks=["medmcqa_here"],
        task_manager=tasks.TaskManager(include_path=str(folder), include_defaults=False),
        device="cpu",
        batch_size=8,
        bootstrap_iters=0,
    )
    samples = sorted(found["samples"]["medmcqa_here"], key=lambda sample: sample["doc_id"])
    return samples, found["results"]["medmcqa_here"]["acc,none"]
