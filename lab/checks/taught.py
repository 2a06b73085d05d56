"""What the loss trains on the user's own batch, read off one gradient, and of which function it is the gradient."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..calling import Missing, replaced, tensors_of
from ..probe import Probe
from ..readings import Teaching
from ..subject import Subject

# Positions of the user's batch that are looked at: enough to tell, and on a GPT-2 of 124M parameters under a second.
TOKENS, COLUMNS = 64, 32


@dataclass
class Lesson:
    """A piece of the user's batch, and what the loss trains there."""

    subject: Subject  # its batch is that piece
    teaching: Teaching

    @property
    def real(self) -> Tensor:
        return real(self.subject)


def real(subject: Subject) -> Tensor:
    """Which positions of the target hold tokens and not padding, (B, T); by the mask where pads are EOS.

    A decoder's first token may be the pad id in every row, as T5's is, and is none.
    """
    pad = subject.pad_id
    if pad is not None and pad == subject.eos_id:
        subject = copy.copy(subject)
        subject.pad_id = None
    there = subject.real("target")
    if subject.kind == "seq2seq" and bool((subject.ids("target")[:, 0] == pad).all()):
        there = there.clone()
        there[:, 0] = True
    return there


def within(there: Tensor) -> Tensor:
    """From the first real position of each row to its last (B, T): in between, the pad id is a token like others."""
    return (there.cumsum(1) > 0) & (there.flip(1).cumsum(1).flip(1) > 0)


def cut(subject: Subject, rows: list[int], columns: slice) -> Any:
    """The batch with those rows and those columns of its target alone: every axis as long as the target is cut."""
    count, length = subject.ids("target").shape
    streams = {key for pair in subject.streams.values() for key in pair} | {subject.labels_key}
    changes = {}
    for key, tensor in tensors_of(subject.batch).items():
        square = count == length and key not in streams and tensor.shape == (length, length)
        by_row = tensor.dim() > 0 and len(tensor) == count and not square
        piece = tensor[rows] if by_row else tensor
        for dim in range(1 if by_row else 0, tensor.dim()):
            if tensor.size(dim) == length:
                piece = piece.narrow(dim, columns.start, columns.stop - columns.start)
        changes[key] = piece
    return replaced(subject.batch, changes)


def readable(probe: Probe) -> Subject:
    """The subject with a batch that its model can read. Raises Missing where it holds no ids (B, T) of a target."""
    ids = probe.subject.ids("target")
    if ids.dim() != 2 or not ids.numel():
        raise Missing(f"the target's ids have shape {tuple(ids.shape)}; they must be (B, T): give streams=")
    return probe.subject.replace(batch=probe.readable())


def piece(subject: Subject, row: int | None = None, column: int | None = None) -> Any:
    """At most TOKENS positions of the batch: all where it is small; else that row, or the one with most padding, and
    the one with the least, around that column, or where the padding begins or ends."""
    ids = subject.ids("target")
    if ids.numel() <= TOKENS:
        return subject.batch
    there = real(subject)
    numbers = there.sum(1)
    row = int(numbers.argmin()) if row is None else row
    rows = sorted({row, int(numbers.argmax())})
    length = ids.size(1)
    if length <= COLUMNS:
        return cut(subject, rows, slice(0, length))
    if column is None:
        turns = (there[row, 1:] != there[row, :-1]).nonzero().flatten()
        column = int(turns[0]) if len(turns) else 0
    start = min(max(0, column - COLUMNS // 2), length - COLUMNS)
    return cut(subject, rows, slice(start, start + COLUMNS))


def few(subject: Subject) -> Any:
    """Two rows of the batch with eight columns, for a question to which any tokens do; all of it where it is small."""
    there = real(subject)
    if there.numel() <= TOKENS:
        return subject.batch
    rows = there.sum(1).argsort(descending=True)[:2].sort().values.tolist()
    first = int(there[rows].any(0).int().argmax())
    return cut(subject, rows, slice(first, min(first + 8, there.size(1))))


def lesson(probe: Probe, row: int | None = None, column: int | None = None) -> Lesson:
    """What the loss trains on a piece of the user's batch. Made once for all checks of a diagnosis.

    Raises Missing where there is no loss, or no batch that it is computed on.
    """
    subject = readable(probe)
    if subject.ids("target").numel() <= TOKENS:
        row = column = None
    name, made = f"lesson at {row}, {column}", probe.shared.made
    if name not in made:
        try:
            made[name] = taught(probe, subject, piece(subject, row, column))
        except Missing as reason:
            made[name] = reason
    if isinstance(made[name], Missing):
        raise made[name]
    return made[name]


def taught(probe: Probe, subject: Subject, batch: Any) -> Lesson:
    return Lesson(subject.replace(batch=batch), probe.teaching(batch))


@dataclass
class Pulls:
    """The positions that the loss counts, in one line each: logits and gradient (N, V), target and row (N,)."""

    logits: Tensor
    gradient: Tensor
    target: Tensor
    row: Tensor

    @classmethod
    def of(cls, teaching: Teaching) -> Pulls:
        at = teaching.targets >= 0
        logits, gradient = teaching.logits[at].double(), teaching.gradient[at].double()
        return cls(logits, gradient, teaching.targets[at], at.nonzero()[:, 0])

    def residual(self, function: Callable[[Tensor], Tensor] | None = None) -> float:
        """How much of the gradient is none of a cross entropy of function(logits), from 0 (it is one) to 1 (nothing of
        it is): with any weight and any label smoothing for each row of the batch.
        """
        z = self.logits.clone().requires_grad_()
        with torch.enable_grad():
            given = z if function is None else function(z)
            log_p, target = given.log_softmax(-1), self.target
            if function is not None:
                # What pulls at the function's output tells the target; at the logits its slope may turn the sign.
                (slope,) = torch.autograd.grad(given.sum(), z, retain_graph=True)
                even = float(slope.abs().max()) < 1e-9  # a softmax sums to one
                target = (self.gradient / (given.detach() if even else slope)).nan_to_num(nan=0.0).argmin(-1)
            (towards,) = torch.autograd.grad(-log_p.gather(-1, target[:, None]).sum(), z, retain_graph=True)
            (evenly,) = torch.autograd.grad(-log_p.mean(-1).sum(), z)
        return left_over(self.gradient, [towards, evenly], self.row)

    def residual_without(self, what: str) -> float:
        """The same for what is no cross entropy: nll_loss of probabilities ("log"), or of raw logits ("softmax")."""
        one_hot, p = self.one_hot(), self.logits.softmax(-1)
        towards = p.gather(-1, self.target[:, None]) * (p - one_hot) if what == "log" else -one_hot
        return left_over(self.gradient, [towards], self.row)

    def residual_each(self) -> float:
        """The same for a cross entropy whose every position has weights of its own, for its softmax, its target and its
        smoothing: of weighted tokens, with a focal factor, beside a loss on the normaliser."""
        p = self.logits.softmax(-1)
        return left_over(self.gradient, [p, self.one_hot(), torch.ones_like(p)], torch.arange(len(p)))

    def one_hot(self) -> Tensor:
        return F.one_hot(self.target, self.logits.size(-1)).double()

    def weights(self) -> Tensor:
        """The weight of each position (N,): how hard its target is pulled up, over how hard one cross entropy would."""
        index = self.target[:, None]
        return (-self.gradient.gather(-1, index) / (1 - self.logits.softmax(-1).gather(-1, index)))[:, 0]


def left_over(gradient: Tensor, parts: list[Tensor], by: Tensor) -> float:
    """The share of `gradient` (N, V) that is no sum of the parts (N, V), with factors of their own for each value of
    `by` (N,)."""

    def sums(a: Tensor, b: Tensor) -> Tensor:
        return torch.zeros(int(by.max()) + 1, dtype=torch.float64).index_add(0, by, (a * b).sum(-1))

    parts = [part / part.norm().clamp(min=1e-300) for part in parts]
    gram = torch.stack([torch.stack([sums(a, b) for b in parts], -1) for a in parts], -1)
    right = torch.stack([sums(a, gradient) for a in parts], -1)
    factors = (torch.linalg.pinv(gram, hermitian=True) @ right[..., None])[by]  # (N, parts, 1)
    rest = gradient - sum(part * factors[:, i] for i, part in enumerate(parts))
    return float(rest.norm() / gradient.norm())
