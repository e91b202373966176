"""Tests of lmcore.sample: by hand, against transformers, by counting, at the edges."""

import dataclasses
import itertools
import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lmcore import fast_step, model, pretrained, sample, transformer
from lmcore.model import GPT, ModelConfig
from lmcore.sample import SamplingConfig

close = partial(torch.testing.assert_close, atol=1e-5, rtol=0.0)
B, T, V = 2, 5, 13
TINY = ModelConfig(vocab_size=V, max_len=64, d_model=24, n_layers=2, n_heads=3)
ROPE = dataclasses.replace(TINY, n_heads=4, n_kv_heads=2, position="rope", norm="rms")
GREEDY = SamplingConfig(max_new_tokens=12, temperature=0.0)
INF = math.inf


def lively(config, device="cpu", scale=0.4):
    """A random model with strong opinions."""
    gpt = GPT(config, device=device)
    with torch.no_grad():
        for parameter in gpt.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return gpt.eval()


def draw_ids(device="cpu", rows=B, n_tokens=T):
    return torch.randint(V, (rows, n_tokens), device=device)


def logits_of(*probabilities):
    return torch.tensor(probabilities).log()


def kept(logits):
    return logits.isfinite().int().tolist()


class Table(nn.Module):
    """The next token depends on the last one alone: logits are a row of a table."""

    def __init__(self, logits):
        super().__init__()
        self.table = nn.Embedding.from_pretrained(logits)

    def forward(self, ids):
        return self.table(ids)


# --- One token, by hand -------------------------------------------------------------


def test_greedy():
    assert sample.greedy(torch.tensor([[[1.0, 5.0, 5.0], [-2.0, -3.0, -INF]]])).tolist()
    assert sample.greedy(torch.tensor([[1.0, 5.0, 5.0]])).tolist() == [1]


def test_temperature_by_hand():
    logits = torch.tensor([2.0, 0.0, -INF])
    half = torch.softmax(sample.apply_temperature(logits, 0.5), -1)
    close(half, torch.tensor([0.982014, 0.017986, 0.0]))
    assert kept(sample.apply_temperature(logits, 0.0)) == [1, 0, 0]
    hot = torch.softmax(sample.apply_temperature(logits, INF), -1)
    close(hot, torch.tensor([0.5, 0.5, 0.0]))
    assert torch.equal(sample.apply_temperature(logits, 1.0), logits)
    for bad in (-0.1, math.nan):
        with pytest.raises(ValueError, match="temperature="):
            sample.apply_temperature(logits, bad)


def test_top_k_by_hand():
    logits = torch.tensor([[-5.0, -6.0, -7.0], [1.0, 1.0, 1.0]])
    assert kept(sample.top_k_filter(logits, 1)) == [[1, 0, 0], [1, 0, 0]]
    assert kept(sample.top_k_filter(logits, 2)) == [[1, 1, 0], [1, 1, 0]]
    close(torch.softmax(sample.top_k_filter(logits, 1), -1)[0, 0], torch.tensor(1.0))
    assert torch.equal(sample.top_k_filter(logits, 50), logits)
    with pytest.raises(ValueError, match="k=0 must be at least 1"):
        sample.top_k_filter(logits, 0)


def test_top_p_by_hand():
    """The token that crosses p stays, and so does the first if it is enough alone."""
    four = logits_of(0.4, 0.3, 0.2, 0.1)
    assert kept(sample.top_p_filter(four, 0.8)) == [1, 1, 1, 0]
    assert kept(sample.top_p_filter(four, 0.69)) == [1, 1, 0, 0]
    assert kept(sample.top_p_filter(logits_of(0.1, 0.9), 0.5)) == [0, 1]
    assert kept(sample.top_p_filter(four, 1e-9)) == [1, 0, 0, 0]
    assert kept(sample.top_p_filter(four, 1.0)) == [1, 1, 1, 1]
    assert kept(sample.top_p_filter(torch.zeros(4), 0.5)) == [1, 1, 0, 0]
    for bad in (0.0, 1.1):
        with pytest.raises(ValueError, match=rf"p={bad} must lie in \(0, 1\]"):
            sample.top_p_filter(four, bad)


def test_min_p_by_hand():
    """Half of the largest, not half."""
    assert kept(sample.min_p_filter(logits_of(0.5, 0.3, 0.2), 0.5)) == [1, 1, 0]
    assert kept(sample.min_p_filter(logits_of(0.2, 0.3, 0.5), 1.0)) == [0, 0, 1]
    assert kept(sample.min_p_filter(logits_of(0.2, 0.8), 0.0)) == [1, 1]
    with pytest.raises(ValueError, match=r"min_p=1\.5 must lie in \[0, 1\]"):
        sample.min_p_filter(torch.zeros(2), 1.5)


def test_penalties_by_hand():
    """Once for having occurred, or once for each time; padding has not occurred."""
    logits = torch.tensor([[4.0, -1.0, 2.0, 1.0]])
    ids = torch.tensor([[2, 0, 1, 0]])
    penalised = sample.repetition_penalty(logits, ids, 1.5)
    close(penalised, torch.tensor([[8 / 3, -1.5, 4 / 3, 1.0]]))
    mask = torch.tensor([[False, True, True, True]])
    masked = sample.repetition_penalty(logits, ids, 1.5, mask)
    close(masked, torch.tensor([[8 / 3, -1.5, 2.0, 1.0]]))
    often = sample.frequency_penalty(logits, ids, 0.5, mask)
    close(often, torch.tensor([[3.0, -1.5, 2.0, 1.0]]))
    assert logits.tolist() == [[4.0, -1.0, 2.0, 1.0]]
    with pytest.raises(ValueError, match="penalty=0 must be positive"):
        sample.repetition_penalty(logits, ids, 0)


def test_heat_before_the_cut():
    """At T = 2 three tokens are needed to reach .75, at T = 1 only two."""
    logits = logits_of(0.5, 0.3, 0.15, 0.05)[None]
    config = SamplingConfig(temperature=2.0, top_p=0.75)
    assert kept(sample.filter_logits(logits, torch.zeros(1, 1).long(), config)) == [
        [1, 1, 1, 0]
    ]
    assert kept(sample.top_p_filter(logits, 0.75)) == [[1, 1, 0, 0]]


def test_draw_follows_the_probabilities():
    dice = torch.Generator().manual_seed(1)
    logits = logits_of(0.5, 0.3, 0.2).expand(30_000, 3)
    share = torch.bincount(sample.draw(logits, dice), minlength=3) / 30_000
    close(share, torch.tensor([0.5, 0.3, 0.2]), atol=0.015)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens=-1"),
        ({"temperature": -1.0}, r"temperature=-1\.0"),
        ({"top_k": 0}, "k=0"),
        ({"top_p": 0.0}, r"p=0\.0"),
        ({"min_p": 2.0}, r"min_p=2\.0"),
        ({"repetition_penalty": 0.0}, r"penalty=0\.0"),
        ({"stop": "abc"}, "stop='abc' must be a tuple"),
        ({"stop": ("",)}, "must be a tuple of texts that are not empty"),
    ],
)
def test_sampling_config_refuses(fields, message):
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**fields)


# --- One token, against transformers ------------------------------------------------


@pytest.fixture(scope="module")
def hf():
    library = pytest.importorskip("transformers")
    library.logging.set_verbosity_error()
    library.logging.disable_progress_bar()
    return library


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
def test_filters_equal_theirs(hf, scale):
    logits, ids = scale * torch.randn(50, 97), torch.randint(97, (50, 20))
    for ours, theirs in (
        (
            partial(sample.apply_temperature, temperature=0.7),
            hf.TemperatureLogitsWarper(0.7),
        ),
        (partial(sample.top_k_filter, k=7), hf.TopKLogitsWarper(7)),
        (partial(sample.top_k_filter, k=500), hf.TopKLogitsWarper(500)),
        (partial(sample.top_p_filter, p=0.3), hf.TopPLogitsWarper(0.3)),
        (partial(sample.top_p_filter, p=0.95), hf.TopPLogitsWarper(0.95)),
        (partial(sample.min_p_filter, min_p=0.1), hf.MinPLogitsWarper(0.1)),
        (
            partial(sample.repetition_penalty, ids=ids, penalty=1.3),
            hf.RepetitionPenaltyLogitsProcessor(1.3),
        ),
    ):
        assert torch.equal(ours(logits), theirs(ids, logits.clone()))


def test_all_filters_together_equal_theirs(hf):
    logits, ids = 3 * torch.randn(50, 97), torch.randint(97, (50, 20))
    config = SamplingConfig(
        temperature=1.4, top_k=40, top_p=0.9, min_p=0.02, repetition_penalty=1.2
    )
    expected = logits.clone()
    for processor in (
        hf.RepetitionPenaltyLogitsProcessor(1.2),
        hf.TemperatureLogitsWarper(1.4),
        hf.TopKLogitsWarper(40),
        hf.TopPLogitsWarper(0.9),
        hf.MinPLogitsWarper(0.02),
    ):
        expected = processor(ids, expected)
    assert torch.equal(sample.filter_logits(logits, ids, config), expected)


@given(
    probabilities=st.lists(st.floats(0.001, 1.0), min_size=1, max_size=12),
    p=st.floats(0.01, 1.0),
    k=st.integers(1, 15),
    min_p=st.floats(0.0, 1.0),
)
def test_what_every_cut_keeps(probabilities, p, k, min_p):
    """Never nothing, never more than asked for, always the likeliest, and unchanged."""
    logits = torch.tensor(probabilities, dtype=torch.float64).log()
    shares = torch.softmax(logits, -1)
    for cut in (
        sample.top_k_filter(logits, k),
        sample.top_p_filter(logits, p),
        sample.min_p_filter(logits, min_p),
    ):
        stays = cut.isfinite()
        assert stays.any()
        assert torch.equal(cut[stays], logits[stays])
        assert stays.all() or logits[stays].min() >= logits[~stays].max()
    assert sample.top_k_filter(logits, k).isfinite().sum() == min(k, len(logits))
    nucleus = shares[sample.top_p_filter(logits, p).isfinite()]
    assert nucleus.sum() >= p - 1e-9
    assert len(nucleus) == 1 or nucleus.sum() - nucleus.min() < p + 1e-9


# --- Cache --------------------------------------------------------------------------


@pytest.mark.parametrize("config", [TINY, ROPE])
def test_cache_equals_no_cache_at_every_step(config, device):
    gpt, ids = lively(config, device), draw_ids(device, n_tokens=20)
    cache, expected = sample.KVCache(2), gpt(ids)
    with torch.no_grad():
        logits = [gpt(ids[:, :4], cache=cache)]
        logits += [gpt(ids[:, t : t + 1], cache=cache) for t in range(4, 20)]
    close(torch.cat(logits, dim=1), expected)
    assert len(cache) == len(cache.text[1]) == 20


def test_cropped_and_reordered_cache(device):
    gpt, ids = lively(ROPE, device), draw_ids(device, rows=3, n_tokens=9)
    cache = sample.KVCache(2)
    with torch.no_grad():
        gpt(ids, cache=cache)
        cache.crop(4)
        assert len(cache) == 4
        other = draw_ids(device, rows=3, n_tokens=3)
        expected = gpt(torch.cat([ids[:, :4], other], dim=1))
        close(gpt(other, cache=cache), expected[:, 4:])
        rows = torch.tensor([2, 0, 0, 1], device=device)
        cache.reorder(rows)
        text = torch.cat([ids[:, :4], other], dim=1)[rows]
        more = draw_ids(device, rows=4, n_tokens=1)
        expected = gpt(torch.cat([text, more], dim=1))
        close(gpt(more, cache=cache), expected[:, -1:])
    cache.crop(100)
    assert len(cache) == 8
    with pytest.raises(ValueError, match="n_tokens=-1"):
        cache.crop(-1)


def test_cache_is_not_for_training():
    with pytest.raises(RuntimeError, match="this cache is for writing"):
        GPT(TINY)(draw_ids(), cache=sample.KVCache(2))


def test_empty_cache():
    cache = sample.KVCache(3)
    assert len(cache) == 0
    cache.crop(5)
    cache.reorder(torch.tensor([0]))
    assert len(cache) == 0
    assert isinstance(cache, transformer.DecoderCache)


# --- The fast step ------------------------------------------------------------------


@pytest.mark.parametrize("position", model.POSITIONS)
@pytest.mark.parametrize("feed_forward", ["relu", "swiglu", "geglu"])
@pytest.mark.parametrize("padded", [False, True])
def test_fast_step_equals_the_model(position, feed_forward, padded, device):
    """Grouped heads of a width of their own, each kind of position, padding."""
    config = dataclasses.replace(
        ROPE, position=position, feed_forward=feed_forward, d_head=10, qkv_bias=False
    )
    config = dataclasses.replace(config, norm="layer" if padded else "rms")
    gpt, ids = lively(config, device), draw_ids(device, n_tokens=9)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[0, :2] = not padded
    step, cache = fast_step.FastStep(gpt), sample.KVCache(2)
    with torch.no_grad():
        expected = gpt(ids, mask if padded else None)
        gpt(ids[:, :5], mask[:, :5] if padded else None, cache)
        for t in range(5, 9):
            part = mask[:, : t + 1] if padded else None
            logits = step(ids[:, t : t + 1], part, cache)
            close(logits, expected[:, t], atol=5e-5)


def test_fast_step_only_where_it_fits():
    """An exchanged or watched part is really called."""
    assert fast_step.fits(GPT(TINY))
    for changes in ({"fused": False}, {"n_experts": 2}):
        assert not fast_step.fits(GPT(dataclasses.replace(TINY, **changes)))
    assert not fast_step.fits(model.PrefixLM(TINY))

    class Student(nn.Linear):
        pass

    exchanged, watched = GPT(TINY), GPT(TINY)
    exchanged.decoder.layers[0].feed_forward.project_up = Student(24, 96)
    watched.decoder.layers[1].register_forward_hook(lambda *_: None)
    assert not fast_step.fits(exchanged)
    assert not fast_step.fits(watched)
    with pytest.raises(ValueError, match="GPT is no plain GPT"):
        fast_step.FastStep(exchanged)
    assert sample.generate(exchanged, draw_ids(), GREEDY).shape == (B, T + 12)


# --- generate -----------------------------------------------------------------------


@pytest.mark.parametrize("config", [TINY, ROPE])
def test_generate_is_the_argmax_again_and_again(config, device):
    gpt, ids = lively(config, device), draw_ids(device)
    expected = ids
    for _ in range(12):
        expected = torch.cat([expected, gpt(expected)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(sample.generate(gpt, ids, GREEDY), expected)
    assert torch.equal(sample.generate(gpt, ids, GREEDY), expected)  # nothing is kept
    slow = sample.generate(gpt, ids, GREEDY, use_cache=False)
    assert torch.equal(slow, expected)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_generate_equals_theirs(hf, name, tmp_path):
    """Greedy, with and without repetition penalty, padded prompts, and beam search."""
    options = {"norm": "rms", "bias": False, "feed_forward": "swiglu", "tied": False}
    config = TINY if name == "gpt2" else dataclasses.replace(ROPE, **options)
    ours = lively(config)
    pretrained.save_pretrained(ours, tmp_path)
    theirs = hf.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    common = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    common |= {"eos_token_id": 3, "bos_token_id": None}
    ids, mask = sample.left_pad([draw_ids()[0, :n] for n in (5, 2, 4)])
    all_real = torch.ones(1, 5, dtype=torch.int64)
    for penalty in (1.0, 1.3):
        expected = theirs.generate(
            ids, attention_mask=mask.long(), repetition_penalty=penalty, **common
        )
        config = dataclasses.replace(
            GREEDY, eos_id=3, pad_id=0, repetition_penalty=penalty
        )
        written = sample.generate(ours, ids, config, mask=mask)
        if penalty == 1.0:  # with one, theirs counts the padding as if it was said
            assert torch.equal(written, expected)
        alone = sample.generate(ours, ids[:1], config)
        single = theirs.generate(
            ids[:1], attention_mask=all_real, repetition_penalty=penalty, **common
        )
        assert torch.equal(alone, single)
    for length_penalty, n_beams in ((1.0, 3), (0.0, 2), (2.0, 4)):
        best = sample.beam_search(
            ours, ids[0], n_beams, 12, eos_id=3, length_penalty=length_penalty
        )
        expected = theirs.generate(
            ids[:1],
            attention_mask=all_real,
            num_beams=n_beams,
            num_return_sequences=n_beams,
            length_penalty=length_penalty,
            early_stopping="never",
            output_scores=True,
            return_dict_in_generate=True,
            **common,
        )
        assert len(best) == n_beams
        for one, row, score in zip(
            best, expected.sequences, expected.sequences_scores, strict=True
        ):
            assert one.ids.tolist() == row[5 : 5 + len(one.ids)].tolist()
            close(one.score, float(score))


@pytest.mark.parametrize("config", [TINY, ROPE])
@pytest.mark.parametrize("use_cache", [False, True])
def test_batch_equals_one_at_a_time(config, use_cache, device):
    """Prompts of lengths 1, 3 and 6; what stands in the padding does not matter."""
    gpt = lively(config, device)
    prompts = [draw_ids(device)[0, :1], draw_ids(device)[1, :3], draw_ids(device)[0]]
    config = dataclasses.replace(GREEDY, repetition_penalty=1.2, frequency_penalty=0.1)
    for pad_id in (0, 7):
        ids, mask = sample.left_pad(prompts, pad_id)
        together = sample.generate(gpt, ids, config, mask=mask, use_cache=use_cache)
        for row, prompt in enumerate(prompts):
            alone = sample.generate(gpt, prompt[None], config)[0, len(prompt) :]
            assert torch.equal(together[row, ids.shape[1] :], alone)


def test_generate_turns_dropout_off_and_on_again():
    gpt = lively(dataclasses.replace(TINY, dropout=0.5)).train()
    ids = draw_ids()
    first = sample.generate(gpt, ids, GREEDY)
    assert torch.equal(sample.generate(gpt, ids, GREEDY), first)
    assert gpt.training
    assert torch.equal(sample.generate(gpt.eval(), ids, GREEDY), first)
    assert not gpt.training


def test_generate_is_seeded(device):
    gpt, ids = lively(TINY, device, 0.1), draw_ids(device)
    dice = torch.Generator()
    config = SamplingConfig(max_new_tokens=20)
    runs = [
        sample.generate(gpt, ids, config, generator=dice.manual_seed(seed))
        for seed in (1, 1, 2)
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_generate_follows_the_model():
    """The second token of many texts is distributed as the table says."""
    table = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3], [0.1, 0.1, 0.8]])
    ids = torch.zeros(20_000, 1, dtype=torch.int64)
    dice = torch.Generator().manual_seed(1)
    written = sample.generate(
        Table(table.log()), ids, SamplingConfig(max_new_tokens=2), generator=dice
    )
    share = torch.bincount(written[:, 2], minlength=3) / len(ids)
    close(share, table[0] @ table, atol=0.015)


def test_end_of_text(device):
    """a → b → c → end; behind the end only padding, and no step more than needed."""
    following = torch.tensor([1, 2, 3, 0])
    chain = Table(10 * nn.functional.one_hot(following, 4).float()).to(device)
    ids = torch.tensor([[0], [2]], device=device)
    config = SamplingConfig(max_new_tokens=9, temperature=0.0, eos_id=3)
    written = sample.generate(chain, ids, config)
    assert written.tolist() == [[0, 1, 2, 3], [2, 3, 3, 3]]
    config = dataclasses.replace(config, pad_id=0)
    assert sample.generate(chain, ids, config).tolist() == [[0, 1, 2, 3], [2, 3, 0, 0]]
    config = dataclasses.replace(config, max_new_tokens=0)
    assert sample.generate(chain, ids, config).tolist() == ids.tolist()


WORDS = ["a", "bc", "b", "d"]


def spell(ids):
    return "".join(WORDS[i] for i in ids)


def test_stop_text_that_is_split_between_tokens():
    """The stop is "ab" and the tokens are a, bc: compared as text, not as ids."""
    following = torch.tensor([1, 2, 3, 0])
    chain = Table(10 * nn.functional.one_hot(following, 4).float())
    config = SamplingConfig(max_new_tokens=20, temperature=0.0, stop=("ab",))
    written = sample.generate(chain, torch.tensor([[2], [0]]), config, decode=spell)
    # d a bc, and then padding; a itself is prompt, so its stop is yet to come.
    assert [spell(row) for row in written[:, 1:].tolist()] == ["dabcaa", "bcbdabc"]
    assert sample.cut_at_stop("dabc", ["x", "ab"]) == "d"
    pieces = list(sample.stream(chain, torch.tensor([2]), config, spell))
    assert "".join(pieces) == "d"
    with pytest.raises(ValueError, match="decode must be given"):
        sample.generate(chain, torch.tensor([[2]]), config)


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [
        (torch.zeros(1, 0, dtype=torch.int64), {}, "at least one token"),
        (torch.zeros(3, dtype=torch.int64), {}, r"ids has shape \(3,\)"),
        (torch.zeros(1, 60, dtype=torch.int64), {}, "more than the 64 positions"),
        (
            torch.zeros(1, 3, dtype=torch.int64),
            {"mask": torch.tensor([[True, True, False]])},
            "padding must be on the left",
        ),
        (
            torch.zeros(1, 3, dtype=torch.int64),
            {"mask": torch.tensor([[True, False, True]])},
            "padding must be on the left",
        ),
        (
            torch.zeros(1, 3, dtype=torch.int64),
            {"mask": torch.ones(1, 2, dtype=torch.bool)},
            r"expected booleans of shape \(1, 3\)",
        ),
    ],
)
def test_generate_refuses(ids, options, message):
    with pytest.raises(ValueError, match=message):
        sample.generate(GPT(TINY), ids, GREEDY, **options)


def test_generate_up_to_the_last_position():
    """The last token needs no position: it is never read."""
    written = sample.generate(GPT(TINY), draw_ids(n_tokens=53), GREEDY)
    assert written.shape == (B, 65)


def test_models_without_mask():
    table = Table(torch.randn(V, V))
    ids, mask = sample.left_pad([torch.tensor([1]), torch.tensor([2, 3])])
    with pytest.raises(ValueError, match="this model takes no mask"):
        sample.generate(table, ids, GREEDY, mask=mask)
    sample.generate(table, ids, GREEDY, mask=torch.ones_like(mask))
    with pytest.raises(ValueError, match="0 prompts"):
        sample.left_pad([])


def test_generate_in_half_precision(device):
    gpt = GPT(ROPE, device=device, dtype=torch.bfloat16)
    assert sample.generate(gpt, draw_ids(device), SamplingConfig(5)).shape == (B, T + 5)


# --- stream -------------------------------------------------------------------------


def test_stream_waits_for_whole_characters():
    """中 is three bytes: nothing is shown before the third."""
    text = "a中é"
    data = text.encode()
    following = torch.zeros(256, dtype=torch.int64)
    following[list(b"\n" + data)] = torch.tensor([*data, 0])
    chain = Table(10 * nn.functional.one_hot(following, 256).float())
    config = SamplingConfig(temperature=0.0, eos_id=0)

    def decode(ids):
        return bytes(ids).decode(errors="replace")

    pieces = list(sample.stream(chain, torch.tensor([10]), config, decode))
    assert pieces == ["a", "中", "é"]
    cut_short = dataclasses.replace(config, max_new_tokens=2)
    assert (
        "".join(sample.stream(chain, torch.tensor([10]), cut_short, decode))
        == "a\ufffd"
    )


@given(seed=st.integers(0, 999))
@settings(max_examples=15)
def test_stream_equals_generate(seed):
    dice = torch.Generator()
    table = Table(torch.randn(4, 4, generator=dice.manual_seed(seed)))
    config = SamplingConfig(max_new_tokens=30, stop=("abcd", "dd"), eos_id=2)
    ids = torch.tensor([[0]])
    written = sample.generate(
        table, ids, config, decode=spell, generator=dice.manual_seed(seed)
    )
    new = [token for token in written[0, 1:].tolist() if token != 2]
    pieces = list(
        sample.stream(table, ids, config, spell, generator=dice.manual_seed(seed))
    )
    assert "".join(pieces) == sample.cut_at_stop(spell(new), config.stop)
    assert "" not in pieces


def test_stream_is_one_text():
    with pytest.raises(ValueError, match="2 prompts, expected one"):
        next(sample.stream(GPT(TINY), draw_ids(), GREEDY, spell))


# --- beam_search --------------------------------------------------------------------


def every_text(table, start, max_new_tokens, eos_id, length_penalty):
    """All texts with their scores, the best first."""
    steps = torch.log_softmax(table, -1)
    texts = {}
    for tokens in itertools.product(range(len(table)), repeat=max_new_tokens):
        if eos_id in tokens:
            tokens = tokens[: tokens.index(eos_id) + 1]
        pairs = zip((start, *tokens), tokens, strict=False)
        total = sum(float(steps[a, b]) for a, b in pairs)
        texts[tokens] = total / len(tokens) ** length_penalty
    return sorted(texts.items(), key=lambda item: -item[1])


@pytest.mark.parametrize("length_penalty", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(4))
def test_wide_beam_search_finds_the_best_of_all(length_penalty, seed):
    table = 2 * torch.randn(4, 4, generator=torch.Generator().manual_seed(seed))
    found = sample.beam_search(
        Table(table),
        torch.tensor([1]),
        n_beams=300,
        max_new_tokens=4,
        eos_id=3,
        length_penalty=length_penalty,
    )
    expected = every_text(table, 1, 4, 3, length_penalty)
    assert len(found) == len(expected)
    for one, (_, score) in zip(found[:9], expected, strict=False):
        close(one.score, score)  # equal ones come in any order
        assert dict(expected)[tuple(one.ids.tolist())] == pytest.approx(score, abs=1e-5)


def test_narrow_beam_search_is_greedy():
    gpt, ids = lively(TINY), draw_ids(rows=1)
    found = sample.beam_search(gpt, ids, 1, 12)
    written = sample.generate(gpt, ids, GREEDY)
    assert len(found) == 1
    assert torch.equal(found[0].ids, written[0, T:])


def test_a_short_text_does_not_end_the_search():
    """The end has .4 at once; going on has .35, and then costs nothing more."""
    p = torch.tensor([[0.25, 0.35, 0.4], [0.0, 1.0, 0.0], [1 / 3, 1 / 3, 1 / 3]])
    search = partial(sample.beam_search, Table(p.log()), torch.tensor([0]), 1, 5)
    found = search(eos_id=2, length_penalty=1.0)
    assert found[0].ids.tolist() == [1, 1, 1, 1, 1]
    close(found[0].score, math.log(0.35) / 5)
    assert search(eos_id=2, length_penalty=0.0)[0].ids.tolist() == [2]


def test_length_norm():
    """Two certain steps beat one of .6 by the mean, not by the sum."""
    p = torch.tensor([[0.0, 0.5, 0.5], [0.0, 0.9, 0.1], [1 / 3, 1 / 3, 1 / 3]])
    search = partial(
        sample.beam_search, Table(p.log()), torch.tensor([0]), 3, 3, eos_id=2
    )
    assert search(length_penalty=0.0)[0].ids.tolist() == [2]
    assert search(length_penalty=1.0)[0].ids.tolist() == [1, 1, 1]


def test_beam_search_refuses():
    gpt = GPT(TINY)
    with pytest.raises(ValueError, match="n_beams=0 and max_new_tokens=3"):
        sample.beam_search(gpt, torch.tensor([0]), 0, 3)
    with pytest.raises(ValueError, match="2 prompts"):
        sample.beam_search(gpt, draw_ids(), 2, 3)
    with pytest.raises(ValueError, match="more than the 64 positions"):
        sample.beam_search(gpt, torch.tensor([0]), 2, 99)


# --- speculative decoding -----------------------------------------------------------


def chi_square(counts, probabilities):
    """Σ (seen - expected)² / expected, and its bound for one false alarm in 10⁵."""
    expected = probabilities * counts.sum()
    possible = expected > 0
    assert counts[~possible].sum() == 0
    seen, expected = counts[possible], expected[possible]
    n = len(seen) - 1
    # Wilson and Hilferty's approximation of the quantile.
    bound = n * (1 - 2 / (9 * n) + 4.265 * math.sqrt(2 / (9 * n))) ** 3
    return float(((seen - expected) ** 2 / expected).sum()), bound


def test_accept_draft_by_hand():
    """p = (.5, .5), q = (.9, .1): the right share of token 0 is .5, not .7."""
    target, draft = torch.tensor([[0.5, 0.5]] * 2), torch.tensor([[0.9, 0.1]])
    dice = torch.Generator().manual_seed(1)
    first, stayed, n = 0, 0, 3000
    for _ in range(n):
        drafted = sample.draw(draft.log(), dice)
        accepted = sample.accept_draft(target, draft, drafted, dice)
        first += int(accepted[0] == 0)
        stayed += len(accepted) - 1
    assert abs(first / n - 0.5) < 0.04
    assert abs(stayed / n - 0.6) < 0.04  # the sum of the smaller ones, .5 + .1


def test_accept_draft_edges():
    sure, never = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])
    accept = sample.accept_draft
    both = torch.stack([sure, sure])
    assert accept(both, never[None], torch.tensor([0])).tolist() == [1]
    assert accept(both, sure[None], torch.tensor([1])).tolist() == [1, 1]
    empty = torch.tensor([], dtype=torch.int64)
    assert accept(sure[None], both[:0], empty).tolist() == [1]
    with pytest.raises(ValueError, match="do not fit 2 drafted tokens"):
        accept(both, both[:1], torch.tensor([1, 1]))


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_speculative_decoding_is_distributed_as_the_target(temperature):
    """All texts of three tokens, by χ²; the draft model is another one."""
    dice = torch.Generator().manual_seed(3)
    large, small = (Table(torch.randn(3, 3, generator=dice)) for _ in range(2))
    config = SamplingConfig(max_new_tokens=3, temperature=temperature)
    counts, n = torch.zeros(27), 1200
    for _ in range(n):
        ids, _ = sample.speculative_decode(
            large, small, torch.tensor([1]), config, n_drafted=2, generator=dice
        )
        assert ids.shape == (1, 4)
        counts[int((ids[0, 1:] * torch.tensor([9, 3, 1])).sum())] += 1
    steps = torch.softmax(large.table.weight / temperature, -1)
    expected = steps[1][:, None, None] * steps[:, :, None] * steps[None]
    statistic, bound = chi_square(counts, expected.flatten())
    assert statistic < bound


@pytest.mark.parametrize("n_drafted", [1, 3, 20])
def test_greedy_speculative_decoding_is_greedy(n_drafted, device):
    """Also with caches that are cropped, penalties, and an end."""
    large = lively(ROPE, device)
    small = lively(dataclasses.replace(TINY, n_layers=1), device)
    ids = draw_ids(device, rows=1)
    for config in (
        GREEDY,
        dataclasses.replace(GREEDY, repetition_penalty=1.3),
        dataclasses.replace(
            GREEDY, eos_id=int(sample.generate(large, ids, GREEDY)[0, 9])
        ),
        dataclasses.replace(GREEDY, max_new_tokens=1),
        dataclasses.replace(GREEDY, max_new_tokens=0),
    ):
        expected = sample.generate(large, ids, config)
        written, share = sample.speculative_decode(
            large, small, ids, config, n_drafted=n_drafted
        )
        assert torch.equal(written, expected)
        assert 0 <= share <= 1
        _, share = sample.speculative_decode(large, large, ids[0], config)
        assert share == (1.0 if config.max_new_tokens > 1 else 0.0)


def test_speculative_decoding_refuses():
    gpt = GPT(TINY)
    with pytest.raises(ValueError, match="n_drafted=0 must be at least 1"):
        sample.speculative_decode(gpt, gpt, torch.tensor([0]), GREEDY, n_drafted=0)
    with pytest.raises(ValueError, match="2 prompts"):
        sample.speculative_decode(gpt, gpt, draw_ids(), GREEDY)


# --- Repetition ---------------------------------------------------------------------


def test_repetition_rate_by_hand():
    assert sample.repetition_rate([5, 5, 5, 5], n=2) == pytest.approx(2 / 3)
    assert sample.repetition_rate(torch.arange(9), n=1) == 0
    assert sample.repetition_rate([1, 2, 1, 2, 3], n=2) == pytest.approx(1 / 4)
    assert sample.repetition_rate([1, 2], n=3) == 0
    with pytest.raises(ValueError, match="n=0 must be at least 1"):
        sample.repetition_rate([1], n=0)


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 5))
def test_repetition_rate_counts_what_was_there_before(ids, n):
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    again = sum(gram in grams[:i] for i, gram in enumerate(grams))
    expected = again / len(grams) if grams else 0.0
    assert sample.repetition_rate(ids, n) == pytest.approx(expected)


def test_induction_score_by_hand():
    """Block a b c twice: from the second a (3) to the first b (1)."""
    weights = torch.zeros(2, 6, 6)
    weights[0, [3, 4, 5], [1, 2, 3]] = 1.0  # an induction head
    weights[1, [3, 4, 5], [0, 1, 2]] = 1.0  # looks at the same token
    assert sample.induction_score(weights).tolist() == [1.0, 0.0]
    even = torch.full((6, 6), 1 / 6)
    close(sample.induction_score(even), torch.tensor(1 / 6))
    for shape in ((5, 5), (4, 6), (6,)):
        with pytest.raises(ValueError, match=r"expected \(\.\.\., 2 N, 2 N\)"):
            sample.induction_score(torch.zeros(shape))


def test_model_module_does_not_need_sampling():
    assert not hasattr(model, "sample")
