"""The fast skip-gram has the loss of the chapter's, and moves only what it has seen."""

import math
from functools import partial

import pytest
import torch

from lmcore import embedding, fast_skipgram

close = partial(torch.testing.assert_close, atol=1e-5, rtol=0.0)
exactly = partial(torch.testing.assert_close, atol=0.0, rtol=0.0)
T, S, C, V = 9, 4, 3, 12


def tables(device="cpu"):
    return [torch.randn(V, C, device=device, requires_grad=True) for _ in range(2)]


@pytest.mark.parametrize("window", [1, 3, 20])
@pytest.mark.parametrize("n_negatives", [S, 2])
def test_loss_and_gradients_are_those_of_the_chapters_pairs(
    window, n_negatives, device
):
    read, drawn = torch.randint(V, (T,)).to(device), torch.tensor([1, 1, 0, V - 1])
    centre, context = tables(device)
    found = fast_skipgram.stretch_loss(
        centre[read], context[read], context[drawn], window, n_negatives
    )
    pairs = embedding.skipgram_pairs(read, window)
    true = centre[pairs[:, 0]], context[pairs[:, 1]]
    no_negatives = context[drawn][:0].expand(len(pairs), 0, C)
    alone = embedding.negative_sampling_loss(*true, no_negatives)
    all_negatives = context[drawn].expand(len(pairs), S, C)
    whole = embedding.negative_sampling_loss(*true, all_negatives)
    expected = alone + n_negatives / S * (whole - alone)
    close(found, expected)
    ours = torch.autograd.grad(found, [centre, context])
    theirs = torch.autograd.grad(expected, [centre, context])
    for one, other in zip(ours, theirs, strict=True):
        close(one, other)


def test_loss_by_hand():
    centre = torch.tensor([[math.log(3)], [0.0]])
    context = torch.tensor([[9.0], [1.0]])  # no word is its own neighbour
    negatives = torch.tensor([[1.0], [0.0]])
    found = fast_skipgram.stretch_loss(centre, context, negatives, 5, n_negatives=1)
    first = -math.log(3 / 4) - (math.log(1 / 4) + math.log(1 / 2)) / 2
    second = -math.log(1 / 2) - math.log(1 / 2)
    close(found, torch.tensor((first + second) / 2))


def text_of_two_topics() -> torch.Tensor:
    """Words 0 to 3 stand among themselves, and so do words 4 to 7; 8 is never there."""
    draw = partial(torch.randint, generator=torch.Generator().manual_seed(1))
    topic = draw(2, (30,)).repeat_interleave(10)
    return draw(4, (300,)) + 4 * topic


def learn(text, n_words=9, **options):
    dice = torch.Generator().manual_seed(1)
    model = embedding.SkipGram(n_words, 4, generator=dice)
    before = [table.detach().clone() for table in model.parameters()]
    losses = fast_skipgram.fit(model, text, dice, window=2, **options)
    return model, before, losses


def test_words_of_a_topic_come_together_and_the_unseen_stays():
    text = text_of_two_topics()
    model, before, losses = learn(text, n_epochs=8, stretch=20)
    assert len(losses) == 8 * 15
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    for word in range(8):
        neighbours = embedding.nearest(model.vectors[:8], word, k=3)[0]
        assert {n // 4 for n in neighbours.tolist()} == {word // 4}
    for table, old in zip(model.parameters(), before, strict=True):
        exactly(table[8], old[8])
    assert learn(text, n_epochs=8, stretch=20)[2] == losses


def test_a_step_is_that_of_dense_adagrad():
    text = torch.tensor([0, 1, 2, 1, 0])
    model, before, losses = learn(text, n_words=4, stretch=5)
    assert len(losses) == 1
    dice = torch.Generator().manual_seed(1)
    twin = embedding.SkipGram(4, 4, generator=dice)
    torch.randperm(1, generator=dice)
    distribution = embedding.negative_distribution(torch.bincount(text, minlength=4))
    drawn = torch.multinomial(distribution, 5, True, generator=dice)
    centre, context = twin.parameters()
    exactly(centre.detach(), before[0])
    optimizer = torch.optim.Adagrad(twin.parameters(), lr=0.2)
    loss = fast_skipgram.stretch_loss(
        centre[text], context[text], context[drawn], 2, n_negatives=5
    )
    loss.backward()
    optimizer.step()
    close(torch.tensor(losses[0]), loss.detach())
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        close(ours, theirs)


def test_a_lonely_last_word_makes_no_stretch():
    assert len(learn(torch.tensor([0, 1, 2]), stretch=2)[2]) == 1


def test_refusals_name_the_values():
    text = torch.tensor([0, 1])
    with pytest.raises(ValueError, match="stretch=1 and 2 words"):
        learn(text, stretch=1)
    with pytest.raises(ValueError, match="and 1 words"):
        learn(text[:1])
    with pytest.raises(ValueError, match="words from 0 to 1"):
        learn(text, n_words=1)
    with pytest.raises(TypeError, match="float32"):
        learn(text.float())
    with pytest.raises(ValueError, match="n_epochs=0"):
        learn(text, n_epochs=0)
    zero = torch.zeros(2, 1)
    for words, drawn in ((1, 2), (2, 0)):
        with pytest.raises(ValueError, match=f"{words} words and {drawn} drawn"):
            fast_skipgram.stretch_loss(zero[:words], zero[:words], zero[:drawn], 1, 1)
