"""Lesson 10: its solutions pass, and each typical mistake is called by its name."""

import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from lab import labels
from lab.exercises.train_on_a_gpu import TEXTS, accumulation, atomic_save
from lab.labels import IGNORE_INDEX, count_targets

# 10a


def solution(model, micro_batches):
    counts = [count_targets(batch["labels"]) for batch in micro_batches]
    mean = 0.0
    for batch, count in zip(micro_batches, counts, strict=True):
        loss = model(**batch).loss * count / sum(counts)
        loss.backward()
        mean += loss.item()
    return mean


def weighed(weigh: Callable[[list], list[float]]) -> Callable[..., float]:
    """An answer that gives each micro-batch the weight that `weigh` says, in loss and gradient."""

    def answer(model, micro_batches):
        mean = 0.0
        for batch, weight in zip(micro_batches, weigh([batch["labels"] for batch in micro_batches]), strict=True):
            loss = model(**batch).loss * weight
            loss.backward()
            mean += loss.item()
        return mean

    return answer


def counts(rows):
    return [int((row != IGNORE_INDEX).sum()) for row in rows]


def shares(values):
    return [value / sum(values) for value in values]


def one_backward(model, micro_batches):
    total = sum(counts([batch["labels"] for batch in micro_batches]))
    loss = sum(model(**batch).loss * count_targets(batch["labels"]) for batch in micro_batches) / total
    loss.backward()
    return loss.item()


def clears_inside(model, micro_batches):
    total = sum(counts([batch["labels"] for batch in micro_batches]))
    mean = 0.0
    for batch in micro_batches:
        loss = model(**batch).loss * count_targets(batch["labels"]) / total
        loss.backward()
        mean += loss.item()
        if batch is not micro_batches[-1]:
            model.zero_grad(set_to_none=True)
            model.embedder.token.weight.grad = torch.full_like(model.embedder.token.weight, 1e-12)
    return mean


def clears_before_backward(model, micro_batches):
    total = sum(counts([batch["labels"] for batch in micro_batches]))
    for batch in micro_batches:
        loss = model(**batch).loss * count_targets(batch["labels"]) / total
        model.zero_grad()
        loss.backward()
    return loss.item()


def joined(model, micro_batches):
    loss = model(**labels.collate_texts([row for rows in TEXTS for row in rows], pad_id=1, bos_id=0, eos_id=2)).loss
    loss.backward()
    return loss.item()


def steps(model, micro_batches):
    mean = solution(model, micro_batches)
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    return mean


def other_loss(model, micro_batches):
    for batch in micro_batches:
        model(**batch).logits.square().sum().backward()
    return 0.0


def mean_of_means_returned(model, micro_batches):
    total, losses = sum(counts([batch["labels"] for batch in micro_batches])), []
    for batch in micro_batches:
        losses.append(model(**batch).loss)
        (losses[-1] * count_targets(batch["labels"]) / total).backward()
    return sum(loss.item() for loss in losses) / len(losses)


def returns_graph(model, micro_batches):
    total, mean = sum(counts([batch["labels"] for batch in micro_batches])), 0.0
    for batch in micro_batches:
        loss = model(**batch).loss * count_targets(batch["labels"]) / total
        loss.backward()
        mean = mean + loss
    return mean


ACCUMULATIONS: list[tuple[str, Callable[..., Any]]] = [
    ("the mean of means: a token of a short one", weighed(lambda rows: [1 / len(rows)] * len(rows))),
    ("grows with their number", weighed(lambda rows: [1.0] * len(rows))),
    ("the gradient of a sum", weighed(counts)),
    ("divided by their number once more", weighed(lambda rows: [w / len(rows) for w in shares(counts(rows))])),
    ("share of the rows", weighed(lambda rows: shares([len(row) for row in rows]))),
    ("padding included", weighed(lambda rows: shares([row.numel() for row in rows]))),
    (
        "the tokens up to then",
        weighed(lambda rows: [n / sum(counts(rows)[: i + 1]) for i, n in enumerate(counts(rows))]),
    ),
    ("it must be", weighed(lambda rows: [0.2, 0.3, 0.5])),
    ("is it cleared inside the loop?", clears_inside),
    ("is it cleared inside the loop?", clears_before_backward),
    ("call backward() inside the loop", one_backward),
    ("feed each micro-batch once, alone", joined),
    ("feed each micro-batch once, alone", lambda model, rows: solution(model, rows[:2])),
    ("the optimizer steps later", steps),
    ("weigh the model's own losses", other_loss),
    ("never called", lambda model, rows: 0.0),
    ("no parameter has a gradient", lambda model, rows: (solution(model, rows), model.zero_grad())),
    ("loss returned is the mean of means", mean_of_means_returned),
    ("now return the loss", lambda model, rows: (solution(model, rows), None)[1]),
    ("keeps a graph alive", returns_graph),
    ("the loss returned is 0.5", lambda model, rows: solution(model, rows) and 0.5),
]


def test_the_accumulation_passes() -> None:
    accumulation(solution)
    accumulation(weighed(lambda rows: shares(counts(rows))))


@pytest.mark.parametrize(("text", "answer"), ACCUMULATIONS, ids=[text for text, _ in ACCUMULATIONS])
def test_a_wrong_accumulation_is_named(text: str, answer: Callable[..., Any]) -> None:
    with pytest.raises(AssertionError) as raised:
        accumulation(answer)
    assert text in str(raised.value)


# 10b


def write(path, pieces, how="wb", *, flush=True, sync=True):
    with open(path, how) as file:
        for piece in pieces:
            file.write(piece)
        if flush:
            file.flush()
        if sync:
            os.fsync(file.fileno())


def atomic(path, pieces):
    part = path.with_name(f".{path.name}.part")
    write(part, pieces)
    os.replace(part, path)


def with_pathlib(path, pieces):
    part = Path(f"{path}.new")
    write(part, pieces)
    part.rename(path)


def with_tempfile(path, pieces):
    """Cleans up after itself, which a kill does not let it do."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        try:
            file.writelines(pieces)
            file.flush()
            os.fsync(file)
        except BaseException:
            os.unlink(file.name)
            raise
    shutil.move(file.name, path)


def part_of(path):
    return path.with_suffix(".part")


def removes_first(path, pieces):
    path.unlink(missing_ok=True)
    atomic(path, pieces)


def removes_before_the_rename(path, pieces):
    write(part_of(path), pieces)
    path.unlink(missing_ok=True)
    os.rename(part_of(path), path)


def renames_first(path, pieces):
    part_of(path).touch()
    os.replace(part_of(path), path)
    write(path, pieces)


def renames_an_open_file(path, pieces):
    with open(part_of(path), "wb") as file:
        for piece in pieces:
            file.write(piece)
        os.replace(part_of(path), path)


def copies(path, pieces):
    write(part_of(path), pieces)
    shutil.copyfile(part_of(path), path)
    part_of(path).unlink()


def joins_and_writes(path, pieces):
    path.write_bytes(b"".join(pieces))


def no_fsync(path, pieces):
    write(part_of(path), pieces, sync=False)
    os.replace(part_of(path), path)


def fsync_too_early(path, pieces):
    write(part_of(path), pieces, flush=False)
    os.replace(part_of(path), path)


def elsewhere(path, pieces):
    with tempfile.TemporaryDirectory(dir=path.parent.parent) as folder:
        write(Path(folder) / "new", pieces)
        os.replace(Path(folder) / "new", path)


def never_renames(path, pieces):
    write(part_of(path), pieces)


def exclusive(path, pieces):
    write(part_of(path), pieces, "xb")
    os.replace(part_of(path), path)


def appends(path, pieces):
    write(part_of(path), pieces, "ab")
    os.replace(part_of(path), path)


def careless_at_first(path, pieces):
    atomic(path, pieces) if path.exists() else write(path, pieces)


def swallows(path, pieces):
    with suppress(OSError):
        atomic(path, pieces)


def renames_in_a_finally(path, pieces):
    try:
        write(part_of(path), pieces)
    finally:
        os.replace(part_of(path), path)


def backs_up(path, pieces):
    if path.exists():
        os.link(path, path.with_suffix(".bak"))
    atomic(path, pieces)


def reversed_pieces(path, pieces):
    atomic(path, reversed(list(pieces)))


SAVES: list[tuple[str, Callable[..., Any]]] = [
    ("neither the old file nor the new one", lambda path, pieces: write(path, pieces)),
    ("without a rename", joins_and_writes),
    ("without a rename", copies),
    ("os.replace overwrites it", removes_first),
    ("os.replace overwrites it", removes_before_the_rename),
    ("rename last", renames_first),
    ("Python's buffer holds the rest", renames_an_open_file),
    ("after a power cut", no_fsync),
    ("os.fsync comes while", fsync_too_early),
    ("in another folder", elsewhere),
    ("`path` is what it was", never_renames),
    ("takes not all", lambda path, pieces: write(path, [next(pieces)])),
    ("takes not all", lambda path, pieces: None),
    ("in their order", reversed_pieces),
    ("fails on it (FileExistsError)", exclusive),
    ("goes wrong", appends),
    ("where there is no old file yet", careless_at_first),
    ("nobody learns of it", swallows),
    ("is the rename in a finally?", renames_in_a_finally),
    ("leaves model.bak behind", backs_up),
]


@pytest.mark.parametrize("answer", [atomic, with_pathlib, with_tempfile], ids=lambda answer: answer.__name__)
def test_an_atomic_save_passes(answer: Callable[..., Any]) -> None:
    atomic_save(answer)


@pytest.mark.parametrize(("text", "answer"), SAVES, ids=[text for text, _ in SAVES])
def test_a_wrong_save_is_named(text: str, answer: Callable[..., Any]) -> None:
    with pytest.raises(AssertionError) as raised:
        atomic_save(answer)
    assert text in str(raised.value)
