"""Lesson 04's graders: the solutions pass, and typical wrong answers are told what is wrong."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lab import masks
from lab.exercises.attention_masks import leak_count, safe_attention

# 04a


def scores_of(query: Tensor, key: Tensor) -> Tensor:
    return query @ key.transpose(-2, -1) / query.size(-1) ** 0.5


def lowest(scores: Tensor, mask: Tensor) -> Tensor:
    return scores.masked_fill(~mask, torch.finfo(scores.dtype).min)


def solution(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    return (lowest(scores_of(query, key), mask).softmax(-1) * mask) @ value


def renormalised(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Another way: the softmax by hand, and a sum that is never 0."""
    scores = lowest(scores_of(query, key), mask)
    shares = (scores - scores.amax(-1, keepdim=True)).exp() * mask
    return shares / shares.sum(-1, keepdim=True).clamp(min=1e-6) @ value


def empty_rows_off(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """A third: leave out what has no key at all."""
    return lowest(scores_of(query, key), mask).softmax(-1) @ value * mask.any(-1, keepdim=True)


def nan_replaced(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """A fourth: masked_fill lets no gradient through where it writes, so the NaN ends there."""
    return scores_of(query, key).masked_fill(~mask, -torch.inf).softmax(-1).nan_to_num() @ value


@pytest.mark.parametrize("right", [solution, renormalised, empty_rows_off, nan_replaced])
def test_an_attention_that_holds_passes(right: Callable[..., Tensor]) -> None:
    safe_attention(right)


def infinite(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    return scores_of(query, key).masked_fill(~mask, -torch.inf).softmax(-1) @ value


def hidden_nan(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    return (scores_of(query, key) + torch.where(mask, 0, -torch.inf)).softmax(-1).nan_to_num() @ value


def opened(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """A row that may attend nowhere is given the first key."""
    mask = mask | (~mask.any(-1, keepdim=True) & (torch.arange(mask.size(-1)) == 0))
    return solution(query, key, value, mask)


def in_place(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    mask[~mask.any(-1).expand(mask.shape[:-1])] = True
    return solution(query, key, value, mask)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (infinite, "nothing but -inf"),
        (hidden_nan, "gradient of query and key is NaN"),
        (lambda q, k, v, m: lowest(scores_of(q, k), m).softmax(-1) @ v, "the mean of all values"),
        (lambda q, k, v, m: scores_of(q, k).masked_fill(~m, -1e9).softmax(-1) * m @ v, "in float16 it fails"),
        (opened, "was a key opened for it"),
        (in_place, "in place"),
        (lambda q, k, v, m: solution(q, k, v, ~m), "upside down"),
        (lambda q, k, v, m: scores_of(q, k).softmax(-1) @ v, "does not look at the mask"),
        (lambda q, k, v, m: lowest(q @ k.transpose(-2, -1), m).softmax(-1) * m @ v, "root of the width"),
        (lambda q, k, v, m: lowest(scores_of(q, k), m).softmax(-2) @ v, "dim -2, the queries"),
        (lambda q, k, v, m: scores_of(q, k).softmax(-1) * m @ v, "no longer sums to 1"),
        (lambda q, k, v, m: (scores_of(q, k) * m).softmax(-1) @ v, "e to the 0 is 1"),
        (lambda q, k, v, m: solution(q, k, v.flip(-2), m), "where keys are left"),
        (lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m), "write it by hand"),
        (lambda q, k, v, m: (solution(q, k, v, m), m), "the output alone"),
        (lambda q, k, v, m: solution(q, k, v, m).transpose(1, 2), "has shape"),
        (
            lambda q, k, v, m: scores_of(q, k).exp() * m / (scores_of(q, k).exp() * m).sum(-1, keepdim=True) @ v,
            "gives NaN: 0 / 0",
        ),
        (
            lambda q, k, v, m: scores_of(q, k).exp() * m / ((scores_of(q, k).exp() * m).sum(-1, True) + 1e-9) @ v,
            "large scores",
        ),
    ],
)
def test_a_wrong_attention_is_told_its_mistake(wrong: Callable[..., Any], message: str) -> None:
    with pytest.raises(AssertionError) as error:
        safe_attention(wrong)
    assert message in str(error.value)


# 04b


def allowed(ids: Tensor, pad_id: int) -> Tensor:
    return masks.causal(ids.size(1)) & masks.key_is_real(ids, pad_id)


def real(ids: Tensor, pad_id: int) -> Tensor:
    return (ids != pad_id)[:, None, :, None]


def count(weights: Tensor, ids: Tensor, pad_id: int) -> int:
    return int(((weights != 0) & ~allowed(ids, pad_id) & real(ids, pad_id)).sum())


def by_loops(weights: Tensor, ids: Tensor, pad_id: int) -> int:
    return sum(
        bool(weights[b, h, t, s]) and ids[b, t] != pad_id and (s > t or bool(ids[b, s] == pad_id))
        for b, h, t, s in torch.cartesian_prod(*map(torch.arange, weights.shape)).tolist()
    )


@pytest.mark.parametrize("right", [count, by_loops, lambda w, i, p: torch.tensor(count(w, i, p))])
def test_a_count_that_works_passes(right: Callable[..., Any]) -> None:
    leak_count(right)


def future(weights: Tensor, ids: Tensor, pad_id: int) -> Tensor:
    return (weights != 0) & ~masks.causal(ids.size(1)) & real(ids, pad_id)


def padding(weights: Tensor, ids: Tensor, pad_id: int) -> Tensor:
    return (weights != 0) & ~masks.key_is_real(ids, pad_id) & real(ids, pad_id)


def strict(weights: Tensor, ids: Tensor, pad_id: int) -> int:
    mask = masks.causal(ids.size(1)).tril(-1) & masks.key_is_real(ids, pad_id)
    return int(((weights != 0) & ~mask & real(ids, pad_id)).sum())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda w, i, p: None, "return a number"),
        (lambda w, i, p: True, "return a number"),
        (lambda w, i, p: (w != 0) & ~allowed(i, p), "return a number"),
        (lambda w, i, p: int(((w != 0) & ~allowed(i, p)).sum()), "padding's own rows"),
        (lambda w, i, p: int(future(w, i, p).sum()), "weight on padding is not counted"),
        (lambda w, i, p: int(padding(w, i, p).sum()), "weight on later tokens is not counted"),
        (lambda w, i, p: int(future(w, i, p).sum() + padding(w, i, p).sum()), "counts once"),
        (lambda w, i, p: int((future(w, i, p) | padding(w, i, p)).any(1).sum()), "each head"),
        (lambda w, i, p: count(w.mean(1, keepdim=True), i, p), "each head"),
        (strict, "position t may attend to itself"),
        (lambda w, i, p: count((w > 1e-4).float(), i, p), "exactly 0"),
        (lambda w, i, p: count(w, i, 7), "another pad_id"),
        (lambda w, i, p: 0, "there are"),
        (lambda w, i, p: 1, "with the healthy mask"),
    ],
)
def test_a_wrong_count_is_told_its_mistake(wrong: Callable[..., Any], message: str) -> None:
    with pytest.raises(AssertionError) as error:
        leak_count(wrong)
    assert message in str(error.value)
