"""The instruments of the checks: intercept lookups, change what a position holds, localise, restore everything."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .report import Finding, Where
from .subject import Missing, Subject, attend_to, clone, tensors_of

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


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Give back, bit for bit, parameters, buffers, gradients, requires_grad, modes, grad mode and all random states."""
    tensors = [(t, t.detach().clone()) for t in [*model.parameters(), *model.buffers()]]
    gradients = [(p, p.grad, None if p.grad is None else p.grad.clone(), p.requires_grad) for p in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    grad_mode = torch.is_grad_enabled()
    fast_path = torch.backends.mha.get_fastpath_enabled()
    states = torch.get_rng_state(), numpy.random.get_state(), random.getstate()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in tensors:
                if not torch.equal(tensor, value):
                    tensor.copy_(value)
            for parameter, grad, value, requires_grad in gradients:
                if grad is not None and not torch.equal(grad, value):
                    grad.copy_(value)
                parameter.grad = grad
                parameter.requires_grad_(requires_grad)
        for module, training in modes:
            module.training = training
        torch.set_grad_enabled(grad_mode)
        torch.backends.mha.set_fastpath_enabled(fast_path)
        torch.set_rng_state(states[0])
        numpy.random.set_state(states[1])
        random.setstate(states[2])
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


def replaced(batch: Any, changes: dict[Any, Any]) -> Any:
    """The batch with some entries changed."""
    if isinstance(batch, Mapping):
        return {**batch, **changes}
    return tuple(changes.get(i, value) for i, value in enumerate(batch))


class Probe:
    """A subject under the instruments of one check. Its batch is a copy on the CPU, and so is the model that `copy` and
    `precise` give; `own_batch` is for calls of the user's model itself.
    """

    def __init__(self, subject: Subject, check: Any, seed: int = 0) -> None:
        self.subject = subject.replace(batch=clone(subject.batch, "cpu"))
        self.check, self.seed = check, seed

    def own_batch(self) -> Any:
        """A copy of the user's batch on the device of their model."""
        parameter = next(self.subject.model.parameters(), None)
        return clone(self.subject.batch, "cpu" if parameter is None else parameter.device)

    def copy(self) -> nn.Module:
        """A deep copy on the CPU in eval mode. Raises Missing where the model cannot be copied."""
        try:
            model = copy.deepcopy(self.subject.model).cpu().eval()
        except Exception as error:
            raise Missing(f"the model cannot be deep-copied ({type(error).__name__}: {error})") from error
        model.zero_grad()
        return model

    def precise(self, batch: Any) -> tuple[nn.Module, float]:
        """A copy in float64 and the noise to expect of it, relative to an effect; in its own precision where float64
        fails on `batch` or invents a NaN. Raises Missing where neither takes the batch.
        """
        torch.backends.mha.set_fastpath_enabled(False)  # it skips the masked positions of a padded batch; see restored
        for dtype, noise in ((torch.float64, 1e-9), (None, 1e-4)):
            model = self.copy() if dtype is None else self.copy().to(dtype)
            try:
                with torch.no_grad():
                    finite = bool(self.subject.logits(model, clone(batch)).isfinite().all())
            except Missing:
                raise
            except Exception as error:
                problem = f"{type(error).__name__}: {error}"
                continue
            if finite or dtype is None:
                return model, noise
        raise Missing(f"the model fails on a batch made like yours ({problem.splitlines()[0]})")

    def readable(self) -> Any:
        """The user's batch, with left-over labels among its ids (padding-crash reports them) taken for padding."""
        subject = self.subject
        if subject.pad_id is None:
            return subject.batch
        keys = [key for key, _ in subject.streams.values()]
        repaired = {
            key: subject.batch[key].masked_fill(subject.batch[key] == subject.ignore_index, subject.pad_id)
            for key in keys
        }
        return replaced(subject.batch, repaired)

    def ordinary_ids(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """Random token ids with no special one among them."""
        subject = self.subject
        vocab = subject.vocab_size or 1 + int(max(subject.ids(stream).max() for stream in subject.streams))
        special = {0, 1, 2, subject.pad_id, subject.eos_id}
        usable = [i for i in range(vocab) if i not in special] or list(range(vocab))
        return torch.tensor(usable)[torch.randint(len(usable), shape, generator=generator)]

    def batch(self, real: dict[str, Tensor]) -> Any:
        """A batch like the user's, padded where real[stream] (B, T) is False; its tokens are random, and the same each
        time for the same sizes.

        Raises Missing where the model has no way to be told of padding.
        """
        subject, changes = self.subject, {}
        generator = torch.Generator().manual_seed(self.seed)
        if subject.labels_key is not None:
            changes[subject.labels_key] = self.ordinary_ids(real["target"].shape, generator)
        for stream, (key, mask_key) in subject.streams.items():
            there = real[stream]
            ids = self.ordinary_ids(there.shape, generator)
            if subject.pad_id is not None:
                ids = ids.masked_fill(~there, subject.pad_id)
            elif mask_key is None and not bool(there.all()):
                raise Missing("which positions are padding is unknown: give pad_id= or streams={...: (key, mask key)}")
            changes[key] = ids
            if mask_key is not None:
                example = tensors_of(subject.batch)[mask_key]
                changes[mask_key] = attend_to(example, subject.real(stream))(there)
        base = subject.batch
        if isinstance(base, Mapping):
            # What else the user's batch holds has the user's sizes; the model must do without it.
            known = {key: value for key, value in base.items() if not isinstance(value, Tensor)}
            return {**known, **changes}
        return replaced(base, changes)

    def finding(self, message: str, severity: str | None = None, **details: Any) -> Finding:
        """A finding of this check, at its own severity unless another is given."""
        check = self.check
        return Finding(check.id, severity or check.severity, message, lesson=check.lesson, **details)
