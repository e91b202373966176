"""Tests of lmcore.position: by hand, against other ways, as properties, at the edges.

Sizes differ pairwise wherever that is possible, so that a swapped axis cannot hide.
"""

import math
import re
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lmcore import attention, position

close = partial(torch.testing.assert_close, atol=1e-5, rtol=0.0)
B, H, T, D, C = 2, 3, 5, 8, 6
LAYOUTS = [False, True]
place = st.integers(0, 5000)


# --- sinusoidal_positions -----------------------------------------------------------


def test_sinusoidal_by_hand(device):
    """Position 0 is all sines of 0 and cosines of 0; then the second hand lags."""
    expected = [
        [0.0, 1.0, 0.0, 1.0],
        [math.sin(1), math.cos(1), math.sin(0.01), math.cos(0.01)],
        [math.sin(2), math.cos(2), math.sin(0.02), math.cos(0.02)],
    ]
    table = position.sinusoidal_positions(3, 4, device=device)
    close(table, torch.tensor(expected, device=device))


@given(n_tokens=st.integers(0, 40), d_model=st.integers(1, 9))
@settings(max_examples=20)
def test_sinusoidal_equals_one_number_at_a_time(n_tokens, d_model, device):
    """Also for an odd width, whose last sine has no cosine."""
    table = position.sinusoidal_positions(n_tokens, d_model, 100.0, device=device)
    assert table.shape == (n_tokens, d_model)
    for t in range(n_tokens):
        for column in range(d_model):
            angle = t / 100.0 ** ((column - column % 2) / d_model)
            wave = math.cos if column % 2 else math.sin
            assert float(table[t, column]) == pytest.approx(wave(angle), abs=1e-5)


@given(first=st.integers(0, 90), second=st.integers(0, 90), shift=st.integers(0, 9))
@settings(max_examples=20)
def test_sinusoidal_products_know_the_distance(first, second, shift, device):
    """Moving both positions by the same amount does not change their product."""
    table = position.sinusoidal_positions(100, D, device=device)
    close(table[first] @ table[second], table[first + shift] @ table[second + shift])


def test_sinusoidal_positions_differ(device):
    table = position.sinusoidal_positions(2000, 16, device=device)
    assert torch.cdist(table, table).fill_diagonal_(1.0).min() > 1e-2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_sinusoidal_of_another_type(device, dtype):
    """A narrow type rounds the result, not the position."""
    table = position.sinusoidal_positions(1000, C, device=device, dtype=dtype)
    exact = position.sinusoidal_positions(1000, C, device=device)
    assert table.dtype == dtype
    torch.testing.assert_close(table.float(), exact, atol=4e-3, rtol=0.0)


# --- LearnedPosition ----------------------------------------------------------------


def learned(device, n_positions=7, width=C, dtype=None):
    generator = torch.Generator(device).manual_seed(1)
    return position.LearnedPosition(
        n_positions, width, generator=generator, dtype=dtype
    )


def test_learned_by_hand(device):
    """Two texts of three tokens: the vectors go along the text, not along the batch."""
    layer = learned(device, 4, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1, 2], [3, 4], [5, 6], [7, 8]]))
    output = layer(torch.full((2, 3, 2), 10.0, device=device))
    expected = torch.tensor([[11.0, 12.0], [13.0, 14.0], [15.0, 16.0]], device=device)
    close(output, expected.expand(2, 3, 2))


def test_learned_equals_torch(device):
    """Forward and backward, at positions of its own for every text."""
    layer = learned(device)
    oracle = nn.Embedding.from_pretrained(layer.weight.detach().clone(), freeze=False)
    x = torch.randn(B, T, C, device=device)
    positions = torch.tensor([[0, 0, 0, 1, 2], [2, 3, 4, 5, 6]], device=device)
    output, expected = layer(x, positions), x + oracle(positions)
    upstream = torch.randn_like(output)
    output.backward(upstream)
    expected.backward(upstream)
    close(output, expected)
    close(layer.weight.grad, oracle.weight.grad)
    close(layer(x), layer(x, torch.arange(T, device=device)))


def test_learned_starts_from_the_generator(device):
    """The same seed gives the same vectors, and torch's own dice stay untouched."""
    state = torch.get_rng_state()
    close(learned(device).weight, learned(device).weight, atol=0.0)
    assert torch.equal(torch.get_rng_state(), state)
    weight = learned(device, 500, 100).weight
    assert float(weight.detach().std()) == pytest.approx(0.02, rel=0.05)


def test_learned_without_tokens(device):
    """No text, and a text of full length."""
    layer = learned(device, dtype=torch.float64)
    empty = torch.zeros(B, 0, C, device=device).double()
    assert layer(empty).shape == (B, 0, C)
    assert layer(empty, torch.arange(0, device=device)).shape == (B, 0, C)
    full = layer(torch.zeros(1, 7, C, device=device).double())
    close(full[0], layer.weight)


# --- rope_frequencies and apply_rope ------------------------------------------------


def test_rope_frequencies_by_hand():
    """A hundred to the powers 0, -1/4, -1/2 and -3/4."""
    expected = torch.tensor([1.0, 10**-0.5, 0.1, 10**-1.5])
    close(position.rope_frequencies(8, base=100.0), expected)


@pytest.mark.parametrize("interleaved", LAYOUTS)
def test_rope_by_hand_in_one_pair(interleaved, device):
    """Counter-clockwise, by one radian per token."""
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], device=device)
    expected = [
        [1.0, 0.0],
        [math.cos(1), math.sin(1)],
        [-math.sin(2), math.cos(2)],
    ]
    positions = torch.arange(3, device=device)
    frequencies = position.rope_frequencies(2, device=device)
    output = position.apply_rope(x, positions, frequencies, interleaved=interleaved)
    close(output, torch.tensor(expected, device=device))


def test_rope_by_hand_in_two_pairs():
    """At position 3, pair 1 turns by 3 and pair 2 by 0.03 radians, in either layout."""
    fast, slow = (math.cos(3), math.sin(3)), (math.cos(0.03), math.sin(0.03))
    options = {
        "positions": torch.tensor([3]),
        "frequencies": position.rope_frequencies(4),
    }
    x = torch.tensor([[1.0, 2.0, 0.0, 0.0]])
    halves = [fast[0], 2 * slow[0], fast[1], 2 * slow[1]]
    close(position.apply_rope(x, **options), torch.tensor([halves]))
    x = torch.tensor([[1.0, 0.0, 2.0, 0.0]])
    pairs = [fast[0], fast[1], 2 * slow[0], 2 * slow[1]]
    output = position.apply_rope(x, **options, interleaved=True)
    close(output, torch.tensor([pairs]))


@pytest.mark.parametrize("interleaved", LAYOUTS)
def test_rope_equals_complex_numbers(interleaved, device):
    """A pair is a complex number, and turning is multiplying; forward and backward."""
    x = torch.randn(B, H, T, D, device=device, requires_grad=True)
    positions = torch.tensor([0, 1, 7, 100, 3], device=device)
    frequencies = position.rope_frequencies(D, device=device)
    output = position.apply_rope(x, positions, frequencies, interleaved=interleaved)
    pairs = x.unflatten(-1, (-1, 2) if interleaved else (2, -1))
    pairs = pairs if interleaved else pairs.transpose(-2, -1)
    angles = positions[:, None] * 10_000.0 ** (
        -2 * torch.arange(D // 2, device=device) / D
    )
    turn = torch.polar(torch.ones_like(angles), angles)
    turned = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * turn)
    turned = turned if interleaved else turned.transpose(-2, -1)
    expected = turned.flatten(-2)
    close(output, expected)
    upstream = torch.randn_like(output)
    gradient, expected_gradient = (
        torch.autograd.grad(y, x, upstream, retain_graph=True)[0]
        for y in (output, expected)
    )
    close(gradient, expected_gradient)


@pytest.mark.parametrize("interleaved", LAYOUTS)
@given(query_place=place, key_place=place, shift=place)
@settings(max_examples=20)
def test_rope_knows_distance_only(interleaved, query_place, key_place, shift, device):
    """⟨R(t) q, R(s) k⟩ is the same wherever the two stand at this distance."""
    query, key = torch.randn(2, 1, D, device=device, dtype=torch.float64)
    frequencies = position.rope_frequencies(D, device=device, dtype=torch.float64)

    def product(query_place, key_place):
        places = torch.tensor([[query_place], [key_place]], device=device)
        turned = position.apply_rope(
            torch.stack([query, key]), places, frequencies, interleaved=interleaved
        )
        return (turned[0] * turned[1]).sum()

    expected = product(query_place, key_place)
    close(product(query_place + shift, key_place + shift), expected, atol=1e-9)


def test_rope_by_hand_knows_distance_only():
    """Four numbers, positions 5 and 3 against 2 and 0."""
    query = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    key = torch.tensor([[0.5, -1.0, 2.0, 0.0]])
    turn = partial(position.apply_rope, frequencies=position.rope_frequencies(4))
    at = [torch.tensor([t]) for t in range(6)]
    product = (turn(query, at[5]) * turn(key, at[3])).sum()
    close(product, (turn(query, at[2]) * turn(key, at[0])).sum())
    # The distance is 2: pair (0, 2) is turned by 2 radians, pair (1, 3) by 0.02.
    fast = math.cos(2) * (1 * 0.5 + 3 * 2) + math.sin(2) * (1 * 2 - 3 * 0.5)
    slow = math.cos(0.02) * (2 * -1 + 4 * 0) + math.sin(0.02) * (2 * 0 - 4 * -1)
    close(product, torch.tensor(fast + slow))


@pytest.mark.parametrize("interleaved", LAYOUTS)
@given(places=st.lists(place, min_size=T, max_size=T))
@settings(max_examples=20)
def test_rope_keeps_lengths(interleaved, places, device):
    """Position 0 changes nothing, and the argument itself is never changed."""
    x = torch.randn(B, T, D, device=device)
    before = x.clone()
    frequencies = position.rope_frequencies(D, device=device)
    output = position.apply_rope(
        x, torch.tensor(places, device=device), frequencies, interleaved=interleaved
    )
    close(output.norm(dim=-1), x.norm(dim=-1))
    close(output[:, [p == 0 for p in places]], x[:, [p == 0 for p in places]])
    assert torch.equal(x, before)


def test_rope_with_positions_of_every_text(device):
    """(B, 1, T) positions, as for texts that are padded on the left."""
    x = torch.randn(B, H, T, D, device=device)
    positions = torch.stack([torch.arange(T), torch.arange(T) + 9]).to(device)
    frequencies = position.rope_frequencies(D, device=device)
    output = position.apply_rope(x, positions[:, None], frequencies)
    for row in range(B):
        alone = position.apply_rope(x[row], positions[row], frequencies)
        close(output[row], alone)


def test_rope_of_no_tokens(device):
    empty = torch.zeros(B, 0, D, device=device)
    positions = torch.arange(0, device=device)
    frequencies = position.rope_frequencies(D, device=device)
    assert position.apply_rope(empty, positions, frequencies).shape == (B, 0, D)


@pytest.mark.parametrize("interleaved", LAYOUTS)
def test_rope_in_half_precision(interleaved, device):
    """Position 1001 has no bfloat16 of its own; only the result may be rounded."""
    x = torch.randn(T, D, device=device).bfloat16()
    positions = torch.arange(T, device=device) + 1001
    frequencies = position.rope_frequencies(D, device=device)
    turn = partial(
        position.apply_rope,
        positions=positions,
        frequencies=frequencies,
        interleaved=interleaved,
    )
    assert turn(x).dtype == torch.bfloat16
    close(turn(x).float(), turn(x.float()), atol=2e-2)


# --- interleaved_to_halves ----------------------------------------------------------


def test_interleaved_to_halves_by_hand():
    """Two heads of four rows: even rows first, head by head."""
    weight = torch.arange(16).reshape(8, 2)
    expected = [0, 2, 1, 3, 4, 6, 5, 7]
    converted = position.interleaved_to_halves(weight, n_heads=2)
    assert converted[:, 0].tolist() == [2 * row for row in expected]


def scores(x, weight, bias, n_heads, interleaved):
    """The products of all queries and keys, where both use the same projection."""
    projected = attention.split_heads(x @ weight.T + bias, n_heads)
    turned = position.apply_rope(
        projected,
        torch.arange(x.shape[1], device=x.device),
        position.rope_frequencies(weight.shape[0] // n_heads, device=x.device),
        interleaved=interleaved,
    )
    return turned @ turned.transpose(-2, -1)


def test_converted_weights_give_the_same_scores(device):
    """And weights that were not converted give others, from position 1 on."""
    x = torch.randn(B, T, C, device=device)
    weight = torch.randn(H * D, C, device=device) / 3
    bias = torch.randn(H * D, device=device)
    expected = scores(x, weight, bias, H, interleaved=True)
    converted = [position.interleaved_to_halves(w, H) for w in (weight, bias)]
    torch.testing.assert_close(
        scores(x, *converted, H, interleaved=False), expected, atol=1e-4, rtol=1e-5
    )
    wrong = scores(x, weight, bias, H, interleaved=False)
    close(wrong[..., 0, 0], expected[..., 0, 0], atol=1e-4)
    assert (wrong[..., 1, 0] - expected[..., 1, 0]).abs().max() > 0.1


# --- alibi --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_heads", "expected"),
    [
        (1, [2**-8]),
        (2, [2**-4, 2**-8]),
        (3, [0.0625, 0.00390625, 0.25]),
        (8, [2.0**-h for h in range(1, 9)]),
        (12, [2.0**-h for h in range(1, 9)] + [2 ** -(h - 0.5) for h in range(1, 5)]),
    ],
)
def test_slopes_by_hand(n_heads, expected):
    assert position.alibi_slopes(n_heads) == pytest.approx(expected, rel=1e-12)


@given(n_heads=st.integers(1, 64))
@settings(max_examples=20)
def test_slopes_are_all_different(n_heads):
    """Every head has a horizon of its own, between 1/256 and 1 per token."""
    slopes = position.alibi_slopes(n_heads)
    assert len(set(slopes)) == n_heads
    assert all(2**-8 <= slope < 1 for slope in slopes)


def test_alibi_by_hand(device):
    """Slope 1/16 and 1/256; the last two of three tokens ask."""
    expected = torch.tensor([[-1.0, 0.0, -1.0], [-2.0, -1.0, 0.0]], device=device)
    bias = position.alibi_bias(2, n_queries=2, n_keys=3, device=device)
    close(bias, torch.stack([expected / 16, expected / 256]))
    first_of_eight = position.alibi_bias(8, 3, device=device)[0, 2]
    close(first_of_eight, torch.tensor([-1.0, -0.5, 0.0], device=device))


@given(n_heads=st.integers(1, 13), n_queries=st.integers(0, 9), more=st.integers(0, 9))
@settings(max_examples=20)
def test_alibi_equals_one_pair_at_a_time(n_heads, n_queries, more, device):
    n_keys = n_queries + more
    bias = position.alibi_bias(n_heads, n_queries, n_keys, device=device)
    slopes = position.alibi_slopes(n_heads)
    assert bias.shape == (n_heads, n_queries, n_keys)
    for t in range(n_queries):
        for s in range(n_keys):
            expected = [-slope * abs(more + t - s) for slope in slopes]
            assert bias[:, t, s].tolist() == pytest.approx(expected)


def test_nothing_is_made_on_another_device():
    """On torch's meta device, where every tensor from elsewhere is an error."""
    frequencies = position.rope_frequencies(D, device="meta")
    x = torch.randn(B, T, D, device="meta")
    turned = position.apply_rope(x, torch.arange(T, device="meta"), frequencies)
    made = [
        turned,
        position.sinusoidal_positions(T, C, device="meta"),
        position.alibi_bias(H, T, device="meta"),
        position.interleaved_to_halves(x[0].T, 2),
    ]
    assert {tensor.device.type for tensor in made} == {"meta"}


# --- Refusals -----------------------------------------------------------------------


def refused_calls():
    """What is called, and the values that the message names."""
    x, frequencies = torch.zeros(B, H, T, D), position.rope_frequencies(D)
    at, tokens, layer = torch.arange(T), torch.zeros(B, T, C), learned("cpu")
    sinusoidal, rope = position.sinusoidal_positions, position.apply_rope
    return {
        "negative text": (lambda: sinusoidal(-3, 4), ["n_tokens=-3"]),
        "no width": (lambda: sinusoidal(3, 0), ["d_model=0"]),
        "no base": (lambda: sinusoidal(3, 4, base=0.0), ["base=0.0"]),
        "no positions": (lambda: learned("cpu", 0), ["n_positions=0"]),
        "long text": (lambda: layer(torch.zeros(B, 8, C)), ["8", "7"]),
        "wide token": (lambda: layer(tokens[..., :4]), ["(2, 5, 4)", "6"]),
        "late position": (lambda: layer(tokens, at + 3), ["3", "7", "6"]),
        "negative position": (lambda: layer(tokens, at - 1), ["-1", "3"]),
        "missing position": (lambda: layer(tokens, at[:4]), ["(4,)", "(2, 5, 6)"]),
        "odd head": (lambda: position.rope_frequencies(7), ["d_head=7"]),
        "empty head": (lambda: position.rope_frequencies(0), ["d_head=0"]),
        "rope base": (lambda: position.rope_frequencies(8, base=-1.0), ["base=-1.0"]),
        "too few frequencies": (lambda: rope(x, at, frequencies[:3]), ["8", "3"]),
        "too few positions": (
            lambda: rope(x, at[:1], frequencies),
            ["(1,)", "(2, 3, 5, 8)"],
        ),
        "one position": (lambda: rope(x, at[0], frequencies), ["()"]),
        "positions of a batch on the heads": (
            lambda: rope(x, at.expand(B, T), frequencies),
            ["(2, 5)"],
        ),
        "rows": (lambda: position.interleaved_to_halves(x[0, 0], 2), ["5", "2"]),
        "heads of odd width": (
            lambda: position.interleaved_to_halves(torch.zeros(6, 2), 2),
            ["6", "n_heads=2"],
        ),
        "no slopes": (lambda: position.alibi_slopes(0), ["n_heads=0"]),
        "no heads": (lambda: position.alibi_bias(0, 3), ["n_heads=0"]),
        "fewer keys": (lambda: position.alibi_bias(2, 5, 3), ["5", "3"]),
        "negative queries": (lambda: position.alibi_bias(2, -5), ["-5"]),
    }


@pytest.mark.parametrize("name", refused_calls())
def test_refusal_names_the_values(name):
    call, values = refused_calls()[name]
    with pytest.raises(ValueError, match=r".") as caught:
        call()
    for value in values:
        pattern = rf"(?<![\w.]){re.escape(value)}(?![\w])"
        assert re.search(pattern, str(caught.value)), f"{value} not in: {caught.value}"
