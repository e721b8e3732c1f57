"""Turn the configured sources into a corpus: what to train on, and the account of every row.

read -> rules (each row by itself) -> duplicates and conflicts -> leaks -> splits -> sample, weights, order.
"""

import collections
import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

from medqa.config import DataConfig
from medqa.data.account import Account, describe
from medqa.data.clean import cleaning_rules, minimal_rules
from medqa.data.corpus import Corpus
from medqa.data.draw import examples_hash, sample, shuffled, weighted
from medqa.data.duplicates import Groups, group_duplicates
from medqa.data.fingerprints import Fingerprint
from medqa.data.leaks import LeakAudit, audit_leaks
from medqa.data.mix import Source, read_sources
from medqa.data.novelty import resemblance
from medqa.data.repair import Lexicon
from medqa.data.rules import Rule, chosen_rules, clean_rows
from medqa.data.sources import read_split
from medqa.data.splits import hold_back
from medqa.data.vocabulary import Vocabulary, row_text
from medqa.data.workers import collector_paused
from medqa.errors import DataError
from medqa.progress import track
from medqa.records import Example

__all__ = ["QuestionSet", "audit_training", "build_corpus", "evaluation_set"]

log = logging.getLogger(__name__)

_NUM_PASSES = 4
# Of a held-back question, less than this is found in any one other. From about 0.4 on, models were right more
# often than on new questions: 59 % against 52 % (Qwen2.5-Coder-1.5B, 2,686 held-back questions of MedMCQA).
MAX_RESEMBLANCE = 0.3


@dataclasses.dataclass(frozen=True)
class QuestionSet:
    """Questions and how they came about.

    Attributes:
        examples: The questions.
        record: Source, counts and hash, for run.json.
    """

    examples: list[Example]
    record: dict[str, Any]

    @property
    def whole(self) -> bool:
        """Whether these are all usable questions of the split, not a drawn part."""
        return bool(self.record["num_used"] == self.record["num_with_key"])


@collector_paused()
def build_corpus(config: DataConfig, seed: int) -> Corpus:
    """Build the corpus that a recipe describes.

    Args:
        config: The sources and what to do with them.
        seed: Chooses among the rows where there are more than asked for, and the order of options.

    Raises:
        DataError: If a source can't be read, or nothing is left to train on.
        ConfigError: If `data.skip_rules` names no rule.
    """
    sources = read_sources(config)
    keyed = [example for source in sources for example in source.examples]
    if not keyed:
        raise DataError(f"{config.name} {config.train_split}: no question has a key", "training needs keys")
    evaluation, reason = _evaluation_for_audit(
        config, {file for source in sources for file in source.split.files}
    )
    with track("Preparing questions", _NUM_PASSES * len(keyed)) as task:
        rules, lexicon = _rules(config, keyed)
        Fingerprint.of(keyed[0])  # loads here what processes would each load for themselves
        task.advance(len(keyed), "words")
        kept, prints, results = clean_rows(rules, keyed, Fingerprint.of, task.advance)
        groups = group_duplicates(kept, prints, config.near_duplicate, task.advance)
        if not config.clean:  # copies stay, but no split comes between them
            groups = Groups(groups.split, [], [])
        task.advance(len(keyed) - len(kept), "duplicates")
        audit = audit_leaks(prints, evaluation.examples, config.near_duplicate) if evaluation else None
        if audit is not None and not config.drop_leaks:
            audit = dataclasses.replace(audit, train_rows={})
        task.advance(len(keyed), "leaks")
    questions = evaluation.examples if evaluation else []
    account = Account(rules, results, lexicon, len(keyed), kept, groups, audit, questions)
    parts = _split(config, kept, prints, groups, audit)
    train, num_distinct = _compose(config, sources, [kept[row] for row in parts["train"]], seed)
    if not train:
        raise DataError(
            f"{config.name}: no question is left of {len(keyed):,}",
            "`medqa data` shows what each rule left out; data.skip_rules switches one off",
        )
    held = {name: [kept[row] for row in parts[name]] for name in ("calibration", "selection")}
    splits = {
        name: {"num_used": len(rows), "sha256": examples_hash(rows)}
        for name, rows in (("train", train), *held.items())
    }
    record = {
        "name": config.name,
        "split": config.train_split,
        "files": [file for source in sources for file in source.split.files],
        "sources": [source.record(train) for source in sources],
        **describe(account, evaluation.record if evaluation else {"reason": reason}),
        "splits": splits,
        "sha256": splits["train"]["sha256"],
        **_counts(train),
        "num_distinct": num_distinct,
    }
    _tell(record)
    return Corpus(train, held["calibration"], held["selection"], record, account)


def _evaluation_for_audit(config: DataConfig, trained_on: set[str]) -> tuple[QuestionSet | None, str]:
    """Read the evaluation split, or say why leaks can't be looked for."""
    try:
        questions = evaluation_set(config.model_copy(update={"max_eval_rows": None}), 0)
        same = set(questions.record["files"]) & trained_on
        if not same:
            return questions, ""
        reason = f"{sorted(same)[0]} holds both training and evaluation questions"
    except DataError as exc:
        reason = exc.message
    log.warning(
        "Leaks are not looked for: %s. `medqa evaluate` will need other questions: --set data.name=..., or a "
        "folder with train.jsonl and validation.jsonl",
        reason,
    )
    return None, reason


def _rules(config: DataConfig, examples: list[Example]) -> tuple[list[Rule], Lexicon | None]:
    """Choose the rules, learnt from the rows where they are to be cleaned."""
    if not config.clean:
        return minimal_rules(), None
    vocabulary = Vocabulary(row_text(example) for example in examples)
    lexicon = Lexicon.learn(vocabulary)
    return chosen_rules(cleaning_rules(vocabulary, lexicon), config.skip_rules), lexicon


def _split(
    config: DataConfig,
    kept: Sequence[Example],
    prints: Sequence[Fingerprint],
    groups: Groups,
    audit: LeakAudit | None,
) -> dict[str, list[int]]:
    """Say which rows are left, and what each of them is for; only what is new to the model is held back."""
    spare = groups.copies | groups.conflicting
    if audit is not None:
        spare |= audit.train_rows.keys()
    left = [row for row in range(len(kept)) if row not in spare]
    examples, numbers = [kept[row] for row in left], [groups.split[row] for row in left]
    calibration = hold_back(examples, numbers, config.calibration_share, "calibration")
    selection = hold_back(examples, numbers, config.selection_share, "selection", {*calibration})
    drawn = sorted(calibration | selection)
    likeness = resemblance(drawn, [prints[row] for row in left], numbers)
    known = {numbers[row] for row, share in zip(drawn, likeness, strict=True) if share >= MAX_RESEMBLANCE}
    new = {row for row in drawn if numbers[row] not in known}  # whole groups, or copies come apart
    return {
        "train": [row for i, row in enumerate(left) if i not in new],
        "calibration": [left[i] for i in sorted(calibration & new)],
        "selection": [left[i] for i in sorted(selection & new)],
    }


def _compose(
    config: DataConfig,
    sources: Sequence[Source],
    examples: list[Example],
    seed: int,
) -> tuple[list[Example], int]:
    """Weigh the sources, draw the rows, and put the options into order.

    Returns:
        The rows, and how many of them are no repeats of another.
    """
    by_source: dict[str, list[Example]] = collections.defaultdict(list)
    for example in examples:
        by_source[example.source].append(example)
    weighed: list[Example] = []
    for source in sources:
        weighed += weighted(by_source[source.label], source.config.weight, seed)
    drawn = sample(weighed, config.max_train_rows, seed)
    num_distinct = len({id(example) for example in drawn})
    return [shuffled(example, seed) for example in drawn] if config.shuffle_options else drawn, num_distinct


def _counts(train: Sequence[Example]) -> dict[str, Any]:
    return {
        "num_used": len(train),
        "num_with_explanation": sum(example.explanation is not None for example in train),
        "licences": sorted({example.licence for example in train}),
    }


def _tell(record: dict[str, Any]) -> None:
    """Say on stderr what was left out, and that something was not looked for."""
    out = {
        **{name: rule["num_dropped"] for name, rule in record["rules"].items() if rule["num_dropped"]},
        "duplicate": record["duplicates"]["num_left_out"],
        "conflicting keys": record["conflicts"]["num_rows"],
        "leak": record["leaks"].get("num_train_rows_left_out", 0),
    }
    text = ", ".join(f"{count:,} {name}" for name, count in out.items() if count)
    splits = record["splits"]
    log.info(
        "%s questions to train on, %s held back for calibration, %s to choose by; left out: %s",
        *(f"{splits[name]['num_used']:,}" for name in ("train", "calibration", "selection")),
        text or "none",
    )


def audit_training(config: DataConfig, questions: Sequence[Example]) -> LeakAudit:
    """Look for questions in a recipe's training rows, as they were published.

    For a benchmark that was not audited when the run was trained.

    Raises:
        DataError: If the training rows can't be read any more.
    """
    rows = (example for source in read_sources(config) for example in source.examples)
    return audit_leaks(map(Fingerprint.of, rows), questions, config.near_duplicate)


def evaluation_set(config: DataConfig, seed: int) -> QuestionSet:
    """Read the questions to be measured on, untouched; those without a key are left out.

    Raises:
        DataError: If no question has a key.
    """
    split = read_split(config, config.eval_split, allow_repeated_options=True)
    keyed = [example for example in split.examples if example.answer is not None]
    if not keyed:
        raise DataError(
            f"{config.name} {config.eval_split}: no question has a key",
            "measure on a split with keys: --set data.eval_split=validation",
        )
    drawn = sample(keyed, config.max_eval_rows, seed)
    sha256 = examples_hash(drawn)
    num_twice = len(drawn) - len({example.content_hash() for example in drawn})
    if num_twice:
        log.warning(
            "%s %s: %d questions occur more than once and count each time; data.subset chooses among subsets",
            config.name,
            config.eval_split,
            num_twice,
        )
    return QuestionSet(
        drawn,
        {
            "name": config.name,
            "split": config.eval_split,
            "files": split.files,
            "num_read": len(split.examples) + len(split.broken),
            "num_broken": len(split.broken),
            "num_without_key": len(split.no_key),
            "num_repeated_options": sum(e.repeated_option() is not None for e in drawn),
            "num_occurring_again": num_twice,
            "num_with_key": len(keyed),
            "num_used": len(drawn),
            "sha256": sha256,
            "sha256_split": sha256 if len(drawn) == len(keyed) else examples_hash(keyed),
        },
    )
