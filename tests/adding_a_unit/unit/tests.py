import pytest

from lmcore import voting


def test_the_most_frequent_word_wins():
    assert voting.most_common(["a", "b", "b"]) == "b"


def test_no_words_are_refused():
    with pytest.raises(ValueError, match="no words"):
        voting.most_common([])
