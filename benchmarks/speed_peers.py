"""Further tools that benchmarks/speed.py measures: TRL, Unsloth, LLaMA-Factory; and the list of all."""

import dataclasses
import importlib.util
import json
import math
import tempfile
from pathlib import Path

from speed_tools import (
    LEARNING_RATE,
    GroupedTrainer,
    Hackathon,
    HfTrainer,
    Ours,
    OursPlain,
    Outcome,
    Tool,
)

BLOCK_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Trl(HfTrainer):
    settings = "LoRA r=16 all-linear, batch {batch}, rows of like length together, its chunked loss"
    grouped = True
    packing = False

    def use(self):
        import datasets  # noqa: F401
        import trl  # noqa: F401

        super().use()

    def trainer(self, inputs, epochs):
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        arguments = self.arguments(SFTConfig, len(inputs), epochs)
        arguments |= {"max_length": self.job.max_length, "packing": self.packing}
        return SFTTrainer(
            self.model,
            SFTConfig(**arguments),
            train_dataset=Dataset.from_list(inputs),
            processing_class=self.tokenizer,
        )


class Trl64(Trl):
    settings = "the same as trl, batch 64"

    def __init__(self, job):
        super().__init__(dataclasses.replace(job, batch=64))


class TrlPacking(Trl):
    """Packing needs kernels that know where a row ends; without them rows would see each other."""

    settings = "LoRA r=16 all-linear, packed without padding, as many tokens a step as {batch} full rows"
    attention = "flash_attention_2"
    grouped = False
    packing = True

    def use(self):
        if importlib.util.find_spec("flash_attn") is None:
            raise RuntimeError("packing without padding needs flash-attn, which is not installed")
        super().use()


class Unsloth(Trl):
    settings = "LoRA r=16 all-linear, batch {batch}, its own kernels, padding-free where it chooses so"
    grouped = False

    def use(self):
        import unsloth  # noqa: F401  # before the libraries that it patches

        super().use()

    def load(self):
        import torch
        from unsloth import FastLanguageModel

        model, self.tokenizer = FastLanguageModel.from_pretrained(
            model_name=str(self.job.model),
            max_seq_length=self.job.max_length,
            dtype=torch.bfloat16,
            load_in_4bit=False,
        )
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        self.model = FastLanguageModel.get_peft_model(
            model,
            r=16,
            lora_alpha=32,
            lora_dropout=0,
            bias="none",
            target_modules=BLOCK_LINEAR,
            use_gradient_checkpointing=False,
            random_state=0,
        )
        self.keep_start()


class UnslothPacking(Unsloth):
    settings = "the same as unsloth, packed"
    packing = True


class LlamaFactory(Tool):
    """Trains from text, so it loads the model anew for every training; the seconds are its own count."""

    settings = (
        "LoRA r=16 all-linear, batch {batch}, its own tokenising of the same text (tokens may differ a "
        "little); seconds as it reports them (train_runtime)"
    )

    def use(self):
        from llamafactory.train.tuner import run_exp  # noqa: F401

    def load(self):
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(self.job.model)

    def write_rows(self, rows, folder):
        """Write the text of the rows in the Alpaca layout; the template `empty` adds nothing to it."""
        lines = [
            {
                "instruction": self.tokenizer.decode([*row.ids[: row.num_prefix]]),
                "input": "",
                "output": self.tokenizer.decode([*row.ids[row.num_prefix :]]),
            }
            for row in rows
        ]
        (folder / "rows.json").write_text(json.dumps(lines))
        (folder / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.json"}}))

    def train(self, rows, epochs):
        from llamafactory.train.tuner import run_exp

        num_steps = math.ceil(len(rows) / self.job.batch) * epochs
        with tempfile.TemporaryDirectory() as name:
            folder, out = Path(name), Path(name) / "out"
            self.write_rows(rows, folder)
            settings = {
                "stage": "sft",
                "do_train": True,
                "model_name_or_path": str(self.job.model),
                "finetuning_type": "lora",
                "lora_target": "all",
                "lora_rank": 16,
                "lora_alpha": 32,
                "disable_gradient_checkpointing": True,
                "template": "empty",
                "dataset": "rows",
                "dataset_dir": str(folder),
                "cutoff_len": self.job.max_length,
                "output_dir": str(out),
                "per_device_train_batch_size": self.job.batch,
                "gradient_accumulation_steps": 1,
                "num_train_epochs": epochs,
                "learning_rate": LEARNING_RATE,
                "lr_scheduler_type": "cosine",
                "bf16": self.job.device != "cpu",
                "logging_steps": min(10, num_steps),
                "save_strategy": "no",
                "report_to": "none",
            }
            run_exp(settings)
            result = json.loads((out / "train_results.json").read_text())
            state = json.loads((out / "trainer_state.json").read_text())
        losses = [line["loss"] for line in state["log_history"] if "loss" in line]
        num_tokens = epochs * sum(len(row) for row in rows)
        return Outcome(result["train_runtime"], state["global_step"], num_tokens, losses[-1])


TOOLS = {
    "ours": Ours,
    "ours-plain": OursPlain,
    "trainer": HfTrainer,
    "trainer-grouped": GroupedTrainer,
    "hackathon": Hackathon,
    "trl": Trl,
    "trl-64": Trl64,
    "trl-packing": TrlPacking,
    "unsloth": Unsloth,
    "unsloth-packing": UnslothPacking,
    "llamafactory": LlamaFactory,
}
