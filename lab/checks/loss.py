"""Checks on what the loss trains: which token, and at which positions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..calling import Missing, clone, replaced
from ..instruments import forward_of
from ..probe import Probe
from ..report import Finding, Where
from ..subject import Subject
from .base import check
from .labels import collated
from .taught import COLUMNS, Lesson, Pulls, cut, few, lesson, readable, real, within

ABOUT = {"family": "loss", "lesson": "08_diagnose_your_model"}
FEWEST, MOST = 3, 0.9  # positions, and the share of them, that must agree before anything is said

AHEAD = {
    0: ("its own input", "nothing shifts the labels, and copying is all there is to learn"),
    2: ("the token after the next", "the labels are shifted twice, and the next token itself is never learned"),
    -1: ("the token before", "the shift goes the wrong way, and what it is to predict has been read already"),
}


def make_place(subject: Subject) -> Where | None:
    """Where the loss is written: the user's function, else the model's forward."""
    return Where.of(subject.loss) if subject.loss is not None else forward_of(subject.model, "")


def made_place(subject: Subject, key: Any) -> Where | None:
    """Where that entry of the batch was made, where collate= is given."""
    if subject.collate is None or subject.examples is None:
        return None
    batch, origins = collated(subject)
    try:
        return origins.of(batch[key]) or Where.of(subject.collate)
    except (KeyError, IndexError, TypeError):
        return Where.of(subject.collate)


# Which token


@dataclass
class Offset:
    """Targets are the input's token t + ahead, at a share of the `positions` that tell it from t + 1."""

    ahead: int
    share: float
    positions: int


def offset(ids: Tensor, there: Tensor, targets: Tensor, among: Tensor) -> Offset | None:
    """How far ahead targets (B, T) are of ids (B, T), read at the positions `among` (B, T); None where it is unclear.

    Padding tells nothing: only ids that are `there` (B, T) are compared. One ahead is right, and believed even where
    other offsets agree as well: text repeats itself.
    """

    def agreement(ahead: int) -> tuple[Tensor, Tensor]:
        """Where the target is ids[t + ahead], and where there is such a token, (B, T)."""
        column = torch.arange(ids.size(1)) + ahead
        inside = (column >= 0) & (column < ids.size(1))
        return targets == ids.roll(-ahead, 1), among & inside & there.roll(-ahead, 1)

    def share(same: Tensor, at: Tensor) -> float:
        return float(same[at].double().mean()) if int(at.sum()) >= FEWEST else 0.0

    next_one, there_is = agreement(1)
    right = share(next_one, there_is)
    if right >= MOST:
        return Offset(1, right, int(there_is.sum()))
    for ahead in (0, 2, -1, 3, -2):
        same, at = agreement(ahead)
        tells = at & ~(there_is & (ids.roll(-1, 1) == ids.roll(-ahead, 1)))
        if share(same, tells) >= MOST and right < 0.5:
            return Offset(ahead, share(same, tells), int(tells.sum()))
    return None


@check(
    "target-alignment",
    severity="P1",
    **ABOUT,
    silent="the loss falls all the same, for each of these tasks can be learned; only what is generated is nonsense",
    repair="shift once: position t is fed token t and trained on token t + 1",
    explains=("eos-never-a-target",),
)
def target_alignment(probe: Probe) -> Iterator[Finding]:
    """The token that the loss pulls up at position t is the input's token t + 1.

    Read off the gradient of the loss for the logits, so the shift may be made anywhere: in the collate function, in
    the model, in the loss. On the user's own batch, since a batch made here would be shifted rightly.
    """
    if probe.subject.kind == "encoder":
        raise Missing("an encoder is not trained on the next token; give kind='causal_lm' or 'seq2seq' if this one is")
    seen = lesson(probe)
    subject, ids, targets = seen.subject, seen.teaching.ids, seen.teaching.targets
    among = (targets >= 0) & (seen.real | (targets != subject.pad_id))
    found = offset(ids, seen.real, targets, among)
    if found is None:
        raise Missing(
            f"{int(among.sum())} targets are neither the next tokens of the input nor others near them: give a batch "
            f"of longer rows of text, or streams={{'target': (key, mask key)}} if the ids are under another key"
        )
    labels = subject.labels()
    known = labels is not None and labels.shape == ids.shape
    if found.ahead == 1:
        if known:
            yield from across_rows(probe, seen, labels)
        return
    if found.ahead <= 0 and subject.kind == "causal_lm" and looks_ahead(probe):
        raise Missing("the model sees the token that it is to predict, as one that fills in tokens does: give kind=")
    mine = offset(ids, seen.real, labels, (labels != subject.ignore_index) & among) if known else None
    what, why = AHEAD.get(found.ahead, (f"the token {found.ahead:+d} from it", "it should be the next"))
    evidence: dict[str, Any] = {
        f"targets that are the input's token t{found.ahead:+d}" if found.ahead else "targets that are token t": (
            found.share
        ),
        "of positions": found.positions,
    }
    where = None
    if mine is not None:
        evidence |= {"labels are ahead of the input by": mine.ahead, "the loss shifts by": found.ahead - mine.ahead}
        if found.ahead == mine.ahead:
            key = subject.streams["target"][0] if subject.kind == "seq2seq" else subject.labels_key
            where = made_place(probe.subject, key)
    fed = "the decoder" if subject.kind == "seq2seq" else "each position"
    yield probe.finding(
        f"{fed} is trained to predict {what}: {why}",
        evidence=evidence,
        where=where or make_place(probe.subject),
        repair="shift in one place: labels one ahead of the inputs in the batch, or labels equal to the inputs and a "
        "shift in the loss" + (", which some models (Hugging Face's) make themselves" if found.ahead == 2 else ""),
    )


def looks_ahead(probe: Probe) -> bool:
    seen = probe.dependency("target").seen()
    return bool(seen.tril(-1).any())  # by[j, t]: a later j moves an earlier t


def across_rows(probe: Probe, seen: Lesson, labels: Tensor) -> Iterator[Finding]:
    """The last position of a row is not trained on the first token of the next, which a flattened shift would do."""
    ids, last = seen.teaching.ids, seen.teaching.targets[:, -1]
    into = (last[:-1] == ids[1:, 0]) & (last[:-1] != labels[:-1, -1])
    if bool(into.any()) and bool((into | (last[:-1] == labels[:-1, -1])).all()):
        yield probe.finding(
            "the last position of each row is trained to predict the first token of the next row",
            "P3",
            evidence={"rows": int(into.sum()), "of": len(ids) - 1},
            where=make_place(probe.subject),
            repair="shift within the rows, logits[:, :-1] against labels[:, 1:], and flatten afterwards",
        )


@check(
    "eos-never-a-target",
    severity="P1",
    **{**ABOUT, "lesson": "05_never_stops"},
    silent="the loss has no part that would miss it; generation runs to its limit and trails off",
    repair="give padding an id of its own, or ignore labels by the attention mask and not by the id",
    after=("eos-missing",),
)
def eos_never_a_target(probe: Probe) -> Iterator[Finding]:
    """Where a row ends in EOS, some position is trained to predict it.

    With pad id = EOS and the labels of pads ignored, as Hugging Face's DataCollatorForLanguageModeling has it, none is.
    """
    subject = readable(probe)
    eos = subject.eos_id
    if subject.kind == "encoder":
        raise Missing("an encoder does not generate, so it need not learn to stop")
    if eos is None:
        raise Missing("which id ends a row is unknown: give eos_id=")
    ends = ending(subject, eos)
    if not bool(ends.any()):
        raise Missing("no row of the batch ends in EOS within it: give a batch in which some do")
    for at in (None, None), ends.nonzero()[0].tolist():
        seen = lesson(probe, *at)
        if bool((seen.teaching.targets == eos).any()):
            return
    same = subject.pad_id == eos
    labels = subject.labels()
    ignored = labels is not None and labels.shape == ends.shape and not bool((labels == eos).any())
    yield probe.finding(
        f"EOS (id {eos}) stands in the batch, and no position is trained to predict it"
        + (": pad_id is the same id, and the labels of pads are ignored" if same and ignored else "")
        + (": every label that is EOS is ignored" if ignored and not same else ""),
        evidence={
            "rows with EOS": int(ends.any(1).sum()),
            "of": len(ends),
            "positions looked at": int((seen.teaching.targets >= 0).sum()),
            "of them trained on EOS": 0,
        },
        where=made_place(probe.subject, subject.labels_key) if ignored else make_place(probe.subject),
    )


def ending(subject: Subject, eos: int) -> Tensor:
    """Where the batch holds an EOS that ends something, (B, T): in the labels, or among the ids after a token."""
    ids, labels = subject.ids("target"), subject.labels()
    found = torch.zeros_like(ids, dtype=torch.bool)
    found[:, 1:] = (ids[:, 1:] == eos) & (ids[:, :-1] != eos) & (ids[:, :-1] != subject.pad_id)
    if labels is not None and labels.shape == ids.shape:
        found[:, 1:] |= labels[:, 1:] == eos
    return found


# Which positions


@check(
    "loss-counts-pads",
    severity="P2",
    **ABOUT,
    silent="predicting padding after padding is easy, so the loss looks better than it is",
    repair="set the labels of padding to the loss's ignore_index",
)
def loss_counts_pads(probe: Probe) -> Iterator[Finding]:
    """No position is trained to predict padding, and a row's loss is the same however much padding it has.

    The second half fails where a masked loss is divided by all positions: the more padding, the smaller the step.
    """
    subject = readable(probe)
    there = within(real(subject))
    if bool(there.all()):
        raise Missing("the batch holds no padding that is known as such: give a batch of unequal rows, and pad_id=")
    seen = lesson(probe)
    here, targets = within(seen.real), seen.teaching.targets
    after = F.pad(here, (0, 1))[:, 1:]
    pad = subject.pad_id
    wrong = (targets >= 0) & ~here & ~after
    if pad is not None:
        # The first of some pads may be the EOS that ends the row, where both are one id.
        wrong = (targets == pad) & ~(here & after if pad != subject.eos_id else here | after)
    if bool(wrong.any()):
        counted = int((targets >= 0).sum())
        share = float(seen.teaching.gradient[wrong].abs().sum() / seen.teaching.gradient.abs().sum())
        yield probe.finding(
            f"the loss trains {int(wrong.sum())} of {counted} positions to predict padding",
            evidence={"positions trained on padding": int(wrong.sum()), "of": counted, "share of the gradient": share},
            where=made_place(probe.subject, subject.labels_key) or make_place(probe.subject),
            repair=f"set the labels of padding to {subject.ignore_index}, or give the loss ignore_index={pad}",
        )
        return
    yield from weighs_padding(probe, subject, there)


def weighs_padding(probe: Probe, subject: Subject, there: Tensor) -> Iterator[Finding]:
    """Compare the weight of the positions of one row, alone in a batch, with much padding and with one column of it."""
    row = int((~there).sum(1).argmax())
    columns = there[row].nonzero().flatten()
    if not len(columns):
        return
    first, last = int(columns[0]), int(columns[-1]) + 1
    length = there.size(1)
    narrow = slice(max(0, first - 1), min(length, last + 1))
    wide = slice(max(0, narrow.start - COLUMNS // 2), min(length, narrow.stop + COLUMNS // 2))
    if narrow.stop - narrow.start > COLUMNS or wide == narrow:
        return
    weights = []
    try:
        for columns in (wide, narrow):
            pulls = Pulls.of(probe.teaching(cut(subject, [row], columns)))
            weights.append(pulls.weights())
    except Missing:
        return  # the loss does not take one row, or not these columns
    if len(weights[0]) != len(weights[1]) or not len(weights[0]):
        return
    ratio = float((weights[0] / weights[1]).median())
    if abs(ratio - 1) > 0.01:
        sizes = [span.stop - span.start for span in (wide, narrow)]
        yield probe.finding(
            f"the loss of a row depends on its padding: among {sizes[0]} columns its tokens weigh {ratio:.3g} of what "
            f"they weigh among {sizes[1]}",
            "P3",
            evidence={"weight of a token, relative": ratio, "columns": sizes[0], "instead of": sizes[1]},
            where=make_place(probe.subject),
            repair="divide the sum of the losses by the number of labels that count, not by all positions",
        )


@check(
    "all-ignored-batch",
    severity="P3",
    **ABOUT,
    silent="it takes a batch without a label that counts; its one step makes every weight NaN",
    repair="divide by max(1, the number of labels that count), or drop such batches",
)
def all_ignored_batch(probe: Probe) -> Iterator[Finding]:
    """A batch whose every label is ignored gives a finite loss.

    The mean over no label is 0 / 0. It comes with prompts that are cut before their answer, and in small micro-batches.
    """
    subject = readable(probe)
    labels = subject.labels()
    if labels is None or labels.shape != subject.ids("target").shape:
        raise Missing("the batch has no labels (B, T) by a usual name: give labels_key=")
    ignored = labels == subject.ignore_index
    if not bool(ignored.any()):
        raise Missing(f"no label of the batch is ignored ({subject.ignore_index}): if some may be, give ignore_index=")
    corner = few(subject)
    model, _ = probe.precise(corner)
    nothing = replaced(corner, {subject.labels_key: torch.full_like(subject.labels(corner), subject.ignore_index)})
    try:
        with torch.no_grad():
            loss = float(subject.loss_of(model, clone(nothing)))
    except Missing:
        raise
    except Exception as error:
        raise Missing(f"the loss refuses a batch whose every label is ignored ({type(error).__name__})") from error
    if math.isfinite(loss):
        return
    rows = int(ignored.all(1).sum())
    yield probe.finding(
        f"the loss of a batch whose every label is ignored is {loss}; "
        + (f"{rows} of {len(labels)} rows of your batch are such" if rows else "none of your rows is such")
        + ("" if rows else ", and prompts that are cut before their answer would be"),
        "P3" if rows else "note",
        evidence={"loss": str(loss), "rows with every label ignored": rows, "of": len(labels)},
        where=make_place(probe.subject),
    )
