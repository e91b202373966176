"""Alignment: learning from what is praised, instead of from what is written.

Chapter 13 of the book. This module builds, in this order: the policy gradient; how far
a model has moved away from its reference; credit for every token from rewards that come
late; the clipped objective of PPO; and GRPO, which compares the answers of a group. The
rest of the chapter has modules of its own, and their names can be used as if they stood
here: ``lmcore.preference`` (reward models, DPO, best of n, judgements by a model) and
``lmcore.policy_trainers`` (PPO and GRPO at work).

Left out: the people; value functions beyond a linear layer.

Papers: Williams, 1992 (REINFORCE); Schulman et al., 2016 (GAE) and 2017 (PPO);
Schulman, 2020 (estimates of the KL divergence); Shao et al., 2024 (GRPO).

The agent is the model, a state is a text so far, an action is the next token. Tensors
(B, T) have one entry for each token of a text, and a mask (B, T) is True where the
token belongs to the answer: the model did not write the prompt and earns nothing
there.
"""

import importlib

import torch
from torch import Tensor

from . import preference, require

# --- Policy gradient ----------------------------------------------------------------


def reinforce_loss(
    log_probs: Tensor, advantages: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Make actions likelier that did better than expected.

    The mean of ``- advantage · log-probability``: its gradient is the policy gradient
    with the sign that an optimizer needs. Williams, 1992, § 3.

    Args:
        log_probs: (...), the model's log-probabilities of what was done, in nats
        advantages: (...), how much better it was than expected; facts of the past, no
            gradient goes there
        mask: (...) boolean, True = counts; all do if not given

    Returns:
        The mean over what counts, a scalar; 0 if nothing does.

    Raises:
        ValueError: if the shapes differ.
        TypeError: if the mask is not boolean.

    >>> reinforce_loss(torch.tensor([-1.0]), torch.tensor([2.0]))
    tensor(2.)
    """
    mask = _checked_mask(mask, log_probs, advantages=advantages)
    return -mean_where(log_probs * advantages.detach(), mask)


def kl_estimate(
    log_probs: Tensor, reference_log_probs: Tensor, kind: str = "k3"
) -> Tensor:
    """Estimate how far the model is from its reference, by what the model said.

    With x = log p_reference − log p_model: ``k1 = -x`` and ``k3 = exp(x) - 1 - x`` are
    right on average over what the model says; ``k2 = x² / 2`` is not quite, but has a
    small spread. k3 is never negative and has a small spread too. Schulman, 2020.

    Args:
        log_probs: (...), the model's log-probabilities of what the model itself said
        reference_log_probs: (...), the reference's; no gradient goes there
        kind: ``"k1"``, ``"k2"`` or ``"k3"``

    Returns:
        One estimate of KL(model ‖ reference) for each, (...), in nats.

    Raises:
        ValueError: if the shapes differ or the kind is another.

    >>> said, reference = torch.tensor([-1.0]), torch.tensor([-2.0])
    >>> [kl_estimate(said, reference, kind).item() for kind in ("k1", "k2")]
    [1.0, 0.5]
    >>> kl_estimate(said, reference)
    tensor([0.3679])
    """
    _check_shapes(log_probs, reference_log_probs=reference_log_probs)
    x = reference_log_probs.detach() - log_probs
    if kind == "k1":
        return -x
    if kind == "k2":
        return x**2 / 2
    if kind == "k3":
        return torch.expm1(x) - x
    raise ValueError(f"kind={kind!r} must be 'k1', 'k2' or 'k3'")


# --- PPO ----------------------------------------------------------------------------


@torch.no_grad()
def gae(
    rewards: Tensor,
    values: Tensor,
    gamma: float = 1.0,
    lam: float = 0.95,
    *,
    ends: Tensor | None = None,
    last_value: Tensor | None = None,
) -> Tensor:
    """Say how much better every step was than expected: advantages.

    The surprise of a step is its reward and the value of the next state, less the value
    of its own; the advantage is the sum of all surprises from here on, each step ahead
    discounted by ``gamma · lam``. What comes after an end counts for nothing before it.
    Advantages and values together are the returns that a critic learns. Schulman et
    al., 2016, eq. (16).

    Args:
        rewards: (..., T), what each step earned
        values: (..., T), the critic's value of the state in which each step was taken
        gamma: what a reward one step later is worth
        lam: 0 trusts the critic, 1 the rewards
        ends: (..., T) boolean, True = the last step of its episode; none if not given
        last_value: (...), the value of the state after the last of the T steps; 0 if
            not given, as if all ended there

    Returns:
        The advantages, (..., T), without gradient.

    Raises:
        ValueError: if the shapes differ, or ``gamma`` or ``lam`` are not in 0 … 1.

    >>> rewards, values = torch.tensor([0.0, 0.0, 1.0]), torch.full((3,), 0.5)
    >>> gae(rewards, values, gamma=0.9, lam=0.8)
    tensor([0.1732, 0.3100, 0.5000])
    """
    require.between(0, 1, gamma=gamma, lam=lam)
    ends = torch.zeros_like(rewards, dtype=torch.bool) if ends is None else ends
    _check_shapes(rewards, values=values, ends=ends)
    next_value = torch.zeros_like(rewards[..., 0])
    if last_value is not None:
        _check_shapes(next_value, last_value=last_value)
        next_value = last_value
    advantage, advantages = torch.zeros_like(next_value), []
    for t in reversed(range(rewards.shape[-1])):
        # A fill, not a product with zero, so that nothing passes an end.
        following = (next_value + lam * advantage).masked_fill(ends[..., t], 0.0)
        advantage = rewards[..., t] + gamma * following - values[..., t]
        next_value = values[..., t]
        advantages.append(advantage)
    return torch.stack(advantages[::-1], dim=-1)


def ppo_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    clip: float = 0.2,
    mask: Tensor | None = None,
) -> Tensor:
    """Make good actions likelier, but never by more than a little at a time.

    For every token the ratio says how much likelier it has become since the text was
    written. The objective is the smaller of ratio · advantage and clipped ratio ·
    advantage: there is nothing to gain beyond the clip, and everything to lose.
    Schulman et al., 2017, eq. (7), with the sign that an optimizer needs.

    Args:
        log_probs: (...), the model's log-probabilities of what was said, in nats
        old_log_probs: (...), those when it was said; no gradient goes there
        advantages: (...), no gradient goes there
        clip: ε, by how much the ratio may leave 1; more than 0
        mask: (...) boolean, True = counts; all do if not given

    Returns:
        The mean over what counts, a scalar; 0 if nothing does.

    Raises:
        ValueError: if the shapes differ or ``clip`` is not positive.
        TypeError: if the mask is not boolean.

    >>> doubled, zero = torch.tensor([2.0]).log(), torch.zeros(1)
    >>> ppo_loss(doubled, zero, torch.tensor([1.0])).item()
    -1.2000000476837158
    >>> ppo_loss(doubled, zero, torch.tensor([-1.0])).item()
    2.0
    """
    mask = _checked_mask(
        mask, log_probs, old_log_probs=old_log_probs, advantages=advantages
    )
    objective = _clipped(log_probs, old_log_probs, advantages, clip, mask)
    return -mean_where(objective, mask)


# --- GRPO ---------------------------------------------------------------------------


def group_advantages(
    rewards: Tensor, *, scale: bool = True, eps: float = 1e-6
) -> Tensor:
    """Compare every answer with the other answers to the same prompt.

    The reward less the group's mean, over the group's standard deviation (that of the
    group itself: the mean of squares over n, not n - 1). If all did equally well,
    nobody earns anything. Shao et al., 2024, § 4.1.2; without the division, Liu et al.,
    2025 (Dr. GRPO).

    Args:
        rewards: (..., n), those of the n answers to a prompt, n at least 2
        scale: whether to divide by the standard deviation
        eps: the standard deviation is never taken smaller than this

    Returns:
        The advantages, (..., n); they sum to 0.

    Raises:
        ValueError: if a group has fewer than two answers.

    >>> group_advantages(torch.tensor([[1.0, 0.0], [10.0, 9.0]]))
    tensor([[ 1., -1.],
            [ 1., -1.]])
    """
    if rewards.dim() == 0 or rewards.shape[-1] < 2:
        raise ValueError(
            f"rewards have shape {tuple(rewards.shape)}, expected (..., n) with at "
            "least 2 answers to compare"
        )
    if not rewards.is_floating_point():
        rewards = rewards.float()
    apart = rewards - rewards.mean(dim=-1, keepdim=True)
    # Equal rewards can differ from their own mean by rounding.
    equal = rewards.amax(dim=-1, keepdim=True) == rewards.amin(dim=-1, keepdim=True)
    apart = apart.masked_fill(equal, 0.0)
    if not scale:
        return apart
    deviation = apart.square().mean(dim=-1, keepdim=True).sqrt()
    return apart / deviation.clamp(min=eps)


def grpo_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    reference_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip: float = 0.2,
    beta: float = 0.04,
) -> Tensor:
    """PPO without a critic: all tokens of an answer share the answer's advantage.

    The clipped objective of `ppo_loss`, and ``beta`` times the distance from the
    reference (k3 of `kl_estimate`), averaged over the tokens of each answer and then
    over the answers, so that long answers weigh no more. Shao et al., 2024, eq. (3).

    Args:
        log_probs: (B, T), the model's log-probabilities of what was said, in nats
        old_log_probs: (B, T), those when it was said; no gradient goes there
        reference_log_probs: (B, T), those of the reference; no gradient goes there
        advantages: (B,), one for each answer (`group_advantages`)
        mask: (B, T) boolean, True = a token of the answer
        clip: ε, by how much the ratio may leave 1
        beta: what a nat of distance costs; at least 0

    Returns:
        A scalar.

    Raises:
        ValueError: if the shapes do not fit, ``clip`` is not positive, or ``beta`` is
            negative.
        TypeError: if the mask is not boolean.

    >>> zeros, mask = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    >>> grpo_loss(zeros, zeros, zeros - 1, torch.tensor([1.0, -1.0]), mask, beta=1)
    tensor(0.3679)
    """
    require.not_negative(beta=beta)
    if advantages.shape != log_probs.shape[:1]:
        raise ValueError(
            f"advantages have shape {tuple(advantages.shape)}, expected one number for "
            f"each of the {len(log_probs)} answers"
        )
    mask = _checked_mask(
        mask,
        log_probs,
        old_log_probs=old_log_probs,
        reference_log_probs=reference_log_probs,
    )
    shared = advantages[:, None].expand(log_probs.shape)  # (B,) -> (B, T)
    objective = _clipped(log_probs, old_log_probs, shared, clip, mask)
    # Hidden before the exponential: it could overflow, and its gradient with it.
    hidden = (
        log_probs.masked_fill(~mask, 0),
        reference_log_probs.masked_fill(~mask, 0),
    )
    loss = beta * kl_estimate(*hidden) - objective  # (B, T)
    return mean_where(loss, mask, dim=1).mean()


# --- The rest of the chapter --------------------------------------------------------

ELSEWHERE = {
    "preference": (
        "token_log_probs",
        "answer_log_probs",
        "bradley_terry_loss",
        "RewardModel",
        "dpo_loss",
        "best_of_n",
        "Preference",
        "ai_preferences",
    ),
    "policy_trainers": (
        "sample_answers",
        "answered",
        "PolicyConfig",
        "StepReport",
        "PPOTrainer",
        "GRPOTrainer",
    ),
}


def __getattr__(name: str) -> object:
    # Looked up at every use, so that a student's version in its module is found.
    for module, names in ELSEWHERE.items():
        if name in names:
            return getattr(importlib.import_module(f"{__package__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def mean_where(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Average what counts; whatever stands elsewhere, even NaN, has no part in it.

    Args:
        values: (...)
        mask: (...) boolean, True = counts
        dim: the axis to average over; all if not given

    Returns:
        The mean, 0 where nothing counts.

    >>> mean_where(torch.tensor([1.0, 3.0, torch.nan]), torch.tensor([1, 1, 0]).bool())
    tensor(2.)
    """
    return values.masked_fill(~mask, 0.0).sum(dim) / mask.sum(dim).clamp(min=1)


def _clipped(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    clip: float,
    mask: Tensor,
) -> Tensor:
    """The objective of PPO for every token: (...) each -> (...)."""
    require.positive(clip=clip)
    # Hidden before the exponential: it could overflow, and its gradient with it.
    ratio = (log_probs - old_log_probs.detach()).masked_fill(~mask, 0.0).exp()
    advantages = advantages.detach()
    return torch.minimum(
        ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages
    )


def _checked_mask(mask: Tensor | None, like: Tensor, **tensors: Tensor) -> Tensor:
    _check_shapes(like, **tensors)
    if mask is None:
        return torch.ones_like(like, dtype=torch.bool)
    preference.check_mask(mask, like)
    return mask


def _check_shapes(like: Tensor, **tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.shape != like.shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, expected {tuple(like.shape)}"
            )
