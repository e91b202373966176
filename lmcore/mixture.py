"""Mixture of experts: many feed-forward networks, of which every token visits a few.

Chapter 10 of the book. The module builds, in this order: the router that chooses, the
layer that takes the place of a feed-forward network, and the loss that keeps all
experts at work.

Left out: a limit to the tokens that an expert takes, noise in the router, and experts
that are spread over several machines.

Papers: Shazeer et al., 2017 (sparse mixture); Fedus, Zoph and Shazeer, 2022 (Switch
Transformer: the balancing loss); Jiang et al., 2024 (Mixtral: two of eight experts).

E is the number of experts, K the number that a token visits.
"""

import torch
from torch import Tensor, nn

from . import require, transformer


class TopKRouter(nn.Module):
    """Chooses for every token the experts it visits, and how much each one counts.

    A linear layer without bias scores the experts; the best K share the token in
    proportion to their probabilities, and the shares sum to 1. Jiang et al., 2024,
    § 2.1.

    The parameter is that of the `nn.Linear` layer ``project_experts`` (E, C).

    Args:
        d_model: C
        n_experts: E
        top_k: K, between 1 and E
        device: where the parameter is made
        dtype: its floating type

    Raises:
        ValueError: if ``top_k`` does not lie between 1 and E.

    >>> router = TopKRouter(d_model=2, n_experts=3, top_k=2)
    >>> router.load_state_dict(
    ...     {"project_experts.weight": torch.tensor([[2.0, 0], [0, 0], [1, 0]])}
    ... )
    <All keys matched successfully>
    >>> shares, chosen, probabilities = router(torch.tensor([[1.0, 0.0]]))
    >>> chosen, shares.detach()
    (tensor([[0, 2]]), tensor([[0.7311, 0.2689]]))
    """

    def __init__(
        self,
        d_model: int,
        n_experts: int,
        top_k: int = 2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= top_k <= n_experts:
            raise ValueError(
                f"top_k={top_k} must lie between 1 and n_experts={n_experts}"
            )
        self.top_k = top_k
        self.project_experts = nn.Linear(
            d_model, n_experts, bias=False, device=device, dtype=dtype
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Choose the experts.

        Args:
            x: (..., C)

        Returns:
            The shares of the chosen experts, (..., K), which sum to 1; which experts
            these are, (..., K), the best first; and the probabilities of all experts,
            (..., E), which sum to 1 as well. Shares and probabilities are float32 at
            least.

        Raises:
            ValueError: if the width of ``x`` is not the router's.
        """
        require.width("x", x, self.project_experts.in_features)
        logits = self.project_experts(x)  # (..., E)
        # Half precision would make ties of experts that differ.
        wide = torch.promote_types(logits.dtype, torch.float32)
        probabilities = torch.softmax(logits, dim=-1, dtype=wide)
        best, chosen = probabilities.topk(self.top_k, dim=-1)  # (..., K)
        return best / best.sum(dim=-1, keepdim=True), chosen, probabilities


class MixtureOfExperts(nn.Module):
    """Sends every token to K of E feed-forward networks and adds up what they say.

    It stands where the feed-forward network of a layer stands. Jiang et al., 2024,
    § 2.1.

    The parts are ``router``, a `TopKRouter`, and ``experts``, E networks as
    `transformer.make_feed_forward` makes them. ``routing`` keeps the probabilities,
    (N, E), and the choices, (N, K), of the N tokens of the last call, for
    `load_balancing_loss`.

    Args:
        config: how each expert is built
        n_experts: E
        top_k: K, between 1 and E
        device: where the parameters are made
        dtype: their floating type

    Raises:
        ValueError: if ``top_k`` does not lie between 1 and E.

    >>> config = transformer.LayerConfig(d_model=4, n_heads=1, d_ff=8)
    >>> layer = MixtureOfExperts(config, n_experts=3, top_k=2)
    >>> layer(torch.zeros(1, 5, 4)).shape, layer.routing[1].shape
    (torch.Size([1, 5, 4]), torch.Size([5, 2]))
    """

    def __init__(
        self,
        config: transformer.LayerConfig,
        n_experts: int,
        top_k: int = 2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.router = TopKRouter(config.d_model, n_experts, top_k, device, dtype)
        self.experts = nn.ModuleList(
            transformer.make_feed_forward(config, device, dtype)
            for _ in range(n_experts)
        )
        self.routing: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Work on every token by itself.

        Args:
            x: (..., C)

        Returns:
            (..., C)

        Raises:
            ValueError: if the width of ``x`` is not the layer's.
        """
        tokens = x.reshape(-1, x.shape[-1])  # (N, C)
        shares, chosen, probabilities = self.router(tokens)
        self.routing = probabilities, chosen
        output = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            rows, places = (chosen == number).nonzero(as_tuple=True)
            share = shares[rows, places].to(x.dtype)[:, None]  # (visitors, 1)
            output = output.index_add(0, rows, share * expert(tokens[rows]))
        return output.reshape(x.shape)

    def balance_loss(self) -> Tensor:
        """Give the `load_balancing_loss` of the last call.

        Raises:
            RuntimeError: if the layer was never called.
        """
        if self.routing is None:
            raise RuntimeError("no token was routed yet: call the layer first")
        return load_balancing_loss(*self.routing)


def load_balancing_loss(probabilities: Tensor, chosen: Tensor) -> Tensor:
    """Measure how unevenly the experts are used.

    ``E · Σ f_e P_e``: f_e is the share of all visits that went to expert e, and P_e the
    mean probability that the router gave it, over all tokens. Only P has a gradient.
    Fedus, Zoph and Shazeer, 2022, eq. (4), with the visits of K experts counted alike.

    Args:
        probabilities: (..., E), of all experts for every token
        chosen: (..., K), the experts each token visits

    Returns:
        A number: 1 if all experts are used alike, E if one takes every token with
        certainty.

    Raises:
        ValueError: if the shapes do not fit, there is no token, or an expert does not
            exist.

    >>> collapsed = torch.tensor([[0.9, 0.1], [0.9, 0.1]])
    >>> load_balancing_loss(collapsed, torch.tensor([[0], [0]]))
    tensor(1.8000)
    """
    n_experts = probabilities.shape[-1]
    if probabilities.shape[:-1] != chosen.shape[:-1] or chosen.numel() == 0:
        raise ValueError(
            f"probabilities {tuple(probabilities.shape)} and chosen "
            f"{tuple(chosen.shape)} must tell of the same tokens, at least one"
        )
    if chosen.min() < 0 or chosen.max() >= n_experts:
        raise ValueError(
            f"chosen from {chosen.min()} to {chosen.max()} must lie between 0 and "
            f"{n_experts - 1}"
        )
    visits = torch.bincount(chosen.flatten(), minlength=n_experts)  # (E,)
    visit_share = visits / chosen.numel()
    mean_probability = probabilities.reshape(-1, n_experts).mean(dim=0)  # (E,)
    return n_experts * (visit_share * mean_probability).sum()
