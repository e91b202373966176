"""Unit 08: what learners write instead of attention, and what is right all the same.

Every mistake is a wrong implementation of one function, right in everything but the one
thing it is about, with the sentence that a learner reads who made it. Every variant is
a right answer, written differently, that no check may reject.

A learner is told of the first mistake in this file whose value fits. So, for each
function, what goes wrong on few inputs stands before what goes wrong on many.
"""

import math

import torch
from torch.nn import functional as F

from lmcore import attention
from lmcourse.mistakes import mistake, variant

# ── 1 · by_hand ──────────────────────────────────────────────────────────────────────


def _on_paper(scores, weights, masked_weights):
    """Fill in what follows from three weights: the averages of the values."""
    return {
        "scores": scores,
        "weights": weights,
        "output": [10 * weights[1], 10 * weights[2]],
        "masked_weights": masked_weights,
        "masked_output": [10 * masked_weights[1], 10 * masked_weights[2]],
    }


@mistake(
    "by_hand",
    says="These are the bare dot products. Divide each by √D; here D is 4, the width "
    "of a key.",
)
def scores_not_divided():
    return _on_paper([0.0, 4.0, 2.0], [0.02, 0.87, 0.12], [0.12, 0.0, 0.88])


@mistake(
    "by_hand",
    says="You divided the dot products by D, which is 4. It is the square root of D "
    "that keeps their spread at one.",
)
def scores_divided_by_width():
    return _on_paper([0.0, 1.0, 0.5], [0.19, 0.51, 0.31], [0.38, 0.0, 0.62])


@mistake(
    "by_hand",
    says="The forbidden word was struck out after the sharing: a part of the "
    "attention is lost. Take the word away first, then share out the whole unit "
    "between the others.",
)
def masked_without_sharing_again():
    return _on_paper([0.0, 2.0, 1.0], [0.09, 0.67, 0.24], [0.09, 0.0, 0.24])


@mistake(
    "by_hand",
    says="A forbidden word with score 0 still takes a share, because e⁰ is 1. Leave "
    "it out of the sum altogether.",
)
def forbidden_score_is_zero():
    return _on_paper([0.0, 2.0, 1.0], [0.09, 0.67, 0.24], [0.21, 0.21, 0.58])


@mistake(
    "by_hand",
    says="You shared out the scores themselves. Softmax shares out e to the power of "
    "the scores, so even a score of 0 gets something.",
)
def scores_shared_without_exponential():
    return _on_paper([0.0, 2.0, 1.0], [0.0, 0.67, 0.33], [0.0, 0.0, 1.0])


@variant("by_hand")
def two_decimals_in_tuples():
    return {
        "scores": (0, 2, 1),
        "weights": (0.09, 0.67, 0.24),
        "output": (6.7, 2.4),
        "masked_weights": (0.27, 0, 0.73),
        "masked_output": (0, 7.3),
    }


@variant("by_hand")
def let_torch_do_the_sums():
    scores = torch.tensor([0.0, 2.0, 1.0])
    values = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    weights = torch.softmax(scores, 0)
    masked = torch.softmax(torch.tensor([0.0, -math.inf, 1.0]), 0)
    return {
        "scores": scores,
        "weights": weights,
        "output": weights @ values,
        "masked_weights": masked,
        "masked_output": masked @ values,
    }


# ── 2 · additive_score ───────────────────────────────────────────────────────────────


@mistake(
    "attention.additive_score",
    says="Your score is the plain sum, without tanh. Without it the network is a "
    "straight line: a key's part is the same for every query, and softmax cancels "
    "the query's.",
)
def additive_without_tanh(query, key, w_query, w_key, w_score):
    from_query, from_key = query @ w_query.T, key @ w_key.T
    return (from_query[..., :, None, :] + from_key[..., None, :, :]) @ w_score


@mistake(
    "attention.additive_score",
    says="You squeezed query and key each by itself. Then they never meet inside the "
    "tanh: add first, squeeze the sum.",
)
def tanh_of_each_part(query, key, w_query, w_key, w_score):
    from_query, from_key = torch.tanh(query @ w_query.T), torch.tanh(key @ w_key.T)
    return (from_query[..., :, None, :] + from_key[..., None, :, :]) @ w_score


@mistake(
    "attention.additive_score",
    says="You weighed the sum first and squeezed the score. The tanh belongs to the "
    "hidden layer: squeeze the A numbers, then weigh them with w_score.",
)
def tanh_of_the_score(query, key, w_query, w_key, w_score):
    from_query, from_key = query @ w_query.T, key @ w_key.T
    hidden = from_query[..., :, None, :] + from_key[..., None, :, :]
    return torch.tanh(hidden @ w_score)


@mistake(
    "attention.additive_score",
    says="Your hidden layer uses another squeeze than tanh (the logistic function, "
    "which is never negative). The formula asks for tanh.",
)
def logistic_instead_of_tanh(query, key, w_query, w_key, w_score):
    from_query, from_key = query @ w_query.T, key @ w_key.T
    hidden = from_query[..., :, None, :] + from_key[..., None, :, :]
    return torch.sigmoid(hidden) @ w_score


@mistake(
    "attention.additive_score",
    says="Your rows are the keys. Row t should hold the scores of query t, so the "
    "new axis goes before the keys of the queries: the shape is (..., T, S).",
)
def keys_in_the_rows(query, key, w_query, w_key, w_score):
    from_query, from_key = query @ w_query.T, key @ w_key.T
    hidden = torch.tanh(from_query[..., None, :, :] + from_key[..., :, None, :])
    return hidden @ w_score


@mistake(
    "attention.additive_score",
    says="The two matrices have changed places: w_query belongs to the query and "
    "w_key to the key.",
)
def matrices_exchanged(query, key, w_query, w_key, w_score):
    from_query, from_key = query @ w_key.T, key @ w_query.T
    hidden = torch.tanh(from_query[..., :, None, :] + from_key[..., None, :, :])
    return hidden @ w_score


@mistake(
    "attention.additive_score",
    says="These are weights, not scores: softmax has been applied already. The "
    "caller does that, after the mask.",
)
def softmax_of_the_scores(query, key, w_query, w_key, w_score):
    from_query, from_key = query @ w_query.T, key @ w_key.T
    hidden = torch.tanh(from_query[..., :, None, :] + from_key[..., None, :, :])
    return torch.softmax(hidden @ w_score, dim=-1)


@mistake(
    "attention.additive_score",
    says="Query t met key t only. Every query is scored against every key: give "
    "queries and keys an axis of their own before you add.",
)
def pairs_only(query, key, w_query, w_key, w_score):
    return torch.tanh(query @ w_query.T + key @ w_key.T) @ w_score


@variant("attention.additive_score")
def concatenate_then_project(query, key, w_query, w_key, w_score):
    n_queries, n_keys = query.shape[-2], key.shape[-2]
    queries = query.unsqueeze(-2).expand(*query.shape[:-1], n_keys, query.shape[-1])
    keys = key.unsqueeze(-3).expand(*key.shape[:-2], n_queries, n_keys, key.shape[-1])
    both = torch.cat([queries, keys], dim=-1)  # (..., T, S, Dq + Dk)
    hidden = torch.tanh(F.linear(both, torch.cat([w_query, w_key], dim=-1)))
    return (hidden * w_score).sum(dim=-1)


@variant("attention.additive_score")
def score_query_by_query(query, key, w_query, w_key, w_score):
    from_key = torch.einsum("...sk,ak->...sa", key, w_key)
    rows = []
    for one in query.unbind(dim=-2):
        from_query = torch.einsum("...k,ak->...a", one, w_query)
        hidden = torch.tanh(from_key + from_query[..., None, :])
        rows.append(torch.einsum("...sa,a->...s", hidden, w_score))
    return torch.stack(rows, dim=-2)


# ── 3 · scaled_dot_product_attention ─────────────────────────────────────────────────


def _scores(query, key):
    return query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])


def _hide(scores, mask):
    lowest = torch.finfo(scores.dtype).min
    return scores if mask is None else scores.masked_fill(~mask, lowest)


def _clean(weights, value, mask):
    """Give blind queries no weights, and padding no value."""
    if mask is None:
        return weights, value
    nobody_looks = ~mask.any(dim=-2)[..., None]
    return weights.masked_fill(~mask, 0.0), value.masked_fill(nobody_looks, 0.0)


def _attend(query, key, value, mask=None, dropout_p=0.0, scale=None):
    """A right answer, but for the scale where one is given."""
    attention._check_attention_inputs(query, key, value, mask)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = _hide(query @ key.transpose(-2, -1) * scale, mask)
    weights, value = _clean(torch.softmax(scores, dim=-1), value, mask)
    return F.dropout(weights, dropout_p) @ value, weights


def _fill_with(fill, query, key, value, mask, dropout_p):
    attention._check_attention_inputs(query, key, value, mask)
    scores = _scores(query, key)
    if mask is not None:
        scores = scores.masked_fill(~mask, fill)
        value = _clean(scores, value, mask)[1]
    weights = torch.softmax(scores, dim=-1)
    return F.dropout(weights, dropout_p) @ value, weights


_SCORE_OF_ZERO = (
    "A forbidden key has a score of practically 0, from a product with the mask or a "
    "tiny fill. That is no exclusion: e⁰ is 1. A forbidden score is far below all "
    "others."
)


@mistake(
    "attention.scaled_dot_product_attention",
    says="Your scores are not divided by √D. Long dot products are large numbers, "
    "and softmax of large numbers looks at one key only.",
)
def not_scaled(query, key, value, mask=None, dropout_p=0.0):
    return _attend(query, key, value, mask, dropout_p, scale=1.0)


@mistake(
    "attention.scaled_dot_product_attention",
    says="You divided by D, not by its square root. A sum of D products spreads by "
    "√D, so D is too much: the attention becomes too flat.",
)
def divided_by_width(query, key, value, mask=None, dropout_p=0.0):
    return _attend(query, key, value, mask, dropout_p, scale=1 / query.shape[-1])


@mistake(
    "attention.scaled_dot_product_attention",
    says="You divided by √C, the width of the whole token. How many products does "
    "one score add up? Only those of its head: D of them.",
)
def divided_by_root_of_model_width(query, key, value, mask=None, dropout_p=0.0):
    n_heads = query.shape[-3] if query.ndim > 3 else 1
    scale = 1 / math.sqrt(n_heads * query.shape[-1])
    return _attend(query, key, value, mask, dropout_p, scale)


@mistake(
    "attention.scaled_dot_product_attention",
    says="You divided by the root of the number of keys. A score adds up D products, "
    "however long the text is: it is the width that counts.",
)
def divided_by_root_of_length(query, key, value, mask=None, dropout_p=0.0):
    scale = 1 / math.sqrt(key.shape[-2])
    return _attend(query, key, value, mask, dropout_p, scale)


@mistake(
    "attention.scaled_dot_product_attention",
    says="You divided after the softmax. Then the weights no longer sum to 1: scale "
    "the scores, before they are shared out.",
)
def scaled_after_softmax(query, key, value, mask=None, dropout_p=0.0):
    scores = _hide(query @ key.transpose(-2, -1), mask)
    weights, value = _clean(torch.softmax(scores, dim=-1), value, mask)
    weights = weights / math.sqrt(query.shape[-1])
    return F.dropout(weights, dropout_p) @ value, weights


@mistake(
    "attention.scaled_dot_product_attention",
    says="Your weights sum to 1 over the queries, not over the keys: your columns "
    "do, your rows do not. Each query shares out one unit of attention; softmax "
    "along the keys.",
)
def softmax_over_queries(query, key, value, mask=None, dropout_p=0.0):
    weights = torch.softmax(_hide(_scores(query, key), mask), dim=-2)
    weights, value = _clean(weights, value, mask)
    return F.dropout(weights, dropout_p) @ value, weights


@mistake(
    "attention.scaled_dot_product_attention",
    says="Your softmax runs along axis 1, counted from the front: with batch and "
    "heads in front these are the heads, not the keys. Count from the back.",
)
def softmax_over_axis_one(query, key, value, mask=None, dropout_p=0.0):
    weights = torch.softmax(_hide(_scores(query, key), mask), dim=1)
    weights, value = _clean(weights, value, mask)
    return F.dropout(weights, dropout_p) @ value, weights


@mistake(
    "attention.scaled_dot_product_attention",
    says="-100 is not low enough: scores of allowed keys can be lower still, and "
    "then the forbidden one wins. Go down to the lowest number of the type.",
)
def fill_with_minus_hundred(query, key, value, mask=None, dropout_p=0.0):
    weights = _fill_with(-100.0, query, key, value, mask, dropout_p)[1]
    if mask is not None:  # so that only low scores show it
        blind = ~mask.any(dim=-1, keepdim=True)
        weights = weights.masked_fill(blind, 0.0)
        value = _clean(weights, value, mask)[1]
    return F.dropout(weights, dropout_p) @ value, weights


@mistake(
    "attention.scaled_dot_product_attention",
    says="NaN came through from the padding. Its weight is 0, but 0 times NaN is "
    "NaN: values that no query may look at must be replaced before the average.",
)
def nan_in_padding_comes_through(query, key, value, mask=None, dropout_p=0.0):
    weights = _attend(query, key, value, mask)[1]
    return F.dropout(weights, dropout_p) @ value, weights


@mistake(
    "attention.scaled_dot_product_attention",
    says="You took forbidden keys out after softmax and shared out again. That holds "
    "until a forbidden key contains NaN: softmax has seen it by then. Mask the "
    "scores.",
)
def mask_after_softmax_and_share_again(query, key, value, mask=None, dropout_p=0.0):
    weights = torch.softmax(_scores(query, key), dim=-1)
    weights, value = _clean(weights, value, mask)
    total = weights.sum(dim=-1, keepdim=True)
    weights = weights / total.masked_fill(total == 0, 1.0)
    return F.dropout(weights, dropout_p) @ value, weights


@mistake(
    "attention.scaled_dot_product_attention",
    says="A query that may look at nothing gives NaN: its scores are all minus "
    "infinity, and 0 shared out among 0 is not a number. Such a row is zeros.",
)
def blind_query_gives_nan(query, key, value, mask=None, dropout_p=0.0):
    return _fill_with(-math.inf, query, key, value, mask, dropout_p)


@mistake(
    "attention.scaled_dot_product_attention",
    says="A query that may look at nothing looks at everything in equal parts: all "
    "its scores are equally low. Set forbidden weights to zero after softmax, too.",
)
def blind_query_averages_all(query, key, value, mask=None, dropout_p=0.0):
    attention._check_attention_inputs(query, key, value, mask)
    weights = torch.softmax(_hide(_scores(query, key), mask), dim=-1)
    value = _clean(weights, value, mask)[1]
    return F.dropout(weights, dropout_p) @ value, weights


@mistake(
    "attention.scaled_dot_product_attention",
    says="Your mask is read the wrong way round: here True means 'may look', and the "
    "keys with False are the forbidden ones.",
)
def mask_inverted(query, key, value, mask=None, dropout_p=0.0):
    return _attend(query, key, value, None if mask is None else ~mask, dropout_p)


@mistake(
    "attention.scaled_dot_product_attention",
    says="These are the weights you get when the mask is applied after softmax: "
    "forbidden keys took their share first, so the rows sum to less than 1. Mask the "
    "scores.",
)
def mask_after_softmax(query, key, value, mask=None, dropout_p=0.0):
    weights = torch.softmax(_scores(query, key), dim=-1)
    weights, value = _clean(weights, value, mask)
    return F.dropout(weights, dropout_p) @ value, weights


@mistake(
    "attention.scaled_dot_product_attention",
    says="The mask was added to the scores as 0 and 1: an allowed key is then only e "
    "times as attractive as a forbidden one. Plus one is not the same as allowed.",
)
def mask_added(query, key, value, mask=None, dropout_p=0.0):
    attention._check_attention_inputs(query, key, value, mask)
    scores = _scores(query, key)
    weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
    return F.dropout(weights, dropout_p) @ value, weights


@mistake("attention.scaled_dot_product_attention", says=_SCORE_OF_ZERO)
def mask_multiplied(query, key, value, mask=None, dropout_p=0.0):
    attention._check_attention_inputs(query, key, value, mask)
    scores = _scores(query, key)
    weights = torch.softmax(scores if mask is None else scores * mask, dim=-1)
    return F.dropout(weights, dropout_p) @ value, weights


@mistake("attention.scaled_dot_product_attention", says=_SCORE_OF_ZERO)
def fill_with_a_tiny_number(query, key, value, mask=None, dropout_p=0.0):
    return _fill_with(1e-10, query, key, value, mask, dropout_p)


@mistake(
    "attention.scaled_dot_product_attention",
    says="A forbidden score of -e still gets six parts in a hundred. After the "
    "exponential, is it really zero? Go down to the lowest number there is.",
)
def fill_with_minus_e(query, key, value, mask=None, dropout_p=0.0):
    return _fill_with(-math.e, query, key, value, mask, dropout_p)


@mistake(
    "attention.scaled_dot_product_attention",
    says="The fill is positive infinity: two minus signs have met. Forbidden keys "
    "then outbid everybody, and infinity minus infinity is NaN.",
)
def fill_with_plus_infinity(query, key, value, mask=None, dropout_p=0.0):
    return _fill_with(math.inf, query, key, value, mask, dropout_p)


@mistake(
    "attention.scaled_dot_product_attention",
    says="float16 ends at 65,504, so it cannot hold -1e9. Take a fill that fits the "
    "type of the scores: its lowest number, or minus infinity.",
)
def fill_with_minus_a_billion(query, key, value, mask=None, dropout_p=0.0):
    if mask is not None:
        _scores(query, key).masked_fill(~mask, -1e9)
    return _attend(query, key, value, mask, dropout_p)


@mistake(
    "attention.scaled_dot_product_attention",
    says="The values that came in were changed: an operation ending in an underscore "
    "overwrites. Work on a new tensor; the caller still needs the old one.",
)
def values_overwritten(query, key, value, mask=None, dropout_p=0.0):
    attention._check_attention_inputs(query, key, value, mask)
    weights = _attend(query, key, value, mask)[1]
    if mask is not None:
        hidden = ~mask.any(dim=-2)[..., None].expand(value.shape)
        with torch.no_grad():
            value[hidden] = 0.0
    return F.dropout(weights, dropout_p) @ value, weights


@mistake(
    "attention.scaled_dot_product_attention",
    says="The weights were overwritten in place after softmax. Forwards that is "
    "right, but softmax needs its own result on the way back. Make a new tensor.",
)
def weights_overwritten(query, key, value, mask=None, dropout_p=0.0):
    attention._check_attention_inputs(query, key, value, mask)
    weights = torch.softmax(_hide(_scores(query, key), mask), dim=-1)
    value = _clean(weights, value, mask)[1]
    if mask is not None:
        weights.masked_fill_(~mask, 0.0)
    return F.dropout(weights, dropout_p) @ value, weights


@mistake(
    "attention.scaled_dot_product_attention",
    says="Weights are thrown away even when dropout_p is 0. A plain function does "
    "not know whether this is training: dropout_p decides, and nothing else.",
)
def dropout_always_on(query, key, value, mask=None, dropout_p=0.0):
    return _attend(query, key, value, mask, dropout_p or 0.1)


@mistake(
    "attention.scaled_dot_product_attention",
    says="dropout_p has no effect. Throw away this share of the weights before the "
    "values are averaged.",
)
def dropout_forgotten(query, key, value, mask=None, dropout_p=0.0):
    return _attend(query, key, value, mask)


@mistake(
    "attention.scaled_dot_product_attention",
    says="Weights are thrown away, but those that stay do not grow: on average the "
    "output is too small. Divide them by 1 - dropout_p.",
)
def dropout_without_growth(query, key, value, mask=None, dropout_p=0.0):
    weights = _attend(query, key, value, mask)[1]
    value = _clean(weights, value, mask)[1]
    kept = torch.rand(weights.shape) >= dropout_p
    return (weights * kept) @ value, weights


@mistake(
    "attention.scaled_dot_product_attention",
    says="You return the weights after dropout. A map of the attention should show "
    "where the query looked: return those before it.",
)
def dropped_weights_returned(query, key, value, mask=None, dropout_p=0.0):
    weights = _attend(query, key, value, mask)[1]
    value = _clean(weights, value, mask)[1]
    weights = F.dropout(weights, dropout_p)
    return weights @ value, weights


@mistake(
    "attention.scaled_dot_product_attention",
    says="You return the output alone. The caller expects a pair: (output, weights).",
)
def weights_not_returned(query, key, value, mask=None, dropout_p=0.0):
    return _attend(query, key, value, mask, dropout_p)[0]


@mistake(
    "attention.scaled_dot_product_attention",
    says="The pair is in the wrong order: first the output, then the weights.",
)
def pair_exchanged(query, key, value, mask=None, dropout_p=0.0):
    output, weights = _attend(query, key, value, mask, dropout_p)
    return weights, output


@mistake(
    "attention.scaled_dot_product_attention",
    says="The second result is the scores. The weights are what softmax makes of them.",
)
def scores_returned(query, key, value, mask=None, dropout_p=0.0):
    output, _ = _attend(query, key, value, mask, dropout_p)
    return output, _hide(_scores(query, key), mask)


@mistake(
    "attention.scaled_dot_product_attention",
    says="You averaged the keys. Keys are for being found; what is passed on are the "
    "values.",
)
def keys_averaged(query, key, value, mask=None, dropout_p=0.0):
    return _attend(query, key, key, mask, dropout_p)


@mistake(
    "attention.scaled_dot_product_attention",
    says="A mask of floats was taken for a boolean one. Refuse it with a TypeError, "
    "so that nobody's -inf and 0 are read as True and False.",
)
def float_mask_accepted(query, key, value, mask=None, dropout_p=0.0):
    mask = None if mask is None else mask.bool()
    return _attend(query, key, value, mask, dropout_p)


@variant("attention.scaled_dot_product_attention")
def scale_the_query_first(query, key, value, mask=None, dropout_p=0.0):
    attention._check_attention_inputs(query, key, value, mask)
    query = query * query.shape[-1] ** -0.5
    scores = torch.einsum("...td,...sd->...ts", query, key)
    if mask is not None:
        scores = scores.masked_fill(mask.logical_not(), float("-inf"))
        value = torch.where(mask.any(dim=-2).unsqueeze(-1), value, 0.0)
    weights = scores.softmax(-1).nan_to_num(0.0)
    return torch.einsum(
        "...ts,...sv->...tv", F.dropout(weights, dropout_p), value
    ), weights


@variant("attention.scaled_dot_product_attention")
def exponentials_by_hand(query, key, value, mask=None, dropout_p=0.0):
    if mask is not None and mask.dtype is not torch.bool:
        raise TypeError("the mask must be boolean")
    root = query.shape[-1] ** 0.25
    scores = (query / root) @ (key / root).mT
    if mask is not None:
        mask = mask.expand(scores.shape)
        scores = torch.where(mask, scores, torch.finfo(scores.dtype).min)
        value = value.masked_fill(~mask.any(dim=-2, keepdim=True).mT, 0)
    weights = torch.exp(scores - scores.amax(dim=-1, keepdim=True))
    if mask is not None:
        weights = weights * mask
    total = weights.sum(dim=-1, keepdim=True)
    weights = weights / torch.where(total > 0, total, 1)
    kept = torch.bernoulli(torch.full_like(weights, 1 - dropout_p)) / (1 - dropout_p)
    return (weights * kept) @ value, weights


@variant("attention.scaled_dot_product_attention")
def query_by_query(query, key, value, mask=None, dropout_p=0.0):
    attention._check_attention_inputs(query, key, value, mask)
    n_queries, n_keys = query.shape[-2], key.shape[-2]
    if mask is None:
        mask = torch.ones(n_queries, n_keys, dtype=torch.bool)
    mask = mask.expand(*mask.shape[:-2], n_queries, n_keys)
    key = key.nan_to_num(0.0)
    value = value.nan_to_num(0.0)
    outputs, rows = [], []
    for t in range(n_queries):
        scores = (key * query[..., [t], :]).sum(dim=-1) / math.sqrt(key.shape[-1])
        scores = scores.where(mask[..., t, :], torch.tensor(-math.inf).to(scores))
        row = torch.exp(torch.log_softmax(scores, dim=-1))
        row = torch.where(mask[..., t, :], row, torch.zeros_like(row))
        rows.append(row)
        outputs.append((F.dropout(row, dropout_p)[..., None] * value).sum(dim=-2))
    return torch.stack(outputs, dim=-2), torch.stack(rows, dim=-2)


# ── 4 · causal_mask ──────────────────────────────────────────────────────────────────


def _places(n_queries, n_keys=None, device=None):
    """Number the queries (as a column) and the keys (as a row) by their places."""
    n_keys = n_queries if n_keys is None else n_keys
    if n_keys < n_queries:
        raise ValueError(f"n_keys={n_keys} is less than n_queries={n_queries}")
    places = torch.arange(n_keys, device=device)
    return places[n_keys - n_queries :, None], places[None, :]


@mistake(
    "attention.causal_mask",
    says="A token cannot see itself: your mask stops one short of the diagonal, and "
    "the first token sees nothing at all. A token may look at itself.",
)
def diagonal_excluded(n_queries, n_keys=None, device=None):
    query, key = _places(n_queries, n_keys, device)
    return key < query


@mistake(
    "attention.causal_mask",
    says="Your tokens look into the future: row and column have changed places. The "
    "rows are the queries, and a key may not stand after its query.",
)
def looks_ahead(n_queries, n_keys=None, device=None):
    query, key = _places(n_queries, n_keys, device)
    return key >= query


@mistake(
    "attention.causal_mask",
    says="True marks what is forbidden in your mask. Here True means 'may look': "
    "turn it round.",
)
def true_means_forbidden(n_queries, n_keys=None, device=None):
    query, key = _places(n_queries, n_keys, device)
    return key > query


@mistake(
    "attention.causal_mask",
    says="With more keys than queries, you placed the queries at the start of the "
    "text. They are its last tokens: query 0 stands at position S - T.",
)
def queries_at_the_start(n_queries, n_keys=None, device=None):
    key = _places(n_queries, n_keys, device)[1]
    return key <= torch.arange(n_queries, device=device)[:, None]


@mistake(
    "attention.causal_mask",
    says="The last key is one place too far: your queries sit one further to the "
    "right than they should. With as many keys as queries, query 0 stands at "
    "position 0.",
)
def one_place_ahead(n_queries, n_keys=None, device=None):
    query, key = _places(n_queries, n_keys, device)
    return key <= query + 1


@mistake(
    "attention.causal_mask",
    says="Your mask has as many columns as rows: n_keys has no effect. There is one "
    "column for every key.",
)
def keys_ignored(n_queries, n_keys=None, device=None):
    _places(n_queries, n_keys, device)
    return torch.ones(n_queries, n_queries, dtype=torch.bool, device=device).tril()


@mistake(
    "attention.causal_mask",
    says="Your mask holds numbers. A mask of this course is boolean: it says yes or "
    "no, and combines with others by &.",
)
def mask_of_numbers(n_queries, n_keys=None, device=None):
    query, key = _places(n_queries, n_keys, device)
    return (key <= query).float()


@mistake(
    "attention.causal_mask",
    says="This is the mask for adding: 0 and minus infinity. Here a mask is boolean, "
    "True = may look; what to do with the scores is the caller's business.",
)
def mask_for_adding(n_queries, n_keys=None, device=None):
    query, key = _places(n_queries, n_keys, device)
    zeros = torch.zeros((key <= query).shape, device=device)
    return zeros.masked_fill(key > query, -math.inf)


@mistake(
    "attention.causal_mask",
    says="Fewer keys than queries went through. Every query is a token of the text, "
    "so this is a caller's error: raise a ValueError.",
)
def fewer_keys_accepted(n_queries, n_keys=None, device=None):
    n_keys = n_queries if n_keys is None else n_keys
    mask = torch.ones(n_queries, n_keys, dtype=torch.bool, device=device)
    return mask.tril(n_keys - n_queries)


@variant("attention.causal_mask")
def lower_triangle(n_queries, n_keys=None, device=None):
    if n_keys is None:
        n_keys = n_queries
    if n_keys < n_queries:
        raise ValueError("fewer keys than queries")
    ones = torch.ones((n_queries, n_keys), dtype=torch.bool, device=device)
    return torch.tril(ones, diagonal=n_keys - n_queries)


@variant("attention.causal_mask")
def not_the_upper_triangle(n_queries, n_keys=None, device=None):
    n_keys = n_keys if n_keys is not None else n_queries
    assert_enough = n_keys - n_queries
    if assert_enough < 0:
        raise ValueError("fewer keys than queries")
    return ~torch.ones(n_queries, n_keys, device=device).bool().triu(assert_enough + 1)


@variant("attention.causal_mask")
def row_by_row(n_queries, n_keys=None, device=None):
    n_keys = n_keys or n_queries
    if n_keys < n_queries:
        raise ValueError("fewer keys than queries")
    mask = torch.zeros(n_queries, n_keys, dtype=torch.bool, device=device)
    for t in range(n_queries):
        mask[t, : n_keys - n_queries + t + 1] = True
    return mask


@variant("attention.causal_mask")
def last_rows_of_a_square(n_queries, n_keys=None, device=None):
    n_keys = n_keys or n_queries
    if n_keys < n_queries:
        raise ValueError("fewer keys than queries")
    square = torch.ones(n_keys, n_keys, dtype=torch.bool, device=device).tril()
    return square[n_keys - n_queries :]


# ── 5 · padding_mask ─────────────────────────────────────────────────────────────────


def _keys(lengths, n_keys):
    """Refuse impossible lengths; number the keys, and give the lengths as a column."""
    n_keys = int(lengths.max()) if n_keys is None else n_keys
    if lengths.min() < 0 or lengths.max() > n_keys:
        raise ValueError(f"lengths={lengths.tolist()}, n_keys={n_keys}")
    return torch.arange(n_keys), lengths[:, None]


@mistake(
    "attention.padding_mask",
    says="Your mask marks the padding. True means 'may look', so it marks the real "
    "tokens.",
)
def marks_the_padding(lengths, n_keys=None):
    key, length = _keys(lengths, n_keys)
    return (key >= length)[:, None, None, :]


@mistake(
    "attention.padding_mask",
    says="One padding token too many is let in. A sentence of length 1 has the token "
    "at place 0, and no more.",
)
def one_padding_token_too_many(lengths, n_keys=None):
    key, length = _keys(lengths, n_keys)
    return (key <= length)[:, None, None, :]


@mistake(
    "attention.padding_mask",
    says="Your mask hides the start of the sentences. The padding stands at their end.",
)
def padding_at_the_start(lengths, n_keys=None):
    key, length = _keys(lengths, n_keys)
    return (key >= len(key) - length)[:, None, None, :]


@mistake(
    "attention.padding_mask",
    says="The mask is right, but its shape is (B, S). Beside scores of shape (B, H, "
    "T, S) this reads as (T, S): give heads and queries an axis of length one.",
)
def no_axes_to_broadcast(lengths, n_keys=None):
    key, length = _keys(lengths, n_keys)
    return key < length


@mistake(
    "attention.padding_mask",
    says="Your mask hides queries, (B, 1, S, 1). Nobody should listen to an empty "
    "seat: it is the keys, the last axis, that padding takes away.",
)
def hides_queries(lengths, n_keys=None):
    key, length = _keys(lengths, n_keys)
    return (key < length)[:, None, :, None]


@mistake(
    "attention.padding_mask",
    says="The sentences stand on the axis of the heads, (1, B, 1, S). Head 1 would "
    "get the length of sentence 1: the batch is the first axis.",
)
def sentences_on_the_axis_of_heads(lengths, n_keys=None):
    key, length = _keys(lengths, n_keys)
    return (key < length)[None, :, None, :]


@mistake(
    "attention.padding_mask",
    says="n_keys has no effect: your mask ends at the longest sentence. It must be "
    "as wide as the padded text.",
)
def padded_length_ignored(lengths, n_keys=None):
    _keys(lengths, n_keys)
    key, length = _keys(lengths, None)
    return (key < length)[:, None, None, :]


@mistake(
    "attention.padding_mask",
    says="Your mask holds numbers. A mask of this course is boolean.",
)
def padding_mask_of_numbers(lengths, n_keys=None):
    key, length = _keys(lengths, n_keys)
    return (key < length)[:, None, None, :].float()


@mistake(
    "attention.padding_mask",
    says="A sentence longer than the padded text went through. Its last tokens would "
    "be lost in silence: raise a ValueError.",
)
def too_long_accepted(lengths, n_keys=None):
    if lengths.min() < 0:
        raise ValueError("negative length")
    n_keys = int(lengths.max()) if n_keys is None else n_keys
    return (torch.arange(n_keys) < lengths[:, None])[:, None, None, :]


@mistake(
    "attention.padding_mask",
    says="A negative length went through. No sentence has fewer than 0 tokens: raise "
    "a ValueError.",
)
def negative_length_accepted(lengths, n_keys=None):
    key, length = _keys(lengths.clamp(min=0), n_keys)
    return (key < length)[:, None, None, :]


@variant("attention.padding_mask")
def sentence_by_sentence(lengths, n_keys=None):
    n_keys = max(lengths.tolist()) if n_keys is None else n_keys
    mask = torch.zeros(len(lengths), 1, 1, n_keys, dtype=torch.bool)
    for row, length in zip(mask, lengths.tolist(), strict=True):
        if not 0 <= length <= n_keys:
            raise ValueError("impossible length")
        row[..., :length] = True
    return mask


@variant("attention.padding_mask")
def look_up_rows_of_a_triangle(lengths, n_keys=None):
    n_keys = int(lengths.max()) if n_keys is None else n_keys
    if bool((lengths < 0).any() | (lengths > n_keys).any()):
        raise ValueError("impossible length")
    table = torch.ones(n_keys + 1, n_keys, dtype=torch.bool).tril(-1)
    return table[lengths.long()].view(-1, 1, 1, n_keys)


# ── 6 · prefix_mask ──────────────────────────────────────────────────────────────────


def _prompt(n_tokens, prefix_length, device=None):
    """Refuse an impossible prompt; give the causal mask and who is in the prompt."""
    if not 0 <= prefix_length <= n_tokens:
        raise ValueError(f"prefix_length={prefix_length}, n_tokens={n_tokens}")
    query, key = _places(n_tokens, device=device)
    return key <= query, torch.arange(n_tokens, device=device) < prefix_length


@mistake(
    "attention.prefix_mask",
    says="Your prompt sees the answer. Its rows are allowed everything, and a model "
    "trained so only copies: it is the columns of the prompt that are open to all.",
)
def prompt_sees_the_answer(n_tokens, prefix_length, device=None):
    not_later, in_prompt = _prompt(n_tokens, prefix_length, device)
    return not_later | in_prompt[:, None]


@mistake(
    "attention.prefix_mask",
    says="Your answer does not see the prompt. Two groups that look only at "
    "themselves have nothing to say to each other: open the prompt to the answer.",
)
def answer_without_prompt(n_tokens, prefix_length, device=None):
    not_later, in_prompt = _prompt(n_tokens, prefix_length, device)
    both = in_prompt[:, None] & in_prompt[None, :]
    return both | (not_later & ~in_prompt[:, None] & ~in_prompt[None, :])


@mistake(
    "attention.prefix_mask",
    says="Your prompt is one token too long: prefix_length tokens are those at the "
    "places 0 to prefix_length - 1.",
)
def prompt_one_too_long(n_tokens, prefix_length, device=None):
    _prompt(n_tokens, prefix_length, device)
    return _prompt(n_tokens, min(prefix_length + 1, n_tokens), device)[0] | (
        torch.arange(n_tokens, device=device) <= prefix_length
    )


@mistake(
    "attention.prefix_mask",
    says="This is the plain causal mask. Inside the prompt everybody sees everybody, "
    "also what comes later in the prompt.",
)
def prompt_ignored(n_tokens, prefix_length, device=None):
    return _prompt(n_tokens, prefix_length, device)[0]


@mistake(
    "attention.prefix_mask",
    says="You asked for both reasons at once, not later and in the prompt. One of "
    "them is enough: 'or' instead of 'and'.",
)
def both_reasons_needed(n_tokens, prefix_length, device=None):
    not_later, in_prompt = _prompt(n_tokens, prefix_length, device)
    return not_later & in_prompt


@mistake(
    "attention.prefix_mask",
    says="Your answer looks ahead: everybody sees everything but the prompt. Only "
    "the prompt is open in both directions.",
)
def answer_looks_ahead(n_tokens, prefix_length, device=None):
    in_prompt = _prompt(n_tokens, prefix_length, device)[1]
    return in_prompt[None, :] | ~in_prompt[:, None]


@mistake(
    "attention.prefix_mask",
    says="True marks what is forbidden in your mask. Here True means 'may look'.",
)
def prefix_true_means_forbidden(n_tokens, prefix_length, device=None):
    not_later, in_prompt = _prompt(n_tokens, prefix_length, device)
    return ~(not_later | in_prompt)


@mistake(
    "attention.prefix_mask",
    says="A prompt that is longer than the text, or negative, went through: raise a "
    "ValueError.",
)
def impossible_prompt_accepted(n_tokens, prefix_length, device=None):
    query, key = _places(n_tokens, device=device)
    return (key <= query) | (key < prefix_length)


@variant("attention.prefix_mask")
def open_a_block(n_tokens, prefix_length, device=None):
    if prefix_length < 0 or prefix_length > n_tokens:
        raise ValueError("impossible prompt")
    mask = torch.ones(n_tokens, n_tokens, device=device).tril().bool()
    mask[:prefix_length, :prefix_length] = True
    return mask


@variant("attention.prefix_mask")
def not_later_than_the_later_of_two(n_tokens, prefix_length, device=None):
    if prefix_length not in range(n_tokens + 1):
        raise ValueError("impossible prompt")
    place = torch.arange(n_tokens, device=device)
    horizon = torch.clamp(place, min=prefix_length - 1)
    return place.unsqueeze(0) <= horizon.unsqueeze(1)


# ── 7 · sliding_window_mask ──────────────────────────────────────────────────────────


def _ages(n_queries, window, n_keys, device):
    """Refuse an impossible window; tell how long ago each key was, for each query."""
    if window < 1:
        raise ValueError(f"window={window}")
    query, key = _places(n_queries, n_keys, device)
    return query - key


@mistake(
    "attention.sliding_window_mask",
    says="Your rows see one key too many: the window counts the token itself, so "
    "there are window - 1 others.",
)
def window_besides_the_token(n_queries, window, n_keys=None, device=None):
    age = _ages(n_queries, window, n_keys, device)
    return (age >= 0) & (age <= window)


@mistake(
    "attention.sliding_window_mask",
    says="Your rows see one key too few: a window of 2 is the token itself and one "
    "before it.",
)
def window_one_too_small(n_queries, window, n_keys=None, device=None):
    age = _ages(n_queries, window, n_keys, device)
    return (age >= 0) & (age < max(window - 1, 1))


@mistake(
    "attention.sliding_window_mask",
    says="This is the plain causal mask: your window never bites. Was it added where "
    "it should be subtracted? Look at a row far from the start.",
)
def window_added(n_queries, window, n_keys=None, device=None):
    age = _ages(n_queries, window, n_keys, device)
    return (age >= 0) & (-age < window)


@mistake(
    "attention.sliding_window_mask",
    says="Your window is open on both sides: a token sees those that come after it. "
    "This window goes to the past only.",
)
def window_on_both_sides(n_queries, window, n_keys=None, device=None):
    return _ages(n_queries, window, n_keys, device).abs() < window


@mistake(
    "attention.sliding_window_mask",
    says="Your window stays at the start of the text: everybody sees the first "
    "tokens. It should move along with the query.",
)
def window_at_the_start(n_queries, window, n_keys=None, device=None):
    age = _ages(n_queries, window, n_keys, device)
    return (age >= 0) & (torch.arange(age.shape[1], device=device) < window)


@mistake(
    "attention.sliding_window_mask",
    says="With more keys than queries, you placed the queries at the start of the "
    "text. They are its last tokens: query 0 stands at position S - T.",
)
def window_queries_at_the_start(n_queries, window, n_keys=None, device=None):
    n_keys = _ages(n_queries, window, n_keys, device).shape[1]
    query = torch.arange(n_queries, device=device)[:, None]
    age = query - torch.arange(n_keys, device=device)
    return (age >= 0) & (age < window)


@mistake(
    "attention.sliding_window_mask",
    says="Your mask marks what lies outside the window. Here True means 'may look'.",
)
def window_true_means_forbidden(n_queries, window, n_keys=None, device=None):
    age = _ages(n_queries, window, n_keys, device)
    return (age < 0) | (age >= window)


@mistake(
    "attention.sliding_window_mask",
    says="A window of 0 went through: its tokens see nothing, not even themselves. "
    "Raise a ValueError.",
)
def empty_window_accepted(n_queries, window, n_keys=None, device=None):
    query, key = _places(n_queries, n_keys, device)
    return (key <= query) & (key > query - window)


@variant("attention.sliding_window_mask")
def between_two_triangles(n_queries, window, n_keys=None, device=None):
    n_keys = n_queries if n_keys is None else n_keys
    if window <= 0 or n_keys < n_queries:
        raise ValueError("impossible window or too few keys")
    offset = n_keys - n_queries
    ones = torch.ones(n_queries, n_keys, dtype=torch.bool, device=device)
    return ones.tril(offset).triu(offset - window + 1)


@variant("attention.sliding_window_mask")
def window_row_by_row(n_queries, window, n_keys=None, device=None):
    n_keys = n_queries if n_keys is None else n_keys
    if window <= 0 or n_keys < n_queries:
        raise ValueError("impossible window or too few keys")
    mask = torch.zeros(n_queries, n_keys, dtype=torch.bool, device=device)
    for t in range(n_queries):
        end = n_keys - n_queries + t + 1
        mask[t, max(end - window, 0) : end] = True
    return mask


# ── 8 · split_heads ──────────────────────────────────────────────────────────────────


def _head_width(x, n_heads):
    if x.shape[-1] % n_heads:
        raise ValueError(f"{x.shape[-1]} is not divisible by {n_heads}")
    return x.shape[-1] // n_heads


@mistake(
    "attention.split_heads",
    says="The shape is right, but the numbers of different tokens are mixed in one "
    "head: a reshape straight to (B, H, T, D) cuts across tokens. Cut the width, "
    "then swap axes.",
)
def split_without_transpose(x, n_heads):
    return x.reshape(x.shape[0], n_heads, x.shape[1], _head_width(x, n_heads))


@mistake(
    "attention.split_heads",
    says="Each head took every H-th number of a token. A head is a slice of "
    "neighbours: the heads come first, then the width, when you cut C.",
)
def every_other_number(x, n_heads):
    return x.unflatten(-1, (_head_width(x, n_heads), n_heads)).permute(0, 3, 1, 2)


@mistake(
    "attention.split_heads",
    says="The heads still stand behind the tokens, (B, T, H, D). Bring them to the "
    "front, so that the last two axes are tokens and width.",
)
def heads_behind_tokens(x, n_heads):
    return x.unflatten(-1, (n_heads, _head_width(x, n_heads)))


@mistake(
    "attention.split_heads",
    says="Tokens and width have changed places, (B, H, D, T). A head's rows are its "
    "tokens.",
)
def width_before_tokens(x, n_heads):
    return x.unflatten(-1, (n_heads, _head_width(x, n_heads))).permute(0, 2, 3, 1)


@mistake(
    "attention.split_heads",
    says="A width that cannot be cut into equal heads was not refused with a "
    "ValueError. Say it at the border, before numbers are lost.",
)
def remainder_lost(x, n_heads):
    width = x.shape[-1] // n_heads
    x = x[..., : n_heads * width]
    return x.unflatten(-1, (n_heads, width)).transpose(-3, -2)


@variant("attention.split_heads")
def view_and_permute(x, n_heads):
    n_sentences, n_tokens, d_model = x.shape
    if d_model % n_heads != 0:
        raise ValueError("the width cannot be cut into equal heads")
    return x.reshape(n_sentences, n_tokens, n_heads, -1).permute(0, 2, 1, 3)


@variant("attention.split_heads")
def stack_of_slices(x, n_heads):
    width = _head_width(x, n_heads)
    slices = [x[..., h * width : (h + 1) * width] for h in range(n_heads)]
    return torch.stack(slices, dim=1)


# ── 9 · merge_heads ──────────────────────────────────────────────────────────────────


@mistake(
    "attention.merge_heads",
    says="The shape is right, but the tokens are mixed: you reshaped without "
    "swapping heads and tokens back first. Undo the steps of the cut in the opposite "
    "order.",
)
def merged_without_transpose(x):
    n_sentences, n_heads, n_tokens, width = x.shape
    return x.reshape(n_sentences, n_tokens, n_heads * width)


@mistake(
    "attention.merge_heads",
    says="The numbers of the heads alternate. All of head 0 comes first, then all of "
    "head 1.",
)
def heads_alternate(x):
    return x.permute(0, 2, 3, 1).flatten(-2)


@mistake(
    "attention.merge_heads",
    says="The heads are in front of the width again, but still an axis of their own. "
    "Make one axis of the last two: (B, T, C).",
)
def heads_not_joined(x):
    return x.transpose(1, 2)


@mistake(
    "attention.merge_heads",
    says="You averaged the heads. They should stand side by side: averaging would "
    "undo what having several was for.",
)
def heads_averaged(x):
    return x.to(torch.get_default_dtype()).mean(dim=1)


@mistake(
    "attention.merge_heads",
    says="You added the heads up. They should stand side by side.",
)
def heads_added(x):
    return x.sum(dim=1)


@variant("attention.merge_heads")
def side_by_side(x):
    return torch.cat(list(x.unbind(dim=1)), dim=-1)


@variant("attention.merge_heads")
def permute_and_reshape(x):
    n_sentences, n_heads, n_tokens, width = x.shape
    return (
        x.permute(0, 2, 1, 3).contiguous().view(n_sentences, n_tokens, n_heads * width)
    )


# ── 10 · repeat_kv_heads ─────────────────────────────────────────────────────────────


@mistake(
    "attention.repeat_kv_heads",
    says="Your key heads come in the order 0 1 0 1. Groups are neighbours: 0 0 1 1, "
    "so that queries 0 and 1 share key head 0.",
)
def heads_tiled(x, n_repeats):
    return x.repeat(1, n_repeats, 1, 1)


@mistake(
    "attention.repeat_kv_heads",
    says="You repeated the tokens: the text became longer. It is heads that there "
    "are too few of.",
)
def tokens_repeated(x, n_repeats):
    return x.repeat_interleave(n_repeats, dim=-2)


@mistake(
    "attention.repeat_kv_heads",
    says="You repeated the numbers inside a head: it became wider. It is heads that "
    "there are too few of.",
)
def width_repeated(x, n_repeats):
    return x.repeat_interleave(n_repeats, dim=-1)


@mistake(
    "attention.repeat_kv_heads",
    says="You repeated the sentences: the batch became larger. It is heads that "
    "there are too few of.",
)
def sentences_repeated(x, n_repeats):
    return x.repeat_interleave(n_repeats, dim=0)


@mistake(
    "attention.repeat_kv_heads",
    says="The copies stand on an axis of their own. Join it with the axis of the "
    "heads.",
)
def copies_on_their_own_axis(x, n_repeats):
    return x[:, :, None].expand(-1, -1, n_repeats, -1, -1)


@mistake(
    "attention.repeat_kv_heads",
    says="The copies carry no gradient. A key head learns from all queries of its "
    "group: do not detach it and do not make new numbers of it.",
)
def copies_do_not_learn(x, n_repeats):
    copies = x.detach()[:, :, None].expand(-1, -1, n_repeats - 1, -1, -1)
    return torch.cat([x[:, :, None], copies], dim=2).flatten(1, 2)


@variant("attention.repeat_kv_heads")
def expand_and_reshape(x, n_repeats):
    n_sentences, n_heads, n_keys, width = x.shape
    x = x[:, :, None, :, :].expand(n_sentences, n_heads, n_repeats, n_keys, width)
    return x.reshape(n_sentences, n_heads * n_repeats, n_keys, width)


@variant("attention.repeat_kv_heads")
def pick_by_number(x, n_repeats):
    return x[:, [h // n_repeats for h in range(x.shape[1] * n_repeats)]]


@variant("attention.repeat_kv_heads")
def head_by_head(x, n_repeats):
    heads = [head for head in x.unbind(dim=1) for _ in range(n_repeats)]
    return torch.stack(heads, dim=1)


# ── 11 · MultiHeadAttention ──────────────────────────────────────────────────────────


class _Steps(attention.MultiHeadAttention):
    """A right layer, in steps that a mistake can replace one by one."""

    def ask(self, x, context):
        return self.split(self.project_query(x), self.n_heads)

    def offer(self, x, context):
        return self.split(self.project_key(context), self.n_kv_heads)

    def pass_on(self, x, context):
        return self.split(self.project_value(context), self.n_kv_heads)

    def split(self, x, n_heads):
        return x.unflatten(-1, (n_heads, -1)).transpose(1, 2)

    def remember(self, cache, key, value):
        return (key, value) if cache is None else cache.append(key, value)

    def repeat(self, x):
        return x.repeat_interleave(self.n_heads // self.n_kv_heads, dim=1)

    def dropout_p(self):
        return self.dropout if self.training else 0.0

    def attend(self, query, key, value, mask):
        return _attend(query, key, value, mask, self.dropout_p())

    def merge(self, heads):
        return heads.transpose(1, 2).flatten(-2)

    def finish(self, merged, weights):
        return self.project_output(merged), weights

    def forward(self, x, context=None, mask=None, cache=None):
        context = x if context is None else context
        key, value = self.offer(x, context), self.pass_on(x, context)
        key, value = self.remember(cache, key, value)
        query, key, value = self.ask(x, context), self.repeat(key), self.repeat(value)
        output, weights = self.attend(query, key, value, mask)
        return self.finish(self.merge(output), weights)


@mistake(
    "attention.MultiHeadAttention",
    says="Your scores are divided by √C, the width of the whole token. Each head "
    "adds up only D products: divide by √D.",
)
class ScaledByModelWidth(_Steps):
    def attend(self, query, key, value, mask):
        scale = 1 / math.sqrt(self.n_heads * query.shape[-1])
        return _attend(query, key, value, mask, self.dropout_p(), scale)


@mistake(
    "attention.MultiHeadAttention",
    says="The heads were cut by a reshape straight to (B, H, T, D), which mixes the "
    "tokens. Cut the width first, then swap heads and tokens.",
)
class SplitWithoutTranspose(_Steps):
    def split(self, x, n_heads):
        return x.reshape(x.shape[0], n_heads, x.shape[1], -1)


@mistake(
    "attention.MultiHeadAttention",
    says="The heads were joined without swapping heads and tokens back first: the "
    "tokens are mixed. Use your merge_heads.",
)
class MergedWithoutTranspose(_Steps):
    def merge(self, heads):
        n_sentences, n_heads, n_tokens, width = heads.shape
        return heads.reshape(n_sentences, n_tokens, n_heads * width)


@mistake(
    "attention.MultiHeadAttention",
    says="There is only one head in your layer: nothing was split, so one average "
    "must do for all, and its scores add up C products.",
)
class OneHead(_Steps):
    def forward(self, x, context=None, mask=None, cache=None):
        n_heads, n_kv_heads = self.n_heads, self.n_kv_heads
        try:
            self.n_heads = self.n_kv_heads = 1
            return super().forward(x, context, mask, cache)
        finally:
            self.n_heads, self.n_kv_heads = n_heads, n_kv_heads


@mistake(
    "attention.MultiHeadAttention",
    says="In cross-attention your keys come from x. The context is what is asked: "
    "keys and values come from it, only the queries from x.",
)
class KeysFromX(_Steps):
    def forward(self, x, context=None, mask=None, cache=None):
        return super().forward(x, None, None if context is not None else mask, cache)


@mistake(
    "attention.MultiHeadAttention",
    says="In cross-attention your values come from x, but your keys from the "
    "context. Every key needs its value: both come from the context.",
)
class ValuesFromX(_Steps):
    def pass_on(self, x, context):
        return super().pass_on(x, x)


@mistake(
    "attention.MultiHeadAttention",
    says="Who asks whom? Your queries come from the context and your keys from x, so "
    "the output has the length of the context. It is x that asks.",
)
class ContextAsks(_Steps):
    def forward(self, x, context=None, mask=None, cache=None):
        if context is None:
            return super().forward(x, context, mask, cache)
        return super().forward(context, x, mask, cache)


@mistake(
    "attention.MultiHeadAttention",
    says="Your values were made with the key projection. What a token offers and "
    "what it passes on are two projections.",
)
class ValuesFromKeyProjection(_Steps):
    def pass_on(self, x, context):
        return self.offer(x, context)


@mistake(
    "attention.MultiHeadAttention",
    says="Your keys were made with the query projection. What a token looks for and "
    "what it offers are two projections.",
)
class KeysFromQueryProjection(_Steps):
    def offer(self, x, context):
        return self.split(self.project_query(context), self.n_kv_heads)


@mistake(
    "attention.MultiHeadAttention",
    says="The output projection is missing: the heads stand side by side, but "
    "nothing mixes what they have brought.",
)
class OutputNotProjected(_Steps):
    def finish(self, merged, weights):
        return merged, weights


@mistake(
    "attention.MultiHeadAttention",
    says="The weights are averaged over the heads. Return those of every head, (B, "
    "H, T, S): what each of them looks at is what one wants to see.",
)
class WeightsAveraged(_Steps):
    def finish(self, merged, weights):
        return self.project_output(merged), weights.mean(dim=1)


@mistake(
    "attention.MultiHeadAttention",
    says="Your layer returns the output alone. The caller expects a pair: (output, "
    "weights).",
)
class WeightsNotReturned(_Steps):
    def finish(self, merged, weights):
        return self.project_output(merged)


@mistake(
    "attention.MultiHeadAttention",
    says="The mask has no effect in your layer: pass it on to the attention.",
)
class MaskIgnored(_Steps):
    def attend(self, query, key, value, mask):
        return super().attend(query, key, value, None)


@mistake(
    "attention.MultiHeadAttention",
    says="Your layer puts a causal mask on by itself. Without a mask, every token "
    "may look at every other: the caller decides.",
)
class AlwaysCausal(_Steps):
    def attend(self, query, key, value, mask):
        n_queries, n_keys = query.shape[-2], key.shape[-2]
        ones = torch.ones(n_queries, n_keys, dtype=torch.bool)
        not_later = ones.tril(n_keys - n_queries)
        mask = not_later if mask is None else mask & not_later
        return super().attend(query, key, value, mask)


@mistake(
    "attention.MultiHeadAttention",
    says="Batch and heads were flattened into one axis, and the masks repeated in "
    "another order: all sentences of head 0 first. Keep the two axes apart, masks "
    "broadcast then.",
)
class MaskRepeatedInWrongOrder(_Steps):
    def attend(self, query, key, value, mask):
        n_sentences, n_heads = query.shape[:2]
        if mask is not None and mask.ndim == 4 and mask.shape[0] == n_sentences > 1:
            mask = mask[:, 0].repeat(
                n_heads, 1, 1
            )  # (H · B, T, S), should be (B · H, …)
            mask = mask.unflatten(0, (n_sentences, n_heads))
        return super().attend(query, key, value, mask)


@mistake(
    "attention.MultiHeadAttention",
    says="Your key heads are handed out in the order 0 1 0 1. Groups are neighbours: "
    "query heads 0 and 1 share key head 0.",
)
class GroupsTiled(_Steps):
    def repeat(self, x):
        return x.repeat(1, self.n_heads // self.n_kv_heads, 1, 1)


@mistake(
    "attention.MultiHeadAttention",
    says="The keys were repeated along the tokens, so the text became longer. It is "
    "heads that there are too few of.",
)
class TokensRepeated(_Steps):
    def repeat(self, x):
        n_repeats = self.n_heads // self.n_kv_heads
        x = x.repeat_interleave(n_repeats, dim=2)
        return x.repeat(1, n_repeats, 1, 1)

    def attend(self, query, key, value, mask):
        n_repeats = self.n_heads // self.n_kv_heads
        if mask is not None:
            mask = mask.repeat_interleave(n_repeats, dim=-1)
        return super().attend(query, key, value, mask)


@mistake(
    "attention.MultiHeadAttention",
    says="The cache has no effect: your layer sees only the tokens of this call. Add "
    "the new keys and values to the cache, and attend to all that come back.",
)
class CacheIgnored(_Steps):
    def remember(self, cache, key, value):
        return key, value


@mistake(
    "attention.MultiHeadAttention",
    says="The new keys and values are stored, but your layer attends only to the new "
    "ones. Use what append returns: all of them.",
)
class CacheWrittenNotRead(_Steps):
    def remember(self, cache, key, value):
        if cache is not None:
            cache.append(key, value)
        return key, value


@mistake(
    "attention.MultiHeadAttention",
    says="The new tokens stand in front of the old ones. They come behind: the order "
    "of the cache is the order of the text.",
)
class CacheInReverse(_Steps):
    def remember(self, cache, key, value):
        if cache is None:
            return key, value
        if cache.key is not None:
            key = torch.cat([key, cache.key], dim=-2)
            value = torch.cat([value, cache.value], dim=-2)
        cache.key, cache.value = key, value
        return key, value


@mistake(
    "attention.MultiHeadAttention",
    says="With a cache, your layer hides earlier tokens: it puts on a causal mask of "
    "its own, counted from key 0. The queries are the last tokens, and masks are the "
    "caller's.",
)
class CausalFromTheStart(_Steps):
    def forward(self, x, context=None, mask=None, cache=None):
        if cache is not None:
            shape = x.shape[1], x.shape[1] + len(cache)
            mask = torch.ones(shape, dtype=torch.bool).tril()
        return super().forward(x, context, mask, cache)


@mistake(
    "attention.MultiHeadAttention",
    says="Your cache holds the repeated heads. Store the H_kv heads and repeat what "
    "comes out of the cache: that is the memory which grouping saves.",
)
class CacheOfRepeatedHeads(_Steps):
    def forward(self, x, context=None, mask=None, cache=None):
        context = x if context is None else context
        key = self.repeat(self.offer(x, context))
        value = self.repeat(self.pass_on(x, context))
        key, value = self.remember(cache, key, value)
        output, weights = self.attend(self.ask(x, context), key, value, mask)
        return self.finish(self.merge(output), weights)


@mistake(
    "attention.MultiHeadAttention",
    says="Dropout is on outside training: two calls give two results. Ask "
    "self.training.",
)
class DropoutAlwaysOn(_Steps):
    def dropout_p(self):
        return self.dropout


@mistake(
    "attention.MultiHeadAttention",
    says="The layer's dropout has no effect in training: hand self.dropout on to the "
    "attention then.",
)
class DropoutForgotten(_Steps):
    def dropout_p(self):
        return 0.0


@variant("attention.MultiHeadAttention")
class LoopOverHeads(attention.MultiHeadAttention):
    """Slice every head out, attend with it alone, and join the results."""

    def forward(self, x, context=None, mask=None, cache=None):
        context = context if context is not None else x
        queries = self.project_query(x).chunk(self.n_heads, dim=-1)
        keys = torch.stack(self.project_key(context).chunk(self.n_kv_heads, -1), 1)
        values = torch.stack(self.project_value(context).chunk(self.n_kv_heads, -1), 1)
        if cache is not None:
            keys, values = cache.append(keys, values)
        outputs, maps = [], []
        for h, query in enumerate(queries):
            group = h * self.n_kv_heads // self.n_heads
            shape = (query.shape[0], self.n_heads, query.shape[1], keys.shape[-2])
            own_mask = None if mask is None else mask.expand(shape)[:, h]
            p = self.dropout * self.training
            output, weights = _attend(
                query, keys[:, group], values[:, group], own_mask, p
            )
            outputs.append(output)
            maps.append(weights)
        return self.project_output(torch.cat(outputs, -1)), torch.stack(maps, 1)


@variant("attention.MultiHeadAttention")
class GroupsOnTheirOwnAxis(attention.MultiHeadAttention):
    """Never repeat a key: give the queries of a group an axis beside their key head."""

    def forward(self, x, context=None, mask=None, cache=None):
        context = x if context is None else context
        n_sentences, n_tokens, _ = x.shape
        n_groups, width = self.n_kv_heads, x.shape[-1] // self.n_heads
        shape = (n_sentences, n_tokens, n_groups, self.n_heads // n_groups, width)
        query = self.project_query(x).view(shape)
        key = self.project_key(context).view(n_sentences, -1, n_groups, width)
        value = self.project_value(context).view(n_sentences, -1, n_groups, width)
        key, value = key.transpose(1, 2), value.transpose(1, 2)
        if cache is not None:
            key, value = cache.append(key, value)
        scores = torch.einsum("btgnd,bgsd->bgnts", query, key) / width**0.5
        scores = scores.flatten(1, 2)  # (B, H, T, S)
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
            unseen = ~mask.expand(scores.shape).any(dim=-2).any(dim=1)  # (B, S)
            value = value.masked_fill(unseen[:, None, :, None], 0.0)
        weights = scores.softmax(dim=-1).nan_to_num(0.0)
        kept = F.dropout(weights, self.dropout, training=self.training)
        kept = kept.unflatten(1, (n_groups, -1))
        output = torch.einsum("bgnts,bgsd->btgnd", kept, value)
        return self.project_output(output.reshape(x.shape)), weights


# ── 12 · online_softmax_attention ────────────────────────────────────────────────────


def _online(
    query,
    key,
    value,
    *,
    causal=False,
    window=None,
    block_size=128,
    scale=None,
    first_query=None,
    future=False,
    width=0,
    start_at=None,
    rescale_total=1.0,
    rescale_output=1.0,
    keep_rest=True,
):
    """A right answer; the last arguments let a mistake change one thing."""
    attention._check_attention_inputs(query, key, value, None)
    n_queries, n_keys = query.shape[-2], key.shape[-2]
    if block_size < 1 or (window is not None and window < 1):
        raise ValueError("block_size and window must be at least 1")
    if (causal or window is not None) and n_keys < n_queries:
        raise ValueError("fewer keys than queries")
    first = n_keys - n_queries if first_query is None else first_query
    place = torch.arange(first, first + n_queries)[:, None]
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    lowest = torch.finfo(query.dtype).min
    largest = query.new_full((), lowest if start_at is None else start_at)
    total = output = query.new_zeros(())
    end = n_keys if keep_rest else n_keys - n_keys % block_size
    for start in range(0, end, block_size):
        block = slice(start, min(start + block_size, n_keys))
        scores = query @ key[..., block, :].mT * scale
        age = place - torch.arange(block.start, block.stop)
        may_look = torch.ones_like(age, dtype=torch.bool)
        if causal or (window is not None and not future):
            may_look = age >= 0
        if window is not None:
            may_look = may_look & (age < window + width) & (age > -window - width)
        scores = scores.masked_fill(~may_look, lowest)
        higher = torch.maximum(largest, scores.amax(dim=-1, keepdim=True))
        weights = torch.exp(scores - higher).masked_fill(~may_look, 0.0)
        factor = torch.exp(largest - higher)
        total = total * factor**rescale_total + weights.sum(dim=-1, keepdim=True)
        output = output * factor**rescale_output + weights @ value[..., block, :]
        largest = higher
    return output / total


@mistake(
    "attention.online_softmax_attention",
    says="Somewhere a tensor with T × S numbers was made, the scores or a mask. Make "
    "only the part of the present block: T × block_size.",
)
def holds_the_whole_matrix(
    query, key, value, *, causal=False, window=None, block_size=128
):
    options = {"causal": causal, "window": window, "block_size": block_size}
    right = _online(query, key, value, **options)
    n_queries, n_keys = query.shape[-2], key.shape[-2]
    torch.ones(n_queries, n_keys, dtype=torch.bool)  # as the whole mask would be
    return right


@mistake(
    "attention.online_softmax_attention",
    says="Your running maximum starts at 0. If all scores are far below, 0 stays the "
    "maximum and every exponential vanishes: start at the lowest number there is.",
)
def maximum_starts_at_zero(query, key, value, **options):
    return _online(query, key, value, start_at=0.0, **options)


@mistake(
    "attention.online_softmax_attention",
    says="No maximum is subtracted: with scores of a few hundreds the exponentials "
    "overflow or vanish, and the quotient is NaN. Measure against the largest score "
    "so far.",
)
def without_maximum(query, key, value, *, causal=False, window=None, block_size=128):
    _online(query, key, value, causal=causal, window=window, block_size=block_size)
    n_queries, n_keys = query.shape[-2], key.shape[-2]
    place = torch.arange(n_keys - n_queries, n_keys)[:, None]
    total = output = 0.0
    for start in range(0, n_keys, block_size):
        block = slice(start, min(start + block_size, n_keys))
        weights = torch.exp(query @ key[..., block, :].mT / math.sqrt(query.shape[-1]))
        age = place - torch.arange(block.start, block.stop)
        seen = torch.ones_like(age, dtype=torch.bool)
        if causal or window is not None:
            seen = (age >= 0) & (age < (n_keys if window is None else window))
        weights = weights * seen
        total = total + weights.sum(dim=-1, keepdim=True)
        output = output + weights @ value[..., block, :]
    return output / total


@mistake(
    "attention.online_softmax_attention",
    says="A later block brought a larger score, and what you had summed stayed as it "
    "was: it is measured against the old maximum. Scale the sum and the output down.",
)
def never_rescaled(query, key, value, **options):
    return _online(query, key, value, rescale_total=0.0, rescale_output=0.0, **options)


@mistake(
    "attention.online_softmax_attention",
    says="You scaled the sum of exponentials to the new maximum, but not the output: "
    "it was measured against the old one just the same.",
)
def output_not_rescaled(query, key, value, **options):
    return _online(query, key, value, rescale_output=0.0, **options)


@mistake(
    "attention.online_softmax_attention",
    says="You scaled the output to the new maximum, but not the sum of exponentials: "
    "it was measured against the old one just the same.",
)
def total_not_rescaled(query, key, value, **options):
    return _online(query, key, value, rescale_total=0.0, **options)


@mistake(
    "attention.online_softmax_attention",
    says="You scaled the old terms up instead of down: the exponent is the old "
    "maximum minus the new one, which is never positive.",
)
def rescaled_upwards(query, key, value, **options):
    return _online(
        query, key, value, rescale_total=-1.0, rescale_output=-1.0, **options
    )


@mistake(
    "attention.online_softmax_attention",
    says="The last division is missing: the weighted sum of values must be divided "
    "by the sum of the exponentials, once, at the end.",
)
def not_divided_at_the_end(query, key, value, **options):
    sums = _online(query, key, torch.ones_like(value), **options)
    scores = query @ key.mT / math.sqrt(query.shape[-1])
    if options.get("causal") or options.get("window"):
        n_queries, n_keys = scores.shape[-2:]
        age = torch.arange(n_keys - n_queries, n_keys)[:, None] - torch.arange(n_keys)
        seen = (age >= 0) & (age < (options.get("window") or n_keys))
        scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
    total = torch.exp(scores - scores.amax(-1, keepdim=True)).sum(-1, keepdim=True)
    return _online(query, key, value, **options) * sums * total


@mistake(
    "attention.online_softmax_attention",
    says="You averaged the blocks' own averages, as if every block were equally "
    "attractive. A block counts as much as the sum of its exponentials.",
)
def blocks_averaged(query, key, value, *, block_size=128, **options):
    n_keys = key.shape[-2]
    if block_size < 1 or options.get("causal") or options.get("window") is not None:
        return _online(query, key, value, block_size=block_size, **options)
    blocks = [slice(s, s + block_size) for s in range(0, n_keys, block_size)]
    parts = [_attend(query, key[..., b, :], value[..., b, :])[0] for b in blocks]
    return torch.stack(parts).mean(dim=0)


@mistake(
    "attention.online_softmax_attention",
    says="NaN came from a block in which a query may look at nothing: minus infinity "
    "minus minus infinity. Take a finite lowest number, or skip such blocks.",
)
def nan_from_hidden_blocks(
    query, key, value, *, causal=False, window=None, block_size=128
):
    _online(query, key, value, causal=causal, window=window, block_size=block_size)
    n_queries, n_keys = query.shape[-2], key.shape[-2]
    place = torch.arange(n_keys - n_queries, n_keys)[:, None]
    largest, total, output = torch.tensor(-math.inf), 0.0, 0.0
    for start in range(0, n_keys, block_size):
        block = slice(start, min(start + block_size, n_keys))
        scores = query @ key[..., block, :].mT / math.sqrt(query.shape[-1])
        age = place - torch.arange(block.start, block.stop)
        if causal or window is not None:
            seen = (age >= 0) & (age < (n_keys if window is None else window))
            scores = scores.masked_fill(~seen, -math.inf)
        higher = torch.maximum(largest, scores.amax(dim=-1, keepdim=True))
        weights, factor = torch.exp(scores - higher), torch.exp(largest - higher)
        total = total * factor + weights.sum(dim=-1, keepdim=True)
        output = output * factor + weights @ value[..., block, :]
        largest = higher
    return output / total


@mistake(
    "attention.online_softmax_attention",
    says="The last keys are missing: they do not fill a whole block, but they count. "
    "The last block may be shorter.",
)
def rest_dropped(query, key, value, *, block_size=128, **options):
    if 0 < key.shape[-2] < block_size:
        block_size = key.shape[-2]
    return _online(query, key, value, block_size=block_size, keep_rest=False, **options)


@mistake(
    "attention.online_softmax_attention",
    says="The scores are not divided by √D, as they were in the other function.",
)
def online_not_scaled(query, key, value, **options):
    return _online(query, key, value, scale=1.0, **options)


@mistake(
    "attention.online_softmax_attention",
    says="causal=True has no effect: your queries see what comes after them.",
)
def causal_ignored(query, key, value, *, causal=False, **options):
    if causal:
        _online(query, key, value, causal=causal, **options)
    return _online(query, key, value, **options)


@mistake(
    "attention.online_softmax_attention",
    says="With more keys than queries, you placed the queries at the start of the "
    "text. They are its last tokens: query 0 stands at position S - T.",
)
def online_queries_at_the_start(query, key, value, **options):
    return _online(query, key, value, first_query=0, **options)


@mistake(
    "attention.online_softmax_attention",
    says="Inside a block you compare the key's number in the block with the query's "
    "place in the text. Add where the block starts.",
)
def places_counted_from_the_block(
    query, key, value, *, causal=False, window=None, block_size=128
):
    options = {"causal": causal, "window": window, "block_size": block_size}
    right = _online(query, key, value, **options)
    if not causal and window is None:
        return right
    n_queries, n_keys = query.shape[-2], key.shape[-2]
    query_place = torch.arange(n_keys - n_queries, n_keys)[:, None]
    age = query_place - torch.arange(n_keys) % block_size
    seen = (age >= 0) & (age < (n_keys if window is None else window))
    return _attend(query, key, value, seen)[0]


@mistake(
    "attention.online_softmax_attention",
    says="Your window sees one key too many: it counts the token itself.",
)
def online_window_besides_the_token(query, key, value, **options):
    return _online(query, key, value, width=1, **options)


@mistake(
    "attention.online_softmax_attention",
    says="Your window is open on both sides. A window is always causal, also when "
    "causal is not set.",
)
def online_window_sees_ahead(query, key, value, **options):
    return _online(query, key, value, future=True, **options)


@mistake(
    "attention.online_softmax_attention",
    says="The window has no effect: your queries see the whole past.",
)
def online_window_ignored(query, key, value, *, causal=False, window=None, **options):
    if window is not None:
        _online(query, key, value, window=window, **options)
        causal = True
    return _online(query, key, value, causal=causal, **options)


@mistake(
    "attention.online_softmax_attention",
    says="You return a pair. There are no weights to return here, only the output: "
    "never holding them is the point.",
)
def online_returns_a_pair(query, key, value, **options):
    output = _online(query, key, value, **options)
    return output, torch.ones(())


@mistake(
    "attention.online_softmax_attention",
    says="A block_size or a window of 0 went through: raise a ValueError.",
)
def online_zero_accepted(query, key, value, *, window=None, block_size=128, **options):
    if block_size < 1:
        return torch.zeros(*query.shape[:-1], value.shape[-1])
    if window is not None and window < 1:
        return torch.zeros(*query.shape[:-1], value.shape[-1])
    return _online(query, key, value, window=window, block_size=block_size, **options)


@mistake(
    "attention.online_softmax_attention",
    says="Causal attention with fewer keys than queries went through. Every query is "
    "a token of the text: raise a ValueError.",
)
def online_fewer_keys_accepted(query, key, value, *, causal=False, **options):
    if causal and key.shape[-2] < query.shape[-2]:
        return torch.zeros(*query.shape[:-1], value.shape[-1])
    return _online(query, key, value, causal=causal, **options)


@variant("attention.online_softmax_attention")
def merge_by_logsumexp(query, key, value, *, causal=False, window=None, block_size=128):
    """Attend within every block, then weigh the blocks by their log-sum-exp."""
    n_queries, n_keys = query.shape[-2], key.shape[-2]
    if block_size < 1 or (window is not None and window < 1):
        raise ValueError("block_size and window must be at least 1")
    if (causal or window is not None) and n_keys < n_queries:
        raise ValueError("fewer keys than queries")
    place = torch.arange(n_keys - n_queries, n_keys)
    outputs, sizes = [], []
    for start in range(0, n_keys, block_size):
        keys, values = (x[..., start : start + block_size, :] for x in (key, value))
        scores = (
            torch.einsum("...td,...sd->...ts", query, keys) * query.shape[-1] ** -0.5
        )
        age = place[:, None] - torch.arange(start, start + keys.shape[-2])[None, :]
        if causal or window is not None:
            scores = scores.masked_fill(age < 0, torch.finfo(scores.dtype).min)
        if window is not None:
            scores = scores.masked_fill(age >= window, torch.finfo(scores.dtype).min)
        outputs.append(scores.softmax(dim=-1) @ values)
        sizes.append(scores.logsumexp(dim=-1))
    shares = torch.stack(sizes).softmax(dim=0)
    return (torch.stack(outputs) * shares[..., None]).sum(dim=0)


@variant("attention.online_softmax_attention")
def read_twice(query, key, value, *, causal=False, window=None, block_size=128):
    """First find the largest score of every query, then sum up in a second pass."""
    n_queries, n_keys = query.shape[-2], key.shape[-2]
    if block_size < 1 or (window is not None and window < 1):
        raise ValueError("block_size and window must be at least 1")
    if (causal or window is not None) and n_keys < n_queries:
        raise ValueError("fewer keys than queries")
    query = query / query.shape[-1] ** 0.5
    place = torch.arange(n_keys - n_queries, n_keys).unsqueeze(1)
    reach = n_keys if window is None else window

    def blocks():
        for start in range(0, n_keys, block_size):
            stop = min(start + block_size, n_keys)
            age = place - torch.arange(start, stop)
            scores = query @ key[..., start:stop, :].transpose(-1, -2)
            if causal or window is not None:
                scores = scores.where((age >= 0) & (age < reach), -math.inf)
            yield scores, value[..., start:stop, :]

    largest = torch.stack([scores.amax(dim=-1) for scores, _ in blocks()]).amax(dim=0)
    largest = largest.detach().unsqueeze(-1)
    exponentials = [((scores - largest).exp(), values) for scores, values in blocks()]
    total = sum(weights.sum(dim=-1, keepdim=True) for weights, _ in exponentials)
    return sum(weights @ values for weights, values in exponentials) / total


@variant("attention.online_softmax_attention")
def no_clean_up_of_hidden_blocks(
    query, key, value, *, causal=False, window=None, block_size=128
):
    """Let a hidden block count for now: a visible score scales it to nothing."""
    n_queries, n_keys = query.shape[-2], key.shape[-2]
    if block_size < 1 or (window is not None and window < 1):
        raise ValueError("block_size and window must be at least 1")
    if (causal or window is not None) and n_keys < n_queries:
        raise ValueError("fewer keys than queries")
    output, total, largest = 0.0, 0.0, torch.tensor(torch.finfo(query.dtype).min)
    for start in range(0, n_keys, block_size):
        scores = query @ key[..., start : start + block_size, :].mT
        scores = scores / math.sqrt(query.shape[-1])
        n_here = scores.shape[-1]
        if causal or window is not None:
            ones = torch.ones(n_queries, n_here, dtype=torch.bool)
            seen = ones.tril(n_keys - n_queries - start)
            if window is not None:
                seen = seen.triu(n_keys - n_queries - start - window + 1)
            scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
        before = largest
        largest = torch.maximum(before, scores.max(dim=-1, keepdim=True).values)
        weights = (scores - largest).exp()
        share = (before - largest).exp()
        total = share * total + weights.sum(dim=-1, keepdim=True)
        output = share * output + weights @ value[..., start : start + block_size, :]
    return output / total


# ── 13 · previous_token_head ─────────────────────────────────────────────────────────


def _shifted(n_tokens, strength):
    """Token t asks for place t - 1, with this strength."""
    return torch.eye(n_tokens).roll(-1, dims=1) * strength, torch.eye(n_tokens)


@mistake(
    "previous_token_head",
    says="Your head looks for the next token, which it may not see, and so it "
    "averages the past. Row t belongs to token t: it asks for place t - 1. Are rows "
    "and columns, or query and key, exchanged?",
)
def looks_for_the_next_token(n_tokens):
    w_query, w_key = _shifted(n_tokens, 20 * math.sqrt(n_tokens))
    return w_key, w_query


@mistake(
    "previous_token_head",
    says="Every token looks at itself: query and key of one token agree. Move one of "
    "the two by a place.",
)
def looks_at_itself(n_tokens):
    return 20 * math.sqrt(n_tokens) * torch.eye(n_tokens), torch.eye(n_tokens)


@mistake(
    "previous_token_head",
    says="Your head looks the right way, but too weakly: with scores of 1 the others "
    "keep most of the attention. Softmax needs large differences.",
)
def too_weak(n_tokens):
    return _shifted(n_tokens, math.sqrt(n_tokens))


@mistake(
    "previous_token_head",
    says="Strong enough without the division, too weak with it: the scores are "
    "divided by √D and your D grows with the text. Let the strength grow with √D.",
)
def division_forgotten(n_tokens):
    return _shifted(n_tokens, 10.0)


@mistake(
    "previous_token_head",
    says="Your head looks two tokens back. Token t asks for place t - 1.",
)
def looks_two_back(n_tokens):
    strength = 20 * math.sqrt(n_tokens)
    return torch.eye(n_tokens).roll(-2, dims=1) * strength, torch.eye(n_tokens)


@variant("previous_token_head")
def places_on_a_circle(n_tokens):
    """Width 2: place t is an angle, and the query is turned back by one place."""
    angle = torch.arange(n_tokens) * 2 * math.pi / (n_tokens + 1)
    step = 2 * math.pi / (n_tokens + 1)
    w_key = torch.stack([angle.cos(), angle.sin()], dim=1)
    w_query = torch.stack([(angle - step).cos(), (angle - step).sin()], dim=1)
    return w_query * 20 / (1 - math.cos(step)), w_key


@variant("previous_token_head")
def shift_the_keys(n_tokens):
    """Width T + 1, both matrices strong: token t offers place t + 1."""
    strength = 6 * (n_tokens + 1) ** 0.25
    w_query = torch.eye(n_tokens, n_tokens + 1)
    w_key = torch.zeros(n_tokens, n_tokens + 1)
    for t in range(n_tokens):
        w_key[t, t + 1] = 1
    return strength * w_query, strength * w_key


# ── 14 · read_token_by_token ─────────────────────────────────────────────────────────


_NO_MEMORY = (
    "Your tokens know nothing of each other: the layer got no cache, or a new and "
    "empty one for every token. One cache goes through the whole text."
)


@mistake("read_token_by_token", says=_NO_MEMORY)
def read_without_cache(layer, x):
    return torch.cat([layer(token)[0] for token in x.split(1, dim=1)], dim=1)


@mistake("read_token_by_token", says=_NO_MEMORY)
def new_cache_for_every_token(layer, x):
    outputs = [layer(t, cache=attention.KeyValueCache())[0] for t in x.split(1, dim=1)]
    return torch.cat(outputs, dim=1)


@mistake(
    "read_token_by_token",
    says="The numbers are right, but the layer reads the whole beginning at every "
    "step: for 1,000 tokens that is 500,000. With a cache it is 1,000; give the new "
    "token only.",
)
def beginning_read_without_cache(layer, x):
    outputs = []
    for n in range(1, x.shape[1] + 1):
        not_later = torch.ones(n, n, dtype=torch.bool).tril()
        outputs.append(layer(x[:, :n], mask=not_later)[0][:, -1:])
    return torch.cat(outputs, dim=1)


@mistake(
    "read_token_by_token",
    says="You hand over the whole beginning each time, and the cache has it already: "
    "the first tokens are counted again and again. Give the new token only.",
)
def beginning_read_again(layer, x):
    cache = attention.KeyValueCache()
    lengths = range(1, x.shape[1] + 1)
    outputs = [layer(x[:, :n], cache=cache)[0][:, -1:] for n in lengths]
    return torch.cat(outputs, dim=1)


@mistake(
    "read_token_by_token",
    says="The layer read the text at once. That is the pass which this function "
    "should reproduce, one token after the other.",
)
def read_at_once(layer, x):
    n_tokens = x.shape[1]
    not_later = torch.ones(n_tokens, n_tokens, dtype=torch.bool).tril()
    return layer(x, mask=not_later)[0]


@mistake(
    "read_token_by_token",
    says="You handed over (B, C): picking one place takes the axis of the tokens "
    "away. A text of one token is still a text, (B, 1, C).",
)
def axis_of_tokens_lost(layer, x):
    cache = attention.KeyValueCache()
    outputs = [layer(token, cache=cache)[0] for token in x.unbind(dim=1)]
    return torch.stack(outputs, dim=1)


@mistake(
    "read_token_by_token",
    says="Only the output of the last token came back. Keep the outputs of all of "
    "them.",
)
def last_output_only(layer, x):
    cache = attention.KeyValueCache()
    for token in x.split(1, dim=1):
        output = layer(token, cache=cache)[0]
    return output


@mistake(
    "read_token_by_token",
    says="The outputs were stacked on a new axis. Each already has an axis for its "
    "one token: join them along it.",
)
def outputs_stacked(layer, x):
    cache = attention.KeyValueCache()
    outputs = [layer(token, cache=cache)[0] for token in x.split(1, dim=1)]
    return torch.stack(outputs, dim=1)


@mistake(
    "read_token_by_token",
    says="You return the pairs' first and second halves together. Keep the output of "
    "each call and leave the weights.",
)
def pairs_kept(layer, x):
    cache = attention.KeyValueCache()
    return [layer(token, cache=cache) for token in x.split(1, dim=1)]


@variant("read_token_by_token")
def with_a_mask_that_forbids_nothing(layer, x):
    cache = attention.KeyValueCache()
    result = torch.zeros_like(x)
    for t in range(x.shape[1]):
        everything = torch.ones(1, t + 1, dtype=torch.bool)
        result[:, t] = layer(x[:, [t]], mask=everything, cache=cache)[0][:, 0]
    return result


@variant("read_token_by_token")
def token_after_token(layer, x):
    cache = attention.KeyValueCache()
    outputs = []
    for token in x.unbind(dim=1):
        output, _ = layer(token.unsqueeze(1), None, None, cache)
        outputs.append(output.squeeze(1))
    return torch.stack(outputs, dim=1)
