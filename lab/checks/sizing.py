"""Checks on the plan of a training: its rates, its feed-forward width, its context, and its size against its data.

They read shapes and numbers and run nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..calling import Missing
from ..instruments import forward_of
from ..probe import Probe
from ..published import LAWS as FITS
from ..published import RANGE, REPEATS, short, worth
from ..report import Finding
from ..subject import Subject
from .base import check
from .shapes import count_parameters, feed_forward_layers

ABOUT = {"severity": "P3", "family": "sizing", "lesson": "06_why_perplexity_70"}

# The latest share of a run at which its rate may peak. Vaswani et al. 2017 warm up for 4 % of the steps, BERT for 1 %,
# RoBERTa for 5 %; the longest in wide use is PyTorch's OneCycleLR, whose pct_start is 0.3, give or take a step.
LATEST_PEAK = 1 / 3

# Feed-forward layers with at most this share of the parameters of the paper's 4 x d_model are thin: half. 2 x is what
# the review found; on the near side are GPT-2, BERT, T5 (4 x, the same number as the gated 8/3 of Shazeer 2020), Llama
# (2.7 gated), and the thinnest that is widely used, ModernBERT-base (1.5 gated, as many parameters as 2.25 plain).
THIN = 2.0

# Rows may lose this share of their tokens. By the fits below, losing a share s raises the loss by beta x s x the data's
# term: under 0.01 nats for 1 % at 100M tokens, less than two seeds differ. WikiText-2 cut at 256 loses 4.2 %.
LOST = 0.01

# One term of the fits below limits a plan where it is twice the other (in tokens or parameters: about 7 times out of
# balance) and in balance the perplexity would be a third, by each of the fits. The first tells below the fits' range,
# the second above it. Trained on purpose past the balance, and on the near side, are SmolLM2-135M on 2T tokens (0.55 to
# 0.65 nats), Qwen3-0.6B on 36T and Llama 3 8B on 15T; short of it GPT-3 and, repeating its data, Transformer-XL.
TWICE, THIRD = 2.0, math.log(3)


@check("no-warmup", **ABOUT)
def no_warmup(probe: Probe) -> Iterator[Finding]:
    """The learning rate starts below its peak, and is there before a third of the run is over."""
    rates = probe.subject.rates
    if rates is None:
        raise Missing("needs the learning rate of each step of the run: give rates=[...]")
    if len(rates) < 2:
        raise Missing(f"rates holds {len(rates)} step; a warmup needs two")
    peak, steps = float(rates.max()), len(rates)
    at = int((rates >= peak * (1 - 1e-6)).argmax()) + 1
    share = at / steps
    if at == 1:
        message = f"the first step has the highest rate of the run, {peak:.3g}: there is no warmup"
    elif at == steps:
        message = f"the rate still rises at the last of {steps:,} steps: the run is over before its warmup"
    elif share > LATEST_PEAK:
        message = f"the rate peaks at step {at:,} of {steps:,}: warmup takes {share:.0%} of the run"
    else:
        return
    most = max(1, int(LATEST_PEAK * steps))
    yield probe.finding(
        message,
        evidence={
            "steps": steps,
            "first rate": float(rates[0]),
            "peak rate": peak,
            "peak at step": at,
            "share of the run": share,
        },
        repair=f"raise the rate linearly over 2 / (1 - beta2) steps, 40 for AdamW's beta2 = 0.95 and 2,000 for 0.999 "
        f"(Ma and Yarats 2021), but over no more than a third of the run, {most:,} steps",
    )


@check("feed-forward-ratio", **ABOUT)
def feed_forward_ratio(probe: Probe) -> Iterator[Finding]:
    """The feed-forward layers have more than half the parameters of the paper's, whose d_ff is 4 x d_model.

    Read off the shapes of matrices, whatever they are called. Where d_ff = d_model nothing tells them from attention.
    """
    layers = feed_forward_layers(probe.subject.model)
    if not layers:
        raise Missing("no feed-forward layer was found by its shapes, a matrix to d_ff and one back, but for experts")
    thin = [layer for layer in layers if layer.width <= THIN]
    if 2 * len(thin) <= len(layers):
        return
    layer = thin[0]
    ratio = layer.d_ff / layer.d_model
    usual = "8/3 (with a gate: Shazeer 2020)" if layer.gated else "4 (Vaswani et al. 2017)"
    yield probe.finding(
        f"d_ff is {layer.d_ff}, {ratio:.3g} × d_model {layer.d_model} and not {usual.split()[0]} ×, "
        f"in {len(thin)} of {len(layers)} blocks",
        evidence={
            "d_ff": layer.d_ff,
            "d_model": layer.d_model,
            "ratio": ratio,
            "matrices of that size in a block": layer.matrices,
            "blocks": len(thin),
            "of": len(layers),
        },
        where=forward_of(probe.subject.model, layer.name),
        repair=f"d_ff = {round((8 / 3 if layer.gated else 4) * layer.d_model)}, the ratio {usual}; beside a model with "
        f"as many parameters in all it gains little (Kaplan et al. 2020, figure 5)",
    )


@check("context-too-short", **ABOUT)
def context_too_short(probe: Probe) -> Iterator[Finding]:
    """Rows that are cut at max_seq_len lose less than one token in a hundred; packed into blocks they lose none."""
    subject = probe.subject
    lengths, context = subject.lengths, subject.max_seq_len
    if lengths is None:
        raise Missing("needs the tokens of each row of the data, uncut: give lengths=[...]")
    if context is None:
        raise Missing("the model's config names no context: give max_seq_len=")
    long, lost = lengths > context, lost_share(lengths, context)
    if lost < LOST:
        return
    if subject.packed is None:
        raise Missing("rows are longer than the context: give packed=True where they are packed into full blocks")
    evidence: dict[str, Any] = {
        "max_seq_len": context,
        "rows": len(lengths),
        "longer": int(long.sum()),
        "longest": int(lengths.max()),
        "tokens": int(lengths.sum()),
        "share beyond the context": lost,
    }
    rows = f"{long.mean():.2g}" if long.mean() < 0.001 else f"{long.mean():.1%}"
    longer = f"{rows} of the rows are longer than max_seq_len {context}, the longest {lengths.max():,} tokens"
    if subject.packed:
        yield probe.finding(
            f"{longer}; packed, they lose nothing, but no token sees further back than {context}",
            "note",
            evidence=evidence,
        )
        return
    yield probe.finding(
        f"{longer}, and are cut: {lost:.1%} of the tokens are never seen",
        evidence=evidence,
        repair=f"pack rows into full blocks, which loses nothing, or set max_seq_len to {enough(lengths):,} "
        f"(under {LOST:.0%} lost)",
    )


def lost_share(lengths: np.ndarray, context: int) -> float:
    """The share of tokens that stand beyond the context in their row."""
    return float((lengths - context).clip(min=0).sum() / lengths.sum())


def enough(lengths: np.ndarray) -> int:
    """The first multiple of 64 at which rows lose less than LOST."""
    low, high = 1, -(-int(lengths.max()) // 64)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if lost_share(lengths, 64 * middle) < LOST else (middle + 1, high)
    return 64 * low


def limit(parameters: float, tokens: float) -> str | None:
    """Which side holds a plan back by each of the fits: "model", "data", or neither. tokens: distinct ones."""
    terms = [fit.terms(parameters, tokens) for fit in FITS]
    if all(model >= TWICE * data and model - data >= THIRD for model, data in terms):
        return "model"
    if all(data >= TWICE * model and data - model >= THIRD for model, data in terms):
        return "data"
    return None


@dataclass(frozen=True)
class Plan:
    """How many parameters (`body`: without embeddings) are trained on how many tokens."""

    parameters: int
    body: int
    distinct: int
    seen: int
    vocab_size: int | None

    @classmethod
    def of(cls, subject: Subject) -> Plan:
        """Raises Missing where something is not known, or no law of scaling is for such a model."""
        if subject.kind != "causal_lm":
            raise Missing(f"the published fits are of causal language models, and this is {subject.kind}")
        if subject.train_tokens is None:
            raise Missing("needs the distinct target tokens of the training data: give train_tokens=")
        if subject.rates is None or subject.step_tokens is None:
            name = "step_tokens=, the tokens of one step" if subject.rates is not None else "rates=[...], one a step"
            raise Missing(f"needs the tokens that the run sees: give {name}")
        seen = subject.step_tokens * len(subject.rates)
        return cls(*count_parameters(subject.model, subject.vocab_size), subject.train_tokens, seen, subject.vocab_size)

    @property
    def worth(self) -> float:
        return worth(self.distinct, self.seen)

    def text(self) -> str:
        """`15M parameters (2.11M without embeddings) see 24.6M tokens, 1.6 each`."""
        tokens = f"{short(self.seen)} tokens"
        if self.seen > self.distinct:
            times = f"{self.seen / self.distinct:.3g} times"
            tokens = f"{short(self.distinct)} distinct tokens {times}, worth {short(self.worth)}"
        each = short(self.worth / self.parameters)
        return f"{short(self.parameters)} parameters ({short(self.body)} without embeddings) see {tokens}, {each} each"

    def evidence(self) -> dict[str, Any]:
        """The counts, and the loss that the fits expect: nothing where it is above that of guessing."""
        found: dict[str, Any] = {
            "parameters": self.parameters,
            "without embeddings": self.body,
            "distinct tokens": self.distinct,
            "tokens seen": self.seen,
            "epochs": self.seen / self.distinct,
            "worth in distinct tokens": round(self.worth),
            "tokens per parameter": self.worth / self.parameters,
        }
        losses = [fit.e + sum(fit.terms(self.parameters, self.worth)) for fit in FITS]
        if self.vocab_size is not None and max(losses) < math.log(self.vocab_size):
            found |= {"expected on web text, nats per token, from": min(losses), "to": max(losses)}
        inside = all(low <= n <= high for n, (low, high) in zip((self.parameters, self.worth), RANGE, strict=True))
        (n0, n1), (d0, d1) = RANGE
        span = f"{short(n0)} to {short(n1)} parameters, {short(d0)} to {short(d1)} tokens"
        return found | {"range of the fits": span if inside else f"{span}; this is outside, so a guess"}

    def longer_run(self, tokens: float) -> float | None:
        """How many epochs of these data are worth that many tokens; None where even epochs without end are not."""
        if tokens <= self.distinct:
            return tokens / self.distinct
        left = 1 - (tokens / self.distinct - 1) / REPEATS
        return 1 - REPEATS * math.log(left) if left > 0.01 else None


@check("too-little-data", **ABOUT)
def too_little_data(probe: Probe) -> Iterator[Finding]:
    """The tokens that a language model sees are not what holds it back, by the published fits.

    Their loss has a term of the model's size and one of the data's, repeated epochs counting less and less.
    """
    subject = probe.subject
    plan = Plan.of(subject)
    if limit(plan.parameters, plan.worth) != "data":
        return
    tokens = [fit.balanced_tokens(plan.parameters) for fit in FITS]
    each = [short(n / plan.parameters) for n in (min(tokens), max(tokens))]
    epochs = plan.longer_run(min(tokens))
    if epochs is None:
        least = short(min(tokens) / (1 + REPEATS))
        repair = f"more text, no less than {least} distinct tokens however often they are repeated, or much dropout"
    else:
        steps = epochs * plan.distinct / subject.step_tokens
        repair = f"a longer run, towards {short(steps)} steps ({epochs:.2g} epochs)"
    smaller = short(max(fit.balanced_parameters(plan.worth) for fit in FITS))
    yield probe.finding(
        f"{plan.text()}, where {each[0]} to {each[1]} would be in balance",
        evidence=plan.evidence(),
        repair=f"{repair}; or a smaller model, towards {smaller} parameters",
    )


@check("too-small-for-the-data", **ABOUT)
def too_small_for_the_data(probe: Probe) -> Iterator[Finding]:
    """The size of a language model is not what holds it back on the tokens that it sees, by the published fits."""
    plan = Plan.of(probe.subject)
    if limit(plan.parameters, plan.worth) != "model":
        return
    sizes = [fit.balanced_parameters(plan.worth) for fit in FITS]
    yield probe.finding(
        f"{plan.text()}: {short(min(sizes))} to {short(max(sizes))} parameters would be in balance with them, at a "
        f"third of the perplexity or less",
        evidence=plan.evidence(),
        repair="a larger model for fewer steps, unless it must be cheap to run, or its text is simpler than the web's",
    )
