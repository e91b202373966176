"""Words are found where they are, none is lost, and the best cut is the best."""

import itertools
import logging
import math
from pathlib import Path

import jieba
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcore import segment

WORDS = {"研究", "研究生", "生命", "命", "起源"}
LOG_PROB = {
    word: math.log(prob)
    for word, prob in [
        ("研究", 0.2),
        ("生命", 0.2),
        ("起源", 0.2),
        ("研究生", 0.1),
        ("命", 0.01),
    ]
}
SENTENCES = [
    "研究生命起源",
    "我攒了一千万一需要我就拿出来",
    "我不完全懂你的意思",
    "南京市长江大桥欢迎您",
    "乒乓球拍卖完了",
    "他说的确实在理",
    "结婚的和尚未结婚的都在这里",
    "下雨天留客天留我不留",
]

letters = st.text("abc", max_size=9)
vocabularies = st.sets(st.text("abc", min_size=1, max_size=4), max_size=8)
log_probs = st.floats(-12.0, 0.0)


def every_cut(text: str) -> list[list[str]]:
    """All ways to put or not to put a border between two characters."""
    if not text:
        return [[]]
    cuts = []
    for borders in itertools.product([False, True], repeat=len(text) - 1):
        words = text[0]
        for border, character in zip(borders, text[1:], strict=True):
            words += "|" * border + character
        cuts.append(words.split("|"))
    return cuts


# --- all_segmentations, count_segmentations -----------------------------------------


def test_the_cuts_of_three_letters_worked_by_hand():
    cuts = segment.all_segmentations("aaa", {"a", "aa"})
    assert cuts == [["a", "a", "a"], ["a", "aa"], ["aa", "a"]]


def test_a_second_call_finds_the_same_cuts():
    first = segment.all_segmentations("aaa", {"a", "aa"})
    first[0].append("changed by the caller")
    assert len(segment.all_segmentations("aaa", {"a", "aa"})) == 3
    assert segment.all_segmentations("aaa", {"a", "aa"})[0] == ["a", "a", "a"]


def test_the_cuts_do_not_share_their_lists():
    cuts = segment.all_segmentations("aaaa", {"a", "aa"})
    cuts[0].clear()
    assert cuts[1:] == segment.all_segmentations("aaaa", {"a", "aa"})[1:]


def test_one_word_is_one_cut():
    assert segment.all_segmentations("a", {"a"}) == [["a"]]


def test_an_empty_text_has_the_empty_cut():
    assert segment.all_segmentations("", {"a"}) == [[]]
    assert segment.count_segmentations("", {"a"}) == 1


def test_a_text_with_an_unknown_character_has_no_cut_into_known_words():
    assert segment.all_segmentations("ab?", {"ab"}) == []
    assert segment.count_segmentations("ab?", {"ab"}) == 0


@given(letters, vocabularies)
def test_all_segmentations_equal_a_search_through_all_borders(text, vocabulary):
    expected = [cut for cut in every_cut(text) if set(cut) <= vocabulary]
    found = segment.all_segmentations(text, vocabulary)
    assert sorted(found) == sorted(expected)
    assert found == sorted(found, key=lambda cut: [len(word) for word in cut])


@given(letters, vocabularies)
def test_the_count_is_the_number_of_cuts(text, vocabulary):
    cuts = segment.all_segmentations(text, vocabulary)
    assert segment.count_segmentations(text, vocabulary) == len(cuts)


def test_the_number_of_cuts_into_ones_and_twos_is_a_fibonacci_number():
    before, now = 1, 1
    for _ in range(199):
        before, now = now, before + now
    assert segment.count_segmentations("a" * 200, {"a", "aa"}) == now


# --- Greedy rules -------------------------------------------------------------------


def test_longest_match_takes_the_student_and_loses_the_sentence():
    found = segment.longest_match("研究生命起源", WORDS)
    assert found == ["研究生", "命", "起源"]


def test_from_the_right_the_same_sentence_comes_out_well():
    found = segment.backward_longest_match("研究生命起源", WORDS)
    assert found == ["研究", "生命", "起源"]


@pytest.mark.parametrize("rule", [segment.longest_match, segment.best_segmentation])
def test_the_longest_candidate_is_tried(rule):
    words = dict.fromkeys(["g", "gp", "t", "pt"], -1.0)
    words["pt"] = -1.5
    assert rule("gpt", words) == ["gp", "t"]


def test_backward_longest_match_tries_the_longest_candidate():
    assert segment.backward_longest_match("gpt", {"g", "gp", "t", "pt"}) == ["g", "pt"]
    assert segment.backward_longest_match("gpt", {"gpt", "pt"}) == ["gpt"]


@pytest.mark.parametrize("text", ["a?ab", "?ab", "ab?", "??"])
@pytest.mark.parametrize(
    "rule", [segment.longest_match, segment.backward_longest_match]
)
def test_unknown_characters_stay_in_place(rule, text):
    expected = [piece for piece in text.replace("ab", " ab ").split(" ") if piece]
    singles = [list(piece) if piece != "ab" else [piece] for piece in expected]
    assert rule(text, {"ab"}) == [word for words in singles for word in words]


@pytest.mark.parametrize(
    "rule", [segment.longest_match, segment.backward_longest_match]
)
@given(text=letters, vocabulary=vocabularies)
def test_greedy_pieces_join_to_the_text_and_are_known_or_single(rule, text, vocabulary):
    words = rule(text, vocabulary)
    assert "".join(words) == text
    assert all(word in vocabulary or len(word) == 1 for word in words)


@given(letters, vocabularies)
def test_backward_is_forward_in_a_mirror(text, vocabulary):
    mirrored = segment.longest_match(text[::-1], {word[::-1] for word in vocabulary})
    found = segment.backward_longest_match(text, vocabulary)
    assert found == [word[::-1] for word in mirrored[::-1]]


@given(letters, vocabularies)
def test_no_longer_word_starts_where_longest_match_put_one(text, vocabulary):
    words = segment.longest_match(text, vocabulary)
    for start, end in segment.word_spans(words):
        assert vocabulary.isdisjoint(
            text[start:n] for n in range(end + 1, len(text) + 1)
        )


@pytest.mark.parametrize(
    "rule",
    [
        segment.longest_match,
        segment.backward_longest_match,
        segment.all_segmentations,
        segment.count_segmentations,
    ],
)
def test_a_vocabulary_that_cannot_be_meant_is_refused(rule):
    with pytest.raises(TypeError, match="'ab' is one string"):
        rule("ab", "ab")
    with pytest.raises(ValueError, match="empty word ''"):
        rule("ab", {"", "a"})


@pytest.mark.parametrize(
    "rule", [segment.longest_match, segment.backward_longest_match]
)
def test_nothing_is_cut_into_nothing_and_no_vocabulary_into_characters(rule):
    assert rule("", WORDS) == []
    assert rule("研究", set()) == ["研", "究"]


# --- Counts and probabilities of words ----------------------------------------------


def test_log_probabilities_worked_by_hand():
    found = segment.unigram_log_prob({"the": 3, "cat": 1})
    assert found == pytest.approx({"the": math.log(0.75), "cat": math.log(0.25)})


@given(st.dictionaries(st.text(max_size=3), st.integers(1, 10**9), min_size=1))
def test_probabilities_of_words_sum_to_one(counts):
    log_prob = segment.unigram_log_prob(counts)
    assert math.fsum(map(math.exp, log_prob.values())) == pytest.approx(1, abs=1e-9)


def test_counts_that_give_no_probability_are_refused():
    with pytest.raises(ValueError, match="'cat' is 0"):
        segment.unigram_log_prob({"the": 3, "cat": 0})
    with pytest.raises(ValueError, match="empty"):
        segment.unigram_log_prob({})


def test_counts_are_read_from_a_file(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("研究 20 vn\n研究生 10\n研究 21 v\n", encoding="utf-8")
    assert segment.load_word_counts(path) == {"研究": 21, "研究生": 10}


@pytest.mark.parametrize("line", ["研究", "研究 often", "研究 -3", ""])
def test_a_line_without_a_count_names_itself(tmp_path, line):
    path = tmp_path / "words.txt"
    path.write_text(f"语言 5\n{line}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=f"line 2, '{line}'"):
        segment.load_word_counts(path)


def test_without_jieba_the_reader_is_told_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install jieba"):
        segment.load_word_counts()


# --- best_segmentation --------------------------------------------------------------


def test_the_most_probable_cut_worked_by_hand():
    # 0.2 · 0.2 · 0.2 = 0.008 beats 0.1 · 0.01 · 0.2 = 0.0002.
    assert segment.best_segmentation("研究生命起源", LOG_PROB) == [
        "研究",
        "生命",
        "起源",
    ]


def test_a_long_sentence_does_not_underflow():
    log_prob = {letter: math.log(1e-3) for letter in "abcd"} | {"ab": math.log(1e-7)}
    assert segment.best_segmentation("abcd" * 100, log_prob) == list("abcd" * 100)
    log_prob["ab"] = math.log(1e-5)
    assert segment.best_segmentation("abcd" * 100, log_prob) == ["ab", "c", "d"] * 100


def test_an_unknown_character_leaves_its_neighbours_whole():
    log_prob = {"at": math.log(0.5), "test": math.log(0.5)}
    assert segment.best_segmentation(".attest", log_prob) == [".", "at", "test"]


def test_one_word_with_a_negative_score_is_found():
    assert segment.best_segmentation("a", {"a": math.log(0.5)}) == ["a"]


def test_nothing_is_cut_into_nothing():
    assert segment.best_segmentation("", LOG_PROB) == []
    assert segment.best_segmentation("研究", {}) == ["研", "究"]


def test_the_price_of_unknown_characters_decides():
    log_prob = {"ab": -9.0, "b": -1.0}
    assert segment.best_segmentation("ab", log_prob) == ["ab"]
    assert segment.best_segmentation("ab", log_prob, -2.0) == ["a", "b"]


def score(cut: list[str], log_prob: dict[str, float], unknown: float) -> float:
    return sum(log_prob.get(w, unknown if len(w) == 1 else -math.inf) for w in cut)


@given(
    letters,
    st.dictionaries(st.text("ab", min_size=1, max_size=4), log_probs, max_size=8),
    log_probs,
)
def test_no_cut_at_all_is_more_probable(text, log_prob, unknown):
    found = segment.best_segmentation(text, log_prob, unknown)
    assert "".join(found) == text
    best = max(score(cut, log_prob, unknown) for cut in every_cut(text))
    assert score(found, log_prob, unknown) == pytest.approx(best, abs=1e-9)


def test_the_dictionary_of_jieba_and_its_best_cuts(tmp_path):
    counts = segment.load_word_counts()
    assert len(counts) == 349_045
    assert min(counts.values()) >= 1
    # jieba reads only the words that these sentences can hold: all take seconds.
    text = "\n".join(SENTENCES)
    spans = itertools.combinations(range(len(text) + 1), 2)
    pieces = {text[start:end] for start, end in spans if end - start <= 16}
    counts = {word: counts[word] for word in sorted(pieces & counts.keys())}
    log_prob = segment.unigram_log_prob(counts)
    peer = jieba_with(counts, tmp_path)
    for sentence in SENTENCES:
        found = segment.best_segmentation(sentence, log_prob, -math.log(peer.total))
        assert found == list(peer.cut(sentence, HMM=False))
        route = {}
        peer.calc(sentence, peer.get_DAG(sentence), route)
        assert score(found, log_prob, 0.0) == pytest.approx(route[0][0], abs=1e-9)


def jieba_with(counts: dict[str, int], folder: Path) -> jieba.Tokenizer:
    jieba.setLogLevel(logging.WARNING)
    path = folder / "words.txt"
    lines = [f"{word} {count}\n" for word, count in counts.items()]
    path.write_text("".join(lines), encoding="utf-8")
    tokenizer = jieba.Tokenizer(str(path))
    tokenizer.tmp_dir = str(folder)
    tokenizer.initialize()
    return tokenizer


@pytest.mark.parametrize("value", [-math.inf, math.nan, 0.2])
def test_what_is_no_log_probability_is_refused(value):
    with pytest.raises(ValueError, match=rf"log_prob\['a'\]={value}"):
        segment.best_segmentation("ba", {"a": value})
    with pytest.raises(ValueError, match=f"unknown_log_prob={value}"):
        segment.best_segmentation("ba", {"a": -1.0}, unknown_log_prob=value)


def test_a_vocabulary_without_probabilities_is_refused():
    with pytest.raises(TypeError, match="log_prob is a set"):
        segment.best_segmentation("ab", {"a", "b"})
    with pytest.raises(ValueError, match="empty word ''"):
        segment.best_segmentation("ab", {"": -1.0})


# --- word_spans, segmentation_f1 ----------------------------------------------------


def test_f1_worked_by_hand():
    # One of three predicted words is right, one of two right words was found: 0.4.
    assert segment.segmentation_f1(["ab", "cd"], ["ab", "c", "d"]) == pytest.approx(0.4)


def test_the_same_words_elsewhere_are_not_right():
    assert segment.segmentation_f1(["ab", "a", "b"], ["a", "b", "ab"]) == 0.0


def test_f1_is_zero_when_nothing_is_right():
    assert segment.segmentation_f1(["ab"], ["a", "b"]) == 0.0


def test_nothing_to_find_is_found():
    assert segment.segmentation_f1([], []) == 1.0


cuts = st.lists(st.booleans(), min_size=7, max_size=7)


def cut_at(borders: list[bool], text: str = "abababab") -> list[str]:
    pieces = [c + "|" * b for c, b in zip(text, [*borders, False], strict=True)]
    return "".join(pieces).split("|")


@given(cuts, cuts)
def test_f1_is_the_harmonic_mean_of_precision_and_recall(gold, predicted):
    gold, predicted = cut_at(gold), cut_at(predicted)
    right = set(segment.word_spans(gold)) & set(segment.word_spans(predicted))
    precision, recall = len(right) / len(predicted), len(right) / len(gold)
    harmonic = 2 / (1 / precision + 1 / recall) if right else 0.0
    assert segment.segmentation_f1(gold, predicted) == pytest.approx(harmonic)
    assert segment.segmentation_f1(predicted, gold) == pytest.approx(harmonic)
    assert (segment.segmentation_f1(gold, predicted) == 1) == (gold == predicted)


@given(cuts)
def test_spans_cut_the_text_into_the_words(borders):
    words = cut_at(borders)
    assert ["abababab"[a:b] for a, b in segment.word_spans(words)] == words


def test_two_different_texts_are_not_compared():
    with pytest.raises(ValueError, match="'abc' and predicted to 'ab'"):
        segment.segmentation_f1(["ab", "c"], ["ab"])
    with pytest.raises(TypeError, match="gold='ab' is one string"):
        segment.segmentation_f1("ab", ["ab"])
    with pytest.raises(ValueError, match="empty word"):
        segment.segmentation_f1(["ab"], ["ab", ""])
