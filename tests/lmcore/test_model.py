"""Tests of lmcore.model, bert, t5 and objectives: by hand, as properties, at the edges.

That the models are those of their papers is shown in test_pretrained.py, against the
published code.
"""

import dataclasses
import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from lmcore import attention, bert, mixture, model, objectives, t5, transformer
from lmcore.model import ModelConfig

close = partial(torch.testing.assert_close, atol=1e-5, rtol=0.0)
B, T, V, C, L = 2, 7, 23, 24, 2
PLAIN = ModelConfig(vocab_size=V, max_len=16, d_model=C, n_layers=L, n_heads=3, d_ff=20)
MODERN = dataclasses.replace(
    PLAIN,
    n_heads=4,
    n_kv_heads=2,
    feed_forward="swiglu",
    norm="rms",
    bias=False,
    position="rope",
    tied=False,
)
EXPERTS = dataclasses.replace(MODERN, n_experts=3, top_k=2)
WIDE_HEADS = dataclasses.replace(MODERN, d_head=10, qkv_bias=True)
CONFIGS = {
    "plain": PLAIN,
    "modern": MODERN,
    "experts": EXPERTS,
    "wide heads": WIDE_HEADS,
    "alibi": dataclasses.replace(PLAIN, position="alibi", feed_forward="geglu"),
    "sinusoidal": dataclasses.replace(PLAIN, position="sinusoidal", fused=False),
    "none": dataclasses.replace(MODERN, position="none", fused=False),
}
T5_CONFIG = ModelConfig.preset(
    "t5-small", vocab_size=V, d_model=C, n_layers=L, n_heads=3, d_ff=20, n_buckets=8
)
BERT_CONFIG = ModelConfig.preset(
    "bert-base", vocab_size=V, max_len=16, d_model=C, n_layers=L, n_heads=3, d_ff=20
)


def lively(module):
    """Move all parameters so far that every part of the model has a say."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module.eval()


def draw_ids(device, n_tokens=T):
    return torch.randint(V, (B, n_tokens), device=device)


# --- Configuration ------------------------------------------------------------------


def test_config_by_hand():
    config = ModelConfig(vocab_size=5, d_model=12, n_heads=3)
    assert (config.key_heads, config.head_width, config.hidden_width) == (3, 4, 48)
    assert config.key_bias
    config = dataclasses.replace(
        config, n_kv_heads=1, d_head=6, d_ff=7, bias=False, qkv_bias=True
    )
    assert (config.key_heads, config.head_width, config.hidden_width) == (1, 6, 7)
    assert config.key_bias
    # What is not given follows the rest also after a change.
    assert dataclasses.replace(PLAIN, d_ff=None, d_model=48).hidden_width == 192


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 0}, "vocab_size=0 must be at least 1"),
        ({"d_model": 10}, "d_model=10 is not divisible by n_heads=3"),
        ({"n_kv_heads": 2}, "n_heads=3 is not divisible by n_kv_heads=2"),
        ({"n_kv_heads": 0}, "n_kv_heads=0"),
        ({"position": "rope", "d_model": 9}, "d_head=3 must be even"),
        ({"position": "clock"}, "position='clock' must be one of learned"),
        ({"feed_forward": "tanh"}, "feed_forward='tanh' must be one of relu"),
        ({"norm": "batch"}, "norm='batch'"),
        ({"n_experts": 2, "top_k": 3}, "top_k=3 must lie between 1 and n_experts=2"),
        ({"dropout": 1.0}, r"dropout=1.0 must lie in \[0, 1\)"),
    ],
)
def test_config_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PLAIN, **changes)


def test_presets():
    assert ModelConfig.preset("gpt2").n_layers == 12
    assert ModelConfig.preset("gpt2", n_layers=3).n_layers == 3
    with pytest.raises(ValueError, match="preset='gpt9' must be one of tiny"):
        ModelConfig.preset("gpt9")


def test_first_values():
    """Shifts 0, scales 1, the stream's writers smaller; the generator alone decides."""
    make = partial(model.GPT, dataclasses.replace(PLAIN, d_model=96, d_ff=300))
    dice = torch.Generator().manual_seed(1)
    gpt, same = make(generator=dice), make(generator=dice.manual_seed(1))
    for name, parameter in gpt.named_parameters():
        assert torch.equal(parameter, same.get_parameter(name))
        if parameter.dim() == 1:
            assert (parameter == (1.0 if name.endswith("weight") else 0.0)).all()
        else:
            std = 0.02
            if name.endswith(("project_output.weight", "project_down.weight")):
                std = 0.02 / math.sqrt(2 * L)
            assert 0.9 * std < parameter.std() < 1.1 * std
    state = torch.random.get_rng_state()
    make(generator=dice)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_unused_fields_keep_the_layers_of_chapter_09():
    """A student's layers are used, with nothing replaced in them."""
    stack = transformer.Decoder(PLAIN.layer_config(), L, cross_attention=False)
    before = [(name, id(p)) for name, p in stack.named_parameters()]
    model.fit_layers(stack, PLAIN)
    assert [(name, id(p)) for name, p in stack.named_parameters()] == before


# --- GPT ----------------------------------------------------------------------------


def test_gpt_by_hand():
    """No layer has a say: the last norm of the token's vector, times all vectors."""
    config = ModelConfig(
        vocab_size=3, d_model=2, n_layers=1, n_heads=1, d_ff=1, position="none"
    )
    gpt = model.GPT(config)
    with torch.no_grad():
        for parameter in gpt.decoder.layers.parameters():
            parameter.zero_()
        gpt.embedding.weight.copy_(torch.tensor([[1.0, 3.0], [5.0, -5.0], [0.5, 2.0]]))
    # (1, 3) and (0.5, 2) become (-1, 1), and (5, -5) becomes (1, -1).
    expected = [[2.0, -10.0, 1.5], [-2.0, 10.0, -1.5], [2.0, -10.0, 1.5]]
    close(gpt(torch.tensor([[0, 1, 2]]))[0], torch.tensor(expected), atol=1e-3)


@pytest.mark.parametrize("name", CONFIGS)
def test_causality(name, device):
    """A change at place t leaves the logits before t as they were, and no others."""
    gpt = lively(model.GPT(CONFIGS[name], device=device))

    @given(t=st.integers(0, T - 1))
    @settings(max_examples=8)
    def check(t):
        ids = draw_ids(device)
        logits = gpt(ids)
        ids[0, t] = (ids[0, t] + 1) % V
        changed = (gpt(ids) - logits).abs().amax(dim=-1) > 1e-5  # (B, T)
        assert not changed[0, :t].any()
        assert changed[0, t:].all()
        assert not changed[1].any()

    check()


@pytest.mark.parametrize("name", CONFIGS)
def test_cache_equals_no_cache(name, device):
    gpt = lively(model.GPT(CONFIGS[name], device=device))
    ids, mask = draw_ids(device), torch.ones(B, T, dtype=torch.bool, device=device)
    mask[0, :2] = False
    for m in (None, mask):
        cache, parts = gpt.new_cache(), []
        for start, stop in ((0, 3), (3, 4), (4, T)):
            part = None if m is None else m[:, :stop]
            parts.append(gpt(ids[:, start:stop], part, cache))
        assert len(cache) == T
        logits, expected = torch.cat(parts, dim=1), gpt(ids, m)
        seen = mask if m is not None else torch.ones_like(mask)
        close(logits[seen], expected[seen])


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(name, side, device):
    """Not what it is, nor how much, nor that it is there."""
    gpt = lively(model.GPT(CONFIGS[name], device=device))

    @given(n_padding=st.integers(1, T - 1))
    @settings(max_examples=5)
    def check(n_padding):
        ids = draw_ids(device)
        mask = torch.ones_like(ids, dtype=torch.bool)
        real = slice(n_padding, None) if side == "left" else slice(T - n_padding)
        mask[0] = False
        mask[0, real] = True
        logits = gpt(ids, mask)
        close(logits[0, real], gpt(ids[:1, real])[0])
        close(logits[1], gpt(ids[1:])[0])

    check()


@pytest.mark.parametrize("name", ["plain", "modern"])
def test_fused_equals_plain(name, device):
    """PyTorch's fast attention and ours: forward and all gradients."""
    fused = lively(model.GPT(CONFIGS[name], device=device))
    plain = model.GPT(dataclasses.replace(CONFIGS[name], fused=False), device=device)
    plain.load_state_dict(fused.state_dict())
    ids = draw_ids(device)
    gradients = []
    for gpt in (fused, plain):
        loss = F.cross_entropy(gpt(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        gradients.append(torch.autograd.grad(loss, list(gpt.parameters())))
    close(fused(ids), plain(ids))
    for one, other in zip(*gradients, strict=True):
        close(one, other)


def test_masks_of_three_and_four_axes(device):
    gpt = lively(model.GPT(PLAIN, device=device))
    ids = draw_ids(device)
    window = attention.sliding_window_mask(T, 2, device=device)
    logits = gpt(ids, window[None])
    close(logits, gpt(ids, window[None, None]))
    assert not torch.allclose(logits, gpt(ids))
    close(gpt(ids, torch.ones(1, T, T, dtype=torch.bool, device=device)), gpt(ids))


def test_positions_can_be_given(device):
    gpt = lively(model.GPT(PLAIN, device=device))
    ids = draw_ids(device)
    close(gpt(ids, positions=torch.arange(T, device=device)), gpt(ids))
    shifted = torch.arange(T, device=device).expand(B, T) + 2
    assert not torch.allclose(gpt(ids, positions=shifted), gpt(ids))
    modern = lively(model.GPT(MODERN, device=device))
    close(modern(ids, positions=shifted), modern(ids))  # only distances count


def test_parts_of_forward(device):
    gpt = lively(model.GPT(MODERN, device=device))
    ids = draw_ids(device)
    features = gpt.features(ids)
    assert features.shape == (B, T, C)
    close(gpt.logits(features), gpt(ids))
    close(features.square().mean(-1).shape, (B, T))


def test_tied_output_learns_from_both_ends():
    gpt = model.GPT(PLAIN)
    gpt(torch.tensor([[1, 2]])).sum().backward()
    assert gpt.project_logits is None
    assert (gpt.embedding.weight.grad[5] != 0).any()  # never read, but scored


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", CONFIGS)
def test_gpt_in_another_type(name, dtype, device):
    gpt = lively(model.GPT(CONFIGS[name], device=device, dtype=dtype))
    wide = model.GPT(CONFIGS[name], device=device)
    wide.load_state_dict(gpt.state_dict())
    wide.eval()
    ids = draw_ids(device)
    logits, expected = gpt(ids), wide(ids)
    assert logits.dtype == dtype
    if name != "experts":  # where rounding may send a token to another expert
        error = (logits.float() - expected).abs().mean() / expected.abs().mean()
        assert error < (1e-6 if dtype == torch.float64 else 0.06)
    logits.sum().backward()


def test_dropout_only_in_training(device):
    gpt = lively(model.GPT(dataclasses.replace(PLAIN, dropout=0.5), device=device))
    ids = draw_ids(device)
    assert torch.equal(gpt(ids), gpt(ids))
    gpt.train()
    assert not torch.equal(gpt(ids), gpt(ids))


def test_gpt_of_one_token_and_none(device):
    gpt = model.GPT(PLAIN, device=device)
    assert gpt(torch.zeros(1, 1, dtype=torch.int64, device=device)).shape == (1, 1, V)
    assert gpt(torch.zeros(B, 0, dtype=torch.int64, device=device)).shape == (B, 0, V)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.tensor([[0, V]]), f"ids from 0 to {V} must lie between 0 and"),
        (torch.tensor([[-1, 2]]), "ids from -1 to 2"),
        (torch.tensor([1, 2]), r"shape \(2,\), expected whole numbers \(B, T\)"),
        (torch.zeros(1, 2), "torch.float32"),
        (torch.zeros(1, 17, dtype=torch.int64), "must lie between 0 and n_positions"),
    ],
)
def test_gpt_refuses_ids(ids, message):
    with pytest.raises(ValueError, match=message):
        model.GPT(PLAIN)(ids)


def test_gpt_refuses_masks():
    gpt, ids = model.GPT(PLAIN), draw_ids("cpu")
    with pytest.raises(TypeError, match=r"expected torch\.bool"):
        gpt(ids, torch.ones(B, T))
    with pytest.raises(ValueError, match=r"mask has shape \(2, 6\), expected \(B, S\)"):
        gpt(ids, torch.ones(B, T - 1, dtype=torch.bool))
    cache = gpt.new_cache()
    gpt(ids, cache=cache)
    with pytest.raises(ValueError, match="counts also the tokens in the cache"):
        gpt(ids, torch.ones(B, T, dtype=torch.bool), cache)


def test_balance_loss_of_the_model(device):
    gpt = lively(model.GPT(EXPERTS, device=device))
    with pytest.raises(RuntimeError, match="call the layer first"):
        gpt.balance_loss()
    gpt(draw_ids(device))
    layers = [layer.feed_forward for layer in gpt.decoder.layers]
    losses = [mixture.load_balancing_loss(*layer.routing) for layer in layers]
    close(gpt.balance_loss(), sum(losses) / L)
    gpt.balance_loss().backward()
    assert (layers[0].router.project_experts.weight.grad != 0).any()
    with pytest.raises(ValueError, match="n_experts=0"):
        model.GPT(PLAIN).balance_loss()


def test_students_attention_is_used(monkeypatch):
    """With ``fused=False`` the model runs on the functions of chapter 08."""
    calls = []
    original = attention.scaled_dot_product_attention

    def spy(*inputs):
        calls.append(1)
        return original(*inputs)

    monkeypatch.setattr(attention, "scaled_dot_product_attention", spy)
    model.GPT(dataclasses.replace(PLAIN, fused=False))(torch.tensor([[1, 2]]))
    assert len(calls) == L


def test_gpt_learns(device):
    """A tiny model learns a tiny text by heart within seconds."""
    dice = torch.Generator().manual_seed(1)
    gpt = model.GPT(PLAIN, generator=dice).to(device)
    ids = torch.randint(V, (4, 12), generator=dice).to(device)
    optimizer = torch.optim.AdamW(gpt.parameters(), lr=1e-2)
    for _ in range(60):
        loss = F.cross_entropy(gpt(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.5 < math.log(V)


# --- PrefixLM -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", "modern", "alibi", "none"])
def test_who_sees_whom_in_a_prefix_model(name, device):
    """The prompt sees all of the prompt and nothing of the answer."""
    prefix = lively(model.PrefixLM(CONFIGS[name], device=device))

    @given(n_prefix=st.integers(0, T), t=st.integers(0, T - 1))
    @settings(max_examples=12)
    def check(n_prefix, t):
        ids = draw_ids(device)
        logits = prefix(ids, prefix_length=n_prefix)
        ids[0, t] = (ids[0, t] + 1) % V
        changed = prefix(ids, prefix_length=n_prefix) - logits
        changed = changed.abs().amax(dim=-1)[0] > 1e-5  # (T,)
        first = 0 if t < n_prefix else t
        assert not changed[:first].any()
        assert changed[first:].all()

    check()


def test_prefix_model_with_an_empty_prefix_is_gpt(device):
    prefix, gpt = model.PrefixLM(MODERN, device=device), model.GPT(MODERN)
    gpt.to(device).load_state_dict(lively(prefix).state_dict())
    ids = draw_ids(device)
    close(prefix(ids), gpt(ids))
    close(prefix.features(ids, prefix_length=0), gpt.features(ids))
    assert not torch.allclose(prefix(ids, prefix_length=3), gpt(ids))


def test_prefix_lengths_differ_by_row(device):
    prefix = lively(model.PrefixLM(PLAIN, device=device))
    ids = draw_ids(device)
    together = prefix(ids, prefix_length=torch.tensor([2, 5]))
    close(together[:1], prefix(ids[:1], prefix_length=2))
    close(together[1:], prefix(ids[1:], prefix_length=5))


def test_prefix_model_with_cache_and_padding(device):
    prefix = lively(model.PrefixLM(MODERN, device=device))
    ids = draw_ids(device)
    mask = torch.ones(B, T, dtype=torch.bool, device=device)
    mask[0, :2] = False
    expected = prefix(ids, mask, prefix_length=4)
    cache = prefix.new_cache()
    parts = [
        prefix(ids[:, a:b], mask[:, :b], cache, prefix_length=4)
        for a, b in ((0, 4), (4, 5), (5, T))
    ]
    close(torch.cat(parts, dim=1)[mask], expected[mask])
    close(expected[0, 2:], prefix(ids[:1, 2:], prefix_length=2)[0])


def test_prefix_model_refuses():
    prefix, ids = model.PrefixLM(PLAIN), draw_ids("cpu")
    with pytest.raises(ValueError, match="prefix_length=8 must lie between 0 and"):
        prefix(ids, prefix_length=T + 1)
    cache = prefix.new_cache()
    prefix(ids[:, :2], cache=cache)
    with pytest.raises(ValueError, match="more than the 2 tokens in the cache"):
        prefix(ids[:, 2:], cache=cache, prefix_length=3)


# --- BERT ---------------------------------------------------------------------------


def test_bert_sees_both_ways(device):
    """A change anywhere is seen everywhere in its row."""
    reader = lively(bert.BERT(BERT_CONFIG, device=device))
    ids = draw_ids(device)
    for t in (0, 3, T - 1):
        logits = reader(ids)
        ids[0, t] = (ids[0, t] + 1) % V
        changed = (reader(ids) - logits).abs().amax(dim=-1) > 1e-6
        assert changed[0].all()
        assert not changed[1].any()


@pytest.mark.parametrize("real", [slice(2, None), slice(5)])
def test_bert_does_not_see_padding(real, device):
    reader = lively(bert.BERT(BERT_CONFIG, device=device))
    ids, segments = draw_ids(device), draw_ids(device) % 2
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[0] = False
    mask[0, real] = True
    logits = reader(ids, mask, segments)
    close(logits[:1, real], reader(ids[:1, real], segments=segments[:1, real]))
    close(logits[1:], reader(ids[1:], segments=segments[1:]))


def test_bert_heads(device):
    reader = lively(bert.BERT(BERT_CONFIG, device=device))
    ids = draw_ids(device)
    features = reader.features(ids)
    pair = reader.next_sentence_logits(features)
    assert pair.shape == (B, 2)
    features[:, 1:] = 0  # only the first token speaks for the text
    close(reader.next_sentence_logits(features), pair)
    assert not torch.allclose(reader(ids), reader(ids, segments=torch.ones_like(ids)))


def test_bert_refuses():
    with pytest.raises(ValueError, match="position='rope'"):
        bert.BERT(dataclasses.replace(BERT_CONFIG, position="rope"))
    reader = bert.BERT(BERT_CONFIG, next_sentence=False)
    with pytest.raises(ValueError, match="next_sentence=False"):
        reader.next_sentence_logits(torch.zeros(1, 2, C))
    with pytest.raises(ValueError, match="ids from 0 to 2 must lie between 0 and"):
        reader(draw_ids("cpu"), segments=torch.arange(3).expand(B, 3))


# --- T5 -----------------------------------------------------------------------------


def test_distance_buckets_by_hand():
    """Four buckets a side: 0 and 1 alone, then up to √(2 · 8) = 4, then the rest."""
    distance = torch.tensor([0, -1, -2, -3, -4, -5, -100])
    buckets = partial(t5.distance_buckets, n_buckets=8, max_distance=8)
    assert buckets(distance, both_ways=True).tolist() == [0, 1, 2, 2, 3, 3, 3]
    ahead = [0, 5, 6, 6, 7, 7, 7]
    assert buckets(-distance, both_ways=True).tolist() == ahead
    assert buckets(-distance, both_ways=False).tolist() == [0] * 7
    one_way = buckets(torch.arange(0, -9, -1), both_ways=False, max_distance=16)
    assert one_way.tolist() == [0, 1, 2, 3, 4, 4, 5, 5, 6]
    with pytest.raises(ValueError, match="n_buckets=2 must be at least 4"):
        buckets(distance, both_ways=True, n_buckets=2)
    with pytest.raises(ValueError, match="max_distance=2 more than the 2 single"):
        buckets(distance, both_ways=True, max_distance=2)


def test_relative_position_depends_on_distance_alone(device):
    table = lively(t5.RelativePosition(T5_CONFIG, both_ways=True, device=device))
    bias = table(5, 5)
    assert bias.shape == (3, 5, 5)
    close(bias[:, 1:, 1:], bias[:, :-1, :-1])
    close(table(2, 5), bias[:, 3:])
    close(bias[:, 0, 1], table.weight[4 + 1])  # 1 ahead: the second half of 8


def test_who_sees_whom_in_t5(device):
    writer = lively(t5.T5(T5_CONFIG, device=device))
    source, target = draw_ids(device), draw_ids(device, 5)
    logits = writer(source, target)
    target[0, 2] = (target[0, 2] + 1) % V
    changed = (writer(source, target) - logits).abs().amax(dim=-1) > 1e-5
    assert changed.tolist() == [[False, False, True, True, True], [False] * 5]
    source[1, -1] = (source[1, -1] + 1) % V
    changed = (writer(source, target) - writer(draw_ids(device), target)).abs() > 1e-5
    assert changed.any(dim=-1).all()


def test_t5_cache_and_padding(device):
    writer = lively(t5.T5(T5_CONFIG, device=device))
    source, target = draw_ids(device), draw_ids(device, 5)
    mask = torch.ones_like(source, dtype=torch.bool)
    mask[0, :2] = False
    expected = writer(source, target, mask)
    close(expected[:1], writer(source[:1, 2:], target[:1]))
    cache, context = writer.new_cache(), writer.encode(source, mask)
    parts = [
        writer.decode(target[:, a:b], context, mask, cache)
        for a, b in ((0, 2), (2, 3), (3, 5))
    ]
    close(torch.cat(parts, dim=1), expected)


def test_t5_tied_output_is_scaled():
    """Untied with the same weights, the logits are larger by √C."""
    tied = lively(t5.T5(T5_CONFIG))
    untied = t5.T5(dataclasses.replace(T5_CONFIG, tied=False)).eval()
    weights = tied.state_dict() | {"project_logits.weight": tied.embedding.weight}
    untied.load_state_dict(weights)
    source, target = draw_ids("cpu"), draw_ids("cpu", 3)
    close(untied(source, target), math.sqrt(C) * tied(source, target), atol=1e-4)


def test_t5_refuses():
    with pytest.raises(ValueError, match="position='learned'"):
        t5.T5(PLAIN)
    with pytest.raises(ValueError, match="must lie between 0 and vocab_size"):
        t5.T5(T5_CONFIG)(torch.tensor([[V]]), torch.tensor([[0]]))


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_readers_in_half_precision(kind, device):
    options = {"device": device, "dtype": torch.bfloat16}
    if kind == "bert":
        logits = bert.BERT(BERT_CONFIG, **options)(draw_ids(device))
    else:
        logits = t5.T5(T5_CONFIG, **options)(draw_ids(device), draw_ids(device))
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()


# --- mask_tokens --------------------------------------------------------------------


def test_mask_tokens_by_counts():
    """15 % are chosen; of these 80 % hidden, 10 % random, 10 % kept."""
    n, vocab_size, mask_id = 400_000, 1000, 999
    ids = torch.randint(500, (2, n // 2))
    original = ids.clone()
    dice = torch.Generator().manual_seed(1)
    hidden, targets = objectives.mask_tokens(ids, vocab_size, mask_id, generator=dice)
    assert torch.equal(ids, original)
    chosen = targets != -100
    assert abs(chosen.float().mean() - 0.15) < 0.003
    assert torch.equal(targets[chosen], ids[chosen])
    assert torch.equal(hidden[~chosen], ids[~chosen])
    masked = hidden[chosen] == mask_id
    kept = hidden[chosen] == ids[chosen]
    assert abs(masked.float().mean() - 0.8) < 0.01
    assert abs(kept.float().mean() - 0.1) < 0.01
    replaced = hidden[chosen][~masked & ~kept]
    assert abs(len(replaced) / chosen.sum() - 0.1) < 0.01
    # Any token of the vocabulary, not only those of the text.
    assert abs((replaced >= 500).float().mean() - 0.5) < 0.02
    assert replaced.min() < 20
    assert replaced.max() > 980


def test_mask_tokens_leaves_special_ones_alone():
    ids = torch.tensor([[1, 5, 6, 2, 0, 0]]).repeat(200, 1)
    hidden, targets = objectives.mask_tokens(ids, 10, 3, special_ids={0, 1, 2})
    special = ids < 3
    assert (targets[special] == -100).all()
    assert torch.equal(hidden[special], ids[special])
    assert (targets[~special] != -100).any()
    only_special = torch.zeros(3, 4, dtype=torch.int64)
    hidden, targets = objectives.mask_tokens(only_special, 10, 3, [0], share=1.0)
    assert torch.equal(hidden, only_special)
    assert (targets == -100).all()


def test_mask_tokens_edges():
    ids = torch.arange(4, 10)
    _, targets = objectives.mask_tokens(ids, 10, 3, share=0.0)
    assert (targets == -100).all()
    _, targets = objectives.mask_tokens(ids, 10, 3, share=1.0)
    assert torch.equal(targets, ids)
    dice = torch.Generator()
    draws = [
        objectives.mask_tokens(ids, 10, 3, share=0.5, generator=dice.manual_seed(7))
        for _ in range(2)
    ]
    assert torch.equal(draws[0][0], draws[1][0])
    with pytest.raises(ValueError, match=r"share=1\.5 must lie between 0 and 1"):
        objectives.mask_tokens(ids, 10, 3, share=1.5)
    with pytest.raises(ValueError, match="mask_id=10 must lie between 0 and 9"):
        objectives.mask_tokens(ids, 10, 10)


# --- next_sentence_pairs ------------------------------------------------------------


def test_next_sentence_pairs():
    """The sentence 10 · d + i is number i of document d."""
    documents = [[[10 * d + i] for i in range(n)] for d, n in enumerate((5, 1, 0, 4))]
    dice = torch.Generator().manual_seed(1)
    n_next, strangers = 0, set()
    for _ in range(300):
        pairs = objectives.next_sentence_pairs(documents, generator=dice)
        assert [pair.first[0] for pair in pairs] == [0, 1, 2, 3, 30, 31, 32]
        for pair in pairs:
            if pair.is_next:
                assert pair.second[0] == pair.first[0] + 1
            else:
                assert pair.second[0] // 10 != pair.first[0] // 10
                strangers.add(pair.second[0])
        n_next += sum(pair.is_next for pair in pairs)
    assert abs(n_next / 2100 - 0.5) < 0.03
    assert strangers == {0, 1, 2, 3, 4, 10, 30, 31, 32, 33}


@pytest.mark.parametrize("documents", [[], [[[1], [2]]], [[[1], [2]], []]])
def test_next_sentence_pairs_need_another_document(documents):
    with pytest.raises(ValueError, match="fewer than two documents"):
        objectives.next_sentence_pairs(documents)


def test_joined_pair():
    pair = objectives.SentencePair([5, 6], [7, 8, 9], is_next=False)
    ids, segments = pair.joined(cls_id=1, sep_id=2)
    assert ids == [1, 5, 6, 2, 7, 8, 9, 2]
    assert segments == [0, 0, 0, 0, 1, 1, 1, 1]


# --- span_corruption ----------------------------------------------------------------

SENTINELS = list(range(999, 899, -1))


@given(
    n=st.integers(2, 60),
    density=st.floats(0.01, 0.99),
    mean_span=st.floats(1.0, 8.0),
)
def test_span_corruption_round_trip(n, density, mean_span):
    ids = torch.randint(100, (n,))
    source, target = objectives.span_corruption(
        ids, SENTINELS, density=density, mean_span=mean_span
    )
    assert torch.equal(objectives.fill_spans(source, target, SENTINELS), ids)
    marks = [token for token in source.tolist() if token >= 900]
    assert marks == SENTINELS[: len(marks)]
    assert [t for t in target.tolist() if t >= 900] == SENTINELS[: len(marks) + 1]
    assert target[-1] == SENTINELS[len(marks)]
    n_hidden = min(max(round(n * density), 1), n - 1)
    assert len(target) == n_hidden + len(marks) + 1
    # Two gaps never touch.
    is_mark = source >= 900
    assert not (is_mark[1:] & is_mark[:-1]).any()


def test_every_token_is_hidden_equally_often():
    """Also the first and the last."""
    ids, dice = torch.arange(20), torch.Generator().manual_seed(1)
    counts = torch.zeros(20)
    for _ in range(2000):
        _, target = objectives.span_corruption(ids, SENTINELS, generator=dice)
        counts += torch.bincount(target[target < 900], minlength=20)
    share = counts / 2000
    assert (share - 3 / 20).abs().max() < 0.035  # four standard deviations


def test_more_spans_than_tokens_to_keep_them_apart():
    ids = torch.arange(10)
    source, target = objectives.span_corruption(
        ids, SENTINELS, density=0.55, mean_span=1.0
    )
    assert torch.equal(objectives.fill_spans(source, target, SENTINELS), ids)


@pytest.mark.parametrize(
    ("ids", "sentinels", "options", "message"),
    [
        (torch.tensor([5]), SENTINELS, {}, "1 ids: one must be hidden"),
        (torch.arange(20), [999], {}, "1 sentinels for [12] gaps"),
        (torch.arange(20), [3, 4, 5], {}, r"sentinels \[3, 4, 5\] are in the text"),
        (torch.arange(20), SENTINELS, {"density": 1.0}, "density=1.0 must lie between"),
        (torch.arange(20), SENTINELS, {"mean_span": 0.5}, "mean_span=0.5"),
    ],
)
def test_span_corruption_refuses(ids, sentinels, options, message):
    with pytest.raises(ValueError, match=message):
        objectives.span_corruption(ids, sentinels, **options)


def test_fill_spans_by_hand():
    source, target = torch.tensor([99, 5, 98]), torch.tensor([99, 3, 4, 98, 6, 97])
    filled = objectives.fill_spans(source, target, [99, 98, 97])
    assert filled.tolist() == [3, 4, 5, 6]
    with pytest.raises(ValueError, match="nothing about the gap 98"):
        objectives.fill_spans(source, target[:3], [99, 98, 97])


# --- prefix_lm_batch ----------------------------------------------------------------


def test_prefix_lm_batch_by_hand():
    """Two of four tokens are prompt: places 1 and 2 predict tokens 2 and 3."""
    prompts = [torch.tensor([5, 6]), torch.tensor([5])]
    answers = [torch.tensor([7, 8]), torch.tensor([9])]
    inputs, targets, lengths = objectives.prefix_lm_batch(prompts, answers, pad_id=1)
    assert inputs.tolist() == [[5, 6, 7], [5, 1, 1]]
    assert targets.tolist() == [[-100, 7, 8], [9, -100, -100]]
    assert lengths.tolist() == [2, 1]


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1))
def test_prefix_lm_batch_learns_the_answers_and_nothing_else(sizes):
    prompts = [torch.randint(1, V, (n,)) for n, _ in sizes]
    answers = [torch.randint(1, V, (n,)) for _, n in sizes]
    inputs, targets, lengths = objectives.prefix_lm_batch(prompts, answers)
    assert inputs.shape == targets.shape == (len(sizes), max(map(sum, sizes)) - 1)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        n = lengths[row]
        assert torch.equal(inputs[row, :n], prompt)
        assert torch.equal(targets[row][targets[row] != -100], answer)
        assert targets[row, n - 1] == answer[0]


def test_prefix_lm_batch_refuses():
    one = [torch.tensor([1])]
    with pytest.raises(ValueError, match="1 prompts and 2 answers"):
        objectives.prefix_lm_batch(one, one * 2)
    with pytest.raises(ValueError, match="at least one token"):
        objectives.prefix_lm_batch([torch.tensor([], dtype=torch.int64)], one)
    with pytest.raises(ValueError, match="0 prompts"):
        objectives.prefix_lm_batch([], [])


# --- What a model costs -------------------------------------------------------------


def test_parameter_count():
    assert model.parameter_count(ModelConfig.preset("gpt2")) == 124_439_808
    # By hand: vectors 5 · 2, positions 3 · 2, two norms and the last 3 · 4, attention
    # 4 · (4 + 2), feed-forward 2 · 8 + 8 + 8 · 2 + 2.
    config = ModelConfig(vocab_size=5, max_len=3, d_model=2, n_layers=1, n_heads=1)
    assert model.parameter_count(config) == 10 + 6 + 12 + 24 + 42
    untied = dataclasses.replace(config, tied=False)
    assert model.parameter_count(untied) == 94 + 10
    assert model.parameter_count(model.GPT(config)) == 94
    assert model.parameter_count(torch.nn.Linear(3, 4)) == 16


def test_flops_per_token():
    """6 N, without the table of positions, and 12 L C T on top."""
    config = ModelConfig.preset("gpt2")
    n_used = 124_439_808 - 1024 * 768
    assert model.flops_per_token(config, 0) == 6 * n_used
    assert model.flops_per_token(config, 100) == 6 * n_used + 12 * 12 * 768 * 100
    assert model.flops_per_token(config) == 6 * n_used + 12 * 12 * 768 * 1024
    once = model.flops_per_token(config, 100, training=False)
    assert 3 * once == model.flops_per_token(config, 100)
    with pytest.raises(ValueError, match="n_tokens=-1"):
        model.flops_per_token(config, -1)


def test_flops_of_experts_and_untied_vectors():
    """A token does not pay for experts it does not visit, nor for being looked up."""
    expert = 3 * C * 20
    with_experts = model.flops_per_token(EXPERTS, 0)
    n = model.parameter_count(EXPERTS) - V * C - L * expert
    assert with_experts == 6 * n
    tied = dataclasses.replace(MODERN, tied=True)
    assert model.flops_per_token(tied) == model.flops_per_token(MODERN)
    wide = model.flops_per_token(WIDE_HEADS, 5) - model.flops_per_token(WIDE_HEADS, 0)
    assert wide == 12 * L * 40 * 5


# --- Names that live elsewhere ------------------------------------------------------


def test_all_names_of_the_chapter(monkeypatch):
    for module, names in model.ELSEWHERE.items():
        for name in names:
            assert getattr(model, name).__module__ == f"lmcore.{module}"
    monkeypatch.setattr(objectives, "mask_tokens", "a student's version")
    assert model.mask_tokens == "a student's version"
    with pytest.raises(AttributeError, match="no attribute 'Mamba'"):
        _ = model.Mamba
