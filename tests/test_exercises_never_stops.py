"""Lesson 05: its solutions pass, and each typical mistake is called by its name."""

from collections.abc import Callable
from typing import Any

import pytest

from lab.exercises.never_stops import (
    MUTANTS,
    appended_then_cut,
    cut_then_appended,
    ignored_by_id,
    longest_alone,
    never_appended,
    padded_left,
    padding_is_trained,
    repair,
    shifted,
    stops_check,
    windows,
)
from lab.labels import IGNORE_INDEX, pad


def solution(rows, context, eos_id):
    inputs, labels = [], []
    for row in rows:
        fed, targets = [eos_id, *row], [*row, eos_id]
        for at in range(0, len(targets), context):
            inputs.append(fed[at : at + context])
            labels.append(targets[at : at + context])
    return {"input_ids": pad(inputs, eos_id), "labels": pad(labels, IGNORE_INDEX)}


def changes_its_rows(rows, context, eos_id):
    for row in rows:
        row.append(eos_id)
    return solution([row[:-1] for row in rows], context, eos_id)


def not_shifted(rows, context, eos_id):
    labels = solution(rows, context, eos_id)["labels"]
    return {"input_ids": labels.masked_fill(labels == IGNORE_INDEX, eos_id), "labels": labels}


def begins_anew(rows, context, eos_id):
    labels = windows(rows, context, eos_id)[1]
    lone = [at for at, piece in enumerate(labels) if piece == [eos_id]]
    batch = shifted(labels, eos_id)
    batch["input_ids"][lone, 0] = solution(rows, context, eos_id)["input_ids"][lone, 0]
    return batch


def leaves_out_long_rows(rows, context, eos_id):
    return solution([row for row in rows if len(row) < context], context, eos_id)


def drops_what_is_cut(rows, context, eos_id):
    inputs, labels = windows(rows, context, eos_id)
    kept = [at for at, piece in enumerate(labels) if piece[-1] == eos_id]
    return {"input_ids": pad([inputs[i] for i in kept], eos_id), "labels": pad([labels[i] for i in kept], IGNORE_INDEX)}


def wider_by_one(rows, context, eos_id):
    return solution(rows, context + 1, eos_id)


def windows_overlap(rows, context, eos_id):
    inputs, labels = [], []
    for row in rows:
        fed, targets = [eos_id, *row], [*row, eos_id]
        for at in range(0, max(1, len(targets) - 1), context - 1):
            inputs.append(fed[at : at + context])
            labels.append(targets[at : at + context])
    return {"input_ids": pad(inputs, eos_id), "labels": pad(labels, IGNORE_INDEX)}


def ignores_inner_ends(rows, context, eos_id):
    inputs, labels = windows(rows, context, eos_id)
    labels = [
        [IGNORE_INDEX if t == eos_id and i + 1 < len(piece) else t for i, t in enumerate(piece)] for piece in labels
    ]
    return {"input_ids": pad(inputs, eos_id), "labels": pad(labels, IGNORE_INDEX)}


def pads_of_minus_100(rows, context, eos_id):
    inputs, labels = windows(rows, context, eos_id)
    return {"input_ids": pad(inputs, IGNORE_INDEX), "labels": pad(labels, IGNORE_INDEX)}


def labels_alone_one_short(rows, context, eos_id):
    batch = solution(rows, context, eos_id)
    return {**batch, "labels": batch["labels"][:, 1:]}


def knows_one_tokenizer(rows, context, eos_id):
    return solution(rows, context, 0)


def start_of_its_own(rows, context, eos_id):
    batch = solution(rows, context, eos_id)
    return {**batch, "input_ids": batch["input_ids"].masked_fill(batch["input_ids"] == eos_id, 1)}


def made_up(rows, context, eos_id):
    inputs, labels = windows(rows, context, eos_id)
    return {"input_ids": pad([*inputs, [98]], eos_id), "labels": pad([*labels, [99]], IGNORE_INDEX)}


REPAIRS: list[tuple[str, Callable[..., Any]]] = [
    ("return a dict", lambda rows, context, eos_id: pad(rows, eos_id)),
    ("not ['attention_mask', 'input_ids', 'labels']", lambda *how: solution(*how) | {"attention_mask": 0}),
    ("changes the rows", changes_its_rows),
    ("of one shape", labels_alone_one_short),
    ("a text of 6 tokens needs one more", wider_by_one),
    ("hold -100", pads_of_minus_100),
    ("by their place and not by their id", ignored_by_id),
    ("is it appended to every row", never_appended),
    ("trained to say EOS again", padding_is_trained),
    ("in the middle of a sentence", cut_then_appended),
    ("'as long as the context' (6 tokens) has lost its EOS", appended_then_cut),
    ("'short' (2 tokens) has lost its EOS", longest_alone),
    ("has lost its EOS", leaves_out_long_rows),
    ("the EOS within a row, after token 71", ignores_inner_ends),
    ("goes on in a row of its own", drops_what_is_cut),
    ("is a target twice", windows_overlap),
    ("the very token that it is to predict", not_shifted),
    ("EOS would say that a text begins", begins_anew),
    ("is predicted from 1, and the token before it is 0", start_of_its_own),
    ("the id that of this tokenizer", knows_one_tokenizer),
    ("label 99 is no token", made_up),
]


def right(collate):
    eos, context = 2, 8
    rows = [[10, 11, 12], list(range(20, 28)), list(range(30, 50))]
    batch = collate(rows, context, eos)
    ends = batch["labels"] == eos
    return sorted(batch["input_ids"][ends].tolist()) == [row[-1] for row in rows]


def is_there(collate):
    return bool((collate([[10, 11, 12], [20]], 8, 2)["labels"] == 2).any())


def one_each(collate):
    rows = [[10, 11, 12], list(range(20, 28)), list(range(30, 50))]
    return int((collate(rows, 8, 2)["labels"] == 2).sum()) == len(rows)


def short_rows_alone(collate):
    batch = collate([[10, 11, 12], [20]], 8, 2)
    return sorted(batch["input_ids"][batch["labels"] == 2].tolist()) == [12, 20]


def by_place(collate):
    rows = [[10, 11, 12], list(range(20, 25))]
    labels = collate(rows, 8, 2)["labels"]
    return right(collate) and all(int(labels[i, len(row)]) == 2 for i, row in enumerate(rows))


def forgets_the_padding(collate):
    rows = [list(range(20, 28)), list(range(30, 50))]
    batch = collate(rows, 8, 2)
    return {27, 49} <= set(batch["input_ids"][batch["labels"] == 2].tolist()) <= {27, 49, 2}


def refuses_windows(collate):
    rows = [[10, 11, 12], list(range(20, 50))]
    return len(collate(rows, 8, 2)["labels"]) == len(rows) and right(collate)


CHECKS: list[tuple[str, Callable[..., Any]]] = [
    ("return True or False", lambda collate: collate([[10]], 8, 2)),
    ("never calls the collate function", lambda collate: True),
    ("the wrong way round", lambda collate: not right(collate)),
    ("says False of a healthy collation, in which a long row", refuses_windows),
    ("never says False", lambda collate: right(collate) or True),
    ("rows longer than the context", is_there),
    ("after which token each EOS is a target", one_each),
    ("appends EOS and then cuts", short_rows_alone),
    ("look for the label, not for its place", by_place),
    ("trains the padding", forgets_the_padding),
]


def test_the_repair_passes() -> None:
    repair(solution)
    repair(padded_left)  # padding may stand on either side


@pytest.mark.parametrize(("text", "answer"), REPAIRS, ids=[text for text, _ in REPAIRS])
def test_a_wrong_repair_is_named(text: str, answer: Callable[..., Any]) -> None:
    with pytest.raises(AssertionError) as raised:
        repair(answer)
    assert text in str(raised.value)


def test_the_check_passes() -> None:
    stops_check(right)


@pytest.mark.parametrize(("text", "answer"), CHECKS, ids=[text for text, _ in CHECKS])
def test_a_wrong_check_is_named(text: str, answer: Callable[..., Any]) -> None:
    with pytest.raises(AssertionError) as raised:
        stops_check(answer)
    assert text in str(raised.value)


@pytest.mark.parametrize("name", MUTANTS)
def test_each_mutant_is_killed_by_a_right_check_and_is_no_repair(name: str) -> None:
    assert not right(MUTANTS[name])
    with pytest.raises(AssertionError):
        repair(MUTANTS[name])


def test_the_only_row_without_padding_keeps_its_end() -> None:
    labels = longest_alone([[10, 11], [20]], 8, 2)["labels"]
    assert labels.tolist() == [[10, 11, 2], [20, IGNORE_INDEX, IGNORE_INDEX]]
