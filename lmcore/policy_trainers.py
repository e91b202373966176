"""PPO and GRPO at work: answer, be rewarded, become a little better, answer again.

Chapter 13 of the book; these names can be used from ``lmcore.align`` as well. The
module builds, in this order: how a model writes answers to learn from; what is kept of
them; and the two trainers, which differ in where credit comes from: PPO asks a critic,
GRPO compares the answers of a group.

Left out: several machines, minibatches within a step, and quick writing: any function
with the arguments of `sample_answers` can take its place, such as ``lambda model, ids,
mask: sample.generate(model, ids, config, mask=mask, generator=generator)`` with
``lmcore.sample`` (temperature 1 and no filters: the ratio of PPO asks how likely the
model itself found its words).

Papers: Schulman et al., 2017, and Ouyang et al., 2022 (PPO); Shao et al., 2024 (GRPO).
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from . import align, modes, network, preference, require
from . import optimizer as optimizers

# (model, prompts (B, P), mask (B, P) or None) -> prompts and answers, (B, T)
Generate = Callable[[nn.Module, Tensor, Tensor | None], Tensor]
# (texts (B, T), mask (B, T) of real tokens) -> (B,), how good each answer is
Reward = Callable[[Tensor, Tensor], Tensor]

# --- Answers ------------------------------------------------------------------------


@torch.no_grad()
def sample_answers(
    model: nn.Module,
    prompts: Tensor,
    mask: Tensor | None = None,
    *,
    n_tokens: int,
    generator: torch.Generator,
    end_id: int | None = None,
) -> Tensor:
    """Write one answer to each prompt, every token drawn as the model says.

    The whole text is read anew for every token: slow, and right for any model. Dropout
    stays as it is.

    Args:
        model: maps ids (B, T), and a mask if there is one, to logits (B, T, V)
        prompts: (B, P); shorter prompts are padded on the left
        mask: (B, P) boolean, True = a real token; None if there is no padding
        n_tokens: N, how many tokens are written at most
        generator: draws the tokens, on the model's device
        end_id: the token that ends an answer; nothing does if not given

    Returns:
        Prompts and answers, (B, T) with T ≤ P + N; behind the end of an answer, only
        ``end_id`` follows.

    Raises:
        ValueError: if ``n_tokens`` is smaller than 1.

    >>> model = nn.Embedding(4, 4)  # any two tokens may follow each other
    >>> dice = torch.Generator().manual_seed(1)
    >>> sample_answers(model, torch.tensor([[2, 3]]), n_tokens=5, generator=dice).shape
    torch.Size([1, 7])
    """
    require.at_least_one(n_tokens=n_tokens)
    ids = prompts
    ended = torch.zeros_like(ids[:, :1], dtype=torch.bool)  # (B, 1)
    for _ in range(n_tokens):
        logits = model(ids) if mask is None else model(ids, mask)
        probabilities = network.softmax(logits[:, -1].float())  # (B, V)
        token = torch.multinomial(probabilities, 1, generator=generator)  # (B, 1)
        if end_id is not None:
            token = token.masked_fill(ended, end_id)
            ended = ended | (token == end_id)
        ids = torch.cat([ids, token], dim=1)
        if mask is not None:
            mask = torch.cat([mask, torch.ones_like(ended)], dim=1)
        if ended.all():
            break
    return ids


def answered(ids: Tensor, n_prompt: int, end_id: int | None = None) -> Tensor:
    """Find the tokens that the model itself wrote.

    Args:
        ids: (B, T), prompts and answers
        n_prompt: P, how many tokens the prompts have, padding included
        end_id: the token that ends an answer; nothing does if not given

    Returns:
        A boolean mask, (B, T), True from the first token of the answer up to its end,
        which the model wrote as well.

    Raises:
        ValueError: if there is no room for a prompt of at least one token and an
            answer of at least one.

    >>> answered(torch.tensor([[1, 5, 6, 1, 1]]), n_prompt=2, end_id=1)
    tensor([[False, False,  True,  True, False]])
    """
    if not 1 <= n_prompt < ids.shape[1]:
        raise ValueError(
            f"n_prompt={n_prompt} must lie between 1 and {ids.shape[1] - 1}, so that "
            "there is a prompt and an answer"
        )
    place = torch.arange(ids.shape[1], device=ids.device)  # (T,)
    in_answer = (place >= n_prompt).expand(ids.shape)
    if end_id is None:
        return in_answer
    is_end = in_answer & (ids == end_id)
    n_ends_before = is_end.cumsum(dim=1) - is_end.long()
    return in_answer & (n_ends_before == 0)


# --- What is kept of the answers ----------------------------------------------------


@dataclass(frozen=True)
class PolicyConfig:
    """How PPO and GRPO learn.

    >>> PolicyConfig(beta=0.1).clip
    0.2
    """

    end_id: int | None = None  # the token that ends an answer
    n_epochs: int = 4  # how often the model learns from the same answers
    clip: float = 0.2  # by how much the ratio may leave 1
    beta: float = 0.04  # what a nat of distance from the reference costs
    max_norm: float = 1.0  # the length of the gradient at most
    gamma: float = 1.0  # PPO: what a reward one token later is worth
    lam: float = 0.95  # PPO: 0 trusts the critic, 1 the rewards
    value_weight: float = 0.5  # PPO: the weight of the critic's squared error
    group_size: int = 8  # GRPO: how many answers to each prompt are compared

    def __post_init__(self) -> None:
        require.at_least_one(n_epochs=self.n_epochs)
        if self.group_size < 2:
            raise ValueError(f"group_size={self.group_size} must be at least 2")
        require.positive(clip=self.clip, max_norm=self.max_norm)
        require.not_negative(beta=self.beta, value_weight=self.value_weight)
        require.between(0, 1, gamma=self.gamma, lam=self.lam)


@dataclass(frozen=True)
class StepReport:
    """What a step of training saw, before it changed anything, and what it did.

    >>> StepReport(reward=1.0, kl=0.5, n_tokens=3.0, loss=0.1, clipped=0.0).reward
    1.0
    """

    reward: float  # mean over the answers, without the price of the distance
    kl: float  # KL(model ‖ reference), estimated by k3, in nats per answer
    n_tokens: float  # mean length of the answers, in tokens
    loss: float  # in the last epoch
    clipped: float  # share of tokens whose ratio was beyond the clip in the last epoch


@dataclass(frozen=True)
class Rollout:
    """Answers and what was known when they were written; all (B, T) but the rewards.

    >>> empty = torch.zeros(1, 2)
    >>> Rollout(empty, None, empty, empty, empty, empty, torch.zeros(1)).ids.shape
    torch.Size([1, 2])
    """

    ids: Tensor  # prompts and answers
    padding: Tensor | None  # True = a real token; None if no prompt is padded
    mask: Tensor  # True = a token that the model wrote
    real: Tensor  # True = a token of the prompt or of the answer
    log_probs: Tensor  # what the model thought of its own tokens, in nats
    reference_log_probs: Tensor  # what the reference thinks of them
    rewards: Tensor  # (B,)


class _PolicyTrainer:
    # What both trainers share: the answers, the reference, and a step of the optimizer.

    def __init__(
        self,
        policy: nn.Module,
        reward: Reward,
        generate: Generate,
        optimizer: torch.optim.Optimizer,
        config: PolicyConfig | None = None,
        reference: nn.Module | None = None,
    ) -> None:
        if reference is None:
            reference = copy.deepcopy(policy)
        self.policy, self.reference = policy, reference
        self.reward, self.generate, self.optimizer = reward, generate, optimizer
        self.config = PolicyConfig() if config is None else config
        trained = {p for group in optimizer.param_groups for p in group["params"]}
        if reference is policy or not trained.isdisjoint(reference.parameters()):
            raise ValueError(
                "the optimizer would change the reference, which must stay: give a "
                "copy of the policy, or None to have one made"
            )

    def train(self, prompts: Iterable[Tensor]) -> list[StepReport]:
        """Take one step for each batch of prompts.

        Args:
            prompts: batches of ids, (B, P) each, without padding

        Returns:
            One report for each step.

        Raises:
            ValueError: as in `step`.
        """
        reports = []
        with tqdm(prompts, unit="step") as progress:
            for batch in progress:
                reports.append(self.step(batch))
                last = reports[-1]
                progress.set_postfix(reward=f"{last.reward:.3f}", kl=f"{last.kl:.3f}")
        return reports

    def _log_probs(
        self, model: nn.Module, ids: Tensor, padding: Tensor | None
    ) -> Tensor:
        logits = model(ids) if padding is None else model(ids, padding)
        return preference.token_log_probs(logits, ids)

    @torch.no_grad()
    def _roll_out(self, prompts: Tensor, padding: Tensor | None) -> Rollout:
        if prompts.dim() != 2 or 0 in prompts.shape:
            raise ValueError(
                f"prompts have shape {tuple(prompts.shape)}, expected (B, P)"
            )
        n_prompt = prompts.shape[1]
        ids = self.generate(self.policy, prompts, padding)  # (B, T)
        if not torch.equal(ids[:, :n_prompt], prompts):
            raise ValueError("generate must return the prompts with their answers")
        mask = answered(ids, n_prompt, self.config.end_id)
        real = mask.clone()
        real[:, :n_prompt] = True if padding is None else padding
        if padding is not None:
            padding = real
        rewards = self.reward(ids, real).to(torch.float32)
        if rewards.shape != ids.shape[:1] or not rewards.isfinite().all():
            raise ValueError(
                f"the rewards {rewards.tolist()} must be one finite number for each of "
                f"the {len(ids)} answers"
            )
        log_probs = self._log_probs(self.policy, ids, padding)
        of_reference = self._log_probs(self.reference, ids, padding)
        return Rollout(ids, padding, mask, real, log_probs, of_reference, rewards)

    def _learn(self, loss: Tensor) -> None:
        if not loss.isfinite():
            raise ValueError(f"the loss is {loss.item()}: try a smaller learning rate")
        self.optimizer.zero_grad()
        loss.backward()
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        optimizers.clip_gradient_norm(trained, self.config.max_norm)
        self.optimizer.step()

    def _report(self, answers: Rollout, loss: Tensor, log_probs: Tensor) -> StepReport:
        mask = answers.mask
        kl = align.kl_estimate(answers.log_probs, answers.reference_log_probs)
        ratio = (log_probs.detach() - answers.log_probs).exp()
        beyond = ((ratio - 1).abs() > self.config.clip).float()
        return StepReport(
            reward=answers.rewards.mean().item(),
            kl=kl.masked_fill(~mask, 0.0).sum(dim=1).mean().item(),
            n_tokens=mask.sum(dim=1).float().mean().item(),
            loss=loss.item(),
            clipped=align.mean_where(beyond, mask).item(),
        )


# --- The trainers -------------------------------------------------------------------


class PPOTrainer(_PolicyTrainer):
    """Learns from rewards with a critic that says what was to be expected.

    Every token of an answer pays ``beta`` for each nat by which the model finds it
    likelier than the reference; the last token earns the answer's reward. Advantages
    are those of `align.gae`, brought to mean 0 and standard deviation 1 over the batch.
    Policy and critic learn together, and all models are in evaluation mode throughout,
    so that dropout does not change what the model thinks of its words. Ouyang et al.,
    2022, § 3.5 and eq. (2).

    Args:
        policy: the model that learns; maps ids (B, T), and a mask if there is one, to
            logits (B, T, V), each seeing only what stands before
        critic: has ``token_scores(ids, mask) -> (B, T)``, as `preference.RewardModel`
        reward: maps texts (B, T) and the mask of their real tokens, (B, T), to (B,): a
            rule that can be verified, or a reward model
        generate: writes answers, as `sample_answers` with its keywords given
        optimizer: holds the parameters of policy and critic
        config: how it learns
        reference: the model that the policy must not leave too far behind; a copy of
            the policy as it is now if not given

    Raises:
        ValueError: if the optimizer would change the reference.

    >>> from functools import partial
    >>> dice = torch.Generator().manual_seed(1)
    >>> policy, words = nn.Embedding(4, 4), nn.Embedding(4, 4)
    >>> critic = preference.RewardModel(words, d_model=4, generator=dice)
    >>> both = [*policy.parameters(), *critic.parameters()]
    >>> trainer = PPOTrainer(
    ...     policy,
    ...     critic,
    ...     reward=lambda ids, real: (ids[:, -1] == 3).float(),
    ...     generate=partial(sample_answers, n_tokens=1, generator=dice),
    ...     optimizer=torch.optim.Adam(both, lr=0.1),
    ... )
    >>> prompts = torch.zeros(16, 1, dtype=torch.int64)
    >>> reports = [trainer.step(prompts) for _ in range(20)]
    >>> reports[0].kl, reports[-1].reward > 0.9
    (0.0, True)
    """

    def __init__(
        self,
        policy: nn.Module,
        critic: nn.Module,
        reward: Reward,
        generate: Generate,
        optimizer: torch.optim.Optimizer,
        config: PolicyConfig | None = None,
        reference: nn.Module | None = None,
    ) -> None:
        super().__init__(policy, reward, generate, optimizer, config, reference)
        self.critic = critic

    def step(self, prompts: Tensor, mask: Tensor | None = None) -> StepReport:
        """Answer the prompts once each, and learn from the answers.

        Args:
            prompts: (B, P); shorter prompts are padded on the left
            mask: (B, P) boolean, True = a real token; None if there is no padding

        Returns:
            What was seen and done.

        Raises:
            ValueError: if the prompts are not (B, P), a reward or the loss is not
                finite, or the answers do not follow their prompts.
        """
        config = self.config
        with modes.evaluating(self.policy, self.reference, self.critic):
            answers = self._roll_out(prompts, mask)
            advantages, returns = self._credit(answers)
            for _ in range(config.n_epochs):
                ids, padding = answers.ids, answers.padding
                log_probs = self._log_probs(self.policy, ids, padding)
                old = answers.log_probs
                loss = align.ppo_loss(
                    log_probs, old, advantages, config.clip, answers.mask
                )
                error = (self._values(answers) - returns).square()
                error = align.mean_where(error, answers.mask)
                loss = loss + config.value_weight * error
                self._learn(loss)
        return self._report(answers, loss, log_probs)

    @torch.no_grad()
    def _credit(self, answers: Rollout) -> tuple[Tensor, Tensor]:
        """The advantage and the return of every token, (B, T) each."""
        mask = answers.mask
        price = align.kl_estimate(answers.log_probs, answers.reference_log_probs, "k1")
        # An answer has one last token: the one that no token of it follows.
        is_last = mask & ~F.pad(mask[:, 1:], (0, 1), value=False)
        rewards = -self.config.beta * price.masked_fill(~mask, 0.0)
        rewards = rewards + is_last * answers.rewards[:, None]
        values = self._values(answers)
        advantages = align.gae(
            rewards, values, self.config.gamma, self.config.lam, ends=is_last
        )
        mean = align.mean_where(advantages, mask)
        deviation = align.mean_where((advantages - mean).square(), mask).sqrt()
        return (advantages - mean) / deviation.clamp(min=1e-6), advantages + values

    def _values(self, answers: Rollout) -> Tensor:
        # A token is chosen in the state that ends one token before it.
        scores = self.critic.token_scores(answers.ids, answers.padding)  # (B, T)
        return F.pad(scores[:, :-1], (1, 0)).to(torch.float32)


class GRPOTrainer(_PolicyTrainer):
    """Learns from rewards by comparing several answers to the same prompt.

    No critic: what was to be expected is the mean of the group. The distance from the
    reference is part of the loss (`align.grpo_loss`). Both models are in evaluation
    mode throughout. Shao et al., 2024, § 4.1 and alg. 1.

    Args:
        policy: the model that learns; maps ids (B, T), and a mask if there is one, to
            logits (B, T, V), each seeing only what stands before
        reward: maps texts (B, T) and the mask of their real tokens, (B, T), to (B,)
        generate: writes answers, as `sample_answers` with its keywords given
        optimizer: holds the parameters of the policy
        config: how it learns
        reference: the model that the policy must not leave too far behind; a copy of
            the policy as it is now if not given

    Raises:
        ValueError: if the optimizer would change the reference.

    >>> from functools import partial
    >>> dice = torch.Generator().manual_seed(1)
    >>> policy = nn.Embedding(4, 4)
    >>> trainer = GRPOTrainer(
    ...     policy,
    ...     reward=lambda ids, real: (ids[:, -1] == 3).float(),
    ...     generate=partial(sample_answers, n_tokens=1, generator=dice),
    ...     optimizer=torch.optim.Adam(policy.parameters(), lr=0.1),
    ... )
    >>> reports = [trainer.step(torch.tensor([[0], [1]])) for _ in range(30)]
    >>> reports[0].kl, reports[-1].reward > 0.8
    (0.0, True)
    """

    def step(self, prompts: Tensor, mask: Tensor | None = None) -> StepReport:
        """Answer every prompt ``group_size`` times, and learn from the answers.

        Args:
            prompts: (B, P); shorter prompts are padded on the left
            mask: (B, P) boolean, True = a real token; None if there is no padding

        Returns:
            What was seen and done.

        Raises:
            ValueError: if the prompts are not (B, P), a reward or the loss is not
                finite, or the answers do not follow their prompts.
        """
        config, n = self.config, self.config.group_size
        prompts = prompts.repeat_interleave(n, dim=0)  # (B, P) -> (B · n, P)
        mask = None if mask is None else mask.repeat_interleave(n, dim=0)
        with modes.evaluating(self.policy, self.reference):
            answers = self._roll_out(prompts, mask)
            groups = answers.rewards.reshape(-1, n)  # (B, n)
            advantages = align.group_advantages(groups).flatten()
            for _ in range(config.n_epochs):
                log_probs = self._log_probs(self.policy, answers.ids, answers.padding)
                loss = align.grpo_loss(
                    log_probs,
                    answers.log_probs,
                    answers.reference_log_probs,
                    advantages,
                    answers.mask,
                    config.clip,
                    config.beta,
                )
                self._learn(loss)
        return self._report(answers, loss, log_probs)
