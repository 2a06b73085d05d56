"""Checks on what is one object and what is two: head and embedding, the layers of a list."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn

from ..calling import Missing, clone
from ..probe import Probe
from ..report import Finding, Where
from .base import check
from .randomness import seed_all
from .uses import Uses, lists_of_layers, memory

LESSON = "06_why_perplexity_70"
TIED = ("tie_word_embeddings", "tie_head", "tie_weights", "tie_embeddings", "tied", "weight_tying", "tie_emb")


def tying_asked(probe: Probe) -> bool:
    """Whether the head is to share the embedding's weight: as the subject says, or else the model's config.

    Raises Missing where neither does.
    """
    if probe.subject.tied is not None:
        return probe.subject.tied
    config = getattr(probe.subject.model, "config", None)
    found = next((getattr(config, name) for name in TIED if isinstance(getattr(config, name, None), bool)), None)
    if found is None:
        raise Missing("whether the head shares the embedding's weight is not known: give tied=True or tied=False")
    return found


def table_and_head(probe: Probe, model: nn.Module, batch: Any) -> tuple[list[str], list[str], bool]:
    """The names of the token embedding's weight, of the head's, and whether they are one memory.

    Raises Missing where they are not to be seen, or are of different shapes.
    """
    with Uses(model) as uses, torch.no_grad():
        try:
            logits = probe.subject.logits(model, clone(batch))
        except Missing:
            raise
        except Exception as error:
            raise Missing(f"a pass fails ({shorten(f'{type(error).__name__}: {error}', 100)})") from error
    vocab = logits.size(-1)
    shapes = {memory(parameter): tuple(parameter.shape) for parameter in model.parameters()}
    tables = [place for place, ids in uses.tables if shapes[place][:1] == (vocab,) and is_tokens(probe, batch, ids)]
    products = [places for places, made in uses.results if made.dim() >= 2 and made.size(-1) == vocab]
    heads = [p for places in products for p in places if len(shapes[p]) == 2 and vocab in shapes[p]]
    if not tables or not heads:
        raise Missing("the lookup of the tokens, or the product that makes the logits, was not seen")
    table, head = tables[-1], heads[-1]
    if head in tables:
        table = head
    elif shapes[head] != shapes[table]:
        raise Missing(f"the embedding is {shapes[table]} and the head {shapes[head]}: they cannot be one")
    return uses.by_memory[table], uses.by_memory[head], table == head


@check(
    "tied-weights",
    severity="P2",
    family="parameters",
    lesson=LESSON,
    silent="both are trained, each by itself: more parameters than the config says, and a slower start",
    repair="head.weight = embedding.weight, the parameter itself, after both are made and before the optimizer is",
    after=("unregistered-parameters",),
)
def tied_weights(probe: Probe) -> Iterator[Finding]:
    """Where tying is asked for, head and embedding are one parameter: in the model, and in the one that is loaded.

    A copy of the values, as `head.weight.data.copy_(...)` makes it, is tied until the first step only.
    """
    if not tying_asked(probe):
        raise Missing("tying is not asked for (tied=False, or the config says so)")
    subject, batch = probe.subject, probe.whole()
    model = probe.precise(batch)[0]
    table, head, one = table_and_head(probe, model, batch)
    names = f"{table[0]} and {head[0]}"
    if not one:
        parameters = dict(model.named_parameters())
        equal = bool(torch.equal(parameters[table[0]], parameters[head[0]]))
        yield probe.finding(
            f"tying is asked for, and {names} are two parameters"
            f"{', equal now: each step takes them further apart' if equal else ''}",
            evidence={"elements twice": parameters[head[0]].numel()},
            where=Where.of(type(model).__init__),
        )
        return
    if subject.load is None or subject.checkpoint is None:
        return
    loaded = reloaded(probe)
    if loaded is not None and not table_and_head(probe, loaded, batch)[2]:
        yield probe.finding(
            f"the embedding ({table[0]}) and the head are one parameter, and two in the model that is loaded",
            where=Where.of(subject.load),
            repair="tie the weights again after loading",
        )


def is_tokens(probe: Probe, batch: Any, ids: Tensor) -> bool:
    """Whether what is looked up are the ids of a stream, and not positions or types."""
    for key, _ in probe.subject.streams.values():
        if ids.numel() == batch[key].numel() and torch.equal(ids.flatten().msort(), batch[key].flatten().msort()):
            return True
    return False


def reloaded(probe: Probe) -> nn.Module | None:
    """What `load` makes of the checkpoint, in eval mode on the CPU; None where it fails (checkpoint-has-config)."""
    try:
        probe.at_risk()  # by a load that fills the model in use
        seed_all(123)
        loaded = probe.subject.load(probe.subject.checkpoint)
        usable = isinstance(loaded, nn.Module) and loaded is not probe.subject.model
        return loaded.cpu().eval().to(next(probe.subject.model.parameters()).dtype) if usable else None
    except Exception:
        return None


@check(
    "shared-layers",
    severity="P2",
    family="parameters",
    lesson=LESSON,
    silent="it trains, as a model of one layer that is applied N times",
    repair="make each: nn.ModuleList(Block(config) for _ in range(n)), or copy.deepcopy(block)",
)
def shared_layers(probe: Probe) -> Iterator[Finding]:
    """N layers of a list are N objects, each with its own parameters.

    Sharing on purpose (Universal Transformer, ALBERT) calls one layer many times, and does not list it many times; one
    whose config speaks of sharing is taken at its word.
    """
    model = probe.subject.model
    config = getattr(model, "config", None)
    words = [name for name in dir(config) if "share" in name and ("layer" in name or "block" in name)]
    if any(getattr(config, name) is True for name in words):
        return
    for name, owner, layers in lists_of_layers(model):
        objects = len({id(layer) for layer in layers})
        if objects == len(layers):
            continue
        weights = sum(p.numel() for p in {id(p): p for layer in layers for p in layer.parameters()}.values())
        yield probe.finding(
            f"the {len(layers)} layers of {name} are {objects} object{'s' if objects > 1 else ''}: "
            f"{'all' if objects == 1 else 'some'} share their parameters",
            None if objects == 1 else "note",  # a block that recurs among others is hardly an accident
            evidence={"layers": len(layers), "objects": objects, "elements of all": weights},
            where=Where.of(type(owner).__init__),
        )
