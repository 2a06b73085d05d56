"""Checks on the weights themselves: parts that are dead, and layers that differ from their siblings."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..calling import Missing
from ..instruments import forward_of
from ..probe import ROWS, Probe
from ..report import Finding, Where
from .base import check

ABOUT = {"family": "weights", "lesson": "08_diagnose_your_model"}
# Settings that layers of one role share. Depths of stochastic depth, windows and kinds of attention vary by design.
SETTING = re.compile(r"(^|_)(eps|epsilon|p|dropout|drop|activation|act|act_fn|slope|scale|scaling|approximate)(_|$)")
BY_DESIGN = re.compile(r"drop_?path|layer_?drop|stochastic|idx|index|depth|window|rope|rotary")


def layered(model: nn.Module) -> set[str]:
    """The names of numbered modules whose numbered neighbours are all of their class: layers, and experts."""
    found = set()
    for name, module in model.named_modules():
        children = {child: type(part) for child, part in module.named_children() if child.isdigit()}
        if len(children) > 1 and len(set(children.values())) == 1:
            found |= {f"{name}.{child}".lstrip(".") for child in children}
    return found


def siblings(model: nn.Module, items: Iterable[tuple[str, Any]]) -> dict[str, dict[str, Any]]:
    """role -> {name: item} of what is repeated: `blocks.3.norm` has the role `blocks.*.norm`."""
    layers, groups = layered(model), {}
    for name, item in items:
        parts = name.split(".")
        marked = [".".join(parts[: i + 1]) in layers for i in range(len(parts))]
        if any(marked):
            role = ".".join("*" if mark else part for part, mark in zip(parts, marked, strict=True))
            groups.setdefault(role, {})[name] = item
    return {role: group for role, group in groups.items() if len(group) > 1}


def owner(name: str) -> str:
    return name.rpartition(".")[0]


def place(model: nn.Module, name: str) -> Where | None:
    """Where the module that uses a parameter is written: the one around a linear layer, not that itself."""
    path = owner(name)
    return forward_of(model, path if list(model.get_submodule(path).children()) else owner(path))


def head_count(module: Any) -> int | None:
    """How many heads an attention module, or a config, says that it has."""
    for name in ("num_heads", "n_head", "n_heads", "num_attention_heads", "heads", "nhead"):
        value = getattr(module, name, None)
        if isinstance(value, int) and value > 1:
            return value
    return None


def heads_of(model: nn.Module, name: str) -> int | None:
    """The number of heads of the attention that holds this parameter: of its module or the nearest around it."""
    config = getattr(model, "config", None)
    path = owner(name)
    while path:
        count = head_count(model.get_submodule(path))
        if count:
            return count
        path = owner(path)
    return head_count(config) if config is not None else None


def lines_that_are_zero(weight: Tensor) -> list[tuple[str, Tensor]]:
    """Which rows, and which columns, of a matrix are all zero."""
    zero = weight == 0
    return [("rows", zero.all(1)), ("columns", zero.all(0))]


@check(
    "dead-weights",
    severity="P2",
    **ABOUT,
    silent="the other layers carry the signal on, and the loss is only a little higher",
    repair="initialise that part as its siblings are, or find what zeroed it (a mask, a bad copy of a checkpoint)",
)
def dead_weights(probe: Probe) -> Iterator[Finding]:
    """No weight, gain, head or neuron is all zero or constant where the same part of the other layers is not.

    Projections that are zero in every layer are a known design (adapters, zero-initialised outputs) and left alone;
    what is zero in one layer alone is looked at once more through one backward pass: where a gradient reaches it,
    training may wake it (P2), where none does it stays dead (P1). Embedding rows count where the batch uses them.
    """
    model = probe.subject.model
    groups = siblings(model, ((n, p) for n, p in model.named_parameters() if p.is_floating_point() and p.numel() > 1))
    if not groups:
        raise Missing("no layer has a sibling: the model has no numbered layers")
    found: list[tuple[str, str, dict[str, Any]]] = []
    for group in groups.values():
        shapes = {tuple(p.shape) for p in group.values()}
        if len(shapes) > 1:
            continue
        found += dead_in(model, {name: p.detach() for name, p in group.items()})
    found += dead_rows(probe)
    if not found:
        return
    reached = gradients(probe, [name for name, _, _ in found])
    for name, what, evidence in found:
        alive = reached.get(name)
        dead = alive is not None and not alive
        yield probe.finding(
            f"{name} {what}" + ("; no gradient reaches it, so it stays so" if dead else ""),
            "P1" if dead else "P2",
            evidence=evidence | ({} if alive is None else {"gradient reaches it": "yes" if alive else "no"}),
            where=place(model, name),
        )


def dead_in(model: nn.Module, group: dict[str, Tensor]) -> list[tuple[str, str, dict[str, Any]]]:
    """(name, what is dead, evidence) in the parameters of one role."""
    constant = {name: bool((p == p.flatten()[0]).all()) for name, p in group.items()}
    zero = {name: constant[name] and float(p.flatten()[0]) == 0 for name, p in group.items()}
    matrix = next(iter(group.values())).dim() > 1
    found = []
    for name, p in group.items():
        if zero[name] and sum(zero.values()) * 2 <= len(zero):
            if matrix or name.endswith("weight"):  # a bias may be zero
                found.append((name, "is all zero, and its siblings are not", {"numbers": p.numel()}))
        elif matrix and min(p.shape) > 1 and constant[name] and sum(constant.values()) * 2 <= len(constant):
            value = float(p.flatten()[0])
            found.append((name, "is one number throughout, and its siblings are not", {"the number": value}))
    if not matrix or next(iter(group.values())).dim() != 2 or any(zero.values()):
        return found
    lines = {name: lines_that_are_zero(p) for name, p in group.items()}
    for axis in (0, 1):
        counts = {name: int(both[axis][1].sum()) for name, both in lines.items()}
        for name, count in counts.items():
            others = [n for other, n in counts.items() if other != name]
            if count and not any(others):
                found.append((name, *part(model, name, lines[name][axis])))
    return found


def part(model: nn.Module, name: str, zero: tuple[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """What the zero rows or columns of a matrix are: heads where they fill whole ones, else neurons."""
    kind, which = zero
    count, of = int(which.sum()), len(which)
    evidence = {f"zero {kind}": count, "of": of}
    heads = heads_of(model, name)
    for parts in (heads, 3 * heads) if heads else ():
        if of % parts == 0 and of // parts > 1:
            whole = which.view(parts, -1)
            if bool((whole.all(1) == whole.any(1)).all()):
                numbers = [i % heads for i in whole.all(1).nonzero().flatten().tolist()]
                return f"is zero for head {', '.join(map(str, sorted(set(numbers))))}; its siblings are not", evidence
    return f"has {count} of {of} {kind} all zero, and its siblings have none", evidence


def dead_rows(probe: Probe) -> list[tuple[str, str, dict[str, Any]]]:
    """Embedding rows that are zero though the user's batch reads them; the padding's row is to be zero."""
    subject, found = probe.subject, []
    if subject.batch is None or not subject.streams:
        return []
    used = torch.cat([subject.ids(stream)[subject.real(stream)].flatten() for stream in subject.streams]).unique()
    for name, module in subject.model.named_modules():
        rows = getattr(module, "num_embeddings", None)
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or weight.dim() != 2 or rows != len(weight) or rows != subject.vocab_size:
            continue
        ids = used[(used >= 0) & (used < rows) & (used != subject.pad_id)]
        ids = ids[ids != (-1 if module.padding_idx is None else module.padding_idx)]
        zero = ids[(weight.detach().cpu()[ids] == 0).all(1)]
        if 0 < len(zero) < rows // 2:
            what = f"has all-zero rows for tokens of your batch, {', '.join(map(str, zero[:5].tolist()))} among them"
            found.append((f"{name}.weight", what, {"zero rows in use": len(zero), "of": len(ids)}))
    return found


def gradients(probe: Probe, names: list[str]) -> dict[str, bool]:
    """Whether a backward pass from the logits reaches the zero numbers of these parameters; empty where it fails."""
    model = probe.copy()
    parameters = dict(model.named_parameters())
    try:
        for name in names:
            parameters[name].requires_grad_(True)
        with torch.enable_grad():
            logits = probe.subject.logits(model, probe.whole(ROWS))
            weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0)).to(logits)
            (logits * weights).sum().backward()
    except Exception:
        return {}
    found = {}
    for name in names:
        grad, p = parameters[name].grad, parameters[name]
        zero = p.detach() == 0
        found[name] = grad is not None and (bool(grad[zero].any()) if bool(zero.any()) else bool(grad.any()))
    return found


@check(
    "odd-one-out",
    severity="P3",
    **ABOUT,
    silent="one layer of many is a little worse than it could be",
    repair="make all layers with one function and one config",
)
def odd_one_out(probe: Probe) -> Iterator[Finding]:
    """Layers that share a role share their settings: epsilon, dropout rate, activation, and at first weights' scale.

    Only one that differs from all others is odd: patterns (every second layer) and trends with depth are designs. The
    scale of weights and gains is compared while the model is freshly made, for training moves layers apart.
    """
    model = probe.subject.model
    groups = siblings(model, ((n, m) for n, m in model.named_modules() if n))
    if not groups:
        raise Missing("no layer has a sibling: the model has no numbered layers")
    for group in groups.values():
        for setting, values in settings(group).items():
            for name in odd(values):
                others = next(v for other, v in values.items() if other != name)
                yield probe.finding(
                    f"{name} has {setting} {shown(values[name])}, and the other layers have {shown(others)}",
                    evidence={"layers of the role": len(values), setting: shown(values[name]), "others": shown(others)},
                    where=forward_of(model, name),
                )
                if len(values) == 2:
                    break  # which of two is the odd one, nobody can tell
    if fresh(model):
        yield from odd_scales(probe)


def settings(group: dict[str, nn.Module]) -> dict[str, dict[str, Any]]:
    """setting -> {module's name: its value}, of those that all modules of a role have, numbers and functions alike."""
    found: dict[str, dict[str, Any]] = {}
    kinds = {name: type(module) for name, module in group.items()}
    if len(set(kinds.values())) > 1 and all("activation" in kind.__module__ for kind in kinds.values()):
        found["the activation"] = {name: kind.__name__ for name, kind in kinds.items()}
    if len(set(kinds.values())) > 1:
        return found
    for setting in vars(next(iter(group.values()))):
        if not SETTING.search(setting) or BY_DESIGN.search(setting):
            continue
        values = {name: vars(module).get(setting) for name, module in group.items()}
        if all(isinstance(v, str | float | int) and not isinstance(v, Tensor) for v in values.values()):
            found[setting] = values
        elif all(callable(v) and not isinstance(v, nn.Module) for v in values.values()):
            found[setting] = {name: getattr(v, "__name__", type(v).__name__) for name, v in values.items()}
    return found


def odd(values: dict[str, Any]) -> list[str]:
    """The one whose value is not that of all others; both, of two that differ."""
    names = list(values)
    if len(names) == 2:
        return names if values[names[0]] != values[names[1]] else []
    return [n for n in names if len({repr(values[o]) for o in names if o != n}) == 1 and differs(values, n)]


def differs(values: dict[str, Any], name: str) -> bool:
    return all(values[name] != value for other, value in values.items() if other != name)


def shown(value: Any) -> Any:
    return f"{value:g}" if isinstance(value, float) else value


def fresh(model: nn.Module) -> bool:
    """Whether a model seems untrained: its gains and biases are still what they were made with, one number each."""
    vectors = [p.detach() for p in model.parameters() if p.dim() == 1 and p.numel() > 1 and p.is_floating_point()]
    constant = sum(bool((v == v[0]).all()) for v in vectors)
    return bool(vectors) and constant >= 0.8 * len(vectors)


def odd_scales(probe: Probe) -> Iterator[Finding]:
    """Weights of one role in a fresh model: one whose scale stands apart, where the others agree."""
    model = probe.subject.model
    groups = siblings(model, ((n, p) for n, p in model.named_parameters() if p.is_floating_point()))
    for group in groups.values():
        if len({tuple(p.shape) for p in group.values()}) > 1:
            continue
        tensors = {name: p.detach() for name, p in group.items()}
        first = next(iter(tensors.values()))
        if first.dim() >= 2 and first.numel() >= 64:
            sizes = {name: float(t.float().std()) for name, t in tensors.items()}
            apart = 1.5
        elif first.dim() == 1 and all(bool((t == t[0]).all()) for t in tensors.values()):
            sizes, apart = {name: abs(float(t[0])) for name, t in tensors.items()}, 1.01
        else:
            continue
        if not all(math.isfinite(size) and size > 0 for size in sizes.values()):
            continue  # dead-weights tells of zeros
        name = scale_apart(sizes, apart)
        if name is not None:
            others = [size for other, size in sizes.items() if other != name]
            usual = sorted(others)[len(others) // 2]
            what = "a standard deviation" if first.dim() >= 2 else "a value"
            yield probe.finding(
                f"{name} starts with {what} of {sizes[name]:.3g}, and its siblings with {usual:.3g}",
                evidence={"its scale": sizes[name], "of the others": usual, "layers of the role": len(sizes)},
                where=place(model, name),
            )


def scale_apart(sizes: dict[str, float], apart: float) -> str | None:
    """The one that is far from all others, where these agree; of two, both a design by depth and chance are near."""
    if len(sizes) == 2:
        (a, x), (b, y) = sizes.items()
        ratio = max(x, y) / min(x, y)
        return (a if x > y else b) if ratio > 3 or (apart < 1.1 and ratio > apart) else None
    for name, size in sizes.items():
        others = [value for other, value in sizes.items() if other != name]
        if max(others) <= min(1.25, apart) * min(others) and not min(others) / apart <= size <= max(others) * apart:
            return name
    return None
