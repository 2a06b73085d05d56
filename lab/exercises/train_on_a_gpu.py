"""Graders of lesson 10: one step from several micro-batches, and a file that is whole whenever a save is killed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from .. import labels
from ..config import ModelConfig
from ..labels import IGNORE_INDEX
from ..language_model import LanguageModel
from . import grader, require

SPECIAL = {"pad_id": 1, "bos_id": 0, "eos_id": 2}
# Rows, targets and positions are in other proportions to one another in each micro-batch.
TEXTS = [[[5, 6, 7, 8, 9, 10, 11]], [[12], [13, 14], [15, 16, 17, 18, 19]], [[20, 21], [22]]]


def gradient(model: LanguageModel) -> Tensor:
    """All gradients in one row, 0 where there is none."""
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return torch.cat([part.flatten() for part in parts])


def weights(model: LanguageModel) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@grader("10a", title="every target token weighs the same, in whichever micro-batch it is")
def accumulation(accumulate: Callable[[LanguageModel, list[dict[str, Tensor]]], Any]) -> None:
    """The learner's gradient as a mixture of those of the micro-batches: its weights tell the mistake."""
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig(32, 16, 2, 1, 32, 16, dropout=0.0, **SPECIAL)).double()
    batches = [labels.collate_texts(rows, **SPECIAL) for rows in TEXTS]
    losses, parts = [], []
    for batch in batches:
        model.zero_grad()
        (loss := model(**batch).loss).backward()
        losses.append(loss.item())
        parts.append(gradient(model))
    model.zero_grad()
    before, fed = weights(model), []

    def look(_: Any, args: tuple, how: dict) -> None:
        fed.append((args[0] if args else how["input_ids"]).shape)
        require(
            len(fed) == 1 or gradient(model).any(),
            "the second micro-batch is fed before the first had its backward, so all their graphs are in memory at "
            "once, as with one big batch: call backward() inside the loop, and do not clear the gradients there",
        )

    hook = model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        returned = accumulate(model, [dict(batch) for batch in batches])
    finally:
        hook.remove()
    require(fed, "the model was never called: gradients come from model(**batch).loss.backward()")
    wanted = [batch["input_ids"].shape for batch in batches]
    require(
        sorted(fed) == sorted(wanted), "feed each micro-batch once, alone: joined, they need the memory of one batch"
    )
    require(
        torch.equal(before, weights(model)), "the weights changed: only gather gradients, the optimizer steps later"
    )
    found = gradient(model)
    require(found.any(), "no parameter has a gradient: call backward() on each loss, and leave the gradients there")
    solved = torch.linalg.lstsq(torch.stack(parts, 1), found[:, None]).solution[:, 0]
    mixed = torch.allclose(torch.stack(parts, 1) @ solved, found, atol=1e-9)
    require(mixed, "the gradient is no mixture of those of the micro-batches: weigh the model's own losses")
    counts = [int((batch["labels"] != IGNORE_INDEX).sum()) for batch in batches]
    name_weights(solved.tolist(), counts, [batch["labels"].shape for batch in batches])
    require(returned is not None, "the gradient is right; now return the loss, the mean over all target tokens")
    graph = isinstance(returned, Tensor) and returned.requires_grad
    require(not graph, "the loss that you return keeps a graph alive: detach() it, or take item()")
    value, right = float(returned), sum(a * b for a, b in zip(losses, counts, strict=True)) / sum(counts)
    require(not close([value], [sum(losses) / 3]), "the gradient is right, but the loss returned is the mean of means")
    require(close([value], [right]), f"the gradient is right, but the loss returned is {value:.6f}, not {right:.6f}")


def name_weights(found: list[float], counts: list[int], shapes: list[torch.Size]) -> None:
    total, number = sum(counts), len(counts)
    right, rows, positions = (
        [part / sum(parts) for part in parts] for parts in (counts, [s[0] for s in shapes], [s.numel() for s in shapes])
    )
    if close(found, right):
        return
    tokens = "weigh each by its share of all target tokens"
    mistakes = {
        f"each weighs 1/{number}, the mean of means: a token of a short one counts more; {tokens}": [1 / number]
        * number,
        f"each weighs 1, so the gradient grows with their number; {tokens}": [1.0] * number,
        "each weighs its number of target tokens: that is the gradient of a sum; divide by the total": counts,
        "they are divided by their number once more, and the shares add up to 1 already": [w / number for w in right],
        "each weighs its share of the rows, and rows are of unequal length: count target tokens": rows,
        "each weighs its share of all positions, padding included: count the labels that are not -100": positions,
        "each is divided by the tokens up to then: count those of all micro-batches before you begin": [
            count / sum(counts[: at + 1]) for at, count in enumerate(counts)
        ],
    }
    for message, wrong in mistakes.items():
        require(not close(found, wrong), message)
    cleared = close(found[:-1], [0.0] * (number - 1))
    require(not cleared, "the gradient is that of the last micro-batch alone: is it cleared inside the loop?")
    was, be = (", ".join(f"{weight:.3f}" for weight in shares) for shares in (found, right))
    raise AssertionError(f"micro-batches of {counts} target tokens (in all {total}) weigh {was}; it must be {be}")


def close(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(abs(a - b) <= 1e-6 * max(1.0, abs(b)) for a, b in zip(one, other, strict=True))


OLD = b"the checkpoint before " * 500
# The last one is small enough to stay in Python's buffer until that is flushed.
PIECES = [bytes([number]) * 300_000 for number in range(3)] + [b"the end"]
NEW = b"".join(PIECES)
Save = Callable[[Path, Iterator[bytes]], Any]


class Kill(BaseException):
    """Ends a save where it stands, in place of a signal."""


class Watch:
    """A save, and what somebody who opens the file finds before each piece, after the last, and at the rename."""

    def __init__(self, path: Path) -> None:
        self.path, self.old, self.before = path, content(path), set(path.parent.iterdir())
        self.seen: list[bytes | None] = []
        self.rename: dict[str, Any] | None = None
        self.left: dict[str, bytes] = {}  # the files of the folder at the error
        self.synced: dict[int, int] = {}  # inode -> bytes that are safe on the disk

    def run(self, save: Save, stop: int = -1, error: BaseException | None = None) -> Watch:
        """With `error`, that is raised in place of the piece number `stop`."""
        spies = {"replace": self.noting, "rename": self.noting, "fsync": self.syncing, "fdatasync": self.syncing}
        with ExitStack() as stack:
            for name, spy in spies.items():
                if hasattr(os, name):
                    stack.enter_context(patch.object(os, name, spy(getattr(os, name))))
            save(self.path, self.pieces(stop, error))
        return self

    def pieces(self, stop: int, error: BaseException | None) -> Iterator[bytes]:
        for number, piece in enumerate(PIECES):
            self.seen.append(content(self.path))
            if number == stop and error is not None:
                self.left = {file.name: file.read_bytes() for file in self.path.parent.iterdir()}
                raise error
            yield piece
        self.seen.append(content(self.path))

    def noting(self, rename: Callable) -> Callable:
        def noted(source: Any, target: Any, **how: Any) -> None:
            if Path(target).resolve() == self.path.resolve():
                about, beside = os.stat(source), Path(source).resolve().parent == self.path.resolve().parent
                self.rename = {"size": about.st_size, "beside": beside, "synced": self.synced.get(about.st_ino)}
                self.rename |= {"over": content(self.path), "moment": len(self.seen)}
            rename(source, target, **how)

        return noted

    def syncing(self, sync: Callable) -> Callable:
        def synced(file: Any) -> None:
            sync(file)
            about = os.stat(file if isinstance(file, int) else file.fileno())
            self.synced[about.st_ino] = about.st_size

        return synced

    def judge(self) -> None:
        """Name the mistake of a save that came to its end."""
        now, rename, size = content(self.path), self.rename, len(NEW)
        require(len(self.seen) > len(PIECES), f"your save takes not all of the {len(PIECES)} pieces")
        require(now != self.old, "after the save `path` is what it was: rename the temporary file to it")
        early = rename and rename["moment"] <= len(PIECES)
        require(not early, "you rename before the last piece is written: write everything first, rename last")
        gone = self.old is not None and (None in self.seen or rename and rename["over"] is None)
        require(not gone, "you remove the old file first, and a kill then leaves none: os.replace overwrites it")
        half = next((len(seen) for seen in self.seen if seen != self.old), None)
        inside = f"while you write, a reader of `path` finds {half or 0:,} bytes, neither the old file nor the new one"
        require(half is None, f"{inside}: write beside it, under another name, and rename at the end")
        no_rename = (
            "`path` got its content without a rename; to copy is to write, which takes time: os.replace does not"
        )
        require(rename, no_rename)
        require(
            rename["beside"], "the temporary file is in another folder, perhaps on another disk: make it beside `path`"
        )
        held = f"at the rename {rename['size']:,} of {size:,} bytes are in the file, Python's buffer holds the rest"
        require(rename["size"] == size, f"{held}: flush it, or rename after the `with`")
        unsafe = "nothing puts the bytes on the disk before the rename, and after a power cut the name may stand for an"
        require(rename["synced"] is not None, f"{unsafe} empty file: file.flush(), then os.fsync(file.fileno())")
        require(rename["synced"] == size, "os.fsync comes while Python's buffer still holds bytes: file.flush() first")
        require(now == NEW, "after the save the file does not hold the pieces in their order")
        left = sorted(file.name for file in {*self.path.parent.iterdir()} - self.before - {self.path})
        require(not left, f"your save leaves {', '.join(left)} behind")


def content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    for file in folder.iterdir():
        file.unlink()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder / "model.bin"


@grader("10b", title="whenever it is killed there is one whole file, the old one or the new")
def atomic_save(save: Save) -> None:
    """The learner's save beside a reader, killed before each of its pieces and tried again, and on a full disk."""
    with tempfile.TemporaryDirectory() as name:
        folder, old = Path(name), {"model.bin": OLD}
        Watch(fill(folder, old)).run(save).judge()
        try:
            Watch(fill(folder, {})).run(save).judge()
        except AssertionError as error:
            raise AssertionError(f"where there is no old file yet: {error}") from None
        again = "a killed save leaves a half-written temporary file, and the next save"
        for stop in range(len(PIECES)):
            killed = Watch(fill(folder, old))
            with suppress(Kill):
                killed.run(save, stop, Kill())
            try:
                Watch(fill(folder, killed.left)).run(save).judge()  # no `finally` ran: the folder is as it was then
            except OSError as error:
                raise AssertionError(f"{again} fails on it ({type(error).__name__}): open it with 'wb'") from error
            except AssertionError as error:
                raise AssertionError(f"{again} goes wrong ({error}): open it with 'wb'") from None
        full = "when the disk is full"
        try:
            Watch(fill(folder, old)).run(save, 2, OSError(28, "No space left on device"))
        except OSError:
            require(content(folder / "model.bin") == OLD, f"{full}, the old file is lost: is the rename in a finally?")
        else:
            raise AssertionError(f"{full}, nobody learns of it: let the error out")
