"""Put back letters that a source lost: "aery" is artery, "impoant" important, "detion" deviation.

A quarter of MedMCQA's explanations, and many questions and options, lost every "rt", "via" and "fav".
What is damaged is learnt from the corpus: a word is taken for a damaged one if it becomes a known word
when the letters are put back, and if the rows in which it stands don't hold these letters anywhere.
The second half is what tells "aery" (damaged) from "main" (real; "martin" without its "rt").
"""

import dataclasses
import functools
import itertools
import re
from collections.abc import Iterable

from medqa.data.vocabulary import LOST, TOKEN, Vocabulary, fold, runs, tokens

__all__ = ["Lexicon"]

# In nats, before the rows are looked at: a word that nobody knows and that becomes a known one is
# damaged; an English word, or one of two letters, is not. A word that only general English knows, never
# this corpus, lies between.
_PRIOR_UNKNOWN, _PRIOR_ENGLISH, _PRIOR_NOT_IN_CORPUS = 3.0, -7.0, 1.0
_THRESHOLD = 2.0
_MIN_ABSENCE = 1.0
# A whole word in fewer rows may be a slip itself.
_MIN_ROWS_WHOLE, _MIN_ROWS_WHOLE_RARE_LOSS = 5, 40
# The damaged form is up to so many times commoner than the whole one.
_MAX_RATIO, _MAX_RATIO_ENGLISH = 40, 4
_MIN_CLEAR = 3
_SHORT = 3

_HYPHEN = "-\u00ad\u2010\u2011"
_WORD = re.compile(rf"([{_HYPHEN}]?)([A-Z]?[a-z]+|[A-Z]+(?![a-z]))(?=([{_HYPHEN}]\s?[a-z]+)?)")


@dataclasses.dataclass(frozen=True)
class Repair:
    """One damaged word.

    Attributes:
        damaged: As it stands, folded.
        whole: As it was.
        lost: Which letters it lost.
        score: Log odds that it is damaged, in nats.
        num_rows: Rows it stands in.
        in_context: Whether it is a real word too, left alone in rows that hold the lost letters.
    """

    damaged: str
    whole: str
    lost: str
    score: float
    num_rows: int
    in_context: bool


class Lexicon:
    """The damaged words of a corpus and what they were.

    Attributes:
        repairs: By damaged word.
    """

    def __init__(self, repairs: Iterable[Repair], known: Vocabulary) -> None:
        self.repairs = {repair.damaged: repair for repair in repairs}
        self._known = known
        self._damaged = functools.lru_cache(maxsize=1 << 17)(self._is_damaged)

    @classmethod
    def learn(cls, vocabulary: Vocabulary) -> "Lexicon":
        """Find the damaged words of a corpus."""
        candidates: dict[str, list[tuple[int, str, str]]] = {}
        for whole, num_rows in vocabulary.rows.items():
            _add_candidates(candidates, whole, num_rows, vocabulary)
        for whole in vocabulary.english_words():
            if not vocabulary.rows[whole]:
                _add_candidates(candidates, whole, 0, vocabulary)
        found = (_judge(damaged, wholes, vocabulary) for damaged, wholes in candidates.items())
        return cls((repair for repair in found if repair is not None), vocabulary)

    def _is_damaged(self, run: str) -> bool:
        return any(fold(word) in self.repairs for word in tokens(run))

    def touches(self, text: str) -> bool:
        """Say whether a text holds a damaged word; quicker than repairing it."""
        written = runs(text)
        if not self.repairs.keys().isdisjoint(written):
            return True
        return any(map(self._damaged, itertools.filterfalse(str.islower, written)))

    def __call__(self, text: str, row: str | None = None) -> str:
        """Repair a text.

        Args:
            text: The text.
            row: The whole row that it is a part of, to tell whether the row lost letters; the text
                itself if not given.
        """
        damaged = set(filter(self._damaged, runs(text)))
        if not damaged:
            return text
        hits = {word for run in damaged for word in tokens(run) if fold(word) in self.repairs}
        around = text if row is None else row

        def mend(match: re.Match[str]) -> str:
            repair = self.repairs.get(fold(match[2]))
            if repair is None or (repair.in_context and repair.lost in around):
                return match[0]
            if self._is_part(match, repair):
                return match[0]
            return match[1] + _in_case(match[2], repair.whole)

        pieces, done = [], 0
        for word in TOKEN.finditer(text):
            if word[0] in hits:
                start = word.start()
                hyphened = start > done and text[start - 1] in _HYPHEN
                match = _WORD.match(text, start - hyphened)
                assert match is not None  # it begins with the very word
                pieces += [text[done : match.start()], mend(match)]
                done = match.end()
        return "".join((*pieces, text[done:]))

    def _is_part(self, match: re.Match[str], repair: Repair) -> bool:
        """Say whether what looks damaged is a part of a longer word: "gra-dients", "hea-d", "PaO2"."""
        before, written, after = match.groups(default="")
        if after and self._known.is_known(repair.damaged + after.lstrip(_HYPHEN + " ")):
            return True
        if not repair.in_context:
            return False
        beyond = match.string[match.end(2) : match.end(2) + 2]
        glued = beyond[:1].isalnum() and not (beyond.isalpha() and beyond.istitle() and len(written) > 2)
        inside = match.start(2) > 0 and match.string[match.start(2) - 1].isalnum()
        quoted = match.start(2) > 0 and match.string[match.start(2) - 1] in "'\"\u2018\u201c"
        return glued or quoted or (len(written) <= _SHORT and (bool(before) or inside))


def _add_candidates(
    candidates: dict[str, list[tuple[int, str, str]]], whole: str, num_rows: int, vocabulary: Vocabulary
) -> None:
    for lost in LOST:
        if lost in whole:
            damaged = whole.replace(lost, "")
            if damaged and damaged in vocabulary.rows:
                candidates.setdefault(damaged, []).append((num_rows, whole, lost))


def _judge(damaged: str, wholes: list[tuple[int, str, str]], vocabulary: Vocabulary) -> Repair | None:
    """Decide whether a word is a damaged one, and which it was."""
    wholes.sort(reverse=True)
    num_whole, whole, lost = wholes[0]
    if len(wholes) > 1 and wholes[1][0] * _MIN_CLEAR > num_whole:
        return None
    num_rows, absence = vocabulary.rows[damaged], vocabulary.absence(damaged, lost)
    real = vocabulary.is_english(damaged) or len(damaged) < _SHORT
    if real:
        prior = _PRIOR_ENGLISH
        # A name among the whole words is no evidence against a real word: main is not Martin.
        possible = (
            num_whole >= _MIN_ROWS_WHOLE
            and num_rows <= _MAX_RATIO_ENGLISH * num_whole
            and not vocabulary.is_name(whole)
        )
    else:
        prior = _PRIOR_UNKNOWN if num_whole else _PRIOR_NOT_IN_CORPUS
        possible = _is_plausible(damaged, whole, num_whole, absence, vocabulary)
    score = prior + absence
    if not possible or score < _THRESHOLD:
        return None
    return Repair(damaged, whole, lost, score, num_rows, in_context=real or len(damaged) <= _SHORT)


def _is_plausible(damaged: str, whole: str, num_whole: int, absence: float, vocabulary: Vocabulary) -> bool:
    """Ask more of an unknown word the shorter it is and the rarer the whole one."""
    known = num_whole > 0 and vocabulary.is_english(whole) and len(damaged) > _SHORT
    if absence < _MIN_ABSENCE and num_whole < _MIN_ROWS_WHOLE and not known:
        return False  # the rows say little about this word
    if len(damaged) <= _SHORT:
        enough = _MIN_ROWS_WHOLE if absence >= _MIN_ABSENCE else _MIN_ROWS_WHOLE_RARE_LOSS
        return num_whole >= enough
    return not num_whole or vocabulary.rows[damaged] <= _MAX_RATIO * num_whole


def _in_case(written: str, whole: str) -> str:
    if written.isupper() and len(written) > 1:
        return whole.upper()
    return whole.capitalize() if written[0].isupper() else whole
