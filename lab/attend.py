"""Pictures of masks and weights as they are given: query x key, with padding, leaks, and what should have been."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .grid import Grid
from .grid_picture import GridPicture, check_labels
from .masks import causal as causal_mask
from .states import Cell

AXES = ("↓ query (who looks)", "→ key (what is looked at)")
Labels = Sequence[str] | Sequence[Sequence[str]]


def mask(
    used: Tensor,
    queries: Labels,
    keys: Labels | None = None,
    *,
    should: Tensor | None = None,
    pads: Any = None,
    query_pads: Any = None,
    title: str | Sequence[str] = "",
    across: int = 0,
) -> GridPicture:
    """Attend masks, True = may attend, as they are given: (T, S), or (B, T, S) and (B, 1, T, S) as small multiples.

    queries, keys: the tokens, a list or one for each row of the batch; without keys, the queries'. should: the mask as
    it should be; without it, padding alone should be blocked. pads, query_pads: which keys and queries are padding,
    one bool for each or their numbers; queries are as keys where the keys are not given. A padding query's own row
    teaches nothing and is greyed. Raises ValueError for another shape or dtype and for labels of another number.
    """

    def cell(allowed: bool, wanted: bool | None, pad: bool, own: bool, ahead: bool) -> Cell:
        if own:
            return Cell(f"padding's own row: {'may attend' if allowed else 'blocked'}")
        if not allowed:
            return Cell("blocked, but should not be" if wanted and not pad else "blocked padding" if pad else "blocked")
        if pad:
            return Cell("leak: padding may be attended to")
        if wanted is False:
            return Cell("leak: the future may be attended to" if ahead else "leak: may be attended to, but should not")
        return Cell("may attend")

    for name, tensor in {"mask": used, "should": should}.items():
        if tensor is not None and tensor.dtype != torch.bool:
            raise ValueError(f"{name} has dtype {tensor.dtype}; give an attend mask: bool, True = may attend.")
    return attend_grids("mask", used, queries, keys, should, pads, query_pads, title, across, cell)


def weights(
    used: Tensor,
    queries: Labels,
    keys: Labels | None = None,
    *,
    should: Tensor | None = None,
    pads: Any = None,
    query_pads: Any = None,
    title: str | Sequence[str] = "",
    across: int = 0,
) -> GridPicture:
    """Attention weights (T, S), or (B, T, S), as they are given: nothing is masked here, so a leak shows.

    All else as in `mask`. A cell's number is rounded; "×" is exactly 0.
    """

    def cell(weight: float, wanted: bool | None, pad: bool, own: bool, ahead: bool) -> Cell:
        if weight != weight:
            return Cell("not a number")
        if weight == 0:
            return Cell("exactly 0 on padding" if pad else "exactly 0")
        leak = "leak: weight on " + ("padding" if pad else "the future" if ahead else "what should be blocked")
        state = "padding's own row" if own else leak if pad or wanted is False else "weight"
        return Cell(state, f"{weight:.2f}".replace("0.", "."), round(weight, 4), f"{weight:.4g}")

    return attend_grids("weights", used.detach().float(), queries, keys, should, pads, query_pads, title, across, cell)


def attend_grids(
    name: str,
    values: Tensor,
    queries: Labels,
    keys: Labels | None,
    should: Tensor | None,
    pads: Any,
    query_pads: Any,
    title: str | Sequence[str],
    across: int,
    cell: Callable[..., Cell],
) -> GridPicture:
    """A grid for each row of the batch. cell(value, should, key is padding, query is padding, key is in the future)."""
    if values.dim() == 4 and values.size(1) == 1:
        values = values[:, 0]
    many = values.dim() == 3
    count = len(values) if many else 1
    if keys is None:
        keys, query_pads = queries, pads if query_pads is None else query_pads
    per_row = [one_for_each(part, count, what) for part, what in ((queries, "queries"), (keys, "keys"))]
    titles = titles_of(title, count, many)
    grids = []
    for at in range(count):
        value = values[at] if many else values
        names, columns = per_row[0][at], per_row[1][at]
        check_labels(name, value.shape, (names, columns), ("queries", "keys"))
        wants = wanted_of(should, at, count, value)
        padding, own = padding_of(pads, at, columns, "keys"), padding_of(query_pads, at, names, "queries")
        shift = len(columns) - len(names)  # a cached query is the last position
        cells = [
            [cell(v, wants[i][j], j in padding, i in own, j > i + shift) for j, v in enumerate(row)]
            for i, row in enumerate(value.tolist())
        ]
        marked = [f"▨ {key}" if j in padding else key for j, key in enumerate(columns)]
        grids.append(Grid(cells, list(names), marked, titles[at], AXES))
    return GridPicture(grids, across=across or min(count, 3))


def one_for_each(labels: Labels, count: int, what: str) -> list[Sequence[str]]:
    """A list of tokens for each row of the batch."""
    if not labels or isinstance(labels[0], str):
        return [labels] * count
    if len(labels) != count:
        raise ValueError(
            f"there are {count} rows, but {len(labels)} lists of {what}; give one for each, or one for all."
        )
    return list(labels)


def wanted_of(should: Tensor | None, at: int, count: int, value: Tensor) -> list[list[bool | None]]:
    """The mask as it should be for one row, (T, S), from (T, S), (B, T, S) or (B, 1, T, S)."""
    if should is None:
        return [[None] * value.size(1)] * value.size(0)
    if should.dim() == 4 and should.size(1) == 1:
        should = should[:, 0]
    try:
        return should.expand(count, *value.shape)[at].tolist()
    except RuntimeError:
        shapes = tuple(should.shape), (count, *value.shape)
        raise ValueError(f"should has shape {shapes[0]}, which does not broadcast to {shapes[1]}.") from None


def titles_of(title: str | Sequence[str], count: int, many: bool) -> list[str]:
    if isinstance(title, str):
        return [f"{title}: row {at}" if title else f"row {at}" for at in range(count)] if many else [title]
    if len(title) != count:
        raise ValueError(f"there are {count} rows, but {len(title)} titles; give one for each, or one for all.")
    return list(title)


def padding_of(pads: Any, at: int, labels: Sequence[str], what: str) -> set[int]:
    """The numbers of the labels that are padding, from bools or numbers, of one row or for each."""
    given = torch.as_tensor([] if pads is None else pads)
    if given.dtype == torch.bool:
        given = given[at] if given.dim() == 2 else given
        if given.shape != (len(labels),):
            raise ValueError(
                f"pads has shape {tuple(given.shape)}, but there are {len(labels)} {what}; give one bool for each."
            )
        given = given.nonzero().flatten()
    padding = {int(number) for number in given.tolist()}
    if wrong := padding - set(range(len(labels))):
        raise ValueError(f"pads names column {min(wrong)}, but the {len(labels)} {what} are 0..{len(labels) - 1}.")
    return padding


def conjunction(
    queries: Sequence[str], pads: Any = None, *, keys: Sequence[str] | None = None, causal: bool = True, title: str = ""
) -> GridPicture:
    """How a mask is made, step by step: key padding, causal, and both; where keys are given (cross), key padding."""
    columns = queries if keys is None else keys
    padding = padding_of(pads, 0, columns, "keys")
    real = torch.tensor([at not in padding for at in range(len(columns))]).expand(len(queries), -1)
    if keys is not None:
        steps = {"cross-attention: the key is real": real}
    else:
        past = causal_mask(len(queries))
        steps = {"the key is real": real, "the key is not in the future": past, "both": real & past}
        steps = steps if causal else {"the key is real": real}
    should = list(steps.values())[-1]
    grids = [
        mask(step, queries, keys, pads=sorted(padding), should=should, title=f"{title}: {name}" if title else name)
        for name, step in steps.items()
    ]
    return GridPicture([picture.grids[0] for picture in grids], across=len(grids))
