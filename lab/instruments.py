"""Instruments that look into a running model: intercept lookups, record calls, change outputs, name the place."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .report import Where

TORCH = str(Path(torch.__file__).parent)


def user_frame(depth: int = 1) -> Any:
    """The nearest caller's frame that is neither in torch nor in this file."""
    frame = sys._getframe(depth)
    while frame.f_back is not None and frame.f_code.co_filename.startswith((TORCH, __file__)):
        frame = frame.f_back
    return frame


@dataclass
class Lookup:
    """One reading of an embedding table: its rows, the ids, and the user's code that asked."""

    rows: int
    ids: Tensor
    where: Where


class Lookups(TorchFunctionMode):
    """Records every embedding lookup before it happens: `F.embedding`, and plain indexing of a parameter.

    change: (ids, vectors) -> vectors, applied to what a lookup returns.
    """

    def __init__(self, change: Callable[[Tensor, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.seen: list[Lookup] = []
        self.change = change

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        ids = table = None
        if func in (F.embedding, torch.embedding):
            given = dict(zip(("input", "weight") if func is F.embedding else ("weight", "input"), args, strict=False))
            given.update(kwargs)
            ids, table = given.get("input", given.get("indices")), given["weight"]
        elif func is Tensor.__getitem__ and isinstance(args[0], nn.Parameter) and args[0].dim() == 2:
            index = args[1]
            if isinstance(index, Tensor) and index.dtype in (torch.long, torch.int):
                ids, table = index, args[0]
        if ids is None:
            return func(*args, **kwargs)
        self.seen.append(Lookup(table.size(0), ids.detach().clone(), Where.of_code(user_frame(2).f_code)))
        with torch._C.DisableTorchFunction():
            out = func(*args, **kwargs)
        return out if self.change is None else self.change(ids, out)


class Origins(TorchFunctionMode):
    """Remembers which line of the user's code last produced or wrote each tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, tuple[Tensor, Where]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        target = args[0] if func is Tensor.__setitem__ else out
        if isinstance(target, Tensor):
            # Holding the tensor keeps its id from being given to another.
            self.made[id(target)] = target, Where.of_code(user_frame(2).f_code)
        return out

    def of(self, tensor: Tensor) -> Where | None:
        return self.made.get(id(tensor), (None, None))[1]


@dataclass
class Trace:
    """What each module was given and gave back, in the order in which they finished."""

    calls: list[tuple[str, nn.Module, list[Tensor], list[Tensor]]] = field(default_factory=list)


def tensors_in(value: Any) -> list[Tensor]:
    """The floating tensors in nested tuples, lists and mappings."""
    if isinstance(value, Tensor):
        return [value.detach()] if value.is_floating_point() else []
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, tuple | list):
        return []
    return [tensor for item in value for tensor in tensors_in(item)]


@contextmanager
def traced(model: nn.Module) -> Iterator[Trace]:
    """Record the inputs and outputs of every module of `model`."""
    trace = Trace()

    def hook(name: str) -> Callable:
        def record(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            trace.calls.append((name, module, tensors_in((args, kwargs)), tensors_in(output)))

        return record

    handles = [m.register_forward_hook(hook(name), with_kwargs=True) for name, m in model.named_modules() if name]
    try:
        yield trace
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def output_changed(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, the module hands on change(output), where its output is a tensor."""

    def replace(module: nn.Module, args: Any, output: Any) -> Any:
        return change(output) if isinstance(output, Tensor) else None  # None leaves the output as it is

    handle = module.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def culprit(model: nn.Module, before: Trace, after: Trace, differs: Callable[[Tensor, Tensor], bool | None]) -> tuple:
    """The first module whose inputs agree at the protected positions and whose output does not: (name, its code).

    differs: whether two tensors differ at the protected positions; None where they have no such positions.
    """
    for (name, _, ins, outs), (_, _, ins2, outs2) in zip(before.calls, after.calls, strict=False):
        changed_in = any(differs(a, b) for a, b in zip(ins, ins2, strict=False))
        if not changed_in and any(differs(a, b) for a, b in zip(outs, outs2, strict=False)):
            return name, forward_of(model, name)
    return type(model).__name__, forward_of(model, "")


def first_non_finite(model: nn.Module, trace: Trace) -> tuple[str, Where | None]:
    """The first module that makes NaN or infinity out of finite inputs: (name, its code)."""
    for name, _, ins, outs in trace.calls:
        if all(t.isfinite().all() for t in ins) and not all(t.isfinite().all() for t in outs):
            return name, forward_of(model, name)
    return type(model).__name__, forward_of(model, "")


def forward_of(model: nn.Module, name: str) -> Where | None:
    """Where the forward of a submodule is written, or of the nearest enclosing module that PyTorch did not write: the
    user's part in it is there.
    """
    while True:
        where = Where.of(type(model.get_submodule(name)).forward)
        if where is None or not where.path.startswith(TORCH) or not name:
            return where
        name = name.rpartition(".")[0]
