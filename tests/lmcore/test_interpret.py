"""Tests of lmcore.interpret: by hand, against the model itself, as properties.

One small model is written by hand so that it holds an induction head; another one
learns to have one, in the slow part.
"""

import re
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from lmcore import interpret, transformer
from lmcore.model import GPT, ModelConfig

close = partial(torch.testing.assert_close, atol=1e-5, rtol=0.0)
B, T, V = 2, 5, 11
SIZES = {"vocab_size": V, "max_len": 16, "d_model": 12, "n_layers": 3, "n_heads": 3}
KINDS = {
    "gpt": ModelConfig(**SIZES, fused=False),
    "fused": ModelConfig(**SIZES),
    "llama": ModelConfig(
        **SIZES, n_kv_heads=1, position="rope", norm="rms", feed_forward="swiglu"
    ),
    "alibi": ModelConfig(**SIZES, position="alibi", tied=False, bias=False),
}


def gpt(kind, device):
    model = GPT(KINDS[kind], generator=torch.Generator(device).manual_seed(1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def some_ids(device, n_tokens=T):
    return torch.randint(V, (B, n_tokens), device=device)


def hooks_of(model):
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()
    )


class Steps(nn.Module):
    """A decoder over one-hot vectors: what a model written by hand needs."""

    def __init__(self, decoder, n_words, n_places):
        super().__init__()
        self.decoder, self.n_words, self.n_places = decoder, n_words, n_places

    def forward(self, ids):
        words = F.one_hot(ids, self.n_words).float()  # (B, T, V)
        places = torch.eye(self.n_places, device=ids.device)[: ids.shape[1]]
        places = places.expand(len(ids), -1, -1)
        return self.decoder(torch.cat([words, places, torch.zeros_like(words)], dim=-1))


def induction_by_hand(n_words, n_places, device):
    """Layer 0 copies the token before; layer 1 looks where that equals the token."""
    width = 2 * n_words + n_places
    config = transformer.LayerConfig(
        d_model=width, n_heads=1, d_ff=1, norm="rms", bias=False
    )
    decoder = transformer.Decoder(config, 2, cross_attention=False, device=device)
    word = slice(0, n_words)
    place = slice(n_words, n_words + n_places)
    before = slice(n_words + n_places, width)
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.dim() == 2:
                parameter.zero_()
        copy, look = (layer.self_attention.heads for layer in decoder.layers)
        copy.project_query.weight[place, place] = 20 * torch.eye(n_places).to(device)
        one_back = torch.diag(torch.ones(n_places - 1), 1).to(device)
        copy.project_key.weight[place, place] = one_back.T
        copy.project_value.weight[word, word] = torch.eye(n_words).to(device)
        copy.project_output.weight[before, word] = torch.eye(n_words).to(device)
        look.project_query.weight[word, word] = 40 * torch.eye(n_words).to(device)
        look.project_key.weight[word, before] = torch.eye(n_words).to(device)
    return Steps(decoder, n_words, n_places)


# --- Finding the parts --------------------------------------------------------------


def test_decoder_is_found_before_the_encoder(device):
    config = transformer.LayerConfig(d_model=12, n_heads=3, d_ff=10)
    dice = torch.Generator(device).manual_seed(1)
    machine = transformer.EncoderDecoder(config, 2, V, V, generator=dice)
    assert interpret.find_stack(machine) is machine.decoder
    assert interpret.find_stack(machine.encoder) is machine.encoder
    looks = interpret.find_attention(machine, "cross_attention")
    assert looks == [layer.cross_attention for layer in machine.decoder.layers]


# --- The stream and the lens --------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_stream_is_what_runs_between_the_layers(kind, device):
    model, ids = gpt(kind, device), some_ids(device)
    stream = interpret.residual_stream(model, ids)
    assert stream.shape == (4, B, T, 12)
    close(model.decoder.final_norm(stream[-1]), model.features(ids))
    # Without the later layers, the model ends where the stream is.
    model.decoder.layers = model.decoder.layers[:1]
    close(model.decoder.final_norm(stream[1]), model.features(ids))
    model.decoder.layers = nn.ModuleList()
    close(model.decoder.final_norm(stream[0]), model.features(ids))


@pytest.mark.parametrize("kind", KINDS)
def test_last_lens_is_the_model(kind, device):
    """And every lens takes the statistics of its own layer."""
    model, ids = gpt(kind, device), some_ids(device)
    lens = interpret.logit_lens(model, ids)
    assert lens.shape == (4, B, T, V)
    assert torch.equal(lens[-1], model(ids))
    model.decoder.layers = model.decoder.layers[:2]
    close(lens[2], model(ids))
    assert not lens.requires_grad
    assert hooks_of(model) == 0


def test_lens_of_a_machine_that_translates(device):
    config = transformer.LayerConfig(d_model=12, n_heads=3, d_ff=10)
    dice = torch.Generator(device).manual_seed(1)
    machine = transformer.EncoderDecoder(config, 2, V, 7, generator=dice).eval()
    source, target = some_ids(device), some_ids(device, 4) % 7
    lens = interpret.logit_lens(machine, source, target)
    assert lens.shape == (3, B, 4, 7)
    close(lens[-1], machine(source, target))
    doubled = interpret.logit_lens(machine, source, target, to_logits=lambda x: 2 * x)
    assert doubled.shape == (3, B, 4, 12)


# --- Patterns -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_patterns_are_weights(kind, device):
    model, ids = gpt(kind, device), some_ids(device)
    before = model(ids)
    pattern = interpret.attention_pattern(model, ids)
    assert pattern.shape == (3, B, 3, T, T)
    close(pattern.sum(dim=-1), torch.ones_like(pattern[..., 0]))
    assert (pattern.triu(1) == 0).all()
    assert torch.equal(model(ids), before)
    assert hooks_of(model) == 0
    fused = [look.fused for look in interpret.find_attention(model)]
    assert fused == [kind != "gpt"] * 3


def test_pattern_by_formula(device):
    """softmax(q kᵀ / √D) of the last layer, from the stream that enters it."""
    model, ids = gpt("fused", device), some_ids(device)
    layer = model.decoder.layers[2]
    x = layer.around_self_attention.norm(interpret.residual_stream(model, ids)[2])
    heads = layer.self_attention.heads
    query, key = (
        project(x).unflatten(-1, (3, 4)).transpose(1, 2)
        for project in (heads.project_query, heads.project_key)
    )
    scores = query @ key.transpose(-2, -1) / 2
    hidden = torch.ones(T, T, device=device).triu(1).bool()
    expected = torch.softmax(scores.masked_fill(hidden, -torch.inf), dim=-1)
    close(interpret.attention_pattern(model, ids)[2], expected.detach())


def test_pattern_of_cross_attention(device):
    config = transformer.LayerConfig(d_model=12, n_heads=3, d_ff=10)
    dice = torch.Generator(device).manual_seed(1)
    machine = transformer.EncoderDecoder(config, 2, V, 7, generator=dice).eval()
    source, target = some_ids(device), some_ids(device, 4) % 7
    pattern = interpret.attention_pattern(
        machine, source, target, kind="cross_attention"
    )
    assert pattern.shape == (2, B, 3, 4, T)


# --- Ablation -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("layer", "head"), [(0, 0), (1, 2), (-1, 1)])
def test_ablation_is_a_head_without_output(kind, layer, head, device):
    """The same as zeros in the head's columns of the output projection."""
    model, ids = gpt(kind, device), some_ids(device)
    before = model(ids)
    with interpret.ablate_head(model, layer, head):
        without = model(ids)
        assert torch.equal(model(ids), without)
    assert torch.equal(model(ids), before)
    assert (without - before).abs().max() > 1e-3
    weight = model.decoder.layers[layer].self_attention.heads.project_output.weight
    with torch.no_grad():
        weight[:, 4 * head : 4 * head + 4] = 0.0
    close(model(ids), without)


def test_all_heads_off_is_the_bias(device):
    model, ids = gpt("fused", device), some_ids(device)
    off = partial(interpret.ablate_head, model, 0)
    with off(0), off(1), off(2):
        stream = interpret.residual_stream(model, ids)
    layer = model.decoder.layers[0]
    x = stream[0] + layer.self_attention.heads.project_output.bias
    close(layer.around_feed_forward(x, layer.feed_forward).detach(), stream[1])


def test_hooks_go_also_after_an_error(device):
    model = gpt("fused", device)
    too_large = torch.tensor([[V]], device=device)
    with pytest.raises(ValueError, match="11"), interpret.ablate_head(model, 0, 0):
        model(too_large)
    for look_inside in (interpret.logit_lens, interpret.attention_pattern):
        with pytest.raises(ValueError, match="11"):
            look_inside(model, too_large)
    assert hooks_of(model) == 0
    assert all(look.fused for look in interpret.find_attention(model))


# --- Induction ----------------------------------------------------------------------


def test_repeated_tokens(device):
    draw = partial(
        interpret.repeated_tokens, generator=torch.Generator(device).manual_seed(1)
    )
    ids = draw(3, 40, 5)
    assert ids.shape == (3, 80)
    assert torch.equal(ids[:, :40], ids[:, 40:])
    assert set(ids.flatten().tolist()) == set(range(5))
    assert not torch.equal(ids[0], ids[1])


def test_scores_by_hand():
    """Only the step behind the copy counts, not the copy, nor the token before."""
    for offset, expected in [(1, 1.0), (0, 0.0), (2, 0.0)]:
        pattern = torch.zeros(6, 6)
        for i in range(3):
            pattern[3 + i, i + offset] = 1.0
        assert interpret.induction_scores(pattern) == expected
    previous = torch.diag(torch.ones(5), -1)
    assert interpret.induction_scores(previous) == 0
    half = torch.zeros(6, 6)
    half[3, 1], half[2, 0] = 0.6, 0.9
    close(interpret.induction_scores(half), torch.tensor(0.2))


@given(n_tokens=st.integers(2, 9))
def test_scores_equal_a_loop(n_tokens):
    pattern = torch.rand(2, 3, 2 * n_tokens, 2 * n_tokens)
    expected = sum(pattern[..., n_tokens + i, i + 1] for i in range(n_tokens))
    close(interpret.induction_scores(pattern), expected / n_tokens)


def test_induction_head_by_hand_is_found(device):
    """Only in layer 1; the head of layer 0 looks at the token before."""
    model = induction_by_hand(60, 12, device)
    dice = torch.Generator(device).manual_seed(1)
    find = partial(interpret.find_induction_heads, model, 60, n_tokens=6)
    found = find(generator=dice)
    assert [(head.layer, head.head) for head in found] == [(1, 0)]
    assert found[0].score > 0.85
    assert find(generator=dice, threshold=0.999) == []
    ids = interpret.repeated_tokens(4, 6, 60, dice)
    previous = interpret.attention_pattern(model, ids)[0].diagonal(-1, -2, -1)
    assert previous.min() > 0.9


def test_heads_come_sorted(device):
    found = interpret.find_induction_heads(
        gpt("gpt", device),
        V,
        n_tokens=4,
        threshold=0.0,
        generator=torch.Generator(device).manual_seed(1),
    )
    scores = [head.score for head in found]
    assert len(found) == 9
    assert scores == sorted(scores, reverse=True)
    assert len({(head.layer, head.head) for head in found}) == 9


@pytest.mark.slow
def test_trained_model_has_induction_heads(device):
    """Two layers that train on repeated texts; without the head they forget."""
    config = ModelConfig(
        vocab_size=32,
        max_len=64,
        d_model=64,
        n_layers=2,
        n_heads=2,
        d_ff=8,
        position="rope",
        norm="rms",
        bias=False,
        tied=False,
        init_std=0.1,
    )
    dice = torch.Generator(device).manual_seed(1)
    model = GPT(config, generator=torch.Generator(device).manual_seed(0))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, betas=(0.9, 0.98))

    def second_half(n_tokens):
        """The loss on what could be known: all of the copy but its first token."""
        ids = interpret.repeated_tokens(32, n_tokens, 32, dice)
        logits = model(ids[:, :-1])[:, n_tokens:]
        return F.cross_entropy(logits.flatten(0, 1), ids[:, n_tokens + 1 :].flatten())

    for step in range(1000):
        loss = second_half(6 + step % 10)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = interpret.find_induction_heads(model, 32, n_tokens=16, generator=dice)
    assert found
    assert found[0].layer == 1, "it needs what a layer below has gathered"
    with torch.no_grad():
        before = second_half(16)
        with interpret.ablate_head(model, found[0].layer, found[0].head):
            without = second_half(16)
    assert without > before + 0.2


# --- Refusals -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "values"),
    [
        (lambda: interpret.find_stack(nn.ReLU()), ["ReLU"]),
        (lambda: interpret.find_attention(gpt("gpt", "cpu"), "both"), ["'both'"]),
        (
            lambda: interpret.find_attention(gpt("gpt", "cpu"), "cross_attention"),
            ["GPT", "cross_attention"],
        ),
        (
            lambda: interpret.logit_lens(
                induction_by_hand(5, 4, "cpu"), some_ids("cpu")
            ),
            ["Steps", "to_logits"],
        ),
        (
            lambda: interpret.ablate_head(gpt("gpt", "cpu"), 3, 0).__enter__(),
            ["layer=3", "2"],
        ),
        (
            lambda: interpret.ablate_head(gpt("gpt", "cpu"), 0, 3).__enter__(),
            ["head=3", "2"],
        ),
        (
            lambda: interpret.ablate_head(gpt("gpt", "cpu"), 0, -1).__enter__(),
            ["head=-1"],
        ),
        (
            lambda: interpret.repeated_tokens(1, 1, 5, torch.Generator()),
            ["n_tokens=1"],
        ),
        (
            lambda: interpret.repeated_tokens(0, 2, 5, torch.Generator()),
            ["n_texts=0"],
        ),
        (lambda: interpret.induction_scores(torch.zeros(3, 3)), ["(3, 3)"]),
        (lambda: interpret.induction_scores(torch.zeros(4, 6)), ["(4, 6)"]),
        (lambda: interpret.induction_scores(torch.zeros(2, 2)), ["(2, 2)"]),
    ],
)
def test_refusal_names_the_values(call, values):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        call()
    for value in values:
        assert re.search(re.escape(value), str(caught.value)), str(caught.value)
