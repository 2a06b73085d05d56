"""Lesson 02: grade the decoder's attend mask (02a), and a check that tells whether a model reads padding (02b)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .. import faults, labels, masks
from ..data import PAD_ID, SPECIAL_IDS
from ..faults.masks import causal_only
from ..matrix import config
from ..transformer import Transformer
from . import grader

PAD, HEADS = 7, 2
ROWS = {"at the right": [5, 6, 8, PAD, PAD], "at the left": [PAD, PAD, 5, 6, 8], "in the middle": [5, PAD, PAD, 6, 8]}


@grader("02a", title="the decoder's mask is causal, and blocks the keys that are padding")
def decoder_mask(answer: Callable) -> None:
    ids = torch.tensor(list(ROWS.values()))
    mask, shape = answer(ids, PAD), (len(ids), HEADS, ids.size(1), ids.size(1))
    if not isinstance(mask, Tensor):
        raise AssertionError(f"the answer is a {type(mask).__name__}; return the mask, a tensor")
    if mask.dtype != torch.bool:
        raise AssertionError(f"the mask is {mask.dtype}, and a float mask is added to the scores: return torch.bool")
    try:
        mask = mask.expand(shape)
    except RuntimeError:
        raise AssertionError(
            f"a mask of shape {tuple(mask.shape)} does not broadcast to (B, H, T, T) = {shape}: "
            f"make room for heads and queries, as in (ids != pad_id)[:, None, None, :]"
        ) from None
    causal, real = masks.causal(ids.size(1)), ids != PAD
    keys, queries = real[:, None, None, :], real[:, None, :, None]
    both = (causal & keys).expand(shape)
    mistakes = {
        "it is upside down: True = may attend (key_padding_mask of torch is the other way round)": ~both,
        "its padding half is upside down: where ids == pad_id nothing may be attended": causal & ~keys,
        "it is causal, but pads may still be attended to: that is the fault itself": causal,
        "the causal half is missing: position t sees what comes after it": keys,
        "it blocks pads as queries (rows), not as keys (columns): what matters is who is looked at": causal & queries,
        "it blocks pads as queries too, which makes rows that may attend nowhere: block keys alone": both & queries,
        "its halves are joined with 'or': both must allow it, so join them with &": causal | keys,
        "its triangle is turned: position t may attend to 0..t, not to t..T-1": causal.T & keys,
        "its diagonal is missing: position t may attend to itself": causal.tril(-1) & keys,
    }
    for message, wrong in mistakes.items():
        if torch.equal(mask, wrong.expand(shape)):
            raise AssertionError(message)
    for b, place in enumerate(ROWS):
        if not torch.equal(mask[b], both[b]):
            raise AssertionError(
                f"it is wrong for a row with padding {place} (ids {ids[b].tolist()}, pad_id {PAD}): only ids != pad_id "
                f"tells where pads are, not the number of tokens, and not the pad_id of another batch"
            )
    rows = answer(ids, PAD, 2)
    if rows.size(-2) != 2 or not torch.equal(rows.expand(-1, HEADS, -1, -1), both[:, :, -2:]):
        raise AssertionError(
            f"with last=2 it must be the last 2 rows of the whole mask; its shape is {tuple(rows.shape)}"
        )


def key_is_late(ids: Tensor, pad_id: int, last: int | None = None) -> Tensor:
    """A padding mask that is off by one: the pad before the row's first token may be attended to."""
    open_to = ids != pad_id
    open_to[:, :-1] |= open_to[:, 1:].clone()
    return masks.causal(ids.size(1), last) & open_to[:, None, None, :]


def small_fill(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, dropout: float = 0.0) -> Tensor:
    """Blocked scores get -10: little weight, but not none."""
    scores = query @ key.transpose(-2, -1) / query.size(-1) ** 0.5
    return scores.masked_fill(~mask, -10).softmax(-1) @ value


@grader("02b", title="the check tells a model that reads padding from one that does not")
def reads_pads(answer: Callable) -> None:
    torch.manual_seed(0)
    model = Transformer(config(tie_head=False))
    padded = labels.collate_pairs([([5, 6, 7], [10, 11, 12, 13]), ([8, 9], [14]), ([4], [15, 16])], **SPECIAL_IDS)
    whole = labels.collate_pairs([([5, 6, 7], [10, 11]), ([8, 9, 4], [14, 15])], **SPECIAL_IDS)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def ask(batch: dict[str, Tensor]) -> bool:
        verdict = answer(model, {name: rows.clone() for name, rows in batch.items()})
        if verdict is None:
            raise AssertionError("your check returned None; return True or False")
        if any(not torch.equal(before[name], tensor) for name, tensor in model.state_dict().items()):
            raise AssertionError("your check changed the model: change a copy, copy.deepcopy(model)")
        return bool(verdict)

    if ask(whole):
        raise AssertionError(
            "it says True for the healthy model and a batch without one pad: is dropout on (lab.evaluating switches it "
            "off), or does it say True to everything?"
        )
    if ask(padded):
        raise AssertionError(
            "it says True for the healthy model: compare the real positions alone, for what a pad itself gives out may "
            "change; and change the pads by a finite amount, for 0 x NaN is NaN"
        )
    seen: list[Tensor] = []

    def fault(ids: Tensor, pad_id: int, last: int | None = None) -> Tensor:
        seen.append(ids)
        return causal_only(ids, pad_id, last)

    mutants = {
        "the fault": ("lab.masks:decoder", fault),
        "a mask that starts one late, so that one pad shows": ("lab.masks:decoder", key_is_late),
        "a fill of -10, which leaves pads a little weight": ("lab.attention:attend", small_fill),
    }
    for name, mutant in mutants.items():
        with faults.substituted(*mutant):
            caught = ask(padded)
        at_left = [((ids[:, :-1] == PAD_ID) & (ids[:, 1:] != PAD_ID)).any() for ids in seen]
        if not caught and seen and not any(at_left):
            raise AssertionError(
                "it says False with the fault: all that it showed the model was padded at the right, where causality "
                "hides the pads and the loss skips them. Losses, gradients and real rows are the same to the last bit "
                "with and without the mask, so nothing is proved: move the pads to the left first"
            )
        if not caught:
            raise AssertionError(
                f"it says False with {name}: change what pads hold; did any real position move at all?"
            )
