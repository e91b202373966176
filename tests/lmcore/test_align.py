"""Tests of lmcore.align, preference, policy_trainers: by hand, by brute force, alive.

The losses are compared with the papers' formulas written out token by token, the
estimates with sums over all that a model can say, and the trainers have to improve.
"""

import copy
import itertools
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from lmcore import align, finetune, policy_trainers, preference, sample
from lmcore.align import GRPOTrainer, PPOTrainer
from lmcore.model import GPT, ModelConfig
from lmcore.policy_trainers import PolicyConfig

close = partial(torch.testing.assert_close, atol=1e-5, rtol=0.0)
B, T, C, V, P = 3, 7, 12, 9, 2
END = 1


def dice(device="cpu", seed=1):
    return torch.Generator(device).manual_seed(seed)


def tiny_gpt(device="cpu", **changes):
    config = ModelConfig(
        vocab_size=V, max_len=16, d_model=C, n_layers=1, n_heads=3, **changes
    )
    return GPT(config, generator=dice(device))


def some_ids(device, n_tokens=T, batch=B):
    return torch.randint(V, (batch, n_tokens), generator=dice()).to(device)


def some_log_probs(device, *shape, requires_grad=False):
    return (-2 * torch.rand(*shape, device=device)).requires_grad_(requires_grad)


# --- How likely an answer is --------------------------------------------------------


def test_log_probs_of_tokens_by_hand():
    """Two tokens of probability 1/2 each: ln 1/4 for the answer, not ln 1."""
    logits, ids = torch.zeros(1, 3, 2), torch.tensor([[1, 0, 1]])
    close(
        align.token_log_probs(logits, ids), torch.tensor([[0, -0.6931472, -0.6931472]])
    )
    mask = torch.tensor([[False, True, True]])
    close(align.answer_log_probs(logits, ids, mask), torch.tensor([math.log(0.25)]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_probs_of_tokens_against_torch(dtype, device):
    logits, ids = torch.randn(B, T, V, device=device, dtype=dtype), some_ids(device)
    log_probs = align.token_log_probs(logits, ids)
    assert log_probs.dtype == torch.float32
    assert log_probs[:, 0].abs().max() == 0
    for row, t in itertools.product(range(B), range(1, T)):
        surprise = F.cross_entropy(logits[row, t - 1].float(), ids[row, t])
        close(log_probs[row, t], -surprise)


def test_answer_is_a_sum_over_its_own_tokens(device):
    """Neither the prompt nor the padding counts, and long answers are less likely."""
    model, ids = tiny_gpt(device), some_ids(device)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[:, 2:5] = True
    found = align.answer_log_probs(model(ids), ids, mask)
    expected = align.token_log_probs(model(ids), ids)[:, 2:5].sum(dim=1)
    close(found, expected)
    longer = F.pad(ids, (0, 4)), F.pad(mask, (0, 4))
    close(align.answer_log_probs(model(longer[0]), *longer), expected)


# --- What people prefer -------------------------------------------------------------


def test_bradley_terry_by_hand(device):
    """Differences 0, ln 3 and -ln 3: probabilities 1/2, 3/4 and 1/4."""
    apart = math.log(3)
    chosen = torch.tensor([5.0, 1 + apart, 1.0], device=device, requires_grad=True)
    rejected = torch.tensor([5.0, 1.0, 1 + apart], device=device)
    loss = align.bradley_terry_loss(chosen, rejected)
    expected = -(math.log(1 / 2) + math.log(3 / 4) + math.log(1 / 4)) / 3
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    # The gradient is minus the probability of having been wrong.
    (gradient,) = torch.autograd.grad(loss, chosen)
    close(gradient, -torch.tensor([1 / 2, 1 / 4, 3 / 4], device=device) / 3)
    close(align.bradley_terry_loss(chosen + 100, rejected + 100), loss)
    with_margin = align.bradley_terry_loss(chosen, rejected, margin=0.5)
    close(with_margin, align.bradley_terry_loss(chosen - 0.5, rejected))


def test_bradley_terry_does_not_overflow():
    far = torch.tensor([1000.0])
    assert align.bradley_terry_loss(far, -far).item() == 0.0
    assert align.bradley_terry_loss(-far, far).item() == 2000.0


@given(lengths=st.lists(st.integers(1, T), min_size=B, max_size=B), left=st.booleans())
@settings(max_examples=8)
def test_reward_model_reads_to_the_end_of_each_text(lengths, left, device):
    model = align.RewardModel(tiny_gpt(device), C, generator=dice(device))
    rows = [row[:n].tolist() for row, n in zip(some_ids(device), lengths, strict=True)]
    ids, mask = (x.to(device) for x in finetune.pad(rows, pad_id=0, left=left))
    scores = model(ids, mask)
    assert scores.shape == (B,)
    for row, score in zip(rows, scores, strict=True):
        alone = torch.tensor([row], device=device)
        close(model(alone)[0], score)
        close(model.token_scores(alone)[0, -1], score)


def test_reward_model_on_any_features():
    """Lengths 3 and 5: the scores stand at the places 2 and 4."""
    model = align.RewardModel(nn.Embedding(9, 1), 1, generator=dice())
    with torch.no_grad():
        model.backbone.weight.copy_(torch.arange(9.0)[:, None])
        model.head.weight.fill_(10.0)
    ids, mask = finetune.pad([[1, 2, 3], [4, 5, 6, 7, 8]], pad_id=0)
    # An embedding takes no mask, so only its words are read.
    backbone, model.backbone = model.backbone, nn.Module()
    model.backbone.features = lambda ids, mask=None: backbone(ids)
    assert model(ids, mask).tolist() == [30.0, 80.0]
    assert model.token_scores(ids)[0].tolist() == [10.0, 20.0, 30.0, 0.0, 0.0]


def test_reward_model_learns_what_is_preferred(device):
    """Preferred is the text with more tokens 3; texts it never saw are ranked too."""
    model = align.RewardModel(
        tiny_gpt(device, position="none"), C, generator=dice(device)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    texts = torch.randint(2, 6, (2, 128, 5), generator=dice()).to(device)
    count = (texts == 3).sum(dim=-1)
    chosen = torch.where((count[0] > count[1])[:, None], texts[0], texts[1])
    rejected = torch.where((count[0] > count[1])[:, None], texts[1], texts[0])
    differ = (count[0] != count[1]).nonzero().flatten()
    seen, unseen = differ[:50], differ[50:]
    for _ in range(50):
        loss = align.bradley_terry_loss(model(chosen[seen]), model(rejected[seen]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    right = model(chosen[unseen]) > model(rejected[unseen])
    assert len(right) > 20
    assert right.float().mean() > 0.9


def test_dpo_by_hand(device):
    """Policy -10 and -20, reference -12 and -18: the logit is 0.1 · (2 + 2)."""
    numbers = [torch.tensor([x], device=device) for x in (-10.0, -20.0, -12.0, -18.0)]
    assert align.dpo_loss(*numbers).item() == pytest.approx(0.5130, abs=5e-5)
    expected = -math.log(1 / (1 + math.exp(-0.5 * 4)))
    assert align.dpo_loss(*numbers, beta=0.5).item() == pytest.approx(
        expected, abs=1e-6
    )


def test_dpo_gradient(device):
    """−β σ(−logit) for the chosen, its opposite for the rejected, no other."""
    numbers = [some_log_probs(device, 5, requires_grad=True) for _ in range(4)]
    align.dpo_loss(*numbers, beta=0.3).backward()
    chosen, rejected, reference_chosen, reference_rejected = numbers
    logit = 0.3 * ((chosen - reference_chosen) - (rejected - reference_rejected))
    expected = -0.3 * torch.sigmoid(-logit).detach() / 5
    close(chosen.grad, expected)
    close(rejected.grad, -expected)
    assert reference_chosen.grad is None
    assert reference_rejected.grad is None


def test_dpo_learns_a_preference(device):
    """The preferred answer becomes likelier than it was, the other one less likely."""
    policy = tiny_gpt(device)
    reference = copy.deepcopy(policy)
    prompts = some_ids(device, P, batch=8)
    chosen, rejected = (
        torch.cat([prompts, torch.full((8, 3), word, device=device)], dim=1)
        for word in (4, 5)
    )
    mask = torch.arange(5, device=device).expand(8, 5) >= P
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.01)

    def score(model, ids):
        return align.answer_log_probs(model(ids), ids, mask)

    before = {name: p.clone() for name, p in reference.named_parameters()}
    for _ in range(20):
        texts = (chosen, rejected)
        loss = align.dpo_loss(
            *(score(policy, ids) for ids in texts),
            *(score(reference, ids) for ids in texts),
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.4
    assert (score(policy, chosen) > score(reference, chosen)).all()
    assert (score(policy, rejected) < score(reference, rejected)).all()
    for name, parameter in reference.named_parameters():
        assert parameter.grad is None
        assert torch.equal(parameter, before[name])


# --- Choosing and judging -----------------------------------------------------------


def test_best_of_n_by_hand():
    """Rewards 0, 2, 1, 2: the second, which is the first of the best."""
    rewards = {"a": 0.0, "b": 2.0, "c": 1.0, "d": 2.0}
    answers = iter(rewards)
    asked = []

    def generate(prompt):
        asked.append(prompt)
        return next(answers)

    best = align.best_of_n("Why?", generate, lambda _, answer: rewards[answer], n=4)
    assert best == ("b", 2.0)
    assert asked == ["Why?"] * 4


def test_best_of_n_gives_the_largest_of_n(device):
    """The mean of the largest of n uniform numbers is n / (n + 1)."""
    generator = dice(device)

    def draw(_):
        return torch.rand((), generator=generator, device=device).item()

    for n in (1, 4):
        drawn = [align.best_of_n(None, draw, lambda _, x: x, n)[1] for _ in range(800)]
        assert abs(sum(drawn) / 800 - n / (n + 1)) < 4 * 0.29 / math.sqrt(800)


def test_preferences_of_a_judge_that_likes_what_stands_first():
    """In both orders the favour cancels; what stays undecided is left out."""
    seen = []

    def judge(principle, prompt, first, second):
        seen.append((principle, prompt, first, second))
        return min(1.0, 0.6 + 0.2 * (len(first) - len(second)))

    comparisons = [("p", "ab", "a"), ("q", "c", "cd"), ("r", "e", "f")]
    found = align.ai_preferences(comparisons, judge, ["Long?"], generator=dice())
    assert [(x.prompt, x.chosen, x.rejected) for x in found] == [
        ("p", "ab", "a"),
        ("q", "cd", "c"),
    ]
    assert [x.confidence for x in found] == pytest.approx([0.7, 0.7])
    assert seen[:2] == [("Long?", "p", "ab", "a"), ("Long?", "p", "a", "ab")]
    strict = align.ai_preferences(
        comparisons, judge, ["Long?"], generator=dice(), min_confidence=0.75
    )
    assert strict == []


def test_every_principle_is_asked():
    asked = []

    def judge(principle, *_):
        asked.append(principle)
        return 1.0

    rules = ["honest", "kind", "brief"]
    found = align.ai_preferences([("p", "a", "b")] * 60, judge, rules, generator=dice())
    assert found == []  # always the first: undecided
    assert set(asked) == set(rules)
    assert asked[::2] == asked[1::2]  # one principle for both orders


# --- Policy gradient ----------------------------------------------------------------


def test_reinforce_by_hand(device):
    """log p = -1, advantage 2: +2, and downhill is a likelier action."""
    log_probs = torch.tensor([-1.0, -3.0], device=device, requires_grad=True)
    advantages = torch.tensor([2.0, -1.0], device=device, requires_grad=True)
    loss = align.reinforce_loss(log_probs, advantages)
    assert loss.item() == pytest.approx((2.0 - 3.0) / 2)
    loss.backward()
    close(log_probs.grad, torch.tensor([-1.0, 0.5], device=device))
    assert advantages.grad is None


def test_reinforce_is_the_gradient_of_the_expected_reward(device):
    """Over all that can be said, weighted by its probability."""
    logits = torch.randn(5, device=device, requires_grad=True)
    rewards = torch.tensor([1.0, 4.0, -2.0, 0.5, 3.0], device=device)
    log_probs = logits.log_softmax(0)
    expected_reward = (log_probs.exp() * rewards).sum()
    (expected,) = torch.autograd.grad(-expected_reward, logits, retain_graph=True)
    weights = log_probs.exp().detach() * 5  # 5 as the loss is a mean
    loss = align.reinforce_loss(log_probs, rewards * weights)
    (gradient,) = torch.autograd.grad(loss, logits)
    close(gradient, expected)


def test_masked_tokens_do_not_count(device):
    mask = torch.tensor([[True, True, False, False]], device=device)
    log_probs = some_log_probs(device, 1, 4, requires_grad=True)
    old, advantages = some_log_probs(device, 1, 4), torch.randn(1, 4, device=device)
    for wrong in (10.0, 1000.0, math.nan):
        bad = [
            x.detach().masked_fill(~mask, wrong) for x in (log_probs, old, advantages)
        ]
        bad[0].requires_grad_()
        found = align.ppo_loss(*bad, mask=mask)
        cut = (x[:, :2] for x in (log_probs, old, advantages))
        close(found, align.ppo_loss(*cut))
        (gradient,) = torch.autograd.grad(found, bad[0])
        assert gradient[:, 2:].abs().max() == 0
        cut = (log_probs[:, :2], advantages[:, :2])
        found = align.reinforce_loss(bad[0], bad[2], mask)
        close(found, align.reinforce_loss(*cut))
        one = advantages[:, 0]
        found = align.grpo_loss(bad[0], bad[1], bad[1], one, mask)
        cut = [x[:, :2] for x in (log_probs, old, old)]
        close(found, align.grpo_loss(*cut, one, mask[:, :2]))
        (gradient,) = torch.autograd.grad(found, bad[0])
        assert gradient[:, 2:].abs().max() == 0
    assert align.ppo_loss(log_probs, old, advantages, mask=~mask & mask).item() == 0


# --- Distance from the reference ----------------------------------------------------


def test_kl_estimates_by_hand():
    """log p = -1, reference -2: x = -1."""
    said, reference = torch.tensor(-1.0), torch.tensor(-2.0)
    found = [
        align.kl_estimate(said, reference, kind).item() for kind in ("k1", "k2", "k3")
    ]
    assert found == pytest.approx([1.0, 0.5, math.exp(-1)], abs=1e-6)


@given(seed=st.integers(0, 99))
@settings(max_examples=10)
def test_k1_and_k3_are_right_on_average(seed, device):
    """Summed over all that can be said, weighted by its probability."""
    p, q = torch.randn(2, 6, generator=dice(seed=seed)).to(device).log_softmax(-1)
    expected = F.kl_div(q, p, log_target=True, reduction="sum")  # KL(p ‖ q)
    for kind in ("k1", "k3"):
        close((p.exp() * align.kl_estimate(p, q, kind)).sum(), expected)
    assert (align.kl_estimate(p, q, "k3") >= 0).all()
    assert align.kl_estimate(p, p).abs().max() == 0


def test_kl_of_a_coin():
    """p = [.5, .5], reference [.9, .1]: 0.5108, and the other way round 0.3681."""
    p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1])
    found = (p * align.kl_estimate(p.log(), q.log())).sum()
    assert found.item() == pytest.approx(0.5108, abs=5e-5)
    spread = (p * align.kl_estimate(p.log(), q.log(), "k1") ** 2).sum()
    assert spread > (p * align.kl_estimate(p.log(), q.log()) ** 2).sum()


def test_kl_gradient_is_the_models_alone(device):
    said, reference = (some_log_probs(device, 4, requires_grad=True) for _ in range(2))
    align.kl_estimate(said, reference).sum().backward()
    close(said.grad, 1 - (reference - said).exp().detach())
    assert reference.grad is None


def test_k3_of_small_distances_is_exact():
    """x = 1e-3: x² / 2 up to its third power, where exp(x) - 1 would lose digits."""
    found = align.kl_estimate(torch.tensor([0.0]), torch.tensor([1e-3]))
    assert found.item() == pytest.approx(5.0017e-7, rel=2e-3)


# --- Credit for every step ----------------------------------------------------------


def gae_by_brute_force(rewards, values, gamma, lam, ends, last_value):
    """The sum of all later surprises, in a double loop over the steps of an episode."""
    n = len(rewards)
    following = [*values[1:], last_value]
    surprises = [
        rewards[t] + (0.0 if ends[t] else gamma * following[t]) - values[t]
        for t in range(n)
    ]
    advantages = []
    for t in range(n):
        total, weight = 0.0, 1.0
        for later in range(t, n):
            total += weight * surprises[later]
            weight *= gamma * lam
            if ends[later]:
                break
        advantages.append(total)
    return advantages


@given(
    n=st.integers(1, 6),
    gamma=st.sampled_from([0.0, 0.9, 1.0]),
    lam=st.sampled_from([0.0, 0.8, 1.0]),
    seed=st.integers(0, 99),
)
def test_gae_against_brute_force(n, gamma, lam, seed, device):
    generator = dice(seed=seed)
    rewards, values = torch.randn(2, B, n, generator=generator, dtype=torch.float64)
    ends = torch.rand(B, n, generator=generator) < 0.3
    last = torch.randn(B, generator=generator, dtype=torch.float64)
    found = align.gae(rewards, values, gamma, lam, ends=ends, last_value=last)
    for row in range(B):
        expected = gae_by_brute_force(
            *(x[row].tolist() for x in (rewards, values)),
            gamma,
            lam,
            ends[row].tolist(),
            last[row].item(),
        )
        assert found[row].tolist() == pytest.approx(expected, abs=1e-9)


def test_gae_by_hand():
    values = torch.full((3,), 0.5)
    found = align.gae(torch.tensor([0.0, 0.0, 1.0]), values, 0.9, 0.8)
    close(found, torch.tensor([0.1732, 0.31, 0.5]))
    early = align.gae(torch.tensor([1.0, 0.0, 0.0]), values, 0.9, 0.8)
    assert early[0] > early[1]
    # λ = 0: one surprise; λ = 1: all rewards to come, less the value.
    close(
        align.gae(torch.tensor([1.0, 2.0, 4.0]), values, 0.5, 0.0),
        torch.tensor([0.75, 1.75, 3.5]),
    )
    close(
        align.gae(torch.tensor([1.0, 2.0, 4.0]), values, 0.5, 1.0),
        torch.tensor([2.5, 3.5, 3.5]),
    )


def test_gae_stops_at_ends(device):
    """Two episodes in one row are as two rows; behind the last end stands NaN."""
    rewards, values = torch.randn(2, 5, device=device)
    ends = torch.tensor([False, True, False, False, True], device=device)
    found = align.gae(rewards, values, 0.9, 0.8, ends=ends)
    for part in (slice(0, 2), slice(2, 5)):
        close(found[part], align.gae(rewards[part], values[part], 0.9, 0.8))
    behind = (F.pad(x, (0, 2), value=math.nan) for x in (rewards, values))
    padded = align.gae(*behind, 0.9, 0.8, ends=F.pad(ends, (0, 2)))
    close(padded[:5], found)


def test_gae_is_a_fact(device):
    values = torch.randn(4, device=device, requires_grad=True)
    assert not align.gae(values * 2, values).requires_grad


# --- PPO ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        # Good and already likelier than the clip: nothing more to gain.
        (2.0, 1.0, -1.2, 0.0),
        # Good and less likely than it was: as without a clip.
        (0.5, 1.0, -0.5, -0.5),
        # Bad and likelier: the whole loss counts.
        (2.0, -1.0, 2.0, 2.0),
        # Bad and already less likely than the clip: nothing more to gain.
        (0.5, -1.0, 0.8, 0.0),
        # Within the clip on either side.
        (1.1, 3.0, -3.3, -3.3),
        (0.9, -3.0, 2.7, 2.7),
    ],
)
def test_ppo_by_hand(ratio, advantage, loss, slope, device):
    old = torch.tensor([-3.0], device=device, requires_grad=True)
    new = (old.detach() + math.log(ratio)).requires_grad_()
    advantages = torch.tensor([advantage], device=device, requires_grad=True)
    found = align.ppo_loss(new, old, advantages, clip=0.2)
    assert found.item() == pytest.approx(loss, abs=1e-5)
    found.backward()
    assert new.grad.item() == pytest.approx(slope, abs=1e-5)
    assert old.grad is None
    assert advantages.grad is None


def test_first_step_of_ppo_is_the_policy_gradient(device):
    log_probs = some_log_probs(device, B, T, requires_grad=True)
    advantages = torch.randn(B, T, device=device)
    losses = (
        align.ppo_loss(log_probs, log_probs.detach(), advantages),
        align.reinforce_loss(log_probs, advantages),
    )
    close(*(torch.autograd.grad(loss, log_probs)[0] for loss in losses))


# --- GRPO ---------------------------------------------------------------------------


def test_group_advantages_by_hand():
    """Over n, not n - 1; every group by itself; nobody better, nobody praised."""
    found = align.group_advantages(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    close(found, torch.tensor([3.0, -1.0, -1.0, -1.0]) / math.sqrt(3))
    found = align.group_advantages(torch.tensor([[1, 0], [10, 9]]))
    close(found, torch.tensor([[1.0, -1.0], [1.0, -1.0]]))
    found = align.group_advantages(torch.tensor([[1.0, 0.0], [90.0, 10.0]]))
    close(found, torch.tensor([[1.0, -1.0], [1.0, -1.0]]))
    found = align.group_advantages(torch.tensor([1.0, 0.0, 0.0, 0.0]), scale=False)
    close(found, torch.tensor([0.75, -0.25, -0.25, -0.25]))


@pytest.mark.parametrize("value", [0.0, 1.0, 0.35, 1e8])
def test_equal_rewards_praise_nobody(value):
    for scale in (True, False):
        found = align.group_advantages(torch.full((2, 7), value), scale=scale)
        assert found.tolist() == [[0.0] * 7] * 2


@given(
    rewards=st.lists(st.floats(-5, 5, width=32), min_size=2, max_size=8),
    shift=st.sampled_from([0.0, 3.0]),
)
def test_group_advantages_are_bounded_and_sum_to_zero(rewards, shift):
    found = align.group_advantages(torch.tensor(rewards, dtype=torch.float64) + shift)
    assert found.sum().item() == pytest.approx(0.0, abs=1e-6)
    assert found.abs().max() <= math.sqrt(len(rewards) - 1) + 1e-6
    order = sorted(range(len(rewards)), key=rewards.__getitem__)
    for worse, better in itertools.pairwise(order):
        assert found[worse] <= found[better] + 1e-9


def test_grpo_against_the_paper(device):
    """Equation (3), token by token, answers of different lengths."""
    lengths, clip, beta = [2, 5, 1], 0.2, 0.3
    new, old, reference = (some_log_probs(device, B, T) for _ in range(3))
    new.requires_grad_()
    advantages = torch.tensor([1.0, -2.0, 0.5], device=device)
    place = torch.arange(T, device=device)
    lengths_column = torch.tensor(lengths, device=device)[:, None]
    mask = (place >= 1) & (place < 1 + lengths_column)
    total = 0.0
    for row, length in enumerate(lengths):
        for t in range(1, 1 + length):
            ratio = torch.exp(new[row, t] - old[row, t])
            held = ratio.clamp(1 - clip, 1 + clip)
            gain = torch.minimum(ratio * advantages[row], held * advantages[row])
            apart = reference[row, t] - new[row, t]
            kl = torch.exp(apart) - apart - 1
            total = total - (gain - beta * kl) / length / B
    found = align.grpo_loss(new, old, reference, advantages, mask, clip, beta)
    close(found, total)
    close(*(torch.autograd.grad(loss, new)[0] for loss in (found, total)))


# --- Answers ------------------------------------------------------------------------


def test_own_tokens_by_hand():
    """From the first own token to the end, which was written too; never the prompt."""
    ids = torch.tensor([[1, 5, 6, 1, 1, 7], [5, 1, 1, 6, 1, 1], [5, 6, 7, 8, 7, 8]])
    mask = align.answered(ids, n_prompt=2, end_id=1)
    assert mask.int().tolist() == [
        [0, 0, 1, 1, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [0, 0, 1, 1, 1, 1],
    ]
    assert align.answered(ids, n_prompt=4).sum(dim=1).tolist() == [2, 2, 2]


def test_answers_are_drawn_as_the_model_says(device):
    """Frequencies of 2,000 tokens, within four standard errors of the probabilities."""
    model = nn.Embedding(4, 4).to(device)
    prompts = torch.full((2000, 1), 2, device=device)
    ids = align.sample_answers(model, prompts, n_tokens=1, generator=dice(device))
    expected = model.weight[2].softmax(0)
    found = torch.bincount(ids[:, 1], minlength=4) / 2000
    spread = (expected * (1 - expected) / 2000).sqrt()
    assert ((found - expected).abs() < 4 * spread).all()


def test_answers_end(device):
    model = tiny_gpt(device)
    prompts = some_ids(device, P, batch=40)
    options = {"n_tokens": 6, "end_id": END}
    ids = align.sample_answers(model, prompts, **options, generator=dice(device))
    again = align.sample_answers(model, prompts, **options, generator=dice(device))
    assert torch.equal(ids, again)
    assert torch.equal(ids[:, :P], prompts)
    mask = align.answered(ids, P, END)
    assert (ids[:, P:][~mask[:, P:]] == END).all()
    assert 0 < mask.sum() < mask[:, P:].numel()
    with torch.no_grad():
        model.embedding.weight[END] = 99 * model.features(prompts)[0, -1]
    short = align.sample_answers(model, prompts[:1], **options, generator=dice(device))
    assert short.shape == (1, P + 1)


# --- The trainers -------------------------------------------------------------------


def share_of_right_words(ids, real):
    """How many of the answer's three words are the prompt's last one: 0 … 1."""
    return (ids[:, P:] == ids[:, P - 1 : P]).float().mean(dim=1)


def trainer_of(kind, device, policy=None, reward=share_of_right_words, **options):
    lr = options.pop("lr", 0.01)
    n_tokens, end_id = options.pop("n_tokens", 3), options.get("end_id")
    reference = options.pop("reference", None)
    policy = tiny_gpt(device) if policy is None else policy
    generate = partial(
        align.sample_answers, n_tokens=n_tokens, end_id=end_id, generator=dice(device)
    )
    config = PolicyConfig(**options)
    if kind == "grpo":
        optimizer = torch.optim.Adam(policy.parameters(), lr=lr)
        return GRPOTrainer(policy, reward, generate, optimizer, config, reference)
    critic = align.RewardModel(tiny_gpt(device), C, generator=dice(device))
    both = [*policy.parameters(), *critic.parameters()]
    optimizer = torch.optim.Adam(both, lr=lr)
    return PPOTrainer(policy, critic, reward, generate, optimizer, config, reference)


def prompts_of(device, batch, n_steps):
    ids = torch.randint(2, V, (n_steps, batch, P), generator=dice())
    return list(ids.to(device))


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_trainer_improves_a_reward_that_can_be_verified(kind, device):
    """The answer must repeat the prompt's last word: far oftener than by chance."""
    how = {"lr": 0.02, "n_epochs": 4} if kind == "ppo" else {"lr": 0.03, "n_epochs": 2}
    trainer = trainer_of(kind, device, beta=0.01, **how)
    before = copy.deepcopy(trainer.reference.state_dict())
    reports = trainer.train(prompts_of(device, 48 if kind == "ppo" else 8, 36))
    first, last = reports[0], reports[-5:]
    assert first.reward < 0.25
    assert sum(report.reward for report in last) / 5 > 0.5
    # The distance is 0 before the first step, and then it is reported.
    assert first.kl == pytest.approx(0.0, abs=1e-6)
    assert last[-1].kl > 1.0
    assert first.n_tokens == 3.0
    for name, value in trainer.reference.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(p.grad is None for p in trainer.reference.parameters())


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_price_keeps_the_model_close(kind, device):
    """The dearer a nat of distance, the smaller the distance."""
    kls = []
    for beta in (0.0, 2.0):
        trainer = trainer_of(kind, device, beta=beta, n_epochs=2)
        reports = trainer.train(prompts_of(device, 32 if kind == "ppo" else 4, 8))
        kls.append(reports[-1].kl)
    assert kls[1] < 0.5 * kls[0]


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_ratio_is_one_before_the_first_update(kind, device, monkeypatch):
    """Also with dropout in the model, which is back in training mode afterwards."""
    policy = tiny_gpt(device, dropout=0.5)
    trainer = trainer_of(kind, device, policy, n_epochs=2)
    seen = []
    name = f"{kind}_loss"
    loss = getattr(align, name)

    def spy(log_probs, old_log_probs, *rest):
        mask = rest[-1] if kind == "ppo" else rest[2]
        seen.append(((log_probs - old_log_probs).exp()[mask], mask))
        return loss(log_probs, old_log_probs, *rest)

    monkeypatch.setattr(align, name, spy)
    trainer.step(some_ids(device, P, batch=4))
    (ratio, mask), (moved, _) = seen
    close(ratio, torch.ones_like(ratio))
    assert (moved - 1).abs().max() > 1e-4
    assert not mask[:, :P].any()
    assert policy.training


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_what_follows_the_end_and_the_padding_teaches_nothing(kind, device):
    """Two trainers, one with padded prompts and other words behind the end: equal."""
    prompts = torch.tensor([[3, 4], [5, 6]], device=device)
    policies = []
    for padding, behind in ((0, 2), (3, 5)):
        torch.manual_seed(0)
        policy = tiny_gpt(device)
        trainer = trainer_of(kind, device, policy, end_id=END, group_size=2)
        said = [[7, END, behind], [8, 4, END], [END, behind, 2], [6, 5, 4]]
        said = torch.tensor(said[: 4 if kind == "grpo" else 2], device=device)

        def generate(model, prompts, mask, said=said):
            return torch.cat([prompts, said], dim=1)

        trainer.generate = generate
        trainer.reward = lambda ids, real: torch.arange(len(ids), device=device) % 2
        ids = F.pad(prompts, (padding, 0), value=2)
        mask = torch.ones_like(ids, dtype=torch.bool)
        mask[:, :padding] = False
        report = trainer.step(ids, mask)
        policies.append(policy)
        assert report.n_tokens == (2.25 if kind == "grpo" else 2.5)
        assert report.reward == 0.5  # of the answers alone, whatever distance costs
    for first, second in zip(*(p.parameters() for p in policies), strict=True):
        torch.testing.assert_close(first, second, atol=1e-4, rtol=0.0)


def test_credit_of_ppo_by_hand(device):
    """Prices on the way, the reward at the end; what comes later pays for nothing."""
    trainer = trainer_of("ppo", device, beta=0.5, gamma=1.0, lam=1.0, end_id=END)
    ids = torch.tensor([[3, 4, 5, END, END], [3, 4, 5, 6, 7]], device=device)
    mask = align.answered(ids, P, END)
    own, reference = some_log_probs(device, 2, 5), some_log_probs(device, 2, 5)
    rewards = torch.tensor([2.0, -1.0], device=device)
    rollout = policy_trainers.Rollout(ids, None, mask, mask, own, reference, rewards)
    advantages, returns = trainer._credit(rollout)
    price = -0.5 * (own - reference)
    # With λ = γ = 1 the return of a token is all that is earned from there on.
    close(returns[0, 3], price[0, 3] + 2)
    close(returns[0, 2], price[0, 2:4].sum() + 2)
    close(returns[1, 2], price[1, 2:].sum() - 1)
    close(advantages[mask].mean(), torch.zeros((), device=device))
    close(advantages[mask].std(unbiased=False), torch.ones((), device=device))
    values = trainer._values(rollout)
    scores = trainer.critic.token_scores(ids)
    close(values[:, 1:], scores[:, :-1])


def test_reward_is_earned_where_the_answer_ends(device):
    """Half as dear one token later: what stands behind the end must not delay it."""
    trainer = trainer_of("ppo", device, beta=0.0, gamma=0.5, lam=1.0, end_id=END)
    ids = torch.tensor([[3, 4, 5, END, END], [3, 4, 5, 6, 7]], device=device)
    mask = align.answered(ids, P, END)
    own = some_log_probs(device, 2, 5)
    rewards = torch.tensor([8.0, 8.0], device=device)
    rollout = policy_trainers.Rollout(ids, None, mask, mask, own, own, rewards)
    _, returns = trainer._credit(rollout)
    close(returns[0, 2:4], torch.tensor([4.0, 8.0], device=device))
    close(returns[1, 2:], torch.tensor([2.0, 4.0, 8.0], device=device))
    # With λ = 0 a token trusts the critic about what follows, but nothing follows.
    trainer.config = replace(trainer.config, lam=0.0)
    _, returns = trainer._credit(rollout)
    close(returns[[0, 1], [3, 4]], torch.tensor([8.0, 8.0], device=device))


def fixed(trainer, said, rewards):
    """Let a trainer always get these answers and rewards."""
    said, rewards = torch.tensor(said), torch.tensor(rewards)
    trainer.generate = lambda model, prompts, mask: torch.cat(
        [prompts, said.to(prompts)], dim=1
    )
    trainer.reward = lambda ids, real: rewards.to(ids.device)
    return trainer


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_nothing_drops_out_in_any_model_during_a_step(kind, device):
    policy = tiny_gpt(device, dropout=0.5)
    reference = tiny_gpt(device, dropout=0.5)
    trainer = trainer_of(kind, device, policy, n_epochs=2, reference=reference)
    models = [policy, reference]
    if kind == "ppo":
        trainer.critic.backbone = tiny_gpt(device, dropout=0.5)
        models.append(trainer.critic)
    modes = []
    for model in models:
        for part in model.modules():
            part.register_forward_hook(lambda part, *_: modes.append(part.training))
    trainer.step(some_ids(device, P, batch=4))
    assert modes
    assert not any(modes)
    assert all(part.training for model in models for part in model.modules())


def test_answers_are_compared_with_those_to_the_same_prompt(device, monkeypatch):
    """Two prompts, two answers each: the order of prompts, padding and groups."""
    seen = {}
    trainer = fixed(
        trainer_of("grpo", device, group_size=2, n_epochs=1),
        said=[[7], [8], [7], [8]],
        rewards=[1.0, 0.0, 5.0, 3.0],
    )
    generate, loss = trainer.generate, align.grpo_loss

    def spy(model, prompts, mask):
        seen.update(prompts=prompts.tolist(), mask=mask.tolist())
        return generate(model, prompts, mask)

    def spy_loss(*arguments):
        seen["advantages"] = arguments[3]
        return loss(*arguments)

    trainer.generate = spy
    monkeypatch.setattr(align, "grpo_loss", spy_loss)
    prompts = torch.tensor([[3, 4], [2, 6]], device=device)
    mask = torch.tensor([[True, True], [False, True]], device=device)
    report = trainer.step(prompts, mask)
    assert seen["prompts"] == [[3, 4], [3, 4], [2, 6], [2, 6]]
    assert seen["mask"] == [[True, True], [True, True], [False, True], [False, True]]
    close(seen["advantages"], torch.tensor([1.0, -1.0, 1.0, -1.0], device=device))
    assert report.reward == 2.25


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_a_step_is_no_longer_than_allowed_and_forgets_the_last_one(kind, device):
    """With plain descent at rate 1, the change is the gradient, cut to its length."""
    changes = []
    for stale in (None, 1e3):
        torch.manual_seed(0)
        trainer = trainer_of(kind, device, n_epochs=1, max_norm=1e-3, group_size=2)
        fixed(trainer, [[7, 3, 4], [8, 5, 6]], [1.0, 0.0])
        trained = trainer.optimizer.param_groups[0]["params"]
        trainer.optimizer = torch.optim.SGD(trained, lr=1.0)
        before = [parameter.detach().clone() for parameter in trained]
        for parameter in trained:
            parameter.grad = (
                None if stale is None else parameter.new_full(parameter.shape, stale)
            )
        ids = torch.tensor([[3, 4]], device=device)
        trainer.step(ids if kind == "grpo" else ids.repeat(2, 1))
        parts = zip(trained, before, strict=True)
        changes.append(torch.cat([(new - old).flatten() for new, old in parts]))
    assert changes[0].norm().item() == pytest.approx(1e-3, rel=0.05)
    close(changes[0], changes[1])


def test_critic_learns_by_its_squared_error(device):
    losses = []
    for weight in (0.0, 2.0):
        torch.manual_seed(0)
        trainer = trainer_of("ppo", device, n_epochs=1, value_weight=weight)
        fixed(trainer, [[7, 3, 4], [8, 5, 6]], [1.0, -2.0])
        trainer._learn = losses.append
        ids = torch.tensor([[3, 4], [5, 6]], device=device)
        trainer.step(ids)
    answers = trainer._roll_out(ids, None)
    _, returns = trainer._credit(answers)
    error = (trainer._values(answers) - returns)[answers.mask].square().mean()
    assert error > 0.1
    close(losses[1] - losses[0], 2 * error)
    losses[1].backward()
    assert trainer.critic.head.weight.grad.abs().max() > 0


def test_learned_reward_can_be_the_reward(device):
    """A reward model is called with texts and their real tokens, as a rule is."""
    judge = align.RewardModel(tiny_gpt(device), C, generator=dice(device))
    trainer = trainer_of("grpo", device, reward=judge, end_id=END)
    report = trainer.step(some_ids(device, P))
    assert math.isfinite(report.reward)
    assert all(p.grad is None for p in judge.parameters())


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_answers_can_be_written_with_a_cache(kind, device):
    """`sample.generate` in the place of `sample_answers`, with padded prompts."""
    trainer = trainer_of(kind, device, end_id=END, n_epochs=1)
    config = sample.SamplingConfig(max_new_tokens=3, eos_id=END)
    generator = dice(device)

    def generate(model, ids, mask):
        return sample.generate(model, ids, config, mask=mask, generator=generator)

    trainer.generate = generate
    ids = torch.tensor([[0, 4, 5], [6, 7, 8]], device=device)
    report = trainer.step(ids, ids != 0)
    assert 1 <= report.n_tokens <= 3
    assert report.kl == pytest.approx(0.0, abs=1e-6)


def test_only_adapters_are_trained(device):
    """LoRA and GRPO together: the frozen base has no part in it."""
    policy = tiny_gpt(device)
    finetune.apply_lora(policy, rank=2, alpha=8, generator=dice(device))
    before = copy.deepcopy(policy.state_dict())
    trained = [p for p in policy.parameters() if p.requires_grad]
    trainer = GRPOTrainer(
        policy,
        share_of_right_words,
        partial(align.sample_answers, n_tokens=3, generator=dice(device)),
        torch.optim.Adam(trained, lr=0.01),
    )
    for batch in prompts_of(device, 4, 2):
        trainer.step(batch)
    for name, value in policy.state_dict().items():
        assert torch.equal(value, before[name]) != ("lora_" in name)


# --- Refusals and names -------------------------------------------------------------


def refused_calls():
    """What is called, and the values that the message names."""
    logits, ids = torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.long)
    mask, two = torch.ones(2, 3, dtype=torch.bool), torch.zeros(2)
    row, number = torch.zeros(2, 3), torch.ones(2, 3)
    judge = partial(align.ai_preferences, [("p", "a", "b")], generator=dice())
    policy = tiny_gpt()
    step = trainer_of("grpo", "cpu").step
    odd = trainer_of("grpo", "cpu", reward=lambda ids, real: real.float())
    endless = trainer_of("grpo", "cpu", reward=lambda ids, real: ids[:, 0] / 0)
    mute = trainer_of("grpo", "cpu")
    mute.generate = lambda model, prompts, mask: prompts + 1
    return {
        "logits": (lambda: align.token_log_probs(logits[:1], ids), ["(1, 3, 4)"]),
        "answer mask": (
            lambda: align.answer_log_probs(logits, ids, mask[:, 1:]),
            ["(2, 2)", "(2, 3)"],
        ),
        "no prompt": (
            lambda: align.answer_log_probs(logits, ids, mask),
            ["first token"],
        ),
        "number mask": (
            lambda: align.reinforce_loss(row, row, number),
            ["torch.float32"],
        ),
        "pairs": (lambda: align.bradley_terry_loss(two, row), ["(2,)", "(2, 3)"]),
        "no pair": (lambda: align.bradley_terry_loss(two[:0], two[:0]), ["(0,)"]),
        "references": (lambda: align.dpo_loss(two, two, two, row), ["(2, 3)"]),
        "beta": (lambda: align.dpo_loss(two, two, two, two, beta=0), ["beta=0"]),
        "no answer": (lambda: align.best_of_n("", str, len, n=0), ["n=0"]),
        "no number": (
            lambda: align.best_of_n("a", str, lambda _, answer: math.nan, n=1),
            ["nan", "'a'"],
        ),
        "no principle": (lambda: judge(lambda *_: 1.0, []), ["no principle"]),
        "one string": (lambda: judge(lambda *_: 1.0, "kind"), ["'kind'"]),
        "probability": (lambda: judge(lambda *_: 1.5, ["kind"]), ["1.5"]),
        "confidence": (
            lambda: judge(lambda *_: 1.0, ["kind"], min_confidence=0.2),
            ["min_confidence=0.2"],
        ),
        "advantages": (lambda: align.reinforce_loss(row, two), ["(2,)", "(2, 3)"]),
        "kind": (lambda: align.kl_estimate(two, two, "k4"), ["'k4'", "k3"]),
        "reference": (lambda: align.kl_estimate(two, row), ["(2, 3)", "(2,)"]),
        "values": (lambda: align.gae(row, two), ["(2,)", "(2, 3)"]),
        "gamma": (lambda: align.gae(row, row, gamma=1.1), ["gamma=1.1"]),
        "lam": (lambda: align.gae(row, row, lam=-0.1), ["lam=-0.1"]),
        "last value": (lambda: align.gae(row, row, last_value=row), ["last_value"]),
        "old": (lambda: align.ppo_loss(row, two, row), ["old_log_probs", "(2,)"]),
        "clip": (lambda: align.ppo_loss(row, row, row, clip=0.0), ["clip=0.0"]),
        "one answer": (lambda: align.group_advantages(row[:, :1]), ["(2, 1)"]),
        "for tokens": (
            lambda: align.grpo_loss(row, row, row, row, mask),
            ["(2, 3)", "2 answers"],
        ),
        "price": (
            lambda: align.grpo_loss(row, row, row, two, mask, beta=-1.0),
            ["beta=-1.0"],
        ),
        "no tokens": (
            lambda: align.sample_answers(policy, ids, n_tokens=0, generator=dice()),
            ["n_tokens=0"],
        ),
        "only a prompt": (lambda: align.answered(ids, 3), ["n_prompt=3", "2"]),
        "epochs": (lambda: PolicyConfig(n_epochs=0), ["n_epochs=0"]),
        "group": (lambda: PolicyConfig(group_size=1), ["group_size=1"]),
        "config clip": (lambda: PolicyConfig(clip=0.0), ["clip=0.0"]),
        "config beta": (lambda: PolicyConfig(beta=-1.0), ["beta=-1.0"]),
        "config lam": (lambda: PolicyConfig(lam=2.0), ["lam=2.0"]),
        "reference is the policy": (
            lambda: trainer_of("grpo", "cpu", policy, reference=policy),
            ["reference"],
        ),
        "flat prompts": (lambda: step(torch.tensor([3, 4])), ["(16,)"]),
        "rewards of tokens": (lambda: odd.step(ids), ["rewards"]),
        "endless rewards": (lambda: endless.step(ids), ["nan"]),
        "other prompts": (lambda: mute.step(ids), ["prompts"]),
    }


@pytest.mark.parametrize("name", refused_calls())
def test_refusal_names_the_values(name):
    call, values = refused_calls()[name]
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    for value in values:
        assert value in str(caught.value)


def test_names_of_the_chapter():
    assert align.RewardModel is preference.RewardModel
    assert align.PPOTrainer is policy_trainers.PPOTrainer
    for names in align.ELSEWHERE.values():
        assert all(callable(getattr(align, name)) for name in names)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = align.no_such_name
