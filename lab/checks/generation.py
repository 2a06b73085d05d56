"""Checks on generation: the cache, the tokens that are chosen, prompts of unequal length, the end, the context."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..calling import Missing, clone, replaced
from ..instruments import forward_of
from ..probe import LENGTH, ROWS, Probe
from ..report import Finding
from .base import check
from .greedy import Written, alive, end_ids, full_pass, in_words, lively, where_of_generate, write

ABOUT = {"family": "generation", "lesson": "08_diagnose_your_model"}


@check(
    "cache-equals-full",
    severity="P1",
    **ABOUT,
    silent="the text stays fluent, for each token is likely after what the wrong cache remembers; only the loss of a "
    "full pass, which training reports, knows nothing of the cache",
    repair="let the cache give a new token exactly the keys, the mask and the position that a full pass gives it",
    after=("random-in-eval", "stale-state", "sees-the-future"),
    explains=("its-own-teacher", "batched-equals-alone"),
)
def cache_equals_full(probe: Probe) -> Iterator[Finding]:
    """Decoding token by token through the cache gives the logits of one full pass over the same tokens.

    Asked of rows without padding and of rows padded at the left, where mask and positions of the cached step must skip
    the pads as well. A difference is compared with what the tokens themselves do to the logits.
    """
    subject = probe.subject
    if subject.kind == "encoder":
        raise Missing("an encoder does not decode token by token")
    whole = {"target": torch.ones(ROWS, LENGTH["target"], dtype=torch.bool)}
    if "source" in subject.streams:
        whole["source"] = torch.ones(ROWS, LENGTH["source"], dtype=torch.bool)
    padded = {**whole, "target": whole["target"].clone()}
    padded["target"][1:, 0] = padded["target"][2:, 1] = False
    left = bool((~subject.real("target")[:, 0]).any())
    variants = [(whole, "", probe.check.severity)]
    if left or subject.kind == "causal_lm":  # no decoder of an encoder-decoder is fed pads first
        variants.append((padded, " of rows padded at the left", probe.check.severity if left else "P2"))
    asked = False
    for real, how, severity in variants:
        try:
            batch = probe.batch(real)
            model = lively(probe, batch)
            full = probe.logits(model, batch)
            with torch.no_grad():
                steps = subject.step_by_step(model, clone(batch))
        except Missing:
            if how:
                continue  # it cannot be told of padding
            raise
        except Exception as error:
            if how:
                continue
            raise Missing(f"decoding through the cache raises {in_words(error)}") from error
        if steps.shape != full.shape:
            raise Missing(f"incremental gives {tuple(steps.shape)} where a full pass gives {tuple(full.shape)}")
        there = real["target"]
        if not bool(full[there].isfinite().all()):
            continue
        asked = True
        difference = (steps - full).abs().amax(-1).nan_to_num(nan=torch.inf).masked_fill(~there, 0)
        scale = spread(full[there])
        wrong = difference > max(1e-3 * scale, rounding(full[there]))
        if bool(wrong.any()):
            at = int(wrong.any(0).nonzero()[0])
            yield probe.finding(
                f"through the cache the logits{how} differ from those of one full pass, from position {at} on",
                severity,
                evidence={
                    "largest difference": float(difference.max()),
                    "spread of the logits": scale,
                    "positions that differ": int(wrong.sum()),
                    "of": int(there.sum()),
                },
                where=forward_of(subject.model, ""),
            )
            return
    if not asked:
        raise Missing("a full pass gives no finite logits to compare with")


def spread(logits: Tensor) -> float:
    """How far the logits of a position stand apart: what a wrong token, key or position moves is of this size."""
    return float(logits.std(-1).mean())


def rounding(logits: Tensor) -> float:
    """How far two ways of computing such logits may differ: a thousand times their precision."""
    return 1e3 * torch.finfo(logits.dtype).eps * float(logits.abs().max())


@check(
    "its-own-teacher",
    severity="P1",
    **ABOUT,
    silent="the loss is right and the samples are merely worse: an undertrained model looks the same",
    repair="feed each new token once, at the next position, and read the logits of the last position",
    after=("random-in-eval", "stale-state", "sees-the-future"),
    explains=("batched-equals-alone",),
)
def its_own_teacher(probe: Probe) -> Iterator[Finding]:
    """Each greedily generated token is the most likely one by a full pass over the same sequence.

    A token counts as wrong only where the full pass puts another clearly above it: ties, and what rounding can decide,
    are left alone, and so are special tokens that generate() forces or suppresses. What follows a row's end is not
    looked at.
    """
    model = lively(probe)
    batch = probe.whole(ROWS)
    written = write(probe, model, batch)
    if not written.new.size(1):
        raise Missing("generate writes nothing")
    logits = full_pass(probe, model, batch, written.ids[:, :-1])
    wrong, gap, scale = misjudged(probe, model, written, logits)
    if not bool(wrong.any()):
        theirs = logits[:, written.prompt - 1 :].argmax(-1)
        if len(theirs.unique()) == 1:
            raise Missing("the model answers with one and the same token whatever it is given, so nothing can be told")
        return
    again = write(probe, model, batch)
    if not torch.equal(again.ids, written.ids) and not stale(probe):
        raise Missing("generate gives other tokens each time: give generate=lambda model, batch: ids, greedy")
    first = int(wrong.any(0).nonzero()[0])
    before = logits[:, written.prompt - 2 : -1].argmax(-1) if written.prompt > 1 else None
    late = before is not None and bool((before == written.new)[wrong].all())
    if late:
        message = "generate() writes the tokens that belong one position earlier: it reads the logits before the last"
    elif first == 0:
        message = "generate() does not write the most likely token, from the first on: it reads the wrong logits"
    else:
        message = (
            f"generate() writes the most likely token at first, and from the {ordinal(first + 1)} on others: "
            f"what it feeds back, or what its cache holds, is not the sequence that it writes"
        )
    yield probe.finding(
        message,
        evidence={
            "tokens that a full pass would not write": int(wrong.sum()),
            "of": int(alive(written, end_ids(probe, model), probe.subject.pad_id).sum()),
            "by how much, in logits": float(gap[wrong].max()),
            "spread of the logits": scale,
        },
        where=where_of_generate(probe),
    )


def stale(probe: Probe) -> bool:
    """Whether generate() differs from call to call by what it keeps, and not by chance."""
    model, batch = lively(probe), probe.whole(ROWS)
    ids = []
    for _ in range(2):
        torch.manual_seed(0)
        ids.append(write(probe, model, batch).ids)
    return not torch.equal(*ids)


def misjudged(probe: Probe, model: nn.Module, written: Written, logits: Tensor) -> tuple[Tensor, Tensor, float]:
    """Which new tokens (B, n) a full pass clearly would not write, by how much, and the spread of its logits."""
    logits, new = logits[:, written.prompt - 1 :], written.new
    if not bool(logits.isfinite().all()):
        raise Missing("a full pass over what generate writes gives NaN or infinite logits")
    scale = spread(logits)
    gap = logits.amax(-1) - logits.gather(-1, new[..., None])[..., 0]
    wrong = (gap > max(1e-3 * scale, rounding(logits))) & alive(written, end_ids(probe, model), probe.subject.pad_id)
    # Hugging Face configs forbid an early end, and force a first or a last token.
    config = getattr(probe.subject.model, "config", None)
    for token in {probe.subject.pad_id, getattr(config, "bos_token_id", None), *end_ids(probe, model)} - {None}:
        wrong &= logits.argmax(-1) != token
    plan = getattr(probe.subject.model, "generation_config", None)
    for name, column in (("forced_bos_token_id", 0), ("forced_eos_token_id", -1)):
        wrong[:, column] &= new[:, column] != (getattr(plan, name, None) or -1)
    return wrong, gap, scale


def ordinal(number: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(number, f"{number}th")


@check(
    "batched-equals-alone",
    severity="P2",
    **ABOUT,
    silent="prompts of one length, and a batch of one, are right; only the shorter rows of a mixed batch are not",
    repair="mask the pads in every step of decoding, also in the cached ones, and count positions without them",
    after=("random-in-eval", "stale-state", "batch-independence"),
)
def batched_equals_alone(probe: Probe) -> Iterator[Finding]:
    """A short prompt gives the same tokens alone and padded in a batch.

    Prompts are padded at the left; where generate() refuses that, or it goes wrong, they are tried padded at the right,
    as some expect them. Sources of an encoder-decoder are padded on the side on which the user's are. Where one forward
    pass without generate() differs as well (absolute positions, no mask), that is a note: other checks ask after it.
    """
    subject = probe.subject
    if subject.kind == "encoder" or not subject.can_generate():
        raise Missing("needs a model that generates: give generate=lambda model, batch: ids, greedy")
    stream = "source" if subject.kind == "seq2seq" else "target"
    real = subject.real(stream)
    left, right = bool((~real[:, 0]).any()), bool((~real[:, -1]).any())
    sides = ("left", "right") if stream == "target" else ("left" if left and not right else "right",)
    model = lively(probe, probe.batch(with_pads(probe, stream, sides[0])))
    found: dict[str, tuple[dict[str, Any], bool]] = {}
    problem: Missing | None = None
    for side in sides:
        try:
            differs = differing(probe, model, stream, side)
        except Missing as reason:
            problem = problem or reason
            continue
        if differs is None:
            return
        found[side] = differs
    if not found:
        raise problem or Missing("generate takes no padded prompts")
    side, (evidence, told) = next(iter(found.items()))
    active = left or right if stream == "source" else left
    what = "source" if stream == "source" else "prompt"
    message = f"a short {what} gives other tokens padded at the {side} in a batch than alone"
    if not told:
        message += "; its forward pass is not made for such padding, be it for its positions or its mask"
    elif not active:
        message += f"; your batch is not padded so, batched generation from {what}s of unequal length would be"
    yield probe.finding(
        message,
        "note" if not told else probe.check.severity if active else "P3",
        evidence=evidence,
        where=where_of_generate(probe),
    )


def with_pads(probe: Probe, stream: str, side: str) -> dict[str, Tensor]:
    """Which positions are real where two rows of a stream are padded at that side, and one is not."""
    real = {name: torch.ones(ROWS, LENGTH[name], dtype=torch.bool) for name in probe.subject.streams}
    for row, pads in ((1, 2), (2, 3)):
        real[stream][row, slice(None, pads) if side == "left" else slice(-pads, None)] = False
    return real


def differing(probe: Probe, model: nn.Module, stream: str, side: str) -> tuple[dict[str, Any], bool] | None:
    """Where rows padded at that side differ from what they give alone: (evidence, whether one full pass over the padded
    rows, without generate(), takes their padding as it should); None where none does.
    """
    subject, ends = probe.subject, end_ids(probe, model)
    real = with_pads(probe, stream, side)
    batch = probe.batch(real)
    together = write(probe, model, batch)
    for row in (1, 2):
        if row >= len(together.ids):
            break
        rows = {name: batch[key][row][real[name][row]][None] for name, (key, _) in subject.streams.items()}
        alone = probe.batch({name: torch.ones_like(ids, dtype=torch.bool) for name, ids in rows.items()})
        alone = replaced(alone, {subject.streams[name][0]: ids for name, ids in rows.items()})
        by_itself = write(probe, model, alone)
        mine, theirs = by_itself.new[0], together.new[row]
        length = min(len(mine), len(theirs))
        apart = (mine[:length] != theirs[:length]).nonzero()
        if not len(apart):
            continue
        at = int(apart[0])
        if at and int(mine[at - 1]) in ends:
            continue
        logits = full_pass(probe, model, alone, by_itself.ids[:, : by_itself.prompt + at])[:, -1]
        gap = float((logits[0, mine[at]] - logits[0, theirs[at]]).abs())
        if not gap > max(1e-3 * spread(logits), rounding(logits)):  # NaN is no difference
            continue
        padded = probe.logits(model, batch)[row, -1]
        unpadded = probe.logits(model, alone)[0, -1]
        told = bool((padded - unpadded).abs().max() <= max(1e-3 * spread(logits), rounding(logits)))
        evidence = {
            "pads": int((~real[stream][row]).sum()),
            "first other token at step": at + 1,
            "difference of their logits alone": gap,
            "spread of the logits": spread(logits),
        }
        return evidence, told
    return None
