"""What a model attended to on a batch, read off one pass; and what depends on what, with no need of attention."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .calling import Missing, call, clone, replaced, tensors_of
from .checks.attention import blocked_by_any
from .checks.masks import position_in
from .instruments import Lookups
from .intercept import attentions
from .masks import causal
from .mode import evaluating
from .probe import Probe
from .readings import Attention
from .restore import Snapshot
from .streams import Streams
from .subject import Subject
from .tokens import names

COPIES = 16  # rows of a pass that measures influence
SIDES = {"encoder": ("source", "source"), "decoder": ("target", "target"), "cross": ("target", "source")}


@dataclass
class Seen:
    """One attention as the model computed it on a batch of B rows. Nothing is masked afterwards.

    name: of the module, such as "decoder.0.self_attention". kind: "encoder", "decoder" or "cross". layer: counted from
    0 within its kind, in the order of the pass. weights: (B, H, T, S), what met the values. may: (B, H, T, S) bool,
    what the model's masks allowed together, None where it used none that could be read. should: (B, T, S) bool, what
    should be attended to: real keys, and none ahead in a decoder. queries, keys: the tokens of each row. query_pads
    (B, T), key_pads (B, S): which of them are padding.
    """

    name: str
    kind: str
    layer: int
    weights: Tensor
    may: Tensor | None
    should: Tensor
    queries: list[list[str]]
    keys: list[list[str]]
    query_pads: Tensor
    key_pads: Tensor

    @property
    def on_padding(self) -> float:
        """The share of a real query's weight that falls on padding, the mean over queries, heads and rows; 0 to 1."""
        share = self.weights.double().masked_fill(~self.key_pads[:, None, None], 0).sum(-1)
        share = share.transpose(1, 2)[~self.query_pads]
        return float(share.mean()) if share.numel() else 0.0

    @property
    def leaks(self) -> int:
        """How many weights of real queries, of all heads and rows, are on what should have none."""
        return self.count(~self.query_pads)

    @property
    def idle_leaks(self) -> int:
        """The same of padding's own queries: what they read matters only where somebody attends to them."""
        return self.count(self.query_pads)

    def count(self, queries: Tensor) -> int:
        wrong = (self.weights > 0) & ~self.should[:, None]
        return int(wrong.sum((1, 3))[queries].sum())

    def of(self, row: int, head: int | None = None) -> Seen:
        """The same of one row of the batch, and of one head. Raises ValueError where there is none of that number."""
        check_number("row", row, len(self.weights), "the batch", "rows")
        heads = slice(None)
        if head is not None:
            check_number("head", head, self.weights.size(1), self.name, "heads")
            heads = slice(head, head + 1)
        at = slice(row, row + 1)
        return dataclasses.replace(
            self,
            weights=self.weights[at, heads],
            may=None if self.may is None else self.may[at, heads],
            **{name: getattr(self, name)[at] for name in ("should", "queries", "keys", "query_pads", "key_pads")},
        )


@dataclass
class Influence:
    """How far each logit of a row moves where one position holds something else at the embedding.

    by: (S, T), the largest change of a logit at t by position j. A change counts above `floor`. should: (S, T) bool,
    where there should be one. tokens, pads: of the S positions that were changed; queries, query_pads: of the T whose
    logits were looked at. stream: "target" or "source". row: of the batch.
    """

    by: Tensor
    floor: float
    should: Tensor
    tokens: list[str]
    pads: Tensor
    queries: list[str]
    query_pads: Tensor
    stream: str
    row: int

    @property
    def there(self) -> Tensor:
        """(S, T) bool: whether position t depends on position j."""
        return self.by > self.floor

    @property
    def leaks(self) -> int:
        """How many pairs of positions depend on each other that should not, where the one that depends is real."""
        return int((self.there & ~self.should)[:, ~self.query_pads].sum())

    @property
    def idle_leaks(self) -> int:
        """The same of padding's own positions, but for what each does to itself."""
        there = self.there & ~self.should
        if self.stream == "target":
            there = there.clone().fill_diagonal_(False)
        return int(there[:, self.query_pads].sum())


def seen(model: nn.Module, batch: Any, *, tokens: Any = None, **about: Any) -> list[Seen]:
    """Every attention of the model on the batch, in the order of one pass in eval mode; the model stays as it was.

    tokens: what names an id: a function, a tokenizer (`tokenizers` or Hugging Face), a `Translation`; None: its number.
    about: what Subject cannot find out itself, such as kind, pad_id, streams or forward. Attention that is not over the
    positions of the batch (of windows, or of memory tokens) is left out. Raises ValueError where no attention is read.
    """
    subject = subject_of(model, batch, about)
    with told(), as_it_was(subject.model):
        given = clone(subject.batch, device_of(subject.model))
        kinds = kinds_of(subject)
        real = {stream: subject.real(stream).cpu() for stream in {s for sides in kinds.values() for s in sides}}
        words = {stream: names(tokens, subject.ids(stream)) for stream in real}
        with torch.no_grad(), Streams(given, subject) as streams, attentions(subject.model) as read:
            (subject.forward or call)(subject.model, given)
    if not read:
        raise ValueError(
            f"no attention was read in a pass of {subject.name}: it called neither scaled_dot_product_attention nor a "
            f"softmax over a product of queries and keys. Where a model can choose, have it use one of these "
            f"(attn_implementation='sdpa' or 'eager'). draw.influence needs no attention."
        )
    found: list[Seen] = []
    for attention in read:
        laid = laid_out(attention, len(next(iter(real.values()))))
        kind = None if laid is None else kind_of(attention, laid[0].shape[2:], kinds, real, streams)
        if kind is None:
            continue
        query, key = kinds[kind]
        should = real[key][:, None, :].expand(-1, real[query].size(1), -1)
        should = should & causal(should.size(1)) if kind == "decoder" else should
        layer = sum(other.kind == kind for other in found)
        pads = {"query_pads": ~real[query], "key_pads": ~real[key]}
        found.append(Seen(attention.module, kind, layer, *laid, should, words[query], words[key], **pads))
    if not found:
        shapes = sorted({str(tuple(attention.weights.shape)) for attention in read})
        lengths = {stream: tuple(mask.shape) for stream, mask in real.items()}
        raise ValueError(
            f"{len(read)} attentions of {subject.name} were read, with weights {', '.join(shapes)}, and none is over "
            f"the positions of the batch, {lengths}. draw.influence needs no attention."
        )
    return found


def subject_of(model: nn.Module, batch: Any, about: dict[str, Any]) -> Subject:
    """What is known of the model and its batch. Raises TypeError for a keyword that Subject does not take."""
    known = {field.name for field in dataclasses.fields(Subject)}
    if wrong := sorted(about.keys() - known):
        raise TypeError(f"{wrong[0]!r} is no keyword here; what may be told of a model: {', '.join(sorted(known))}.")
    if batch is None:
        raise ValueError("batch is None; give what the model is called with.")
    return Subject(model, batch, **about)


@contextmanager
def told() -> Iterator[None]:
    """Inside, what is a reason to skip for a check is an error."""
    try:
        yield
    except Missing as error:
        raise ValueError(f"{error}.") from error


@contextmanager
def as_it_was(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in eval mode, on its slow and readable path; after, it and all random states are as before.

    Its buffers are copied, because a forward may write to them; no parameter is.
    """
    snapshot, buffers = Snapshot(model), [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        with evaluating(model):
            torch.backends.mha.set_fastpath_enabled(False)
            yield
    finally:
        snapshot.restore()
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


def device_of(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def kinds_of(subject: Subject) -> dict[str, tuple[str, str]]:
    """The kinds of attention that such a model has; each with the streams of its queries and keys."""
    if subject.kind == "seq2seq":
        return SIDES
    return {"encoder" if subject.kind == "encoder" else "decoder": ("target", "target")}


def kind_of(
    attention: Attention, size: torch.Size, kinds: dict, real: dict[str, Tensor], streams: Streams
) -> str | None:
    """By what queries and keys were computed from; lengths may be equal. None where it is not over the batch's."""
    fits = [kind for kind, sides in kinds.items() if size == tuple(real[stream].size(1) for stream in sides)]
    query, key = streams.of(attention.query), streams.of(attention.key)
    if len(kinds) > 1 and query and key:
        kind = "encoder" if "target" not in query else "decoder" if "target" in key else "cross"
        return kind if kind in fits else None
    return fits[0] if len(fits) == 1 else None


def laid_out(attention: Attention, rows: int) -> tuple[Tensor, Tensor | None] | None:
    """Weights and mask as (B, H, T, S), on the CPU; None where they cannot be laid out so.

    Rows and heads may be one axis, and groups of heads another. Where weights were multiplied by a mask, or the column
    of a sink was cut off, it is what then met the values.
    """
    weights, axis, blocked = attention.weights, attention.dim, blocked_by_any(attention)
    used = attention.used
    if used is not None and used.dim() == weights.dim() and used.shape[:-1] == weights.shape[:-1]:
        weights, axis = used, attention.axis
        blocked = None if blocked is None else blocked[..., : used.size(-1)]

    def laid(tensor: Tensor) -> Tensor | None:
        tensor = tensor.detach().cpu().movedim(axis, -1)
        if tensor.dim() == 3 and len(tensor) % rows == 0:
            tensor = tensor.unflatten(0, (rows, -1))
        return tensor.flatten(1, -3) if tensor.dim() > 3 and len(tensor) == rows else None

    values = laid(weights)
    return None if values is None else (values, None if blocked is None else ~laid(blocked))


def check_number(what: str, number: Any, count: int, of: str, many: str) -> None:
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < count:
        raise ValueError(f"{what} is {number!r}, but {of} has {count} {many}: give a number from 0 to {count - 1}.")


def influence(
    model: nn.Module, batch: Any, *, row: int = 0, tokens: Any = None, stream: str = "target", **about: Any
) -> Influence:
    """What each position of a row of the batch changes: measured, so it holds where weights of attention mislead.

    Each position in turn is given other numbers as the embedding hands them on: the ids stay, and so do masks that are
    made of them. In float64 where the model allows it, on a copy of the model; nothing of yours is changed. tokens,
    about: as in `seen`. stream: "source" for the effect of an encoder's input. Raises ValueError where that cannot be
    measured.
    """
    subject = subject_of(model, batch, about)
    with told(), as_it_was(subject.model):
        ids = subject.ids(stream)
        check_number("row", row, len(ids), "the batch", "rows")
        query_pads, pads = ~subject.real("target")[row].cpu(), ~subject.real(stream)[row].cpu()
        probe = Probe(subject.replace(batch=copies(subject, row, 1)), None)
        copy, relative = probe.precise(probe.subject.batch)
        by, noise, size = measured(probe.subject, copy, stream, relative)
    if by.size(1) != len(query_pads):
        raise ValueError(
            f"logits are of {by.size(1)} positions, and the row has {len(query_pads)}: "
            f"give forward=lambda model, batch: logits (B, T, V)."
        )
    should = (~pads)[:, None].expand(by.shape)
    if subject.kind != "encoder" and stream == "target":
        should = should & causal(len(pads)).T
    scale = by.nan_to_num(0.0, posinf=0.0).max()
    # Effects that are no more than the rounding of the logits themselves are none.
    floor = max(relative * float(scale), 10 * noise, 8 * torch.finfo(by.dtype).eps * size)
    labels = [names(tokens, subject.ids(name)[row : row + 1])[0] for name in (stream, "target")]
    return Influence(by, floor, should, labels[0], pads, labels[1], query_pads, stream, row)


def copies(subject: Subject, row: int, count: int) -> Any:
    """One row of the subject's batch, so many times. What has no row for each row of the batch stays."""
    size = len(subject.ids("target"))
    by_row = {key for keys in subject.streams.values() for key in keys} | {subject.labels_key}
    changes = {}
    for key, value in tensors_of(subject.batch).items():
        square = value.dim() == 2 and value.size(0) == value.size(1) and key not in by_row  # over queries and keys
        if value.dim() and len(value) == size and not square:
            changes[key] = value[row : row + 1].expand(count, *value.shape[1:]).clone()
    return replaced(subject.batch, changes)


def measured(subject: Subject, model: nn.Module, stream: str, relative: float) -> tuple[Tensor, float, float]:
    """(S, T) change of the logits by each position of a batch of one row; the noise; the largest logit."""
    length = subject.ids(stream).size(1)

    def logits(batch: Any, change: Callable[[Tensor, Tensor], Tensor] | None = None) -> Tensor:
        with torch.no_grad(), Lookups(change):
            return subject.logits(model, batch)

    def disturbed(positions: range, twin: bool) -> Tensor:
        """Logits of a copy for each position, in which it holds something else; before them, of one left as it is."""
        where = torch.zeros(len(positions) + twin, length, dtype=torch.bool)
        where[range(twin, len(where)), positions] = True
        batch, found = copies(subject, 0, len(where)), []

        def change(ids: Tensor, vectors: Tensor) -> Tensor:
            at = position_in(ids, where, batch[subject.streams[stream][0]])
            other = streams.of(ids) and stream not in streams.of(ids)  # source and target may be the same ids
            if at is None or other or vectors.shape[:2] != at.shape or not vectors.is_floating_point():
                return vectors
            found.append(at)
            noise = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
            return vectors + at[..., None] * noise.to(vectors) * (vectors.std() or 1.0)

        with Streams(batch, subject) as streams:
            result = logits(batch, change)
        if not found:
            raise Missing(
                f"the lookup of the {stream} ids was not seen: it is neither an nn.Embedding nor an indexed "
                f"parameter, so what a position holds cannot be changed"
            )
        return result

    alone, again = logits(copies(subject, 0, 1)), logits(copies(subject, 0, 1))
    size, noise, parts = float(alone.abs().max()), float((again - alone).abs().max()), []
    for first in range(0, length, COPIES - 1):
        made = disturbed(range(first, min(first + COPIES - 1, length)), True)
        parts.append((made[1:] - made[:1]).abs().amax(-1))
        mixed = float((made[:1] - alone).abs().max())
        if mixed > max(relative * size, 10 * noise):  # rows depend on each other: each position in a pass of its own
            parts = [(disturbed(range(j, j + 1), False) - alone).abs().amax(-1) for j in range(length)]
            break
        noise = max(noise, mixed)
    return torch.cat(parts), noise, size
