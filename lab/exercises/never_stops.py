"""Graders of lesson 05: a collation under which every end is learned, and a check that finds those under which not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..labels import IGNORE_INDEX, pad
from . import grader

Rows = list[list[int]]
Collate = Callable[[Rows, int, int], Mapping[str, Tensor]]

CONTEXT = 6
# Every token stands once, so that each target tells its row and its place. 0 is EOS, start and padding.
ROWS = {
    "short": [10, 11],
    "one token": [15],
    "all but one of the context": [20, 21, 22, 23, 24],  # with EOS it just fits
    "as long as the context": [30, 31, 32, 33, 34, 35],
    "longer": [40 + i for i in range(15)],
    "two turns": [70, 71, 0, 72],  # EOS ends a turn within it
}


def collated(answer: Collate, rows: Rows, context: int, eos_id: int) -> tuple[Tensor, Tensor]:
    """input_ids and labels (B, T) of the learner's function. Raises AssertionError where they are not such."""
    given = [list(row) for row in rows]
    batch = answer(given, context, eos_id)
    keys = sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
    if keys != ["input_ids", "labels"]:
        raise AssertionError(f"return a dict of input_ids and labels, not {keys}")
    if given != rows:
        raise AssertionError("your function changes the rows that it was given: take a copy, [*row, eos_id]")
    ids, labels = batch["input_ids"], batch["labels"]
    if not (isinstance(ids, Tensor) and isinstance(labels, Tensor) and ids.dim() == 2 and ids.shape == labels.shape):
        shapes = " and ".join(str(tuple(x.shape)) if isinstance(x, Tensor) else type(x).__name__ for x in (ids, labels))
        raise AssertionError(f"input_ids and labels are tensors (B, T) of one shape, not {shapes}")
    if ids.size(1) > context:
        raise AssertionError(
            f"a row has {ids.size(1)} positions and the context {context}: EOS counts too, so a text of {context} "
            f"tokens needs one more"
        )
    if (ids < 0).any():
        raise AssertionError(f"input_ids hold {int(ids.min())}, which no embedding has: that is for the labels alone")
    return ids, labels


@grader("05a", title="every token and every end is a target once, with pad = EOS and under truncation")
def repair(answer: Collate) -> None:
    examine(*collated(answer, list(ROWS.values()), CONTEXT, 0), ROWS, 0)
    # Another tokenizer, another context, nothing to cut and, in the second, nothing to pad.
    for few in ({"a": [10, 11, 12], "b": [20]}, {"a": [10, 11, 12], "b": [20, 21, 22]}):
        examine(*collated(answer, list(few.values()), 9, 5), few, 5)


def examine(ids: Tensor, labels: Tensor, rows: Mapping[str, list[int]], eos: int) -> None:
    """Raises AssertionError that names what the labels teach instead of each row and its end."""
    real = labels != IGNORE_INDEX
    fed, targets = ids[real].tolist(), labels[real].tolist()
    ends = Counter(token for token, target in zip(fed, targets, strict=True) if target == eos)
    last = {row[-1]: name for name, row in rows.items()}
    turns = [a for row in rows.values() for a, b in zip(row, row[1:], strict=False) if b == eos]
    wanted = Counter([*last, *turns])
    if fed == targets:
        raise AssertionError("each position is fed the very token that it is to predict: shift the inputs by one")
    if not any(ends[token] for token in last):
        raise AssertionError(
            "no row's last token is trained on EOS: is it appended to every row, is the id that of this tokenizer, and "
            "are labels ignored by their place and not by their id?"
        )
    if ends[eos]:
        raise AssertionError(
            f"{ends[eos]} positions that are fed EOS are trained to say EOS again: the labels of padding are "
            f"{IGNORE_INDEX}, and only the first EOS after a text is none of it"
        )
    if inner := sorted(set(ends) - set(wanted)):
        raise AssertionError(
            f"EOS is the target after token {inner[0]}, and there its row goes on: a cut that is closed by an EOS "
            f"teaches the model to stop in the middle of a sentence"
        )
    if missing := sorted(set(wanted) - set(ends)):
        after = missing[0]
        if after not in last:
            raise AssertionError(f"the EOS within a row, after token {after}, is ignored: it ends a turn, keep it")
        raise AssertionError(
            f"the row {last[after]!r} ({len(rows[last[after]])} tokens) has lost its EOS: cut off, or ignored with "
            f"the padding?"
        )
    check_tokens(fed, targets, rows, eos)
    if any(ends[token] != wanted[token] for token in wanted):
        raise AssertionError("an end is a target twice: each window begins where the one before it ended")


def check_tokens(fed: list[int], targets: list[int], rows: Mapping[str, list[int]], eos: int) -> None:
    """Every token is a target once, predicted from the one before it."""
    before = {token: row[i - 1] if i else eos for row in rows.values() for i, token in enumerate(row) if token != eos}
    seen = Counter(target for target in targets if target != eos)
    if lost := [token for token in before if not seen[token]]:
        raise AssertionError(
            f"{len(lost)} tokens are the target of no position, the first is {lost[0]}: what does not fit the context "
            f"goes on in a row of its own"
        )
    if twice := [token for token in before if seen[token] > 1]:
        raise AssertionError(f"token {twice[0]} is a target twice: each window begins where the one before it ended")
    for token, target in zip(fed, targets, strict=True):
        if target == eos or target not in before or token == before[target]:
            continue
        what = f"the target {target} is predicted from {token}, and the token before it is {before[target]}"
        if token == eos:
            what += ": a window that goes on begins with the token before it, for EOS would say that a text begins"
        raise AssertionError(what)
    if unknown := sorted(set(seen) - set(before)):
        raise AssertionError(f"label {unknown[0]} is no token of the rows")


# ---------------------------------------------------------------------------------------------- what 05b is tried on


def windows(rows: Rows, context: int, eos_id: int) -> tuple[Rows, Rows]:
    """Inputs and labels of rows in pieces that fit the context: the healthy way."""
    inputs, labels = [], []
    for row in rows:
        fed, targets = [eos_id, *row], [*row, eos_id]
        for at in range(0, len(targets), context):
            inputs.append(fed[at : at + context])
            labels.append(targets[at : at + context])
    return inputs, labels


def healthy(rows: Rows, context: int, eos_id: int, side: Any = "right") -> dict[str, Tensor]:
    inputs, labels = windows(rows, context, eos_id)
    return {"input_ids": pad(inputs, eos_id, side), "labels": pad(labels, IGNORE_INDEX, side)}


def padded_left(rows: Rows, context: int, eos_id: int) -> dict[str, Tensor]:
    return healthy(rows, context, eos_id, "left")


def ignored_by_id(rows: Rows, context: int, eos_id: int) -> dict[str, Tensor]:
    batch = healthy(rows, context, eos_id)
    return {**batch, "labels": batch["labels"].masked_fill(batch["labels"] == eos_id, IGNORE_INDEX)}


def shifted(texts: Rows, eos_id: int) -> dict[str, Tensor]:
    """Rows of targets as they are, and as inputs one behind."""
    labels = pad(texts, IGNORE_INDEX)
    return {"input_ids": F.pad(labels.masked_fill(labels < 0, eos_id), (1, -1), value=eos_id), "labels": labels}


def never_appended(rows: Rows, context: int, eos_id: int) -> dict[str, Tensor]:
    return shifted([row[at : at + context] for row in rows for at in range(0, len(row), context)], eos_id)


def appended_then_cut(rows: Rows, context: int, eos_id: int) -> dict[str, Tensor]:
    return shifted([[*row, eos_id][:context] for row in rows], eos_id)


def cut_then_appended(rows: Rows, context: int, eos_id: int) -> dict[str, Tensor]:
    return shifted([[*row[: context - 1], eos_id] for row in rows], eos_id)


def padding_is_trained(rows: Rows, context: int, eos_id: int) -> dict[str, Tensor]:
    batch = healthy(rows, context, eos_id)
    return {**batch, "labels": batch["labels"].masked_fill(batch["labels"] < 0, eos_id)}


def longest_alone(rows: Rows, context: int, eos_id: int) -> dict[str, Tensor]:
    """The padding is counted one too many, so that only a row without any keeps its EOS."""
    batch = healthy(rows, context, eos_id)
    first = (batch["labels"] == eos_id) & F.pad(batch["labels"] < 0, (-1, 1))
    return {**batch, "labels": batch["labels"].masked_fill(first, IGNORE_INDEX)}


def after_itself(rows: Rows, context: int, eos_id: int) -> dict[str, Tensor]:
    """EOS is trained where EOS is fed, one late."""
    batch = healthy(rows, context, eos_id)
    return {**batch, "input_ids": batch["input_ids"].masked_fill(batch["labels"] == eos_id, eos_id)}


MUTANTS: dict[str, Collate] = {
    "ignores every label that is EOS, padding and real": ignored_by_id,
    "never appends EOS": never_appended,
    "appends EOS and then cuts, so that long rows lose it": appended_then_cut,
    "cuts and then appends EOS, in the middle of a long row": cut_then_appended,
    "trains the padding, EOS after EOS": padding_is_trained,
    "ignores one label too many, so that only rows without padding keep their EOS": longest_alone,
    "trains EOS one late, where EOS itself is fed": after_itself,
}


@grader("05b", title="the check passes where every end is learned, and none is made up, and fails where not")
def stops_check(answer: Callable[[Collate], Any]) -> None:
    def ask(collate: Collate) -> bool:
        calls = []

        def counted(rows: Rows, context: int, eos_id: int) -> Mapping[str, Tensor]:
            calls.append(1)
            return collate(rows, context, eos_id)

        said = answer(counted)
        if isinstance(said, Tensor) and said.dtype == torch.bool and said.numel() == 1:
            said = bool(said)
        if not isinstance(said, bool):
            raise AssertionError(f"your check returned {said!r}; return True or False")
        if not calls:
            raise AssertionError("your check never calls the collate function: it cannot know")
        return said

    if not ask(healthy):
        wrong = all(ask(mutant) for mutant in MUTANTS.values())
        raise AssertionError(
            "your check says True and False the wrong way round"
            if wrong
            else "your check says False of a healthy collation, in which a long row goes on in a row of its own"
        )
    missed = [name for name, mutant in MUTANTS.items() if ask(mutant)]
    if len(missed) == len(MUTANTS):
        raise AssertionError("your check never says False: look at the labels that are EOS")
    if missed:
        raise AssertionError(f"your check says True of a collation that {missed[0]}: {hint(missed[0])}")
    if not ask(padded_left):
        raise AssertionError(
            "your check says False of a healthy collation that pads at the left: look for the label, not for its place"
        )


def hint(missed: str) -> str:
    """What the learner's check does not try."""
    if "cuts" in missed or "long row" in missed:
        return "give it rows longer than the context, and ask after which token each EOS is a target"
    if "padding" in missed:
        return "give it rows of unequal length, and count: one EOS for each row"
    return "ask, for each label that is EOS, which token is fed there"
