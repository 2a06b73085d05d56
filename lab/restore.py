"""Give a model, and the process around it, back as they were: bit for bit, whatever a check did."""

from __future__ import annotations

import random
from typing import Any

import numpy
import torch
from torch import Tensor, nn

HOOKS = tuple(name for name in vars(nn.Module()) if name.endswith(("_hooks", "_hooks_with_kwargs")))
SDP = ("flash", "mem_efficient", "math", "cudnn")


def tensors_of_state(value: Any) -> list[Tensor]:
    """Every tensor in nested mappings and sequences, as an optimizer's state holds them."""
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for item in items for tensor in tensors_of_state(item)]


def copied(value: Any) -> Any:
    """Nested containers made anew, their tensors the same objects."""
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    return [copied(item) for item in value] if isinstance(value, list) else value


class Snapshot:
    """What a battery of checks must leave as it was.

    The tensors (parameters, buffers, non-persistent ones too, gradients, the optimizer's state) are large: `protect`
    copies them, when somebody may write to them. The rest is noted at once: requires_grad, modes, hooks,
    attributes of modules, the optimizer's settings, the scheduler's, grad mode, back-end flags and all random states.
    """

    def __init__(self, model: nn.Module, optimizer: Any = None, scheduler: Any = None) -> None:
        self.model, self.optimizer, self.scheduler = model, optimizer, scheduler
        self.parameters = [(p, p.grad, p.requires_grad) for p in model.parameters()]
        tensors = [*model.parameters(), *model.buffers(), *(grad for _, grad, _ in self.parameters if grad is not None)]
        self.state = None
        if optimizer is not None:
            self.state = {key: dict(value) for key, value in optimizer.state.items()}
            tensors += tensors_of_state(list(self.state.values()))
            self.groups = [copied(group) for group in optimizer.param_groups]
        self.schedule = None if scheduler is None else copied(vars(scheduler))
        self.tensors, self.kept = tensors, None
        self.modules = [
            (m, m.training, {name: getattr(m, name).copy() for name in HOOKS if hasattr(m, name)}, dict(vars(m)))
            for m in model.modules()
        ]
        self.around = Around()

    def protect(self) -> None:
        """Copy the tensors as they are now, until they have been given back."""
        if self.kept is None:
            self.kept = [tensor.detach().clone() for tensor in self.tensors]

    def restore(self) -> None:
        """Put everything back."""
        if self.kept is not None:
            with torch.no_grad():
                for tensor, value in zip(self.tensors, self.kept, strict=True):
                    if not torch.equal(tensor, value):
                        tensor.copy_(value)
            self.kept = None
        for parameter, grad, requires_grad in self.parameters:
            parameter.grad = grad
            parameter.requires_grad_(requires_grad)
        for module, training, hooks, attributes in self.modules:
            # What a forward() or generate() keeps on its module, a cache or a count, goes too.
            for name in vars(module).keys() - attributes.keys():
                del vars(module)[name]
            vars(module).update(attributes)
            module.training = training
            for name, kept in hooks.items():
                if getattr(module, name) != kept:
                    getattr(module, name).clear()
                    getattr(module, name).update(kept)
        if self.state is not None:
            self.optimizer.state.clear()
            self.optimizer.state.update({key: dict(value) for key, value in self.state.items()})
            for group, kept in zip(self.optimizer.param_groups, self.groups, strict=False):
                group.clear()
                group.update(copied(kept))
            del self.optimizer.param_groups[len(self.groups) :]
        if self.schedule is not None:
            vars(self.scheduler).update(copied(self.schedule))
        self.around.restore()


class Around:
    """The process: grad mode, back-end flags, the random states of torch, numpy and random."""

    def __init__(self) -> None:
        self.grad_mode = torch.is_grad_enabled()
        self.fast_path = torch.backends.mha.get_fastpath_enabled()
        self.sdp = {name: getattr(torch.backends.cuda, f"{name}_sdp_enabled")() for name in SDP}
        self.states = torch.get_rng_state(), numpy.random.get_state(), random.getstate()
        self.cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None

    def restore(self) -> None:
        torch.set_grad_enabled(self.grad_mode)
        torch.backends.mha.set_fastpath_enabled(self.fast_path)
        for name, enabled in self.sdp.items():
            getattr(torch.backends.cuda, f"enable_{name}_sdp")(enabled)
        torch.set_rng_state(self.states[0])
        numpy.random.set_state(self.states[1])
        random.setstate(self.states[2])
        if self.cuda is not None:
            torch.cuda.set_rng_state_all(self.cuda)
