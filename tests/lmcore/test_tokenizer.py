"""Tokenizers cut as their peers do, lose nothing, and refuse what cannot be meant."""

import io
import itertools
import json
import math
import unicodedata
from collections import Counter

import pytest
import sentencepiece
import tiktoken
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers, trainers

from lmcore import data, fast_bpe, gpt2_files, segment, tokenizer, unigram
from lmcore.tokenizer import (
    BPETokenizer,
    CharTokenizer,
    Tokenizer,
    UnigramTokenizer,
    WordPieceTokenizer,
    WordTokenizer,
)

KINDS = [
    CharTokenizer,
    WordTokenizer,
    BPETokenizer,
    WordPieceTokenizer,
    UnigramTokenizer,
]
END = "<|endoftext|>"
WILD = (
    "a\n\n  b\t\tc \r\n def f(x):\n    return x  # 1234567 it's Émile's "
    "中文，🙂👨\u200d👩 e\u0301 \u3000x\x1c\x85 "
)

few = settings(max_examples=30)
words = st.dictionaries(st.text("abc", min_size=1, max_size=6), st.integers(1, 4))
# Characters that are assigned in all versions of Unicode that the peers may have.
characters = st.characters(codec="utf-8", exclude_categories=("Cn", "Cs"))


@pytest.fixture(scope="module")
def play() -> str:
    return data.load_plays()[0].text


@pytest.fixture(scope="module")
def bpe(play) -> BPETokenizer:
    return BPETokenizer.train([play, WILD], vocab_size=800, special_tokens=[END])


def known(first: int, last: int) -> st.SearchStrategy[str]:
    return st.characters(
        min_codepoint=first, max_codepoint=last, exclude_categories=("Cn", "Cs")
    )


def pieces_of(tokenizer: Tokenizer, text: str) -> list:
    return [tokenizer.pieces[index] for index in tokenizer.encode(text)]


# --- All tokenizers -----------------------------------------------------------------


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.__name__)
def trained(request, play) -> Tokenizer:
    texts = [play[:20_000], "中文 <end> 🙂"]
    return request.param.train(texts, vocab_size=400, special_tokens=["<end>", "<s>"])


def test_what_all_tokenizers_have(trained):
    assert trained.vocab_size == len(trained.pieces) <= 400
    assert {"<end>", "<s>"} <= trained.special_tokens.keys()
    for name, index in trained.special_tokens.items():
        assert trained.pieces[index] == name
        assert trained.encode(name) == [index]
        assert trained.decode([index]) == name
        assert trained.decode([index], skip_special=True) == ""
    assert trained.encode("") == []
    assert trained.decode([]) == ""


def test_the_most_frequent_texts_come_back(trained):
    assert trained.decode(trained.encode("you and I")) == "you and I"
    ids = torch.tensor(trained.encode("you and I"))
    assert trained.decode(ids) == "you and I"


def test_special_tokens_in_the_training_text_are_not_learned(trained):
    ordinary = [p for p in trained.pieces if p not in trained.special_tokens]
    texts = [
        p.decode(errors="replace") if isinstance(p, bytes) else p for p in ordinary
    ]
    assert not any("<e" in text or "end>" in text for text in texts)


def test_a_special_token_is_a_button_unless_strangers_write(trained):
    end = trained.special_tokens["<end>"]
    assert trained.encode("the<end>").count(end) == 1
    assert end not in trained.encode("the<end>", use_special=False)
    without = trained.encode("the", use_special=False)
    assert without == trained.encode("the")


def test_a_text_after_a_special_token_is_cut_like_any_other(trained):
    for text in (" the", "the", "  king\n"):
        tail = trained.encode(text)
        assert trained.encode("a<s>" + text) == trained.encode("a<s>") + tail
        assert trained.encode(text + "<s>") == [*tail, trained.special_tokens["<s>"]]


def test_a_saved_tokenizer_is_the_same(trained, tmp_path):
    path = tmp_path / "tokenizer.json"
    trained.save(path)
    for loaded in (Tokenizer.load(path), type(trained).load(path)):
        assert type(loaded) is type(trained)
        assert loaded.pieces == trained.pieces
        assert loaded.special_tokens == trained.special_tokens
        text = "Lord, what fools<end> these mortals be! " + WILD
        assert loaded.encode(text) == trained.encode(text)
        loaded.save(tmp_path / "again.json")
        assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_many_texts_are_encoded_one_by_one(trained):
    taken = []

    def texts():
        for text in ("to be ", "or<end>", "", "not"):
            taken.append(text)
            yield text

    stream = trained.encode_iterable(texts())
    assert taken == []
    assert next(stream) == trained.encode("to be ")[0]
    assert taken == ["to be "]
    expected = [
        i for text in ("to be ", "or<end>", "not") for i in trained.encode(text)
    ]
    assert list(trained.encode_iterable(texts())) == expected


def test_training_twice_gives_the_same(trained, play):
    again = type(trained).train(
        iter([play[:20_000], "中文 <end> 🙂"]), 400, ["<end>", "<s>"]
    )
    assert again.pieces == trained.pieces


@pytest.mark.parametrize("kind", KINDS)
def test_one_string_is_not_several(kind):
    with pytest.raises(TypeError, match=r"texts='to be' is one string"):
        kind.train("to be", 300)
    with pytest.raises(TypeError, match=r"special_tokens='<end>' is one string"):
        kind.train(["to be"], 300, special_tokens="<end>")
    with pytest.raises(TypeError, match="text is a bytes"):
        kind.train([b"to be"], 300)


def test_what_is_no_text_and_no_id_is_refused(trained):
    with pytest.raises(TypeError, match="text is a list"):
        trained.encode(["to", "be"])
    with pytest.raises(TypeError, match="is one string"):
        trained.encode_iterable("to be")
    for index in (-1, trained.vocab_size):
        with pytest.raises(ValueError, match=f"id {index} is not in 0"):
            trained.decode([index])


@pytest.mark.parametrize("kind", KINDS)
def test_a_vocabulary_without_room_is_refused(kind):
    n_special = 2 if kind is BPETokenizer else 3  # with that for the unknown
    vocab_size = 257 if kind is BPETokenizer else n_special
    with pytest.raises(ValueError, match=f"vocab_size={vocab_size} is less than"):
        kind.train(["to be"], vocab_size, special_tokens=["<a>", "<b>"])


def test_pieces_that_cannot_be_told_apart_are_refused():
    with pytest.raises(ValueError, match="'a' stands 2 times"):
        CharTokenizer("aba")
    with pytest.raises(ValueError, match="'<s>' stands 2 times"):
        BPETokenizer([], ["<s>", "<s>"])
    with pytest.raises(ValueError, match="'' is empty"):
        WordTokenizer(["to", ""])
    with pytest.raises(ValueError, match="'' is empty"):
        BPETokenizer([], [""])
    with pytest.raises(ValueError, match="'<s>' is not among the pieces"):
        BPETokenizer([], ["<s>"], pieces=tokenizer.BYTES)


def test_of_special_tokens_that_start_alike_the_longest_is_meant():
    for names in (["<s", "<s>"], ["<s>", "<s"]):
        found = pieces_of(BPETokenizer([], names), "<s><s")
        assert found == ["<s>", "<s"]


def test_special_tokens_are_no_patterns():
    found = pieces_of(BPETokenizer([], ["[.*]"]), "[.*]a")
    assert found == ["[.*]", b"a"]


def test_a_file_that_holds_something_else_is_refused(tmp_path):
    path = tmp_path / "file.json"
    for content in (
        "",
        "[]",
        "{}",
        '{"type": "Tokenizer"}',
        '{"type": "CharTokenizer"}',
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match="holds no tokenizer"):
            Tokenizer.load(path)
    CharTokenizer("ab").save(path)
    with pytest.raises(ValueError, match="holds a CharTokenizer, expected a BPE"):
        BPETokenizer.load(path)
    with pytest.raises(FileNotFoundError):
        BPETokenizer.load(tmp_path / "nowhere.json")


def test_remembered_words_do_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr(tokenizer, "_REMEMBERED_WORDS", 3)
    small = BPETokenizer([(b"a", b"b")])
    text = "ab abc abd abe abf abg ab"
    assert small.encode(text) == BPETokenizer([(b"a", b"b")]).encode(text)
    assert small.decode(small.encode(text)) == text
    assert len(small._remembered) <= 3


# --- pre_split and count_words ------------------------------------------------------


def test_gpt2s_words_worked_by_hand():
    text = "I'll pay  $12.50,\n\n  you?"
    expected = [
        "I",
        "'ll",
        " pay",
        " ",
        " $",
        "12",
        ".",
        "50",
        ",",
        "\n\n ",
        " you",
        "?",
    ]
    assert tokenizer.pre_split(text) == expected


def test_every_character_is_of_the_kind_that_tokenizers_says():
    text = "".join(
        f"a{char}1"
        for char in map(chr, range(0x110000))
        if unicodedata.category(char) not in ("Cn", "Cs", "Co")
    )
    oracle = pre_tokenizers.ByteLevel(add_prefix_space=False)
    spans = [span for _, span in oracle.pre_tokenize_str(text)]
    found = tokenizer.pre_split(text)
    assert len(found) > 140_000
    assert found == [text[start:end] for start, end in spans]


@few
@given(st.text(characters))
def test_words_are_those_of_tokenizers(text):
    oracle = pre_tokenizers.ByteLevel(add_prefix_space=False)
    spans = [span for _, span in oracle.pre_tokenize_str(text)]
    assert tokenizer.pre_split(text) == [text[start:end] for start, end in spans]


@given(st.text())
@pytest.mark.parametrize(
    "pattern",
    [
        tokenizer.GPT2_PATTERN,
        tokenizer.GPT4_PATTERN,
        tokenizer.SPACE_PATTERN,
        tokenizer.CHARACTER_PATTERN,
    ],
)
def test_words_join_to_the_text(pattern, text):
    assert "".join(tokenizer.pre_split(text, pattern)) == text


def test_words_are_counted_text_by_text():
    counts = tokenizer.count_words(
        ["ab ab<s> ab", "c"], tokenizer.GPT2_PATTERN, ["<s>"]
    )
    assert counts == {"ab": 1, " ab": 2, "c": 1}
    assert tokenizer.count_words([], tokenizer.GPT2_PATTERN) == {}


# --- Characters and words -----------------------------------------------------------


@given(st.text())
def test_characters_come_back(text):
    chars = CharTokenizer.train([text or " "])
    assert chars.decode(chars.encode(text)) == text
    assert len(chars.encode(text)) == len(text)


def test_the_most_frequent_are_kept_and_the_first_seen_of_equals():
    assert CharTokenizer.train(["bcaab"], 4).pieces == ["<unknown>", "b", "a", "c"]
    words = WordTokenizer.train(["be to be not to or"], 4)
    assert words.pieces == ["<unknown>", "be", "to", "not"]
    assert words.encode("be or not") == [1, 0, 3]


def test_the_unknown_may_stand_elsewhere():
    chars = CharTokenizer("ab", special_tokens=["<pad>", "<unknown>"])
    assert chars.special_tokens == {"<pad>": 0, "<unknown>": 1}
    assert chars.encode("az") == [2, 1]
    assert WordTokenizer(["to"], ["<pad>", "<unknown>"]).encode("to see") == [2, 1]


def test_words_punctuation_and_chinese_characters_stand_alone():
    words = WordTokenizer.train(["Well, who's there? 研究生命。 $5"])
    expected = ["Well", ",", "who", "'", "s", "there", "?", *"研究生命。", "$", "5"]
    assert words.pieces[1:] == expected


# --- count_pairs and merge_pair -----------------------------------------------------


def test_pairs_may_overlap_but_only_one_can_be_merged():
    a = b"a"
    assert tokenizer.count_pairs({(a, a, a): 5}) == {(a, a): 10}
    assert tokenizer.merge_pair([a, a, a], (a, a)) == [b"aa", a]
    assert tokenizer.merge_pair([a, a, a, a], (a, a)) == [b"aa", b"aa"]
    assert tokenizer.train_merges({"aaa": 1}, 300) == [(a, a), (b"aa", a)]


def test_pairs_are_counted_within_words_as_often_as_the_words_occur():
    counts = tokenizer.count_pairs({(b"a", b"b"): 3, (b"b", b"a", b"b"): 2, (b"c",): 9})
    assert counts == {(b"a", b"b"): 5, (b"b", b"a"): 2}
    assert tokenizer.count_pairs({}) == {}


@given(st.lists(st.sampled_from([b"a", b"b", b"ab"])), st.sampled_from("ab"))
def test_a_merge_keeps_the_text_and_leaves_no_such_pair(pieces, left):
    pair = (left.encode(), b"b")
    merged = tokenizer.merge_pair(pieces, pair)
    assert b"".join(merged) == b"".join(pieces)
    assert pair not in itertools.pairwise(merged)
    assert tokenizer.merge_pair(merged, pair) == merged


# --- train_merges and fast_bpe ------------------------------------------------------


def hugging_face_merges(counts: dict[str, int], n_pieces: int) -> list:
    """Merges of `tokenizers` whose alphabet is in the order of the bytes, like ours."""
    mark = "\u4000"
    texts = (
        (word.encode().decode("latin-1") + mark) * count
        for word, count in counts.items()
    )
    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.Split(mark, "removed")
    alphabet = [chr(value) for value in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=n_pieces, initial_alphabet=alphabet, show_progress=False
    )
    model.train_from_iterator(texts, trainer)
    merges = json.loads(model.to_str())["model"]["merges"]
    return [tuple(piece.encode("latin-1") for piece in pair) for pair in merges]


def test_ties_go_to_the_smaller_numbers_whatever_the_order_of_the_text():
    # All four pairs occur once.
    for texts in (["aabb"], ["bb", "aabb"], [" b", " a", "aabb"]):
        found = BPETokenizer.train(texts, 257, pattern="(?s).+").merges
        expected = {1: (b"a", b"a"), 2: (b"b", b"b"), 3: (b" ", b"a")}
        assert found == [expected[len(texts)]]
    for order in itertools.permutations(["ba", "ab", "cb"]):
        words = dict.fromkeys(order, 1)
        expected = [(b"a", b"b"), (b"b", b"a"), (b"c", b"b")]
        assert tokenizer.train_merges(words, 300) == expected
        assert fast_bpe.train_merges(words, 300) == expected


def test_no_piece_reaches_across_words_or_texts():
    bpe = BPETokenizer.train(["ab ab ab", "ab"], 300)
    assert bpe.merges == [(b"a", b"b"), (b" ", b"ab")]
    assert BPETokenizer.train(["a", "b", "a", "b"], 300).merges == []


def test_learning_stops_when_every_word_is_one_piece():
    assert tokenizer.train_merges({"ab": 1}, 266) == [(b"a", b"b")]
    assert fast_bpe.train_merges({"ab": 1}, 266) == [(b"a", b"b")]
    assert BPETokenizer.train(["ab"], 266, ["<s>"]).vocab_size == 258
    assert BPETokenizer.train([""], 266).vocab_size == 256
    assert tokenizer.train_merges({"ab": 1}, 256) == []


@given(words)
def test_fast_merges_are_those_of_the_textbook(words):
    merges = tokenizer.train_merges(words, 290)
    assert fast_bpe.train_merges(words, 290) == merges


def test_fast_merges_are_those_of_the_textbook_on_a_play(play):
    counts = tokenizer.count_words([play[:30_000], WILD], tokenizer.GPT2_PATTERN)
    merges = tokenizer.train_merges(counts, 320)
    assert len(merges) == 64
    assert fast_bpe.train_merges(counts, 320) == merges


def test_merges_are_those_of_tokenizers_to_the_last(play):
    counts = tokenizer.count_words([play, WILD], tokenizer.GPT2_PATTERN)
    merges = fast_bpe.train_merges(counts, 4000)
    assert len(merges) == 4000 - 256
    assert merges == hugging_face_merges(counts, 4000)


@few
@given(words.filter(bool))
def test_merges_of_few_letters_are_those_of_tokenizers(words):
    assert fast_bpe.train_merges(words, 280) == hugging_face_merges(words, 280)


def test_two_merges_may_make_the_same_piece():
    merges = [(b"a", b"a"), (b"aa", b"a"), (b"a", b"aa")]
    bpe = BPETokenizer(merges, ["<s>"])
    assert bpe.pieces[256:] == [b"aa", b"aaa", "<s>"]


def test_fewer_pieces_than_bytes_are_refused():
    for train in (tokenizer.train_merges, fast_bpe.train_merges):
        with pytest.raises(ValueError, match="n_pieces=255"):
            train({"ab": 1}, 255)


# --- BPETokenizer -------------------------------------------------------------------


def test_what_was_learned_first_is_merged_first():
    merges = [(b"b", b"c"), (b"a", b"b")]
    assert pieces_of(BPETokenizer(merges), "abc") == [b"a", b"bc"]
    assert pieces_of(BPETokenizer(merges[::-1]), "abc") == [b"ab", b"c"]
    # Neither the leftmost pair nor the one that stands there most often.
    assert pieces_of(BPETokenizer(merges), "ababc") == [b"ab", b"a", b"bc"]


@given(st.text())
def test_any_text_comes_back(bpe, text):
    assert bpe.decode(bpe.encode(text)) == text


@given(st.text("ab \n\t'1é中🙂<|endoftext>"))
def test_ugly_text_comes_back_and_joins_its_pieces(bpe, text):
    assert bpe.decode(bpe.encode(text)) == text
    assert b"".join(pieces_of(bpe, text.replace(END, ""))).decode() == text.replace(
        END, ""
    )


def test_white_space_and_special_tokens_come_back(bpe):
    for text in ("a\n\n  b", WILD, f"a {END}  b{END}{END}\n", "\n", " " * 50):
        assert bpe.decode(bpe.encode(text)) == text


def test_the_end_of_a_text_is_one_id_of_its_own(bpe):
    assert bpe.encode(END) == [bpe.special_tokens[END]] == [bpe.vocab_size - 1]
    assert bpe.encode(f"a{END}b") == [97, bpe.vocab_size - 1, 98]
    assert len(bpe.encode(END, use_special=False)) > 3
    assert bpe.decode(bpe.encode(f"a{END}b"), skip_special=True) == "ab"


def test_what_is_no_utf8_is_shown_as_such(bpe):
    assert bpe.decode([0xE4]) == "\ufffd"
    assert bpe.decode([97, 0xFF, 98]) == "a\ufffdb"
    assert bpe.decode(list("中".encode())) == "中"
    assert bpe.decode(list("🙂".encode())) == "🙂"
    assert bpe.decode([0xE4, bpe.special_tokens[END]]) == "\ufffd" + END


@given(st.lists(st.integers(0, 799)))
def test_any_ids_decode_as_their_bytes_would(bpe, ids):
    joined = b"".join(
        piece.encode() if isinstance(piece, str) else piece
        for piece in map(bpe.pieces.__getitem__, ids)
    )
    assert bpe.decode(ids) == joined.decode("utf-8", errors="replace")


def test_half_a_surrogate_pair_is_refused(bpe):
    with pytest.raises(ValueError, match="surrogates not allowed"):
        bpe.encode("a\ud83d")


@pytest.mark.parametrize("pattern", [tokenizer.GPT2_PATTERN, tokenizer.GPT4_PATTERN])
def test_ids_are_those_of_tiktoken(play, pattern):
    ours = BPETokenizer.train([play[:60_000], WILD], 700, [END], pattern)
    theirs = tiktoken.Encoding(
        "ours",
        pat_str=pattern,
        mergeable_ranks={p: i for i, p in enumerate(ours.pieces) if p != END},
        special_tokens=ours.special_tokens,
    )
    for text in (play, WILD, f"{END}a {END}\n\n b", "aaaaaaa " * 9, "------- ......"):
        assert ours.encode(text) == theirs.encode(text, allowed_special="all")

    @given(st.text(characters))
    def on_any_text(text):
        assert ours.encode(text) == theirs.encode(text, allowed_special="all")
        assert ours.encode(text, use_special=False) == theirs.encode_ordinary(text)

    on_any_text()


def test_tokenizers_reads_our_files_and_gives_the_same_ids(bpe, play, tmp_path):
    files = tmp_path / "vocab.json", tmp_path / "merges.txt"
    bpe.save_gpt2_files(*files)
    theirs = tokenizers.Tokenizer(models.BPE.from_file(*map(str, files)))
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.add_special_tokens([END])
    for text in (play, WILD, f"{END}a {END}\n\n b", "aaaaaaa " * 9):
        assert bpe.encode(text) == theirs.encode(text).ids

    @given(st.text(characters))
    def on_any_text(text):
        assert bpe.encode(text) == theirs.encode(text).ids

    on_any_text()


def test_gpt2s_files_are_read_as_tokenizers_wrote_them(play, tmp_path):
    theirs = tokenizers.Tokenizer(models.BPE())
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=["<pad>", END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    theirs.train_from_iterator([play], trainer)
    theirs.model.save(str(tmp_path))
    files = tmp_path / "vocab.json", tmp_path / "merges.txt"
    ours = BPETokenizer.from_gpt2_files(*files, special_tokens=["<pad>", END, "<new>"])
    assert ours.special_tokens == {"<pad>": 0, END: 1, "<new>": 900}
    for text in (play, WILD, f"a{END}b<pad>"):
        assert ours.encode(text) == theirs.encode(text).ids
        assert ours.decode(ours.encode(text)) == text
    ours.save(tmp_path / "ours.json")
    assert BPETokenizer.load(tmp_path / "ours.json").encode(WILD) == ours.encode(WILD)


def test_a_merge_that_stands_there_twice_keeps_its_first_place(tmp_path):
    a, b, c = b"a", b"b", b"c"
    merges = [(a, b), (b, c), (c, c), (a, a), (b, b), (a, b)]
    bpe = BPETokenizer(merges)
    bpe.save(tmp_path / "bpe.json")
    bpe.save_gpt2_files(tmp_path / "vocab.json", tmp_path / "merges.txt")
    for same in (
        bpe,
        BPETokenizer.load(tmp_path / "bpe.json"),
        BPETokenizer.from_gpt2_files(tmp_path / "vocab.json", tmp_path / "merges.txt"),
    ):
        assert same.merges == merges
        assert pieces_of(same, "abc") == [b"ab", b"c"]


def test_a_special_token_may_look_like_a_piece(tmp_path):
    bpe = BPETokenizer([(b"a", b"b")], ["ab", "c"])
    bpe.save(tmp_path / "bpe.json")
    loaded = BPETokenizer.load(tmp_path / "bpe.json")
    assert pieces_of(loaded, "abc") == pieces_of(bpe, "abc") == ["ab", "c"]
    assert loaded.encode("abc", use_special=False) == [256, 99]
    with pytest.raises(ValueError, match="spelled like the special token 'ab'"):
        bpe.save_gpt2_files(tmp_path / "vocab.json", tmp_path / "merges.txt")


def test_files_that_make_no_tokenizer_are_refused(tmp_path):
    vocabulary, merges = tmp_path / "vocab.json", tmp_path / "merges.txt"
    BPETokenizer([(b"#", b"#")]).save_gpt2_files(vocabulary, merges)
    assert BPETokenizer.from_gpt2_files(vocabulary, merges, []).merges == [(b"#", b"#")]
    for line in ("ab", "a  b", " b", "a b c"):
        merges.write_text(f"# #\n{line}\n")
        with pytest.raises(ValueError, match=r"line 2|stands for no byte"):
            BPETokenizer.from_gpt2_files(vocabulary, merges)
    merges.write_text("")
    ids = json.loads(vocabulary.read_text())
    vocabulary.write_text(json.dumps(ids | {"zz": 300}))
    with pytest.raises(ValueError, match="'zz' has id 300, expected 257"):
        BPETokenizer.from_gpt2_files(vocabulary, merges)
    vocabulary.write_text(json.dumps(ids | {"中": 257}))
    with pytest.raises(ValueError, match="'中' in '中' stands for no byte"):
        BPETokenizer.from_gpt2_files(vocabulary, merges)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"merges": [(b"ab", b"c")]}, "needs the piece b'ab'"),
        ({"merges": [], "pieces": tokenizer.BYTES[1:]}, r"byte b'\\x00' has no id"),
        ({"merges": [], "pattern": "(a)"}, "1 capturing groups"),
        ({"merges": [], "pattern": "("}, r"pattern='\(' cannot be read"),
    ],
)
def test_impossible_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        BPETokenizer(**wrong)


def test_a_pattern_that_loses_text_is_refused():
    with pytest.raises(ValueError, match="loses characters"):
        BPETokenizer([], pattern=r"\w+").encode("to be")


@given(st.binary())
def test_bytes_are_spelled_as_tokenizers_spells_them(content):
    spelled = gpt2_files.spell(content)
    assert gpt2_files.unspell(spelled) == content
    assert len(spelled) == len(content)
    assert set(spelled) <= set(pre_tokenizers.ByteLevel.alphabet())
    assert not any(char.isspace() for char in spelled)


# --- WordPiece ----------------------------------------------------------------------


def test_the_longest_piece_first_and_inside_only_with_its_sign():
    assert tokenizer.longest_match("unable", {"un", "able", "##able"}) == [
        "un",
        "##able",
    ]
    assert tokenizer.longest_match("unable", {"un", "able"}) is None
    assert tokenizer.longest_match("able", {"##able"}) is None
    assert tokenizer.longest_match("abc", {"a", "ab", "##bc", "##c"}) == ["ab", "##c"]
    assert tokenizer.longest_match("", {"a"}) == []


@pytest.mark.timeout(10)
def test_a_word_that_cannot_be_cut_is_unknown_as_a_whole():
    wordpiece = WordPieceTokenizer(["point", "##s"])
    assert pieces_of(wordpiece, "point™") == ["[UNK]"]
    assert pieces_of(wordpiece, "points point™s points") == [
        *("point", "##s", "[UNK]", "point", "##s")
    ]


def test_words_that_are_too_long_are_unknown(tmp_path):
    wordpiece = WordPieceTokenizer(["a", "##a"], max_characters=3)
    assert pieces_of(wordpiece, "aaa aaaa") == ["a", "##a", "##a", "[UNK]"]
    wordpiece.save(tmp_path / "wordpiece.json")
    assert WordPieceTokenizer.load(tmp_path / "wordpiece.json").max_characters == 3


def test_a_vocabulary_of_bert_keeps_its_order():
    names = ["[PAD]", "[UNK]", "[CLS]", "to", "##day"]
    bert = WordPieceTokenizer(names, ["[PAD]", "[UNK]", "[CLS]"])
    assert bert.pieces == names
    assert bert.encode("[CLS]today zz") == [2, 3, 4, 1]
    assert bert.decode([2, 3, 4], skip_special=True) == "today"


def test_wordpiece_ids_are_those_of_tokenizers(play):
    play = play[:40_000]
    ours = WordPieceTokenizer.train([play, "研究生命起源"], vocab_size=700)
    vocabulary = {piece: index for index, piece in enumerate(ours.pieces)}
    theirs = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    theirs.normalizer = normalizers.BertNormalizer(
        clean_text=False, strip_accents=False, lowercase=False
    )
    theirs.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    theirs.decoder = tokenizers.decoders.WordPiece(cleanup=False)
    for text in (play, WILD, "生命, point™ q" + "a" * 100, "a_b x-y 5€ $5"):
        ids = ours.encode(text)
        assert ids == theirs.encode(text).ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False)

    # The punctuation and the Chinese that BERT knows are those of an older Unicode.
    latin, chinese, signs = (
        known(0, 0x24F),
        known(0x3000, 0x9FEF),
        known(0x2010, 0x2BFF),
    )

    @given(st.text(latin | chinese | signs))
    def on_any_text(text):
        assert ours.encode(text) == theirs.encode(text).ids

    on_any_text()


def test_wordpiece_learns_the_pieces_that_tokenizers_learns():
    # So often that no two pairs tie before nine are merged.
    counts = {"low": 50, "lower": 21, "newest": 10, "widest": 5}
    counts |= {"lo": 5, "xer": 3, "xes": 2, "new": 4, "ne": 2}
    text = " ".join(f"{word} " * count for word, count in counts.items())
    ours = WordPieceTokenizer.train([text], vocab_size=1 + 4 + 8 + 9)
    theirs = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    theirs.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # It also lists the seven letters that start no word as if they did.
    trainer = trainers.WordPieceTrainer(
        vocab_size=ours.vocab_size + 7, special_tokens=["[UNK]"], show_progress=False
    )
    theirs.train_from_iterator([text], trainer)
    learned = {"lo", "low", "##er", "lower", "##es", "ne", "##est", "new", "newest"}
    assert set(ours.pieces[-9:]) == learned
    assert {piece for piece in theirs.get_vocab() if len(piece) > 1} == {
        piece for piece in ours.pieces if len(piece) > 1
    }


def test_the_most_frequent_characters_if_not_all_have_room():
    wordpiece = WordPieceTokenizer.train(["aa aa ab c"], 4)
    assert wordpiece.pieces == ["[UNK]", "##a", "##b", "a"]
    assert pieces_of(wordpiece, "aba c") == ["a", "##b", "##a", "[UNK]"]


# --- unigram ------------------------------------------------------------------------

PIECES = {
    "a": -2.5,
    "b": -2.0,
    "c": -3.0,
    "ab": -1.5,
    "bc": -2.0,
    "abc": -4.0,
    "aa": -3.1,
}


def all_cuts(word: str) -> list[tuple[list[str], float]]:
    """Every cut of a word and its probability, one by one."""
    return [
        (cut, math.exp(sum(PIECES[piece] for piece in cut)))
        for cut in segment.all_segmentations(word, set(PIECES))
    ]


def test_the_best_path_is_not_the_longest_piece():
    log_prob = {"abc": -10.0, "ab": -1.0, "c": -1.0}
    assert unigram.best_pieces("abc", log_prob) == ["ab", "c"]
    assert unigram.best_pieces("abc", log_prob | {"abc": -1.9}) == ["abc"]
    assert unigram.best_pieces("", log_prob) == []


def test_unknown_characters_are_taken_only_where_nothing_fits():
    assert unigram.best_pieces("aXb", PIECES, unknown_log_prob=-99) == ["a", "X", "b"]
    with pytest.raises(ValueError, match="'aXb' cannot be cut"):
        unigram.best_pieces("aXb", PIECES)


@given(st.text("abc", min_size=1, max_size=7))
def test_no_cut_is_better_than_the_best(word):
    found = unigram.best_pieces(word, PIECES)
    best = max(probability for _, probability in all_cuts(word))
    assert "".join(found) == word
    assert math.exp(sum(PIECES[piece] for piece in found)) == pytest.approx(best)


@given(st.dictionaries(st.text("abc", min_size=1, max_size=6), st.integers(1, 3)))
def test_expected_counts_are_those_over_all_cuts(words):
    counts, total = unigram.expected_counts(words, PIECES)
    expected = Counter(dict.fromkeys(PIECES, 0.0))
    for word, times in words.items():
        word_probability = math.fsum(probability for _, probability in all_cuts(word))
        for cut, probability in all_cuts(word):
            for piece in cut:
                expected[piece] += times * probability / word_probability
    assert counts == pytest.approx(dict(expected), abs=1e-9)
    logs = [
        times * math.log(math.fsum(p for _, p in all_cuts(word)))
        for word, times in words.items()
    ]
    assert total == pytest.approx(math.fsum(logs))


def test_long_words_do_not_vanish():
    counts, total = unigram.expected_counts({"a" * 5000: 1}, {"a": -1.0, "aa": -2.0})
    # Each way to cut the word is e^-5000; there are as many as the Fibonacci number.
    assert counts["a"] + 2 * counts["aa"] == pytest.approx(5000)
    assert total == pytest.approx(
        -5000 + 5001 * math.log((1 + 5**0.5) / 2) - math.log(5) / 2
    )


def test_words_that_cannot_be_cut_are_refused():
    with pytest.raises(ValueError, match="'ax' cannot be cut"):
        unigram.expected_counts({"ax": 1}, PIECES)


def test_every_step_of_learning_makes_the_words_more_probable(play):
    words = tokenizer.count_words([play[:5000]], tokenizer.SPACE_PATTERN)
    log_prob = unigram.seed_pieces(words, 300)
    totals = []
    for _ in range(8):
        counts, total = unigram.expected_counts(words, log_prob)
        log_prob = unigram.most_probable(counts)
        totals.append(total)
        assert math.fsum(map(math.exp, log_prob.values())) == pytest.approx(1)
    assert all(before < after for before, after in itertools.pairwise(totals))


def test_a_character_without_use_keeps_a_tiny_share():
    log_prob = unigram.most_probable({"a": 0.0, "b": 1.0, "ab": 1.0, "ba": 0.0})
    assert log_prob.keys() == {"a", "b", "ab"}
    assert -math.inf < log_prob["a"] < -10


def test_the_pieces_to_start_with_cover_most():
    log_prob = unigram.seed_pieces({"abab": 2, "b": 1, "x": 1}, n_pieces=5)
    # b 5, a 4, x 1 times; ab covers 4 · 2 characters, abab 2 · 4: the first by name.
    shares = {"b": 5, "a": 4, "x": 1, "ab": 4, "abab": 2}
    expected = {piece: math.log(n / 16) for piece, n in shares.items()}
    assert log_prob == pytest.approx(expected)
    assert max(map(len, unigram.seed_pieces({"a" * 9: 2}, 99, longest=3))) == 3
    assert unigram.seed_pieces({"abc": 1}, 1).keys() == set("abc")


def test_pieces_that_others_can_replace_are_dropped():
    log_prob = {"a": -2.0, "b": -2.0, "ab": -1.0, "ba": -3.9}
    counts = {"a": 9.0, "b": 9.0, "ab": 2.0, "ba": 50.0}
    # ab saves 3 nats twice, ba a tenth of a nat fifty times.
    assert unigram.drop_pieces(log_prob, counts, 3).keys() == {"a", "b", "ab"}
    counts["ba"] = 70.0
    assert unigram.drop_pieces(log_prob, counts, 3).keys() == {"a", "b", "ba"}
    assert unigram.drop_pieces(log_prob, counts, 4) == log_prob
    assert unigram.drop_pieces(log_prob, counts, 0).keys() == {"a", "b"}


def test_unigram_pieces_of_a_text_worked_by_hand():
    assert set(unigram.train_pieces({"ab": 5, "c": 1}, 4)) == {"a", "b", "c", "ab"}
    rare = unigram.train_pieces({"ab": 5, "aX": 1}, 2)
    assert rare.keys() == {"a", "b"}
    with pytest.raises(ValueError, match="no word is made of the 0 char"):
        unigram.train_pieces({}, 10)
    with pytest.raises(ValueError, match="no word is made of the 1 char"):
        unigram.train_pieces({"ab": 1}, 1)


def test_unigram_takes_the_best_path_and_runs_of_unknowns_are_one():
    ours = UnigramTokenizer({"abc": -10.0, "ab": -1.0, "c": -1.0}, ["<s>"])
    assert ours.pieces == ["<unk>", "<s>", "abc", "ab", "c"]
    assert pieces_of(ours, "abc") == ["ab", "c"]
    assert pieces_of(ours, "??c??<s>?") == ["<unk>", "c", "<unk>", "<s>", "<unk>"]


@pytest.mark.parametrize("value", [0.5, math.nan, -math.inf])
def test_what_is_no_log_probability_is_refused(value):
    with pytest.raises(ValueError, match=r"log_prob\['a'\]"):
        UnigramTokenizer({"a": value})
    with pytest.raises(ValueError, match="log_prob is empty"):
        UnigramTokenizer({})


@given(st.text("abcé中🙂 \n\t"))
def test_unigram_keeps_every_text_of_its_characters(text):
    ours = UnigramTokenizer(dict.fromkeys("abcé中🙂 \n\t", -3.0) | {" a": -1, "bc": -2})
    assert ours.decode(ours.encode(text)) == text


def test_unigram_ids_are_those_of_tokenizers(play):
    ours = UnigramTokenizer.train([play[:10_000]], vocab_size=300)
    scores = [("<unk>", 0.0)]
    scores += [(piece.replace(" ", "▁"), p) for piece, p in ours.log_prob.items()]
    theirs = tokenizers.Tokenizer(models.Unigram(scores, unk_id=0))
    theirs.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    lines = [" ".join(line.split()) for line in play.splitlines()[:1000]]
    for line in [*lines, "中文 ?? Zounds™™ 🙂🙂 a"]:
        assert ours.encode(line) == theirs.encode(line).ids


@pytest.fixture(scope="module")
def sentences(play):
    return [line for line in play.splitlines() if line][:900]


@pytest.fixture(scope="module")
def sentence_piece(sentences):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        vocab_size=400,
        character_coverage=1.0,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def test_unigram_cuts_are_those_of_sentencepiece(sentence_piece, sentences):
    log_prob = {
        sentence_piece.id_to_piece(i).replace("▁", " "): sentence_piece.get_score(i)
        for i in range(3, sentence_piece.vocab_size())
    }
    ours = UnigramTokenizer(log_prob)
    for line in [*sentences, "Ünd ?? 中文 the king"]:
        expected = [
            "<unk>"
            if index == 0
            else sentence_piece.id_to_piece(index).replace("▁", " ")
            for index in sentence_piece.encode(line)
        ]
        assert pieces_of(ours, line) == expected


def test_unigram_learns_as_good_pieces_as_sentencepiece(sentence_piece, sentences):
    ours = UnigramTokenizer.train(sentences, vocab_size=398)
    assert ours.vocab_size == 398  # sentencepiece has two special tokens more
    found = sum(len(ours.encode(line)) for line in sentences)
    theirs = sum(len(sentence_piece.encode(line)) for line in sentences)
    assert found <= 1.02 * theirs


# --- fertility and compression_ratio ------------------------------------------------


def test_measures_worked_by_hand():
    bytes_only = BPETokenizer([])
    assert tokenizer.fertility(bytes_only, "to be!") == pytest.approx(6 / 3)
    assert tokenizer.fertility(bytes_only, "中文") == pytest.approx(6 / 2)
    assert tokenizer.fertility(bytes_only, "中文", n_words=1) == pytest.approx(6)
    assert tokenizer.compression_ratio(bytes_only, "to be 中文") == pytest.approx(1)
    chars = CharTokenizer("中文ab")
    assert tokenizer.compression_ratio(chars, "中文ab") == pytest.approx(8 / 4)


def test_a_larger_vocabulary_needs_fewer_tokens(play):
    play = play[:20_000]
    small, large = (BPETokenizer.train([play], size) for size in (300, 600))
    assert tokenizer.fertility(large, play) < tokenizer.fertility(small, play)
    ratios = [tokenizer.compression_ratio(t, play) for t in (small, large)]
    assert 1 < ratios[0] < ratios[1]


def test_measures_of_nothing_are_refused():
    with pytest.raises(ValueError, match="n_words=0"):
        tokenizer.fertility(BPETokenizer([]), "  ")
    with pytest.raises(ValueError, match="n_words=-1"):
        tokenizer.fertility(BPETokenizer([]), "a", n_words=-1)
    with pytest.raises(ValueError, match="text='' has no token"):
        tokenizer.compression_ratio(BPETokenizer([]), "")
