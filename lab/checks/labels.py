"""Checks on what the decoder is fed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..calling import Missing, clone, tensors_of
from ..instruments import Lookups, Origins
from ..probe import Probe
from ..report import Finding, Where
from ..subject import Subject
from .base import check


def collated(subject: Subject) -> tuple[Any, Origins]:
    """The user's batch, made anew by their collate function where it is given, and where each tensor was made."""
    origins = Origins()
    if subject.collate is None or subject.examples is None:
        if subject.batch is None:
            raise Missing("needs a batch: give batch=, or collate= and examples=")
        return clone(subject.batch), origins
    with origins:
        return subject.collate(subject.examples), origins  # not cloned: its tensors are what `origins` knows


@check("padding-crash", severity="P2", family="labels", lesson="01_padding_crash")
def padding_crash(probe: Probe) -> Iterator[Finding]:
    """Every id that reaches an embedding has a row in its table, and decoder inputs pad with pad_id.

    The lookup is intercepted, for the exception is not the bug: plain indexing wraps -100 round to another row.
    """
    subject = probe.subject
    batch, origins = collated(subject)
    model, crash = probe.copy(), None
    with torch.no_grad(), Lookups() as lookups:
        try:
            subject.logits(model, clone(batch, "cpu"))
        except Missing:
            pass  # the lookups have been seen all the same
        except Exception as error:
            crash = error
    if not lookups.seen:
        raise Missing("no embedding lookup was seen: give forward=lambda model, batch: logits")
    findings = {}
    for lookup in lookups.seen:
        wrong = (lookup.ids < 0) | (lookup.ids >= lookup.rows)
        if wrong.any():
            key = next((k for k, v in tensors_of(batch).items() if same(v.cpu(), lookup.ids)), None)
            findings.setdefault(key, (lookup, wrong))
    for key, (lookup, wrong) in findings.items():
        where = origins.of(batch[key]) if key is not None else None
        yield out_of_range(probe, key, lookup.ids, wrong, lookup.rows, crash, where or lookup.where)
    if findings:
        return
    padding = decoder_padding(subject, batch)
    if padding is not None:
        ids, key = padding
        value = int(ids[0])
        if bool((ids == value).all()) and value != subject.pad_id:
            yield probe.finding(
                f"padding of {key} is id {value}, an ordinary id, and not pad_id {subject.pad_id}: "
                f"a mask that looks for pad_id does not cover it",
                "P3",
                evidence={"positions": ids.numel(), "id": value, "pad id": subject.pad_id},
                where=origins.of(batch[key]),
                repair=f"where the label is {subject.ignore_index}, put pad_id; a clamp only makes it a valid id",
            )
    elif not padded(subject, batch):
        raise Missing("the batch holds no padding, where this shows: give a batch of rows of unequal length")


def same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a == b).all())


def out_of_range(
    probe: Probe, key: Any, ids: Tensor, wrong: Tensor, rows: int, crash: Exception | None, where: Where
) -> Finding:
    """The finding for ids without a row: whether they are left-over labels, and whether it crashed or wrapped."""
    ignore = probe.subject.ignore_index
    name = "ids" if key is None else str(key)
    left_over = int((ids == ignore).sum())
    end = f"the lookup fails ({type(crash).__name__})" if crash else "the lookup silently reads another row"
    evidence = {"wrong ids": int(wrong.sum()), "of": ids.numel(), "lowest": int(ids.min()), "highest": int(ids.max())}
    if left_over:
        message = f"{name} still hold the label value {ignore} of padded positions: {end} on padded batches"
        repair = f"where the labels are {ignore}, feed pad_id: masked_fill(ids == {ignore}, pad_id) after shifting"
    else:
        message = f"{name} hold ids that the embedding has no row for: {end}"
        repair = "make the table as large as the tokenizer, or find the id that is not the tokenizer's"
    return probe.finding(
        message, evidence=evidence | {f"of them {ignore}": left_over, "rows": rows}, where=where, repair=repair
    )


def decoder_padding(subject: Subject, batch: Any) -> tuple[Tensor, Any] | None:
    """The decoder input ids at positions where the label there and the one before are ignored; None without any."""
    known = "target" in subject.streams and subject.labels_key is not None and subject.pad_id is not None
    if subject.kind != "seq2seq" or not known:
        return None
    ids, labels = subject.ids("target", batch), subject.labels(batch)
    if ids.shape != labels.shape:
        return None
    ignored = labels == subject.ignore_index
    here = ignored[:, 1:] & ignored[:, :-1]
    return (ids[:, 1:][here], subject.streams["target"][0]) if bool(here.any()) else None


def padded(subject: Subject, batch: Any) -> bool:
    """Whether anything in the batch is padding."""
    if any(bool((~subject.real(stream)).any()) for stream in subject.streams):
        return True
    labels = subject.labels(batch)
    return labels is not None and bool((labels == subject.ignore_index).any())
