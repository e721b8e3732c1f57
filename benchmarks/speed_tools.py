"""Tools that benchmarks/speed.py measures: this project, and the Trainer of transformers with PEFT.

A tool is loaded once; every `train` begins with the same fresh adapter. It returns the seconds of
the training alone: building a trainer or a data set is left out, as far as a tool does it apart.
Libraries are imported only when needed: some want to be the first.
"""

import dataclasses
import inspect
import json
import logging
import math
import re
import shutil
import tempfile
import time
from pathlib import Path

from measure import sync

LEARNING_RATE = 1e-4


@dataclasses.dataclass
class Job:
    """What every tool is told: the model's folder, rows per optimizer step, longest row, cpu or cuda."""

    model: Path
    batch: int
    max_length: int
    device: str


@dataclasses.dataclass
class Outcome:
    seconds: float
    num_steps: int
    num_tokens: int
    final_loss: float
    setup_seconds: float = 0.0  # of the seconds, those outside the steps, as far as the tool tells


class Tool:
    settings = ""

    def __init__(self, job):
        self.job = job
        self.notes = []

    def use(self):
        """Import what the tool stands on."""

    def load(self):
        """Load the model and attach the adapter."""

    def inputs(self, rows):
        """Token ids and labels as other tools want them: loss on what comes after the prefix."""
        return [
            {"input_ids": [*row.ids], "labels": [-100] * row.num_prefix + [*row.ids[row.num_prefix :]]}
            for row in rows
        ]

    def keep_start(self):
        named = self.model.named_parameters()
        self.start = {name: p.detach().clone() for name, p in named if p.requires_grad}

    def back_to_start(self):
        for name, parameter in self.model.named_parameters():
            if name in self.start:
                parameter.data.copy_(self.start[name])
                parameter.grad = None


class NoteKeeper(logging.Handler):
    """Keep what this project's training says of the path that it takes."""

    def __init__(self, notes):
        super().__init__()
        self.notes = notes

    def emit(self, record):
        text = record.getMessage()
        print(text, flush=True)
        if text not in self.notes and re.match("(Fast|Plain) path|Attention|Passes|.* rows a pass", text):
            self.notes.append(text)


class Ours(Tool):
    settings = "LoRA r=16 all-linear, batch {batch}"
    fast_path = True

    def use(self):
        import accelerate  # noqa: F401
        import peft  # noqa: F401
        import transformers  # noqa: F401

        import medqa.train.loop  # noqa: F401

        log = logging.getLogger("medqa")
        log.setLevel(logging.INFO)
        log.handlers = [NoteKeeper(self.notes)]

    def load(self):
        from medqa.config import LoraConfig, ModelConfig
        from medqa.hardware.device import choose_device
        from medqa.model.load import find_base, load_model
        from medqa.model.lora import attach_adapter

        config = ModelConfig(name=str(self.job.model), device=self.job.device)
        self.device = choose_device(config)
        base = load_model(find_base(config), self.device)
        self.model = attach_adapter(base, LoraConfig(rank=16, alpha=32), seed=0)
        self.keep_start()
        self.elementwise = None
        if self.fast_path and self.job.device != "cpu":  # as `medqa train` does while it waits for questions
            from medqa.model.elementwise import compile_elementwise

            self.elementwise, reason = compile_elementwise(base.config, self.device)
            self.notes.append(f"Rotation and activation: {reason}")

    def train(self, rows, epochs):
        from medqa.config import TrainConfig
        from medqa.train.choice import choose_engine
        from medqa.train.loop import train_adapter

        fields = {}
        if not self.fast_path and "fast_path" in TrainConfig.model_fields:
            is_switch = isinstance(TrainConfig.model_fields["fast_path"].default, bool)
            fields = {"fast_path": False if is_switch else "off"}
        config = TrainConfig(
            epochs=epochs,
            batch_size=self.job.batch,
            max_length_tokens=self.job.max_length,
            learning_rate=LEARNING_RATE,
            **fields,
        )
        self.back_to_start()
        folder = Path(tempfile.mkdtemp())
        start = time.perf_counter()
        engine = choose_engine(
            self.model, rows, config, self.device, self.notes.append, elementwise=self.elementwise
        )
        state = train_adapter(self.model, rows, config, self.device, folder, self.notes.append, engine=engine)
        sync(self.job.device)
        seconds = time.perf_counter() - start
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        shutil.rmtree(folder)
        last = [line["loss"] for line in lines[-10:]]
        outside = seconds - state.seconds
        return Outcome(seconds, state.step, state.num_tokens, sum(last) / len(last), outside)


class OursPlain(Ours):
    settings = "the same, plain path"
    fast_path = False


class HfTrainer(Tool):
    settings = "LoRA r=16 all-linear, batch {batch}, padded to the longest of a batch"
    rank, alpha, targets = 16, 32, "all-linear"
    half = "bf16"
    attention = "sdpa"
    grouped = False

    def use(self):
        import peft  # noqa: F401
        import transformers  # noqa: F401

    def load(self):
        import peft
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        half = torch.bfloat16 if self.half == "bf16" else torch.float16
        base = AutoModelForCausalLM.from_pretrained(
            self.job.model,
            dtype=torch.float32 if self.job.device == "cpu" else half,
            attn_implementation=self.attention,
        )
        self.tokenizer = AutoTokenizer.from_pretrained(self.job.model)
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        torch.manual_seed(0)
        targets = self.targets if isinstance(self.targets, str) else list(self.targets)
        lora = peft.LoraConfig(
            task_type="CAUSAL_LM", r=self.rank, lora_alpha=self.alpha, target_modules=targets
        )
        self.model = peft.get_peft_model(base.to(self.job.device), lora)
        self.keep_start()

    def arguments(self, kind, num_rows, epochs):
        """Settings of a training, for `TrainingArguments` or a class below it."""
        num_steps = max(1, math.ceil(num_rows / self.job.batch) * epochs)
        on_gpu = self.job.device != "cpu"
        settings = {
            "output_dir": tempfile.mkdtemp(),
            "num_train_epochs": epochs,
            "per_device_train_batch_size": self.job.batch,
            "gradient_checkpointing": False,
            "learning_rate": LEARNING_RATE,
            "lr_scheduler_type": "cosine",
            "bf16": on_gpu and self.half == "bf16",
            "fp16": on_gpu and self.half == "fp16",
            "use_cpu": not on_gpu,
            "logging_steps": min(10, num_steps),
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "seed": 0,
        }
        if self.grouped:
            names = inspect.signature(kind).parameters
            by_name = {"train_sampling_strategy": "group_by_length"}
            settings |= by_name if "train_sampling_strategy" in names else {"group_by_length": True}
        return settings

    def trainer(self, inputs, epochs):
        from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

        arguments = TrainingArguments(**self.arguments(TrainingArguments, len(inputs), epochs))
        return Trainer(self.model, arguments, DataCollatorForSeq2Seq(self.tokenizer), inputs)

    def train(self, rows, epochs):
        from transformers.trainer_callback import PrinterCallback

        self.back_to_start()
        inputs = self.inputs(rows)
        trainer = self.trainer(inputs, epochs)
        trainer.remove_callback(PrinterCallback)
        sync(self.job.device)
        start = time.perf_counter()
        trainer.train()
        sync(self.job.device)
        seconds = time.perf_counter() - start
        shutil.rmtree(trainer.args.output_dir, ignore_errors=True)
        num_tokens = epochs * sum(len(row["input_ids"]) for row in inputs)
        history = trainer.state.log_history  # its last line has the mean of all steps
        losses = [line["loss"] for line in history if "loss" in line] or [history[-1]["train_loss"]]
        return Outcome(seconds, trainer.state.global_step, num_tokens, losses[-1])


class GroupedTrainer(HfTrainer):
    settings = "the same as trainer, rows of like length together"
    grouped = True


class Hackathon(HfTrainer):
    settings = (
        "LoRA r=8 on q_proj and v_proj, batch 4 x 4, fp16 (fp32 on a CPU), activations recomputed, rows cut "
        "at 256 tokens, loss on the prompt too; padded to the longest of a batch, not to 256"
    )
    rank, alpha, targets = 8, 16, ("q_proj", "v_proj")
    half = "fp16"

    def inputs(self, rows):
        return [{"input_ids": [*row.ids[:256]], "labels": [*row.ids[:256]]} for row in rows]

    def arguments(self, kind, num_rows, epochs):
        return super().arguments(kind, num_rows, epochs) | {
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 4,
            "gradient_checkpointing": True,
            "gradient_checkpointing_kwargs": {"use_reentrant": False},
        }
