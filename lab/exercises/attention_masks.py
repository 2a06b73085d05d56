"""Lesson 04: grade an attention that is safe where a row may attend nowhere (04a), and a count of leaks (04b)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .. import masks
from ..attention import attention_weights
from . import grader

PAD = 7


class ByHand(TorchFunctionMode):
    """Inside, torch's own attention is not to be had."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            raise AssertionError("that is torch's own: write it by hand, scores, softmax and all")
        return func(*args, **(kwargs or {}))


def attended(answer: Callable, inputs: list[Tensor], mask: Tensor) -> Tensor:
    """What the answer gives for inputs that it must leave as they are."""
    before = [tensor.detach().clone() for tensor in (*inputs, mask)]
    with ByHand():
        out = answer(*inputs, mask)
    if not isinstance(out, Tensor) or out.shape != inputs[0].shape:
        given = f"has shape {tuple(out.shape)}" if isinstance(out, Tensor) else f"is a {type(out).__name__}"
        raise AssertionError(f"the answer {given}; return the output alone, (B, H, T, K) = {tuple(inputs[0].shape)}")
    if any(not torch.equal(was, now) for was, now in zip(before, (*inputs, mask), strict=True)):
        raise AssertionError("it changes its inputs or the mask in place: masked_fill, not masked_fill_")
    return out


@grader("04a", title="attention by hand, in which a row that may attend nowhere gives zeros, in the gradient too")
def safe_attention(answer: Callable) -> None:
    torch.manual_seed(0)
    source = torch.tensor([[4, 5, 6, 8, 9], [4, 5, PAD, PAD, PAD], [PAD] * 5])  # whole, padded, nothing but padding
    query, key, value = inputs = [torch.randn(3, 2, length, 8, requires_grad=True) for length in (4, 5, 5)]
    mask = masks.key_is_real(source, PAD)
    out, right = attended(answer, inputs, mask), F.scaled_dot_product_attention(query, key, value, mask)
    scores = query @ key.transpose(-2, -1) / 8**0.5
    blocked = scores.masked_fill(~mask, -1e9)
    mistakes = {
        "its mask is upside down: True = may attend, so blocked is ~mask": scores.masked_fill(mask, -1e9).softmax(-1),
        "it does not look at the mask": scores.softmax(-1),
        "its scores are not divided by the root of the width of a head, sqrt(K)": (blocked * 8**0.5).softmax(-1),
        "its softmax runs over dim -2, the queries; a query shares its weight among the keys": blocked.softmax(-2),
        "it masks after the softmax alone: a padded row no longer sums to 1": scores.softmax(-1) * mask,
        "it multiplies the scores by the mask: a blocked one is 0, and e to the 0 is 1": (scores * mask).softmax(-1),
    }
    if not torch.allclose(out[:2], right[:2], atol=1e-5):
        named = (text for text, used in mistakes.items() if torch.allclose(out[1], (used @ value)[1], atol=1e-5))
        raise AssertionError(next(named, "it is wrong where keys are left: softmax(Q K^T / sqrt(K)) V"))
    where, empty = "the row whose source is all padding gives", out[2]
    if empty.isnan().any():
        raise AssertionError(
            f"{where} NaN: 0 / 0, as in the softmax of nothing but -inf. Block with a large but finite number"
        )
    if torch.allclose(empty, value[2].mean(-2, keepdim=True), atol=1e-5):
        raise AssertionError(
            f"{where} the mean of all values: equal scores are a uniform weight, whatever their number. It must give "
            f"zeros: what is blocked has no weight after the softmax either"
        )
    if empty.any():
        raise AssertionError(f"{where} something else than zeros: was a key opened for it? It may attend nowhere")
    gradients = zip(("query", "key", "value"), torch.autograd.grad(out.sum(), inputs), strict=True)
    if wrong := [name for name, gradient in gradients if gradient.isnan().any()]:
        raise AssertionError(
            f"the output is right, and the gradient of {' and '.join(wrong)} is NaN: nan_to_num and torch.where hide a "
            f"NaN on the way forward, and on the way back 0 x NaN is NaN. Let none arise: no -inf into the softmax"
        )
    mask = masks.decoder(torch.tensor([[PAD, PAD, 4, 5, 6], [4, 5, 6, 8, 9], [PAD, PAD, PAD, PAD, 9]]), PAD)
    large = [tensor.detach() * 20 for tensor in (key, key, value)]
    if not torch.allclose(attended(answer, large, mask), F.scaled_dot_product_attention(*large, mask), atol=1e-4):
        raise AssertionError("it is wrong for self-attention, causal and padded at the left, and for large scores")
    try:
        half = attended(answer, [tensor.detach().half() for tensor in (key, key, value)], mask)
    except RuntimeError as error:
        raise AssertionError(f"in float16 it fails ({error}): torch.finfo(scores.dtype).min fits every dtype") from None
    if not half.isfinite().all():
        raise AssertionError("in float16 it gives NaN or infinity: torch.finfo(scores.dtype).min fits every dtype")


def weights_of(mask: Tensor, ids: Tensor) -> Tensor:
    """What three heads give, if they attend as the mask says: (B, H, T, T)."""
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(len(ids), 3, ids.size(1), 4, generator=generator) for _ in range(2))
    return attention_weights(query, key, mask)


@grader("04b", title="the count of leaks tells what real queries see from what padding's own rows do")
def leak_count(answer: Callable) -> None:
    def ask(weights: Tensor, ids: Tensor, pad_id: int = PAD) -> int:
        given = answer(weights.clone(), ids.clone(), pad_id)
        if given is None or isinstance(given, bool) or (isinstance(given, Tensor) and given.numel() != 1):
            raise AssertionError(f"your function returned {given!r}; return a number, how many leaks there are")
        return int(given)

    rows = {"right": [4, 5, 6, PAD, PAD], "left": [PAD, PAD, 4, 5, 6], "middle": [4, PAD, PAD, 5, 6]}
    past, late = masks.causal(5), torch.ones(5, 5).tril(1).bool()
    for side, row in rows.items():
        ids = torch.tensor([row, [8, 9, 4, 5, 6]])
        key, query = masks.key_is_real(ids, PAD), (ids != PAD)[:, None, :, None]
        for name, allowed in {
            "the healthy mask": past & key,
            "the fault (causal, but padding may be attended to)": past.expand(2, 1, 5, 5),
            "a causal mask that is one late": late & key,
            "a causal mask that is one late and no mask of padding": late.expand(2, 1, 5, 5),
        }.items():
            weights = weights_of(allowed, ids)
            used = weights != 0
            future, pads = used & ~past & query, used & ~key & query
            every, itself = used & ~(past & key), (used & ~past.tril(-1) & query) | pads
            given, right = ask(weights, ids), int((future | pads).sum())
            mistakes = {
                "padding's own rows are counted too; what they look at reaches no loss and no real token": every.sum(),
                "what is both padding and in the future counts once: join the two with |": future.sum() + pads.sum(),
                "weight on padding is not counted": future.sum(),
                "weight on later tokens is not counted": pads.sum(),
                "the heads are counted as one; each head is a leak of its own": (future | pads).any(1).sum(),
                "a token's own place is counted; position t may attend to itself": itself.sum(),
            }
            if given != right:
                named = (f": {text}" for text, wrong in mistakes.items() if given == wrong)
                where = f"with {name}, padding at the {side}"
                raise AssertionError(f"{where}, you count {given} leaks, and there are {right}{next(named, '')}")
    ids = torch.tensor([rows["left"]])
    faint = weights_of(past & masks.key_is_real(ids, PAD), ids)
    faint[0, 1, 3, 0] = 1e-6
    if ask(faint, ids) != 1:
        raise AssertionError("a weight of 0.000001 on padding is missed: what is blocked is exactly 0, so ask for != 0")
    ids = ids.masked_fill(ids == PAD, 3)  # another tokenizer's padding
    if (given := ask(weights_of(past, ids), ids, 3)) != 18:
        raise AssertionError(f"with pad_id 3 you count {given} leaks, not 18: is another pad_id written into it?")
