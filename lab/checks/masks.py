"""Checks on the masks of padding: what a masked position holds must not matter."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn

from ..calling import Missing, clone
from ..instruments import Lookups, Trace, culprit, first_non_finite, output_changed, traced
from ..intercept import attentions
from ..probe import LENGTH, ROWS, Probe
from ..report import Finding, Where
from .base import check

HOLES = {"left": slice(0, 2), "middle": slice(2, 4), "right": slice(-2, None)}


def changed_at(where: Tensor, stream: Tensor) -> Lookups:
    """Changes what the positions `where` (B, L) of a stream's ids (B, L) hold, as the embedding hands them on.

    The ids stay, so a mask that is derived from them stays too, and a pad row of zeros does not hide anything.
    """

    def change(ids: Tensor, vectors: Tensor) -> Tensor:
        at = position_in(ids, where, stream)
        if at is None or not vectors.is_floating_point():
            return vectors
        return disturbed(vectors, at)

    return Lookups(change)


def disturbed(vectors: Tensor, where: Tensor) -> Tensor:
    """vectors (B, L, D) with noise of their own size at `where` (B, L), the same each time; L may come first."""
    at = where if len(vectors) == len(where) else where.T
    at = torch.nn.functional.pad(at, (0, vectors.size(1) - at.size(1)))  # some models lengthen their rows
    noise = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return vectors + at[..., None] * noise.to(vectors) * (1 + vectors.std())


def position_in(ids: Tensor, where: Tensor, stream: Tensor) -> Tensor | None:
    """`where` laid out as a lookup's ids are, (B, L) or (L, B); None where the lookup is not of this stream."""
    for at, mine in ((where, stream), (where.T, stream.T)):
        if ids.shape == mine.shape and bool((ids == mine)[~at].all()):  # a model may clamp what its pads hold
            return at
    return None


class Question:
    """One batch put to one model, with and without a change of what some positions of a stream hold."""

    def __init__(self, probe: Probe, model: nn.Module, batch: Any, stream: str) -> None:
        self.probe, self.model, self.batch, self.stream = probe, model, batch, stream
        self.logits, self.trace = self.ask()

    def ask(self, where: Tensor | None = None, memory: str = "") -> tuple[Tensor, Trace]:
        """Logits and trace, with another content at `where` as embedded, or as the module `memory` hands it on."""
        with torch.no_grad(), traced(self.model) as trace:
            if where is None:
                return self.probe.subject.logits(self.model, clone(self.batch)), trace
            if memory:
                with output_changed(self.model.get_submodule(memory), lambda output: disturbed(output, where)):
                    return self.probe.subject.logits(self.model, clone(self.batch)), trace
            stream = self.probe.subject.ids(self.stream, self.batch)
            with changed_at(where, stream) as lookups:
                logits = self.probe.subject.logits(self.model, clone(self.batch))
            if all(position_in(lookup.ids, where, stream) is None for lookup in lookups.seen):
                raise Missing("the lookup of these ids was not seen, so what they hold cannot be changed")
            return logits, trace

    def effect(self, where: Tensor, on: Tensor | None = None, memory: str = "") -> float:
        """The largest change of a logit at positions `on` (B, T), everywhere by default."""
        difference = (self.ask(where, memory)[0] - self.logits).abs().amax(-1)
        return float((difference if on is None else difference[on]).max())

    def culprit(self, where: Tensor, protected: dict[int, Tensor], memory: str = "") -> tuple:
        """The module in which the change first reaches a protected position: length -> (B, length)."""

        def differs(a: Tensor, b: Tensor) -> bool | None:
            if a.dim() != 3 or a.shape != b.shape:
                return None
            for length, keep in protected.items():
                if a.shape[:2] == (len(keep), length):
                    return not torch.allclose(a[keep], b[keep], rtol=1e-9, atol=1e-12)
                if a.shape[:2] == (length, len(keep)):
                    return not torch.allclose(a[keep.T], b[keep.T], rtol=1e-9, atol=1e-12)
            return None

        return culprit(self.model, self.trace, self.ask(where, memory)[1], differs)


def everything_real() -> dict[str, Tensor]:
    return {stream: torch.ones(ROWS, length, dtype=torch.bool) for stream, length in LENGTH.items()}


def only(shape: tuple[int, ...], column: int) -> Tensor:
    where = torch.zeros(shape, dtype=torch.bool)
    where[:, column] = True
    return where


@check(
    "attends-to-pads",
    severity="P2",
    family="masks",
    lesson="02_attending_to_pads",
    after=("random-in-eval", "batch-independence"),
    explains=("padding-amount",),
)
def attends_to_pads(probe: Probe) -> Iterator[Finding]:
    """What a padded position holds changes no other position: in source and target, at the left, middle and right.

    Comparing losses on right-padded batches would prove nothing: there a causal mask hides the pads already.
    """
    subject = probe.subject
    if not subject.streams:
        raise Missing("the batch has no ids by a usual name: give streams={'target': (key, mask key)}")
    controlled = False
    for stream in subject.streams:
        leaks: dict[tuple, dict[str, tuple]] = {}  # culprit -> hole -> effect, relative to a token's; pads read
        for hole, columns in HOLES.items():
            real = everything_real()
            real[stream][:-1, columns] = False  # the last row stays whole: a batch mixes both
            pads = ~real[stream]
            batch = probe.batch(real)
            model, noise = probe.precise(batch)
            question = Question(probe, model, batch, stream)
            control = question.effect(only(pads.shape, LENGTH[stream] - 3 if hole == "right" else -2))
            whole = only(pads.shape, -2) & real[stream]
            last = only((ROWS, LENGTH["target"]), -1)
            # A mask built from lengths takes the hole for a shorter row, and masks the tokens at its end instead.
            if hole != "right" and subject.kind != "seq2seq" and question.effect(whole, last) <= noise * control:
                continue
            if not control > 0:
                continue
            controlled = True
            protected = {LENGTH[name]: mask for name, mask in real.items()}
            # The embedding shows the first attention that leaks; a cross-attention behind it is asked by itself.
            for memory in ("", memory_of(question.trace)) if stream == "source" else ("",):
                leak = 0.0 if memory is None else question.effect(pads, real["target"], memory)
                if leak > noise * control and not hidden_by_content(question, pads):
                    alone = [only(pads.shape, c) & pads for c in range(LENGTH[stream])[columns]]
                    read = sum(question.effect(pad, real["target"], memory) > noise * control for pad in alone)
                    leaks.setdefault(question.culprit(pads, protected, memory), {})[hole] = (leak / control, read)
        for (name, where), effects in leaks.items():
            yield pads_matter(probe, stream, name, where, effects)
    if not controlled:
        raise Missing("changing a token that may be seen has no effect either, so nothing can be told")


def memory_of(trace: Trace) -> str | None:
    """The module that makes the encoder's output, as the decoder gets it: (B, S, D) among the inputs of (B, T, D)."""
    source, target = ({(ROWS, LENGTH[name]), (LENGTH[name], ROWS)} for name in ("source", "target"))

    def among(tensors: list[Tensor], shapes: set) -> list[Tensor]:
        return [t for t in tensors if t.dim() == 3 and tuple(t.shape[:2]) in shapes]

    for _, _, ins, outs in trace.calls:
        for memory in among(ins, source) if among(outs, target) else ():
            for name, _, _, made in trace.calls:
                if len(made) == 1 and made[0].data_ptr() == memory.data_ptr():
                    return name
    return None


def hidden_by_content(question: Question, pads: Tensor) -> bool:
    """Whether pads are embedded as zeros, and get no weight as long as they are: then their content is the mask."""
    length, zeros = pads.size(1), []

    def look(ids: Tensor, vectors: Tensor) -> Tensor:
        at = position_in(ids, pads, question.probe.subject.ids(question.stream, question.batch))
        if at is not None and vectors.shape[:2] == at.shape:
            zeros.append(not bool(vectors[at].any()))
        return vectors

    with Lookups(look):
        question.probe.logits(question.model, question.batch)
    if not any(zeros):
        return False
    with attentions(question.model) as seen:
        question.probe.logits(question.model, question.batch)
    weights = [a.weights.unflatten(0, (len(pads), -1)) for a in seen if a.weights is not None and a.weights.dim() == 3]
    weights += [a.weights for a in seen if a.weights is not None and a.weights.dim() == 4]
    weights = [w.nan_to_num(0.0).amax(1) for w in weights if w.size(-1) == length and len(w) == len(pads)]  # (B, T, S)
    weights = [w * ~pads[..., None] if w.size(1) == length else w for w in weights]  # what pads read does not matter
    return bool(weights) and not any(bool(w.amax(1)[pads].any()) for w in weights)


def pads_matter(probe: Probe, stream: str, name: str, where: Where | None, leaks: dict[str, tuple]) -> Finding:
    """Active on the user's batch: the check's severity. Else what would wake it: latent, or benign under causality."""
    subject = probe.subject
    active = on_own_batch(probe, stream)
    side = {"source": "source", "target": "target" if subject.kind == "seq2seq" else "input"}[stream]
    evidence: dict[str, Any] = {"module": name}
    evidence |= {f"effect of pads at the {hole}, relative to a token": leak for hole, (leak, _) in leaks.items()}
    one = all(read == 1 for _, read in leaks.values())
    evidence["change of logits on your own batch"] = active
    message = f"padded {side} positions are attended to: what they hold changes real positions, first in {name}"
    if one:
        message += "; of two pads one alone is read, so the mask is there, and off by one"
    if active:
        severity = "P2"
    elif active is None:
        severity, message = "P3", f"{message}; whether yours do cannot be told, for your batch does not pass the model"
    elif "right" in leaks:
        severity, message = "P3", f"{message}; your batch has no such padding, a padded batch would wake it"
    else:
        severity = "note"
        message = (
            f"{message}; harmless on your batch, where causality hides pads at the right and the loss skips them. "
            f"It bites with padding at the left or in the middle (batched generation of unequal prompts), without a "
            f"causal mask, and where the loss counts pads"
        )
    repair = "mask the keys that are padding in every attention: mask = causal & (ids != pad_id)[:, None, None, :]"
    return probe.finding(message, severity, evidence=evidence, where=where, repair=repair)


def on_own_batch(probe: Probe, stream: str) -> float | None:
    """How far the user's own logits move, where they count, when what their pads hold is changed; None: unknown."""
    subject = probe.subject
    pads = ~subject.real(stream)
    if not pads.any():
        return 0.0
    labels = subject.labels()
    try:
        counts = subject.real("target") if "target" in subject.streams else labels != subject.ignore_index
        if labels is not None and labels.shape == counts.shape and bool((labels != subject.ignore_index).any()):
            counts = counts & (labels != subject.ignore_index)
        batch = probe.readable()
        model, noise = probe.precise(batch)
        question = Question(probe, model, batch, stream)
        moved = question.effect(pads, counts)
        return moved if moved > noise * float(question.logits.abs().max()) else 0.0
    except Exception:
        return None  # the user's batch does not pass the model: another check says why


@check(
    "fully-masked-row",
    severity="P2",
    family="masks",
    lesson="02_attending_to_pads",
    after=("random-in-eval", "batch-independence"),
)
def fully_masked_row(probe: Probe) -> Iterator[Finding]:
    """A row of only padding gives finite outputs and gradients, reads none of its padding, and leaves others alone.

    In the model's own precision: -inf everywhere makes the softmax NaN, and a large negative number makes it uniform.
    """
    subject = probe.subject
    stream = "source" if "source" in subject.streams else "target"
    if stream not in subject.streams:
        raise Missing("the batch has no ids by a usual name: give streams={'target': (key, mask key)}")
    real = everything_real()
    whole = probe.batch(real)
    real[stream][0] = False
    padded = probe.batch(real)
    torch.backends.mha.set_fastpath_enabled(False)
    model = probe.copy().requires_grad_(True)
    try:
        expected = subject.logits(model, clone(whole)).detach()
        with traced(model) as trace:
            logits = subject.logits(model, clone(padded))
        logits[real["target"]].sum().backward()
    except Missing:
        raise
    except Exception as error:
        reason = shorten(f"{type(error).__name__}: {error}", 100)
        raise Missing(f"a forward and backward pass with a row of only padding fails ({reason})") from error
    mine = bool((~subject.real(stream)).all(dim=1).any())
    bad_grads = [name for name, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    if bad_grads or not logits.isfinite().all():
        yield not_finite(probe, model, logits, bad_grads, trace, mine)
        return
    change = float((logits[1:] - expected[1:]).detach().abs().max())
    if change > 1e-3 * float(expected.abs().max()):
        yield probe.finding(
            "a row of only padding changes the other rows of its batch",
            evidence={"largest change of a logit": change},
            repair="mask and normalise each row by itself",
        )
    if stream == "source":
        yield from uniform_over_pads(probe, padded, real, mine)


def not_finite(
    probe: Probe, model: nn.Module, logits: Tensor, bad_grads: list[str], trace: Trace, mine: bool
) -> Finding:
    """The finding for NaN or infinity: whether the user's own batch makes it too."""
    name, where = first_non_finite(model, trace)
    bad = int((~logits.isfinite()).sum())
    own = mine or not own_batch_is_finite(probe, model)
    return probe.finding(
        f"a row of only padding makes {'outputs' if bad else 'gradients'} NaN or infinite, first in {name}"
        f"{hit(own, 'your own batch does so')}",
        "P2" if own else "P3",
        evidence={"non-finite logits": bad, "of": logits.numel(), "parameters with such gradients": len(bad_grads)},
        where=where,
        repair="give a query that may attend nowhere zeros: scaled_dot_product_attention with a boolean mask does",
    )


def hit(own: bool, how: str) -> str:
    return f"; {how}" if own else "; your batch does not, and one with an empty source or prompt would"


def own_batch_is_finite(probe: Probe, model: nn.Module) -> bool:
    """Left padding suffices: under a causal mask its queries may attend to nothing."""
    try:
        with torch.no_grad():
            return bool(probe.subject.logits(model, clone(probe.readable())).isfinite().all())
    except Exception:
        return True


def some_pads_matter(probe: Probe, real: dict[str, Tensor]) -> bool:
    """Whether pads are read even beside a real token."""
    batch = probe.batch(real)
    model, noise = probe.precise(batch)
    question = Question(probe, model, batch, "source")
    return question.effect(~real["source"]) > noise * float(question.logits.abs().max())


def uniform_over_pads(probe: Probe, batch: Any, real: dict[str, Tensor], mine: bool) -> Iterator[Finding]:
    """With no source left to read, what its padding holds must not be read instead."""
    beside = {**real, "source": real["source"].clone()}
    beside["source"][0, 0] = True
    if some_pads_matter(probe, beside):
        return  # its pads are not masked at all: attends-to-pads says so
    model, noise = probe.precise(batch)
    question = Question(probe, model, batch, "source")
    control = question.effect(only(real["source"].shape, 3) & real["source"])
    leak = question.effect(~real["source"])
    if control > 0 and leak > noise * control:
        name, where = question.culprit(~real["source"], {LENGTH["target"]: real["target"]})
        yield probe.finding(
            f"a row of only padding is attended to evenly, its masked tokens included, first in {name}"
            f"{hit(mine, 'your batch has such a row')}",
            "P2" if mine else "note",
            evidence={"effect of the masked tokens, relative to a real one": leak / control, "module": name},
            where=where,
            repair="use a boolean mask, not a large negative number: where all scores are equal, softmax is uniform",
        )
