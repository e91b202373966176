"""Preferences: which of two answers is better, and how a model learns from it.

Chapter 13 of the book; these names can be used from ``lmcore.align`` as well. The
module builds, in this order: how likely a model finds an answer; a model of what people
prefer; learning from preferences without one; choosing the best of several answers; and
preferences that another model states.

Left out: how people are asked, and how far they agree.

Papers: Bradley and Terry, 1952; Stiennon et al., 2020, and Ouyang et al., 2022 (reward
models); Rafailov et al., 2023 (DPO); Bai et al., 2022 (constitutions); Lee et al., 2023
(both orders).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import finetune, network, require

Prompt = TypeVar("Prompt")
Answer = TypeVar("Answer")

# --- How likely an answer is --------------------------------------------------------


def token_log_probs(logits: Tensor, ids: Tensor) -> Tensor:
    """How likely a model finds every token of a text, given those before it.

    Args:
        logits: (B, T, V), what the model says after each token of ``ids``
        ids: (B, T), the text that was read

    Returns:
        Log-probabilities in nats, (B, T), each at the place of its token, in single
        precision at least. The first token has nothing before it: 0 stands there.

    Raises:
        ValueError: if the shapes do not fit.

    >>> logits = torch.tensor([[[0.0, 0.0], [5.0, 5.0]]])
    >>> token_log_probs(logits, torch.tensor([[0, 1]]))
    tensor([[ 0.0000, -0.6931]])
    """
    if ids.dim() != 2 or logits.shape[:-1] != ids.shape:
        raise ValueError(
            f"logits {tuple(logits.shape)} and ids {tuple(ids.shape)} must have the "
            "shapes (B, T, V) and (B, T)"
        )
    exact = torch.promote_types(logits.dtype, torch.float32)
    log_probs = network.log_softmax(logits[:, :-1].to(exact))  # (B, T - 1, V)
    said = log_probs.gather(-1, ids[:, 1:, None]).squeeze(-1)  # (B, T - 1)
    return F.pad(said, (1, 0))


def answer_log_probs(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """How likely a model finds a whole answer.

    The probability of a text is the product over its tokens, so the logarithms are
    summed, not averaged.

    Args:
        logits: (B, T, V), what the model says after each token of ``ids``
        ids: (B, T), prompt and answer
        mask: (B, T) boolean, True = a token of the answer (`finetune.answer_mask`)

    Returns:
        Log-probabilities in nats, (B,).

    Raises:
        ValueError: if the shapes do not fit, or an answer begins at the first token,
            whose probability nobody stated.
        TypeError: if the mask is not boolean.

    >>> ids, mask = torch.tensor([[0, 1, 0]]), torch.tensor([[False, True, True]])
    >>> answer_log_probs(torch.zeros(1, 3, 2), ids, mask)  # 2 ln 0.5
    tensor([-1.3863])
    """
    log_probs = token_log_probs(logits, ids)
    check_mask(mask, log_probs)
    if mask[:, :1].any():
        raise ValueError("mask is True at the first token: an answer needs a prompt")
    return log_probs.masked_fill(~mask, 0.0).sum(dim=1)


# --- What people prefer -------------------------------------------------------------


def bradley_terry_loss(
    chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0
) -> Tensor:
    """The surprise at the choice that people made, given the scores of both answers.

    The probability that an answer is preferred is the sigmoid of the difference of the
    scores: only differences count. Bradley and Terry, 1952; Ouyang et al., 2022, eq.
    (1); the margin is that of Touvron et al., 2023, eq. (2).

    Args:
        chosen: (B,), the scores of the answers that were preferred
        rejected: (B,), the scores of the others
        margin: (B,) or a number, by how much the chosen score must be the larger one

    Returns:
        The mean over the pairs, a scalar in nats.

    Raises:
        ValueError: if the shapes differ or there is no pair.

    >>> bradley_terry_loss(torch.tensor([1.0]), torch.tensor([1.0]))  # ln 2
    tensor(0.6931)
    """
    _check_same_shapes(chosen=chosen, rejected=rejected)
    # softplus(-x) = -log sigmoid(x), without overflow.
    return F.softplus(rejected - chosen + margin).mean()


class RewardModel(nn.Module):
    """A model that reads prompt and answer and gives one number: how good it is.

    One linear layer without bias, ``head`` (1, C), on the last real token of each text,
    which has read all of it. Ouyang et al., 2022, § 3.5.

    Args:
        backbone: makes features (`finetune.features_of`)
        d_model: C, their width
        generator: draws the first weights of the layer, on its own device
        dtype: the floating type of the layer

    >>> dice = torch.Generator().manual_seed(1)
    >>> model = RewardModel(nn.Embedding(10, 4), d_model=4, generator=dice)
    >>> model(torch.tensor([[1, 2], [3, 4]])).shape
    torch.Size([2])
    """

    def __init__(
        self,
        backbone: nn.Module,
        d_model: int,
        *,
        generator: torch.Generator,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(d_model, 1, bias=False, device="meta", dtype=dtype)
        weight = network.xavier_uniform(d_model, 1, generator, dtype)
        self.head.weight = nn.Parameter(weight)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Score whole texts.

        Args:
            ids: (B, T), prompts and answers
            mask: (B, T) boolean, True = a real token

        Returns:
            (B,), the score at the last real token of each text.

        Raises:
            ValueError: if shapes do not fit or a text has no real token.
        """
        features = finetune.features_of(self.backbone, ids, mask)
        return self.head(finetune.pool(features, mask)).squeeze(-1)  # (B, C) -> (B,)

    def token_scores(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Score every beginning of a text, as a critic does: (B, T) -> (B, T)."""
        features = finetune.features_of(self.backbone, ids, mask)
        return self.head(features).squeeze(-1)


def dpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float = 0.1,
) -> Tensor:
    """Learn from preferences directly: the model is its own reward model.

    The score of an answer is ``beta`` times how much likelier the model finds it than
    the reference does; the loss is `bradley_terry_loss` of these scores. Rafailov et
    al., 2023, eq. (7).

    Args:
        chosen: (B,), the model's log-probabilities of the preferred answers
            (`answer_log_probs`), in nats
        rejected: (B,), those of the others
        reference_chosen: (B,), what the reference says; no gradient goes there
        reference_rejected: (B,)
        beta: how dear it is to leave the reference; more than 0

    Returns:
        The mean over the pairs, a scalar in nats.

    Raises:
        ValueError: if the shapes differ, there is no pair or ``beta`` is not positive.

    >>> policy = torch.tensor([[-10.0], [-20.0]])
    >>> reference = torch.tensor([[-12.0], [-18.0]])
    >>> dpo_loss(*policy, *reference)
    tensor(0.5130)
    """
    require.positive(beta=beta)
    _check_same_shapes(
        chosen=chosen,
        rejected=rejected,
        reference_chosen=reference_chosen,
        reference_rejected=reference_rejected,
    )
    return bradley_terry_loss(
        beta * (chosen - reference_chosen.detach()),
        beta * (rejected - reference_rejected.detach()),
    )


# --- Choosing and judging -----------------------------------------------------------


def best_of_n(
    prompt: Prompt,
    generate: Callable[[Prompt], Answer],
    reward: Callable[[Prompt, Answer], float],
    n: int,
) -> tuple[Answer, float]:
    """Let a model answer several times and keep the answer with the highest reward.

    Nothing is learned. Of equal ones the first is kept. Stiennon et al., 2020, § 4.3.

    Args:
        prompt: of any type that ``generate`` and ``reward`` take
        generate: gives one answer, another one each time
        reward: says how good an answer is
        n: how many answers are made

    Returns:
        The best answer and its reward.

    Raises:
        ValueError: if n is smaller than 1 or a reward is not a number.

    >>> answers = iter(["no", "certainly", "yes"])
    >>> best_of_n("Ready?", lambda _: next(answers), lambda _, said: len(said), n=3)
    ('certainly', 9.0)
    """
    require.at_least_one(n=n)
    best: tuple[Answer, float] | None = None
    for _ in range(n):
        answer = generate(prompt)
        value = float(reward(prompt, answer))
        if value != value:
            raise ValueError(f"the reward of {answer!r} is {value}, not a number")
        if best is None or value > best[1]:
            best = answer, value
    return best


@dataclass(frozen=True)
class Preference:
    """Two answers to one prompt, of which one is preferred.

    >>> Preference("2 + 2?", "4", "5").confidence
    1.0
    """

    prompt: str
    chosen: str  # the better answer
    rejected: str  # the other one
    confidence: float = 1.0  # the probability that it is the better one


def ai_preferences(
    comparisons: Iterable[tuple[str, str, str]],
    judge: Callable[[str, str, str, str], float],
    principles: Sequence[str],
    *,
    generator: torch.Generator,
    min_confidence: float = 0.5,
) -> list[Preference]:
    """Let a model say which answers are better, by the principles of a constitution.

    For each comparison one principle is drawn. The judge sees the answers in both
    orders, and its two judgements are averaged, since models favour the answer that
    stands first. Bai et al., 2022, § 4.1; Lee et al., 2023, § 2.1.

    Args:
        comparisons: a prompt and two answers each
        judge: given a principle, a prompt and two answers, the probability that the
            first answer is the better one
        principles: what makes an answer good, in words
        generator: draws the principles, on the CPU
        min_confidence: a comparison counts if one answer is preferred with a
            probability of more than this

    Returns:
        The preferences, in order; comparisons that stay undecided are left out.

    Raises:
        TypeError: if the principles are one string.
        ValueError: if there is no principle, the judge gives no probability, or
            ``min_confidence`` does not lie between 0.5 and 1.

    >>> def judge(principle, prompt, first, second):
    ...     return 0.9 if len(first) < len(second) else 0.3
    >>> dice = torch.Generator().manual_seed(1)
    >>> rules = ["Which answer is shorter?"]
    >>> ai_preferences([("Well?", "Yes, I am.", "Yes.")], judge, rules, generator=dice)
    [Preference(prompt='Well?', chosen='Yes.', rejected='Yes, I am.', confidence=0.8)]
    """
    if isinstance(principles, str):
        raise TypeError(f"principles={principles!r} is one string, expected a list")
    if not principles:
        raise ValueError("there is no principle to judge by")
    if not 0.5 <= min_confidence < 1:
        raise ValueError(f"min_confidence={min_confidence} must lie in 0.5 … 1")
    preferences = []
    for prompt, first, second in comparisons:
        drawn = torch.randint(len(principles), (), generator=generator)
        ask = (principles[drawn], prompt)
        forwards = _probability(judge(*ask, first, second))
        backwards = _probability(judge(*ask, second, first))
        first_is_better = (forwards + 1 - backwards) / 2
        if first_is_better > min_confidence:
            preferences.append(Preference(prompt, first, second, first_is_better))
        elif 1 - first_is_better > min_confidence:
            preferences.append(Preference(prompt, second, first, 1 - first_is_better))
    return preferences


def _probability(value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"the judge said {value}, expected a probability")
    return float(value)


def check_mask(mask: Tensor, like: Tensor) -> None:
    """Refuse a mask that is not boolean or not of the shape of what it hides.

    Args:
        mask: what was given as a mask
        like: what it is for

    Raises:
        TypeError: if the mask is not boolean.
        ValueError: if the shapes differ.

    >>> check_mask(torch.tensor([True]), torch.zeros(2))
    Traceback (most recent call last):
    ...
    ValueError: mask has shape (1,), expected (2,)
    """
    if mask.dtype != torch.bool:
        raise TypeError(f"mask has dtype {mask.dtype}, expected torch.bool")
    if mask.shape != like.shape:
        raise ValueError(
            f"mask has shape {tuple(mask.shape)}, expected {tuple(like.shape)}"
        )


def _check_same_shapes(**tensors: Tensor) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1 or 0 in next(iter(shapes.values())):
        raise ValueError(f"expected one shape (B,) for all, B at least 1: {shapes}")
