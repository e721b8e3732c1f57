"""What fuzzing has led to is read, or refused with a way out, every time: tools/fuzz.py adds to it."""

import pytest

from .parsers import CORPUS, PARSERS


@pytest.mark.parametrize("name", PARSERS)
def test_the_corpus_is_read_or_refused(name, tmp_path):
    files = sorted((CORPUS / name).iterdir())
    assert files
    for file in files:
        PARSERS[name](file.read_bytes(), tmp_path)
