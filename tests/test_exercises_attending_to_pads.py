"""Lesson 02's graders: the solutions pass, and typical wrong answers are told what is wrong."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import lab
from lab import diagnose, labels, masks
from lab.exercises.attending_to_pads import decoder_mask, reads_pads

PAD = 1
Batch = dict[str, Tensor]


def causal(ids: Tensor, last: int | None) -> Tensor:
    return masks.causal(ids.size(1), last)


def real(ids: Tensor, pad_id: int) -> Tensor:
    return ids != pad_id


# 02a


def test_the_repair_passes() -> None:
    decoder_mask(masks.decoder)
    decoder_mask(lambda ids, pad_id, last=None: causal(ids, last) & real(ids, pad_id)[:, None, None, :])
    decoder_mask(lambda ids, p, last=None: (causal(ids, last) & real(ids, p)[:, None, :])[:, None])


def by_length(ids: Tensor, pad_id: int, last: int | None = None) -> Tensor:
    lengths = (ids != pad_id).sum(1)
    return causal(ids, last) & (torch.arange(ids.size(1)) < lengths[:, None])[:, None, None, :]


def first_rows(ids: Tensor, pad_id: int, last: int | None = None) -> Tensor:
    return masks.decoder(ids, pad_id)[:, :, :last]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda ids, p, last=None: None, "return the mask"),
        (lambda ids, p, last=None: masks.decoder(ids, p, last).float(), "torch.bool"),
        (lambda ids, p, last=None: masks.decoder(ids, p, last)[:, 0], "does not broadcast"),
        (lambda ids, p, last=None: ~masks.decoder(ids, p, last), "upside down: True = may attend"),
        (lambda ids, p, last=None: causal(ids, last) & ~masks.key_is_real(ids, p), "padding half is upside down"),
        (lambda ids, p, last=None: causal(ids, last), "the fault itself"),
        (lambda ids, p, last=None: masks.key_is_real(ids, p), "causal half is missing"),
        (lambda ids, p, last=None: causal(ids, last) & real(ids, p)[:, None, :, None], "pads as queries (rows)"),
        (
            lambda ids, p, last=None: masks.decoder(ids, p) & real(ids, p)[:, None, :, None],
            "as queries too",
        ),
        (lambda ids, p, last=None: causal(ids, last) | masks.key_is_real(ids, p), "join them with &"),
        (lambda ids, p, last=None: causal(ids, last).T & masks.key_is_real(ids, p), "triangle is turned"),
        (lambda ids, p, last=None: causal(ids, last).tril(-1) & masks.key_is_real(ids, p), "diagonal is missing"),
        (by_length, "wrong for a row with padding at the left"),
        (lambda ids, p, last=None: masks.decoder(ids, 1, last), "the fault itself"),
        (lambda ids, p, last=None: masks.decoder(ids, p), "with last=2"),
        (first_rows, "the last 2 rows"),
    ],
)
def test_a_wrong_mask_is_told_its_mistake(wrong: Callable[..., Any], message: str) -> None:
    with pytest.raises(AssertionError) as error:
        decoder_mask(wrong)
    assert message in str(error.value)


# 02b


def at_left(batch: Batch) -> Batch:
    keep = batch["labels"] != -100
    moved = {
        name: labels.pad([row[real].tolist() for row, real in zip(batch[name], keep, strict=True)], fill, "left")
        for name, fill in (("decoder_input_ids", PAD), ("labels", -100))
    }
    return batch | moved


def noisy(model: Any) -> Any:
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.embedder.token.weight[PAD] += torch.randn(model.config.d_model)
    return twin


def solution(model: Any, batch: Batch) -> bool:
    batch = at_left(batch)
    real = batch["labels"] != -100
    with torch.no_grad(), lab.evaluating(model), lab.evaluating(twin := noisy(model)):
        return not torch.equal(model(**batch).logits[real], twin(**batch).logits[real])


def by_weights(model: Any, batch: Batch) -> bool:
    batch = at_left(batch)
    pads = batch["decoder_input_ids"] == PAD
    with torch.no_grad():
        weights = model(**batch, need_weights=True).attentions["decoder"]
    return any(bool((w.sum(1)[~pads] * pads.repeat_interleave((~pads).sum(1), 0)).any()) for w in weights)


def by_diagnosis(model: Any, batch: Batch) -> bool:
    batch = at_left(batch)
    return bool(diagnose(model, batch, only=["attends-to-pads"]))


@pytest.mark.parametrize("right", [solution, by_weights, by_diagnosis])
def test_a_check_that_works_passes(right: Callable[[Any, Batch], bool]) -> None:
    reads_pads(right)


def losses_on_the_right(model: Any, batch: Batch) -> bool:
    with torch.no_grad(), lab.evaluating(model), lab.evaluating(twin := noisy(model)):
        return bool(model(**batch).loss != twin(**batch).loss)


def with_dropout(model: Any, batch: Batch) -> bool:
    return bool(model(**batch).loss != noisy(model)(**batch).loss)


def every_position(model: Any, batch: Batch) -> bool:
    with torch.no_grad(), lab.evaluating(model), lab.evaluating(twin := noisy(model)):
        return not torch.equal(model(**batch).logits, twin(**batch).logits)


def in_place(model: Any, batch: Batch) -> bool:
    with torch.no_grad():
        model.embedder.token.weight[PAD] += 1
    return False


def reads_the_mask(model: Any, batch: Batch) -> bool:
    ids = at_left(batch)["decoder_input_ids"]
    return not torch.equal(masks.decoder(ids, PAD), masks.causal(ids.size(1)) & masks.key_is_real(ids, PAD))


def first_pad_alone(model: Any, batch: Batch) -> bool:
    """A mask that starts one late shows the last pad, and not the first."""
    batch = at_left(batch)
    with torch.no_grad(), lab.evaluating(model):
        weights = model(**batch, need_weights=True).attentions["decoder"][0]
    return bool((weights[:, :, -1, 0].sum(1) * (batch["decoder_input_ids"][:, 0] == PAD)).any())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda model, batch: None, "returned None"),
        (lambda model, batch: True, "True to everything"),
        (lambda model, batch: False, "it says False with the fault"),
        (losses_on_the_right, "causality hides the pads"),
        (with_dropout, "is dropout on"),
        (every_position, "real positions alone"),
        (in_place, "changed the model"),
        (first_pad_alone, "one late"),
        (reads_the_mask, "a fill of -10"),
    ],
)
def test_a_check_that_proves_nothing_is_told_why(wrong: Callable[[Any, Batch], Any], message: str) -> None:
    with pytest.raises(AssertionError) as error:
        reads_pads(wrong)
    assert message in str(error.value)
