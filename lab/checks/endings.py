"""Checks on where generation ends: at EOS, and at the end of the context."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..calling import Missing
from ..instruments import Lookups
from ..probe import ROWS, Probe
from ..report import Finding
from .base import check
from .generation import ABOUT, rounding, spread
from .greedy import NEW, Written, full_pass, in_words, lively, steered, where_of_generate, write

CHEAP = 5e10  # parameters x tokens of the pass that fills a context: a second or two on a laptop


@check(
    "stops-at-eos",
    severity="P2",
    **ABOUT,
    silent="what follows EOS is fluent text, and looks like a model that never learned to stop",
    repair="note which rows are done; give those pad_id, and stop when all are",
    after=(
        "random-in-eval",
        "stale-state",
    ),
)
def stops_at_eos(probe: Probe) -> Iterator[Finding]:
    """Nothing but padding follows EOS, and the other rows of the batch go on undisturbed.

    EOS is provoked: the head's logits of the first step are changed for one row, as generate() gets them; in all later
    steps EOS and the pad are made the least likely, so that none comes by itself.
    """
    subject = probe.subject
    eos, pad = subject.eos_id, subject.pad_id
    if eos is None:
        raise Missing("needs the id that ends a row: give eos_id=")
    batch, model = probe.whole(ROWS), lively(probe)
    vocab = subject.vocab_size or probe.logits(model, batch).size(-1)

    def never(logits: Tensor, step: int) -> Tensor:
        for token in {eos, pad} - {None}:
            logits[..., token] = logits.min() - 1
        return logits

    def once(logits: Tensor, step: int) -> Tensor:
        logits = never(logits, step)
        if step == 0:
            row = logits[0].flatten(0, -2)[-1]  # of the last position
            row[eos] = row.max() + 10 * (row.max() - row.min())
        return logits

    with steered(model, vocab, never) as seen:
        endless = write(probe, model, batch)
    if not seen:
        raise Missing("the logits that generate() reads were not seen, so EOS cannot be provoked")
    steps = endless.new.size(1)
    if steps < 2:
        raise Missing("generate writes one token alone: let it write more")
    with steered(model, vocab, once):
        ended = write(probe, model, batch)
    mine = ended.new[0]
    if int(mine[0]) != eos:
        raise Missing("EOS could not be provoked: generate() chooses otherwise than by the head's logits")
    rest = mine[1:]
    allowed = {eos, pad} - {None} or {eos}
    if pad is None and len(rest) < 2:
        raise Missing("generate writes two tokens alone, and the second may be a pad: give pad_id=")
    wrong = [token for token in rest.tolist() if token not in allowed]
    filler = pad is None and len(set(rest.tolist())) == 1 and len(rest) > 1
    if wrong and not filler:
        yield probe.finding(
            "generate() goes on after EOS",
            evidence={"tokens after EOS": len(rest), "of them not padding": len(wrong), "eos id": eos},
            where=where_of_generate(probe),
        )
        return
    if len(ended.new) > 1:
        others, alone = ended.new[1:], endless.new[1 : len(ended.new)]
        if others.size(1) < steps:
            yield probe.finding(
                "one row's EOS ends all rows of the batch",
                evidence={"tokens of the other rows": others.size(1), "without that EOS": steps},
                where=where_of_generate(probe),
                repair="stop when every row is done, not when one is",
            )
        elif not torch.equal(others[:, :steps], alone):
            yield probe.finding(
                "one row's EOS changes what the other rows of the batch say",
                evidence={"tokens that change": int((others[:, :steps] != alone).sum()), "of": alone.numel()},
                where=where_of_generate(probe),
                repair="keep rows apart: fill up the one that is done, and leave the others as they are",
            )


@check(
    "past-the-context",
    severity="P2",
    **ABOUT,
    silent="short samples never get there",
    repair="refuse what does not fit, with an error that names max_seq_len, or feed the last max_seq_len tokens alone",
    after=("random-in-eval", "stale-state", "its-own-teacher"),
)
def past_the_context(probe: Probe) -> Iterator[Finding]:
    """Generating beyond max_seq_len gives a clear error, an early end or a sliding window, never a wrong index.

    A window is right where each token is the most likely one by a pass over the last max_seq_len tokens; a model whose
    positions have no end may as well go on with all of them.
    """
    subject = probe.subject
    if subject.kind == "encoder" or not subject.can_generate():
        raise Missing("needs a model that generates: give generate=lambda model, batch: ids, greedy")
    size = subject.max_seq_len
    if size is None:
        raise Missing("the model's config names no context: give max_seq_len=")
    if subject.kind == "seq2seq":
        raise Missing("a decoder that starts from one token would have to write its whole context")
    if size < NEW + 2 or size * sum(p.numel() for p in subject.model.parameters()) > CHEAP:
        raise Missing(f"filling a context of {size:,} takes too long: give a smaller model of the same code")
    model = lively(probe)
    usual = write(probe, model, probe.whole(1)).new.size(1)
    if usual < 2:
        raise Missing("generate writes one token alone: let it write more")
    batch = probe.batch({name: torch.ones(1, size - 1 if name == "target" else 9).bool() for name in subject.streams})
    vocab = subject.vocab_size or probe.logits(model, probe.whole(1)).size(-1)
    bans = {subject.eos_id, subject.pad_id} - {None}

    def never(logits: Tensor, step: int) -> Tensor:
        for token in bans:
            logits[..., token] = logits.min() - 1
        return logits

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            with steered(model, vocab, never):
                written = write(probe, model, batch, raises=True)
        except Missing as reason:
            if "prompt" in str(reason):
                return  # it gives back a window, or the continuation alone
            raise
        except Exception as error:
            if clear(error, [str(warning.message) for warning in told], size) or hasattr(model, "generation_config"):
                return  # Hugging Face logs that the context is exceeded, once a process
            yield probe.finding(
                f"generate() beyond max_seq_len {size} fails with {in_words(error)}, which names no length",
                evidence={"max_seq_len": size, "prompt": size - 1, "tokens asked for": usual},
                where=where_of_generate(probe),
            )
            return
    if written.ids.size(1) <= size or told:
        return  # it ends where the context does, or says so
    yield from beyond(probe, model, batch, written, size, bans)


def clear(error: Exception, told: list[str], size: int) -> bool:
    """Whether an error, or a warning before it, says that the text is too long."""
    words = ("context", "max_seq", "max_len", "maximum", "block_size", "block size", "n_ctx", "too long", "exceed")
    texts = [str(error).lower(), *(text.lower() for text in told)]
    return any(word in text for text in texts for word in words) or any(str(size) in text for text in texts)


def beyond(probe: Probe, model: nn.Module, batch: Any, written: Written, size: int, bans: set) -> Iterator[Finding]:
    """The finding for tokens beyond the context that neither a window nor a longer pass would write."""
    ids = written.ids
    reached = range(max(size + 1, written.prompt), ids.size(1))  # chosen with more than the context before them
    window = [chosen(probe, model, batch, ids[:, t - size : t], ids[:, t], bans) for t in reached]
    if all(window):
        return
    wider = Probe(probe.subject.replace(max_seq_len=ids.size(1)), probe.check, probe.seed, probe.shared)
    try:
        with Lookups() as lookups:
            longer = all(chosen(wider, model, batch, ids[:, :t], ids[:, t], bans) for t in reached)
    except Exception:
        longer = False  # the model takes no more than its context
    evidence = {"max_seq_len": size, "tokens beyond it": len(reached)}
    if not longer:
        yield probe.finding(
            f"beyond max_seq_len {size} generate() silently writes tokens that neither the last {size} tokens nor all "
            f"of them would give",
            evidence=evidence | {"wrong tokens": window.count(False)},
            where=where_of_generate(probe),
        )
        return
    for lookup in lookups.seen:
        at = lookup.ids.flatten()
        twice = len(at) - len(at.unique())
        positions = size <= lookup.rows <= size + 4 and lookup.rows != probe.subject.vocab_size
        if positions and len(at) > size and twice:
            yield probe.finding(
                f"beyond max_seq_len {size} positions are used twice: a wrong index into the table of positions",
                evidence=evidence | {"positions used twice": twice},
                where=lookup.where,
            )
            return


def chosen(probe: Probe, model: nn.Module, batch: Any, ids: Tensor, token: Tensor, bans: set) -> bool:
    """Whether a pass over ids (1, T) puts no token clearly above the one that was chosen."""
    logits = full_pass(probe, model, batch, ids)[0, -1]
    for ban in bans:
        logits[ban] = logits.min()
    gap = float(logits.max() - logits[token[0]])
    return gap <= max(1e-3 * spread(logits[None]), rounding(logits))
