"""Checks on the batch itself: ids that the tables hold, rows that end, tokens that are cut off, room that is wasted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from difflib import SequenceMatcher
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..calling import Missing, clone, replaced
from ..instruments import Lookup, Lookups, forward_of
from ..probe import LENGTH, Probe
from ..report import Finding
from ..subject import Subject
from .base import check
from .loss import made_place
from .sizing import LOST
from .taught import readable, real, within

ABOUT = {"family": "data", "lesson": "08_diagnose_your_model"}
EOS, ROOM = {**ABOUT, "lesson": "05_never_stops"}, {**ABOUT, "lesson": "06_why_perplexity_70"}

# Padding is worth a note where it is more than half of the positions. Rows of unequal length seldom come near; rows of
# WikiText-2 padded to 256 waste 62 %.
WASTED = 0.5

EXAMPLES = 32  # of the user's, that are compared with their rows


@check(
    "embedding-range",
    severity="P1",
    **ABOUT,
    silent="the rarest ids and the longest rows come late: the crash, or on a GPU the assert, comes after hours",
    repair="make the tables as large as the tokenizer and max_seq_len: model.resize_token_embeddings(len(tokenizer))",
)
def embedding_range(probe: Probe) -> Iterator[Finding]:
    """The tables have a row for each of vocab_size ids and each of max_seq_len positions, and the head a logit each.

    padding-crash looks at the ids of your batch; this one feeds the highest that there may be. More rows than ids,
    as of a table rounded up to a multiple of 64, are fine.
    """
    subject = probe.subject
    if "target" not in subject.streams:
        raise Missing("the batch has no ids by a usual name: give streams={'target': (key, mask key)}")
    key = subject.streams["target"][0]
    batch = known_to_pass(probe)
    seen, logits = lookups(probe, batch)
    tables = [lookup for lookup in seen if lookup.ids.numel() == batch[key].numel() and same(lookup.ids, batch[key])]
    if not tables:
        raise Missing("no embedding lookup of the ids was seen: give forward=lambda model, batch: logits")
    size, vocab = (None if logits is None else logits.size(-1)), subject.vocab_size
    rows = min(lookup.rows for lookup in tables)
    evidence: dict[str, Any] = {"vocab_size": vocab, "rows": rows, "logits": size}
    evidence = {name: value for name, value in evidence.items() if value is not None}
    if vocab is not None and rows < vocab and refused(probe, batch, key, vocab - 1):
        yield probe.finding(
            f"vocab_size is {vocab} and the embedding has {rows} rows: {absent(rows, vocab)} none",
            evidence=evidence,
            where=tables[0].where,
        )
    elif size is not None and vocab is not None and size < vocab:
        yield probe.finding(
            f"vocab_size is {vocab} and there are {size} logits: {absent(size, vocab)} none",
            evidence=evidence,
            where=forward_of(subject.model, ""),
        )
    elif size is not None and vocab is None and size > rows:
        yield probe.finding(
            f"there are {size} logits and the embedding has {rows} rows: it may generate ids that it cannot read",
            "P2",
            evidence=evidence,
            where=tables[0].where,
        )
    yield from positions(probe, seen)


def absent(first: int, end: int) -> str:
    return f"id {first} has" if end - first == 1 else f"ids {first} to {end - 1} have"


def known_to_pass(probe: Probe) -> Any:
    """A batch like the user's without padding, of tokens that theirs holds."""
    batch, subject = probe.whole(), readable(probe)
    changes = {}
    for stream, (key, _) in subject.streams.items():
        there = real(subject) if stream == "target" else subject.real(stream)
        tokens = subject.ids(stream)[there].unique()
        ordinary = tokens[torch.isin(tokens, probe.ordinary())]
        tokens = ordinary if len(ordinary) else tokens
        if len(tokens):
            changes[key] = tokens[batch[key] % len(tokens)]
            if stream == "target" and subject.labels() is not None and subject.labels().dim() == 2:
                changes[subject.labels_key] = changes[key]
    return replaced(batch, changes)


def lookups(probe: Probe, batch: Any) -> tuple[list[Lookup], Tensor | None]:
    """The embedding lookups of a forward pass, and its logits; None where it fails or has none."""
    model, logits = probe.precise(known_to_pass(probe))[0], None
    # Where it raises, what was looked up until then has been seen.
    with suppress(Exception), torch.no_grad(), Lookups() as seen:
        logits = probe.subject.logits(model, clone(batch))
    return seen.seen, logits


def same(looked_up: Tensor, ids: Tensor) -> bool:
    """Whether a lookup is of those ids (B, T), laid out in whatever way."""
    return any(torch.equal(looked_up.flatten(), each.flatten()) for each in (ids, ids.T))


def refused(probe: Probe, batch: Any, key: Any, highest: int) -> bool:
    """Whether that id reaches a table that has no row for it: some models keep ids of images from their table."""
    ids = batch[key].clone()
    ids[0, -2] = highest
    seen, _ = lookups(probe, replaced(batch, {key: ids}))
    return any(bool((lookup.ids >= lookup.rows).any() | (lookup.ids < 0).any()) for lookup in seen)


def positions(probe: Probe, seen: list[Lookup]) -> Iterator[Finding]:
    """Tables that are read at 0, 1, 2 ... (some begin at 2) have a row for each of max_seq_len positions."""
    longest = probe.subject.max_seq_len
    if longest is None:
        return
    for lookup in seen:
        ids = lookup.ids
        length = ids.size(-1) if ids.dim() else 0
        if length not in LENGTH.values() or not bool((ids.diff(dim=-1) == 1).all()):
            continue
        first = int(ids.min())
        apart = first < 0 or not bool((ids[..., 0] == first).all())
        # A config's max_position_embeddings may be the table's own size, the rows before the first position included.
        if apart or lookup.rows - first >= longest or lookup.rows == longest:
            continue
        yield probe.finding(
            f"max_seq_len is {longest} and the table of positions has {lookup.rows - first} rows for them",
            evidence={"max_seq_len": longest, "rows": lookup.rows, "the first position's row": first},
            where=lookup.where,
        )
        return


def endings(subject: Subject, eos: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of each row (B,): whether it ends within the batch, for it holds padding; whether EOS stands in it, after its
    first token or among its labels; and its last token. Raises Missing where padding stands in the middle.
    """
    there, ids, labels = real(subject), subject.ids("target"), subject.labels()
    inner = (there != within(there)).any(1)  # in a few rows the pad id is a token like others
    there = within(there)
    if 2 * int(inner.sum()) > int((~there).any(1).sum() + inner.sum()):
        raise Missing(
            "padding stands between tokens; rows must be (B, T), padded at one side: give streams= or pad_id="
        )
    place = torch.arange(ids.size(1)) * there
    last = ids.gather(1, place.argmax(1, keepdim=True))[:, 0]
    start = there & (there.cumsum(1) == 1) & (ids == eos) & (there.sum(1, keepdim=True) > 1)  # some begin with it
    found, ended = ((ids == eos) & there & ~start).any(1), ~there.all(1) & there.any(1)
    if labels is not None and labels.shape == ids.shape:
        found |= ((labels == eos) & ~start & (there if subject.pad_id == eos else True)).any(1)
        if subject.kind == "seq2seq":  # the inputs of a row are one behind: its last label may be the only padding
            ended |= labels[:, -1] == subject.ignore_index
    return ended, found, last


@check(
    "eos-missing",
    severity="P2",
    **EOS,
    silent="the loss has no part that would miss it; generation runs to its limit and trails off",
    repair="append eos_id to every row before it is padded, and cut rows before it is appended",
)
def eos_missing(probe: Probe) -> Iterator[Finding]:
    """Rows that end within the batch, for padding follows or precedes them, hold an EOS.

    Full rows are not asked: a packed block or a row that is cut ends in the middle of a text. EOS need not be the last
    token: in a dialogue it ends each turn.
    """
    subject = probe.subject
    eos = subject.eos_id
    if subject.kind == "encoder":
        raise Missing("an encoder does not generate, so it need not learn to stop")
    if subject.labels() is None and subject.loss is None:
        raise Missing("nothing is trained on this batch: give one with labels, or loss=lambda model, batch: scalar")
    if eos is None:
        raise Missing("which id ends a row is unknown: give eos_id=")
    if subject.pad_id == eos and subject.streams["target"][1] is None:
        raise Missing("pad_id is eos_id, so which EOS is padding cannot be told: give streams={...: (key, mask key)}")
    ended, has, last = endings(subject, eos)
    if not bool(ended.any()):
        raise Missing("no row is known to end within the batch: give a batch of unequal rows, and pad_id=")
    without = ended & ~has
    if not bool(without.any()):
        return
    count, of = int(without.sum()), int(ended.sum())
    yield probe.finding(
        f"{'no row ends' if count == of else f'{count} of {of} rows do not end'} in EOS (id {eos}): "
        f"{'the model never learns to stop' if count == of else 'the model learns to stop only at times'}",
        "P2" if 2 * count >= of else "P3",
        evidence={
            "rows without EOS": count,
            "of": of,
            "the last id instead": int(last[without][0]),
        },
        where=made_place(subject, subject.labels_key if subject.labels() is not None else subject.streams["target"][0]),
    )


def sequences_of(example: Any) -> list[list[int]]:
    """The sequences of ids in an example: a list or tensor of whole numbers, or a mapping or tuple of such."""
    if isinstance(example, Tensor | np.ndarray):
        whole = not (example.is_floating_point() if isinstance(example, Tensor) else example.dtype.kind == "f")
        return [example.tolist()] if example.ndim == 1 and whole else []
    if isinstance(example, Mapping):
        example = list(example.values())
    if not isinstance(example, list | tuple):
        return []
    if example and all(isinstance(item, int) and not isinstance(item, bool) for item in example):
        return [list(example)]
    return [found for item in example for found in sequences_of(item)]


def covered(sequence: list[int], row: list[int]) -> np.ndarray:
    """Which tokens of a sequence stand in a row, in runs of at least two (or all of it)."""
    found = np.zeros(len(sequence), dtype=bool)
    for at, _, size in SequenceMatcher(None, sequence, row, autojunk=False).get_matching_blocks():
        if size >= min(2, len(sequence)):
            found[at : at + size] = True
    return found


@check(
    "truncation",
    severity="P3",
    **ROOM,
    silent="nothing says which tokens a model has never seen",
    repair="pack rows into full blocks or give the model a longer context; cut a row before EOS is appended to it",
)
def truncation(probe: Probe) -> Iterator[Finding]:
    """Every token of the user's raw examples is in the rows that their collate function makes of them.

    P2 where the cut takes EOS with it. context-too-short asks the same of the lengths of all the data.
    """
    subject = probe.subject
    if subject.collate is None or subject.examples is None:
        raise Missing("needs raw examples of token ids and what makes a batch of them: give collate= and examples=")
    try:
        examples = [sequences_of(example) for example in list(subject.examples)[:EXAMPLES]]
    except TypeError as error:
        raise Missing("the examples cannot be listed: give examples=[...], one for each row") from error
    rows = rows_of(subject)
    if not rows or any(len(row) < len(examples) for row in rows):
        raise Missing("the batch has not one row for each example, so what is lost cannot be told (packed, perhaps)")
    tokens, lost, cut_rows, longest = 0, 0, 0, 0
    for number, sequences in enumerate(examples):
        before = lost
        for sequence in sequences:
            found = np.zeros(len(sequence), dtype=bool)
            for row in rows:
                found |= covered(sequence, row[number])
            if found.any():  # else these are not ids of the batch: a mask, or text before another tokenizer
                here = found.nonzero()[0]
                tokens += len(sequence)
                lost += int(here[0]) + len(sequence) - 1 - int(here[-1])
                longest = max(longest, len(sequence))
        cut_rows += lost > before
    if not tokens:
        raise Missing("the examples hold no token ids that stand in the batch: give examples= of ids")
    if lost < LOST * tokens:
        return
    without = unended(subject)
    yield probe.finding(
        f"{cut_rows} of {len(examples)} rows are cut, and {lost / tokens:.1%} of the tokens are lost"
        + (f"; {without} rows lose their EOS" if without else ""),
        "P2" if without else "P3",
        evidence={"tokens": tokens, "lost": lost, "rows cut": cut_rows, "of": len(examples), "longest": longest}
        | ({"rows without EOS": without} if without else {}),
        where=made_place(subject, subject.streams["target"][0] if "target" in subject.streams else None),
    )


def rows_of(subject: Subject) -> list[list[list[int]]]:
    """The rows of ids and labels of the batch, as lists of real tokens."""
    found = []
    for stream in subject.streams:
        ids = subject.ids(stream)
        there = real(subject) if stream == "target" else subject.real(stream)
        if ids.dim() == 2:
            found.append([row[keep].tolist() for row, keep in zip(ids, there, strict=True)])
    labels = subject.labels()
    if labels is not None and labels.dim() == 2:
        found.append([row[row != subject.ignore_index].tolist() for row in labels])
    return found


def unended(subject: Subject) -> int:
    """How many full rows lack the EOS that rows with padding end in."""
    if subject.eos_id is None or "target" not in subject.streams:
        return 0
    ended, has, _ = endings(subject, subject.eos_id)
    return int((~ended & ~has).sum()) if bool((ended & has).any()) else 0


@check(
    "padding-waste",
    severity="note",
    **ROOM,
    silent="a pad costs as much as a token, and nothing shows it",
    repair="pad to the longest row of the batch, batch rows of similar length, or pack rows into full blocks",
)
def padding_waste(probe: Probe) -> Iterator[Finding]:
    """No more than half of the positions of the user's batch are padding."""
    subject = probe.subject
    if not subject.streams:
        raise Missing("the batch has no ids by a usual name: give streams={'target': (key, mask key)}")
    for stream, (key, _) in subject.streams.items():
        there = real(subject) if stream == "target" else subject.real(stream)
        pads = int((~there).sum())
        if there.dim() != 2 or pads <= WASTED * there.numel():
            continue
        empty = int((~there).all(0).sum())
        packed = -(-int(there.sum()) // there.size(1))
        yield probe.finding(
            f"{pads / there.numel():.0%} of the positions of {key} are padding; packed, {packed} of {len(there)} rows "
            f"would hold the same tokens"
            + (f"; {empty} of {there.size(1)} columns are padding alone" if empty else ""),
            evidence={"padding": pads, "of": there.numel(), "columns of padding alone": empty},
            where=made_place(subject, key),
        )
