"""What letters the source lost, how whole rows show it, and what explanations say against their keys.

usage: python benchmarks/lost_letters.py --data DIR

Prints the figures of docs/experiments.md and docs/decisions/0004 on lost letters and doubtful keys.
"""

import argparse
import collections
import re
from pathlib import Path

from medqa.config import DataConfig
from medqa.data.judge import contradicted_key
from medqa.data.markers import is_anchored
from medqa.data.repair import Lexicon
from medqa.data.rules import Drop
from medqa.data.sources import read_split
from medqa.data.vocabulary import Vocabulary, fold, row_text
from medqa.records import LETTERS

LIST = Path(__file__).parents[1] / "tests/data/lost_letters.txt"
SURE = re.compile(r"\b(aery|impoant|hypeension|bih|aoic|poal|ceain|paicularly|fuher)\b", re.IGNORECASE)
OPENING = re.compile(r"(?i)\W*ans(?:wer)?\W*(?:is)?\W*([a-d])\b")


def strings_that_explain_unknown_words(vocabulary):
    """For each string of 2 to 5 letters: the unknown words that common ones become without it."""
    unknown = {w for w, n in vocabulary.rows.items() if n >= 4 and not vocabulary.is_english(w)}
    found = collections.defaultdict(dict)
    for word, num in vocabulary.rows.items():
        if num < 20 or len(word) < 6:
            continue
        for size in range(2, 6):
            for start in range(len(word) - size + 1):
                damaged = word[:start] + word[start + size :]
                if len(damaged) > 3 and damaged in unknown and vocabulary.rows[damaged] >= 0.3 * num:
                    found[word[start : start + size]][damaged] = vocabulary.rows[damaged]
    return {string: (len(words), sum(words.values())) for string, words in found.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True)
    rows = read_split(
        DataConfig(name=parser.parse_args().data), "train", allow_repeated_options=True
    ).examples
    texts = [row_text(row) for row in rows]
    damaged = [text for text in texts if SURE.search(text)]
    print(f"{len(damaged):,} of {len(texts):,} rows hold a surely damaged word; ", end="")
    print(f"'rt' is in {sum('rt' in t for t in damaged) / len(damaged):.1%} of them, ", end="")
    print(f"in {sum('rt' in t for t in texts) / len(texts):.1%} of all")
    vocabulary = Vocabulary(texts)
    print("\nstring: words explained, rows of them")
    found = strings_that_explain_unknown_words(vocabulary)
    most = sorted(found, key=found.__getitem__, reverse=True)[:6]
    for string in dict.fromkeys([*most, "via", "fav", "ati"]):
        num_words, num_rows = found.get(string, (0, 0))
        print(f"  {string}: {num_words}, {num_rows:,}")
    lexicon = Lexicon.learn(vocabulary)
    lines = [line for line in LIST.read_text().splitlines() if line and not line.startswith("#")]
    middle = lines.index("[traps]")
    pairs = dict(line.split() for line in lines[1:middle])
    traps = " ".join(lines[middle + 1 :]).split()
    frequent = {a: b for a, b in pairs.items() if vocabulary.rows[fold(a)] >= 5}
    right = [a for a, b in frequent.items() if a in lexicon.repairs and lexicon.repairs[a].whole == b]
    share = sum(vocabulary.rows[a] for a in right) / sum(vocabulary.rows[a] for a in frequent)
    print(
        f"\n{len(pairs)} pairs, {len(traps)} traps; in five rows or more: {len(right)} of {len(frequent)} ",
        end="",
    )
    print(f"right ({len(right) / len(frequent):.3f}; {share:.3f} by rows), ", end="")
    print(f"{sum(fold(trap) in lexicon.repairs for trap in traps)} traps sprung")
    common = [r for r in lexicon.repairs.values() if r.num_rows >= 5]
    unlisted = ", ".join(f"{r.damaged} -> {r.whole}" for r in common if r.damaged not in pairs)
    print(f"{len(common)} words in five rows or more are repaired; not on the list: {unlisted}")
    told = [(row, m) for row in rows if row.explanation and (m := OPENING.match(row.explanation))]
    against = [r for r, m in told if r.answer is not None and m[1].upper() != LETTERS[r.answer]]
    dropped = sum(isinstance(contradicted_key(row), Drop) for row in against)
    above = sum(is_anchored(row.options[row.answer]) for row in against)
    print(
        f"\n{len(against)} explanations open with another letter than the key's: {above} keys speak of other "
    )
    print(f"options, {dropped} rows are left out")


if __name__ == "__main__":
    main()
