"""What `lab size` prints: models beside each other, and the loss that published laws expect of each."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from . import presets
from .published import Expected, expected_loss, short
from .sizing import Batch, Size, head_of, mib, size
from .transformer import Transformer

IDS = {"pad_id": 0, "bos_id": 1, "eos_id": 2}
WRONG_UNIT = "nats per token of web text under the law's own tokenizer; constants do not transfer across corpora"


@dataclass(frozen=True)
class Entry:
    """One model. tokens: what it is trained on, None where nobody says; vocabulary: None for a model without a head."""

    name: str
    size: Size
    tokens: float | None
    distinct: float | None
    vocabulary: int | None
    expected: list[Expected]

    def as_dict(self) -> dict[str, Any]:
        training = {"tokens": self.tokens, "distinct": self.distinct}
        if self.tokens is not None:
            training["tokens_per_parameter"] = self.size.tokens_per_parameter(self.tokens)
        return {"name": self.name, **self.size.as_dict(), **training, "expected": [asdict(e) for e in self.expected]}


def entries(
    target: str | None,
    names: Sequence[str],
    tokens: float | None = None,
    distinct: float | None = None,
    rows: int = 1,
    context: int | None = None,
    precision: str = "fp32",
) -> list[Entry]:
    """The presets of these names, then the model that the function named `target` returns.

    Raises ValueError where there is neither, and what `size`, `expected_loss` and `pointing.load_subject` raise.
    """
    if target is None and not names:
        raise ValueError(f"there is nothing to count: give --preset ({', '.join(presets.names())}) or name a function.")
    how = {"rows": rows, "context": context, "precision": precision}
    found = []
    for name in names:
        preset = presets.get(name)
        # Of two kinds of model the translator is the one that reads pairs; its data names the ids, and any will do.
        model = Transformer(preset.model.replace(**IDS)) if name == "translator" else preset.model
        train = preset.train
        seen = train.steps * train.batch_tokens * train.accumulate if tokens is None else tokens
        found.append(entry(name, size(model, **how), seen, distinct, preset.model.vocab_size, name != "translator"))
    if target is not None:
        model, batch = loaded(target)
        counted = size(model, batch, **how)
        found.append(entry(target.rpartition(":")[2], counted, tokens, distinct, head_of(model)[1], True))
    return found


def entry(
    name: str, counted: Size, tokens: float | None, distinct: float | None, vocabulary: int | None, lm: bool
) -> Entry:
    expected = expected_loss(counted.parameters, tokens, distinct) if lm and vocabulary and tokens else []
    return Entry(name, counted, tokens, distinct, vocabulary, expected)


def loaded(target: str) -> tuple[Any, Batch | None]:
    """The model, and the batch where one comes with it."""
    from .pointing import load_subject, load_target

    def announce(line: str) -> None:
        print(line.replace("lab diagnose", "lab size"), file=sys.stderr)

    subject = load_subject(target, load_target(target, announce))
    return subject.model, subject.batch


def as_json(found: Sequence[Entry]) -> str:
    return json.dumps([entry.as_dict() for entry in found], indent=2)


def text(found: Sequence[Entry]) -> str:
    """One model line by line; several as a table."""
    if len(found) == 1:
        return "\n".join([found[0].name, found[0].size.text(), *expectation(found[0])])
    header = ["", "parameters", "body", "FLOPs/token", "6N", "head", "weights+AdamW", "activations", "tokens", "each"]
    table = [[*header, "expected loss"]] + [cells(entry) for entry in found]
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = []
    for name, *row in table:
        lines.append("  ".join([name.ljust(widths[0]), *(c.rjust(w) for c, w in zip(row, widths[1:], strict=True))]))
    notes = [f"Memory in MiB; activations of {found[0].size.rows} row of the context. Expected loss: {WRONG_UNIT}."]
    if any(e.outside for entry in found for e in entry.expected):
        notes.append("? outside the runs that the laws were fitted to, so a guess; one --preset says how far.")
    return "\n".join([*lines, *notes])


def cells(entry: Entry) -> list[str]:
    counted = entry.size
    held = counted.weight_bytes + counted.gradient_bytes + counted.optimizer_bytes
    row = [entry.name, f"{counted.parameters:,}", f"{counted.body:,}", short(counted.flops_per_token)]
    row += [short(counted.six_n), f"{counted.head_share:.0%}", mib(held), mib(counted.activation_bytes)]
    if entry.tokens is None:
        return [*row, "", "", ""]
    losses = [expected.loss for expected in entry.expected]
    span = f"{min(losses):.2f} to {max(losses):.2f}" if losses else ""
    mark = " ?" if any(expected.outside for expected in entry.expected) else ""
    return [*row, short(entry.tokens), f"{counted.tokens_per_parameter(entry.tokens):.2g}", span + mark]


def expectation(entry: Entry) -> list[str]:
    if entry.tokens is None:
        return ["expected loss    give --tokens, what it is to be trained on"]
    each = f"{counted:.3g}" if (counted := entry.size.tokens_per_parameter(entry.tokens)) else "0"
    lines = [f"training         {short(entry.tokens)} tokens, {each} per parameter"]
    if not entry.expected:
        return [*lines, "expected loss    none: the published laws are of causal language models"]
    lines.append(f"expected loss    {WRONG_UNIT}:")
    guessing = math.log(entry.vocabulary)
    for law in entry.expected:
        interval = f" ({law.low:.3f} to {law.high:.3f})" if law.low is not None else f" (no interval: {law.reason})"
        loss = f"{law.loss:.3f}{interval}" if law.loss < guessing else f"above that of guessing, {guessing:.2f}"
        lines.append(f"  {law.source}: {loss}")
        lines += [f"    outside the law: {law.outside}: a guess"] if law.outside else []
    return lines
