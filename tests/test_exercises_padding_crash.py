"""Lesson 01: its solutions pass, and each typical mistake is called by its name."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lab import diagnose, faults
from lab.exercises.padding_crash import check, repair
from lab.labels import IGNORE_INDEX


def solution(labels: Tensor, start_id: int, pad_id: int) -> Tensor:
    real = labels != IGNORE_INDEX
    tokens = torch.where(real, labels, pad_id)
    shifted = torch.cat([torch.full_like(tokens[:, :1], pad_id), tokens[:, :-1]], dim=1)
    first = real & (real.cumsum(dim=1) == 1)
    return torch.where(first, start_id, shifted)


def in_place(labels: Tensor, start_id: int, pad_id: int) -> Tensor:
    labels[labels == IGNORE_INDEX] = pad_id
    return solution(labels, start_id, pad_id)


def starts_at_column_0(labels: Tensor, start_id: int, pad_id: int) -> Tensor:
    tokens = labels.masked_fill(labels == IGNORE_INDEX, pad_id)
    return torch.cat([torch.full_like(tokens[:, :1], start_id), tokens[:, :-1]], dim=1)


def starts_after_every_hole(labels: Tensor, start_id: int, pad_id: int) -> Tensor:
    shifted = starts_at_column_0(labels, start_id, pad_id)
    shifted[:, 0] = torch.where(labels[:, 0] == IGNORE_INDEX, pad_id, start_id)
    hole = (labels[:, :-1] == IGNORE_INDEX) & (labels[:, 1:] != IGNORE_INDEX)
    shifted[:, 1:][hole] = start_id
    return shifted


def rolls_round(labels: Tensor, start_id: int, pad_id: int) -> Tensor:
    return labels.masked_fill(labels == IGNORE_INDEX, pad_id).roll(1, dims=1)


def shifts_left(labels: Tensor, start_id: int, pad_id: int) -> Tensor:
    return labels.masked_fill(labels == IGNORE_INDEX, pad_id).roll(-1, dims=1)


def drops_the_ignored(labels: Tensor, start_id: int, pad_id: int) -> Tensor:
    out = solution(labels, start_id, pad_id)
    for row, given in zip(out, labels, strict=True):
        tokens = [start_id, *given[given != IGNORE_INDEX].tolist()][: len(row)]
        if given[0] != IGNORE_INDEX:
            row[:] = torch.tensor(tokens + [pad_id] * (len(row) - len(tokens)))
    return out


REPAIRS: list[tuple[str, Callable[..., Any]]] = [
    ("NoneType", lambda labels, start_id, pad_id: None),
    ("fill in place", in_place),
    ("-100 is still among the ids", faults.get("padding-crash").twins[0].broken),
    ("was it clamped", faults.get("clamp-to-zero").twins[0].broken),
    ("written as a number", lambda labels, start_id, pad_id: solution(labels, start_id, 1)),
    ("use start_id", lambda labels, start_id, pad_id: solution(labels, 0, pad_id)),
    ("not shifted", lambda labels, start_id, pad_id: torch.where(labels == IGNORE_INDEX, pad_id, labels)),
    ("shifted to the left", shifts_left),
    ("brings the end round", rolls_round),
    ("where does the row begin", starts_at_column_0),
    ("start token twice", starts_after_every_hole),
    ("ignored label inside came out wrong", drops_the_ignored),
    ("one id a label", lambda labels, start_id, pad_id: solution(labels, start_id, pad_id)[:, :-1]),
    ("torch.float32", lambda labels, start_id, pad_id: solution(labels, start_id, pad_id).float()),
]


def fed(batch: dict[str, Tensor]) -> list[Tensor]:
    return [batch["input_ids"], batch["decoder_input_ids"]]


def in_range(ids: Tensor, model: Any) -> bool:
    return bool(((ids >= 0) & (ids < model.embedder.token.num_embeddings)).all())


def waits_for_the_crash(model: Any, batch: dict[str, Tensor]) -> bool:
    try:
        model(**batch)
    except IndexError:
        return False
    return True


def repairs_the_batch(model: Any, batch: dict[str, Tensor]) -> bool:
    good = all(in_range(ids, model) for ids in fed(batch))
    batch["decoder_input_ids"].clamp_(min=0)
    return good


CHECKS: list[tuple[str, Callable[..., Any]]] = [
    ("True for everything", lambda model, batch: True),
    ("never says True", lambda model, batch: False),
    ("returned None", lambda model, batch: None),
    ("crashes with the model", lambda model, batch: model(**batch).loss.isfinite()),
    ("no embedding reads labels", lambda model, batch: all(in_range(ids, model) for ids in batch.values())),
    ("for a pair without padding", lambda model, batch: (batch["decoder_input_ids"] == 1).any()),
    ("rows - 1", lambda model, batch: all(bool(((i >= 0) & (i < 127)).all()) for i in fed(batch))),
    ("the id 128 through", lambda model, batch: all(not (ids == IGNORE_INDEX).any() for ids in fed(batch))),
    ("the id -1 through", lambda model, batch: all(bool(((i != -100) & (i < 128)).all()) for i in fed(batch))),
    ("encoder has an embedding too", lambda model, batch: in_range(batch["decoder_input_ids"], model)),
    ("Do not wait for the crash", waits_for_the_crash),
    ("changed the batch", repairs_the_batch),
]


def test_the_repair_passes() -> None:
    repair(solution)


@pytest.mark.parametrize(("named", "wrong"), REPAIRS, ids=[name for name, _ in REPAIRS])
def test_a_wrong_repair_is_named(named: str, wrong: Callable[..., Any]) -> None:
    with pytest.raises(AssertionError) as caught:
        repair(wrong)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    "right",
    [
        lambda model, batch: all(in_range(ids, model) for ids in fed(batch)),
        lambda model, batch: torch.stack([torch.tensor(in_range(ids, model)) for ids in fed(batch)]).all(),
        lambda model, batch: not diagnose(model, batch, only=["padding-crash"]),
    ],
    ids=["solution", "as a tensor", "with the kit's own check"],
)
def test_a_right_check_passes(right: Callable[..., Any]) -> None:
    check(right)


@pytest.mark.parametrize(("named", "wrong"), CHECKS, ids=[name for name, _ in CHECKS])
def test_a_wrong_check_is_named(named: str, wrong: Callable[..., Any]) -> None:
    with pytest.raises(AssertionError) as caught:
        check(wrong)
    assert named in str(caught.value)
