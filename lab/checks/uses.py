"""What a pass computes with: the tensors that get gradients, the parameters used, what plain attributes hide."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import shorten
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..calling import Missing, clone
from ..probe import Probe


def objective(probe: Probe, model: nn.Module, batch: Any) -> Tensor:
    """What to take gradients of, (): the loss, or without one a weighted sum of the logits.

    Raises Missing where the model fails, or hands on nothing that has a gradient.
    """
    subject = probe.subject
    with torch.no_grad():  # what is given is no leaf of ours
        one, other = clone(batch), clone(batch)
    try:
        with torch.enable_grad():
            try:
                found = subject.loss_of(model, one)
            except Missing:
                logits = subject.logits(model, other)
                weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
                found = (logits * weights.to(logits)).sum()
    except Missing:
        raise
    except Exception as error:
        raise Missing(f"a pass with gradients fails ({shorten(f'{type(error).__name__}: {error}', 100)})") from error
    if not found.requires_grad:
        raise Missing("the loss has no gradient: no parameter is trainable, or the forward pass is without gradients")
    return found


def backward(loss: Tensor) -> None:
    """Raises Missing where it fails: on a tensor that was written into, say."""
    try:
        loss.backward()
    except Exception as error:
        reason = shorten(f"{type(error).__name__}: {error}", 100)
        raise Missing(f"the backward pass fails ({reason})") from error


def leaves(loss: Tensor) -> list[Tensor]:
    """The tensors that a backward pass from the loss gives gradients to."""
    seen, found, todo = set(), [], [loss.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        todo += [function for function, _ in node.next_functions]
    return found


def hidden(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, Any]]:
    """Modules and tensors in plain attributes, lists, tuples and mappings: name, owner, the attribute, the thing."""

    def within(value: Any, name: str, depth: int) -> Iterator[tuple[str, Any]]:
        if isinstance(value, nn.Module | Tensor):
            yield name, value
        elif isinstance(value, list | tuple) and depth:
            for number, item in enumerate(value):
                yield from within(item, f"{name}[{number}]", depth - 1)
        elif isinstance(value, dict) and depth:
            for key, item in value.items():
                yield from within(item, f"{name}[{key!r}]", depth - 1)

    own = {*vars(nn.Module()), "_modules", "_parameters", "_buffers"}
    for prefix, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute not in own:
                for name, thing in within(value, f"{prefix}.{attribute}".lstrip("."), 3):
                    yield name, module, attribute, thing


class Uses(TorchFunctionMode):
    """Which parameters a pass computes with, by their memory; a product with nothing does not count."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.by_memory: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters():
            self.by_memory.setdefault(memory(parameter), []).append(name)
        self.used: set[str] = set()
        self.tables: list[tuple[int, Tensor]] = []  # the memory of a table, and the ids looked up in it
        self.results: list[tuple[list[int], Tensor]] = []  # the parameters' memory, and what came of them

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        # Reading an attribute, as in weight.dtype, is no use of it.
        if not isinstance(out, Tensor | tuple | list) or isinstance(out, torch.Size):
            return out
        mine = [memory(tensor) for tensor in flat((args, kwargs)) if memory(tensor) in self.by_memory]
        if mine:
            made = flat(out)
            if any(tensor.numel() for tensor in made):
                self.used.update(name for place in mine for name in self.by_memory[place])
            if func in (F.embedding, torch.embedding):
                ids = next((t for t in flat((args, kwargs)) if not t.is_floating_point()), None)
                self.tables += [(mine[0], ids)] if ids is not None else []
            elif made:
                self.results.append((mine, made[0]))
        return out


def flat(value: Any) -> list[Tensor]:
    """The tensors in nested tuples, lists and mappings."""
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return [tensor for item in items for tensor in flat(item)]


def memory(tensor: Tensor) -> int:
    """Where the tensor's numbers lie: the same for views of one another."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return -id(tensor)


def lists_of_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module, list[nn.Module]]]:
    """(name, owner, layers) of each list of modules with parameters, registered or not."""
    for prefix, module in model.named_modules():
        attributes = {**vars(module), **module._modules}
        for attribute, value in attributes.items():
            if isinstance(value, nn.ModuleList | nn.Sequential | nn.ModuleDict):
                value = list(value._modules.values())
            if isinstance(value, list | tuple) and value and all(isinstance(item, nn.Module) for item in value):
                layers = [item for item in value if any(True for _ in item.parameters())]
                yield f"{prefix}.{attribute}".lstrip("."), module, layers
