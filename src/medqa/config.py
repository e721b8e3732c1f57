"""The settings of a run: one frozen tree, every field documented in place.

The text under a field is its only description; `medqa recipe fields` prints it. Units are in the
text. "auto" values are resolved once, by `medqa.hardware` and `medqa.train`, into the run folder
together with the reason.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "DataConfig",
    "EvaluateConfig",
    "LoraConfig",
    "MixConfig",
    "ModelConfig",
    "RunConfig",
    "ServeConfig",
    "SourceConfig",
    "TrainConfig",
]

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """Base of every part of the tree: frozen, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class SourceConfig(Section):
    """Where questions come from and how their columns are read."""

    name: str = "openlifescienceai/medmcqa"
    """Hub id, local folder or file of parquet, JSONL, CSV or Excel, or builtin:starter."""
    format: Literal["auto", "medmcqa", "medqa", "mmlu", "pubmedqa", "table"] = "auto"
    """Column layout; auto recognises it by the column names."""
    revision: str | None = None
    """Hub branch, tag or commit; the default branch if not given."""
    subset: str | None = None
    """Word that a file's path must hold too, for sources of several subsets, such as MMLU's anatomy."""
    map: dict[str, str] = {}
    """Names of the file's own columns, such as {question: stem, answer: solution}."""
    keys: Literal["auto", "0-based", "1-based", "letter", "text"] = "auto"
    """How the right option is named; auto finds it out over the whole file and refuses what is unclear."""
    licence: str | None = None
    """Licence of the questions, for the record; unknown for own files if not given."""


class MixConfig(SourceConfig):
    """A further source to train on."""

    split: str = "train"
    """Split to train on."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """How often each row is used: 0.5 takes half of them, drawn by hash; 2 takes each twice."""
    max_rows: Positive | None = None
    """Take at most this many rows, drawn by hash, before the weight is applied; all if not given."""


class DataConfig(SourceConfig):
    """Which questions to train on and to be measured on."""

    train_split: str = "train"
    """Split to train on."""
    eval_split: str = "validation"
    """Split to measure on; never used for training, calibration or choices."""
    max_train_rows: Positive | None = None
    """Train on at most this many rows, drawn by hash of id and seed, never by order; all if not given."""
    max_eval_rows: Positive | None = None
    """Measure on at most this many rows, drawn the same way; all if not given."""
    mix: tuple[MixConfig, ...] = ()
    """Further sources to train on, each with name, weight and max_rows; measured is on data.name only."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """How often each row of data.name is used, beside those of data.mix."""
    clean: bool = True
    """Clean, repair and de-duplicate the training questions; false takes every usable row as published."""
    skip_rules: tuple[str, ...] = ()
    """Names of cleaning rules to leave out; `medqa data` lists the rules and what each did."""
    near_duplicate: Fraction = 0.8
    """Share of common three-word runs (Jaccard) from which two questions count as the same."""
    drop_leaks: bool = True
    """Leave out training questions that are, exactly or nearly, in the evaluation split."""
    calibration_share: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    """Share of the training questions drawn for calibration; those of them that are like another question are
    trained on after all."""
    selection_share: Annotated[float, Field(ge=0, le=0.5)] = 0.015
    """Share drawn in the same way to choose by: which calibration, for one."""
    shuffle_options: bool = False
    """Put the options of each training question into another order; "all of the above" keeps its place."""


class ModelConfig(Section):
    """The base model and how it is held in memory."""

    name: str = "Qwen/Qwen3-1.7B"
    """Hub id or local folder with safetensors weights, or builtin:smollm2-135m."""
    revision: str | None = None
    """Hub branch, tag or commit; the default branch if not given."""
    device: str = "auto"
    """auto takes the accelerator that torch sees, else the CPU; or a torch device such as cpu."""
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Precision of the frozen weights and of the arithmetic; the adapter is always fp32."""
    shard: bool = False
    """Spread the frozen weights over all processes (FSDP2), for a model that one device does not hold; else
    each process holds them all, which is faster. `accelerate launch --use_fsdp` does so too."""
    trust_remote_code: str | None = None
    """Name of the one model whose own Python code may run; must equal model.name."""


class LoraConfig(Section):
    """The low-rank adapter (Hu et al. 2021)."""

    rank: Positive = 16
    """Rank of the two factors."""
    alpha: Annotated[float, Field(gt=0)] = 32
    """Scale of the update: it is multiplied by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability of dropping an input of the adapter while training."""
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Layers that get an adapter: all-linear (every one but the head), or a list of layer names."""
    last_blocks: Positive | None = None
    """Adapt only this many of the last transformer blocks: the backward pass stops there, which saves up
    to half the time and memory; all blocks if not given."""


class TrainConfig(Section):
    """How to train."""

    epochs: Positive = 1
    """Passes over the training rows."""
    batch_size: Positive = 16
    """Rows per optimizer step."""
    micro_batch_size: Positive | Literal["auto"] = "auto"
    """Rows per forward pass; auto goes by the free memory, and is halved when memory runs out."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """Peak learning rate of AdamW, reached after the warm-up, then a cosine to zero."""
    warmup_fraction: Fraction = 0.05
    """Share of the optimizer steps in which the learning rate rises to its peak."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's decoupled weight decay, on the adapter only."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are scaled down to this global norm."""
    answer_weight: Fraction = 0.5
    """Share of a row's loss on its answer letter; the rest is the mean over its other tokens."""
    explanation_share: Fraction = 1.0
    """Share of the rows that are trained with their explanation, drawn by hash; the others end after
    letter and option text, which halves their length."""
    read_back_share: Fraction = 0.1
    """Further rows, as a share of the questions, that ask which option an explanation points to: the check
    that the model's own explanations go through."""
    max_length_tokens: Positive = 512
    """Longest row. Explanations past it are cut (and counted); prompts past it are left out (and counted)."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the adapter's start, the order of the rows and dropout."""
    fast_path: bool = True
    """Run packed rows through fused layers, where that is found to equal the plain way on your own rows;
    false takes transformers' and PEFT's own layers."""
    deterministic: bool = False
    """Make an accelerator add in one order, so that the same run gives the same adapter to the bit there too;
    slower. A CPU does so anyway."""
    allow_slow: bool = False
    """Train on the CPU even where that is estimated to take hours."""
    checkpoint_minutes: Annotated[float, Field(gt=0)] = 5.0
    """Minutes between checkpoints."""
    lora: LoraConfig = LoraConfig()


class EvaluateConfig(Section):
    """How to measure."""

    lm_eval: bool = True
    """Also score with lm-eval's own prompt, for numbers that compare with published ones."""
    batch_tokens: Positive | Literal["auto"] = "auto"
    """Padded tokens per forward pass."""
    calibration_rows: Positive | Literal["auto"] = "auto"
    """Held-back questions to calibrate on, drawn by hash; auto takes all on an accelerator, 300 on a CPU."""
    orders: Literal[1, 4, 24] = 4
    """Option orders that every question is also asked in: 4 is every rotation, 24 every order of four."""
    explanations: Annotated[int, Field(ge=0)] = 200
    """Questions, drawn by hash, whose explanation is written and checked."""
    traps: Annotated[int, Field(ge=0)] = 500
    """Questions, drawn by hash, that are changed into traps."""


class ServeConfig(Section):
    """How to answer."""

    max_explanation_tokens: Positive = 256
    """Longest explanation; one that reaches it is marked as cut."""
    orders: Literal[1, 4, 24] = 1
    """Option orders that an answer is averaged over: 1 as given, 4 every rotation, 24 every order of four."""
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the answer sets that may miss the right option: 0.2, 0.1 or 0.05."""
    max_risk: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the given answers that may be wrong: below the confidence that takes, none is given."""


class RunConfig(Section):
    """All settings of a run."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    serve: ServeConfig = ServeConfig()
