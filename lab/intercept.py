"""Read attention where it happens: queries, keys, scale, mask and weights, out of anybody's running model."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from . import instruments
from .readings import Attention, Origin
from .report import Where

PRODUCTS = ("matmul", "rmatmul", "bmm", "einsum", "baddbmm")
NORMS = ("layer_norm", "rms_norm", "group_norm", "batch_norm", "normalize")


def number(value: Any) -> float | None:
    """A Python number or a tensor of one; None for all else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value)
    return float(value) if isinstance(value, Tensor) and value.numel() == 1 and value.dtype != torch.bool else None


def low_of_two(tensor: Tensor) -> Tensor | None:
    """Which entries a tensor that is added to scores, or multiplies them, would block; None where it is no mask.

    They are very low, or the lower of two values, one of them 0, that differ along the last axis.
    """
    if tensor.dim() < 1 or tensor.size(-1) < 2 or tensor.is_complex():
        return None
    numbers = tensor.detach().double().nan_to_num(neginf=-1e300, posinf=1e300)
    low, high = numbers.amin(), numbers.amax()
    at = numbers <= -1e3 if low <= -1e3 else numbers == low
    two = low <= -1e3 or (0 in (low, high) and bool((at | (numbers == high)).all()))
    return at if two and bool((at != at[..., :1]).any()) else None


class Reader(TorchFunctionMode):
    """Follows every tensor from projection to product to softmax to values to projection; keeps what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Attention] = []
        self.stack: list[str] = [""]
        self.known: dict[int, tuple[Tensor, Origin]] = {}

    def of(self, value: Any) -> Origin | None:
        found = self.known.get(id(value)) if isinstance(value, Tensor) else None
        return None if found is None else found[1]

    def keep(self, value: Any, origin: Origin) -> None:
        for tensor in value if isinstance(value, tuple | list) else (value,):
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                self.known[id(tensor)] = tensor, origin

    def __torch_function__(self, func: Any, types_: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            with self:
                return opened(func)(*args, **kwargs)
        out = func(*args, **kwargs)
        name = getattr(func, "__name__", "").strip("_")
        if name in ("size", "dim") or (name == "get" and not isinstance(out, Tensor)):
            return out
        self.note(name, args, kwargs, out, user_code())
        return out

    def note(self, name: str, args: Any, kwargs: Any, out: Any, where: Where) -> None:
        if name == "setitem":
            self.written(*args[:3], where)
            return
        if not isinstance(out, Tensor | tuple | list):
            return
        if name == "scaled_dot_product_attention":
            self.fused(args, kwargs, out, where)
        elif name in ("linear", "addmm", "conv1d") or (name in PRODUCTS and self.flat(name, args, kwargs)):
            inputs = args[1] if name == "addmm" and len(args) > 1 else args[0] if args else kwargs.get("input")
            for value in (*args, inputs):
                self.projected(value, where)
            self.keep(out, Origin("projection", where))
        elif name in PRODUCTS:
            self.product(name, args, kwargs, out, where)
        elif name == "softmax" and (self.of(args[0] if args else kwargs.get("input")) or Origin("", where)).kind == (
            "scores"
        ):
            self.softmax(args, kwargs, out, where)
        else:
            self.inherit(name, args, kwargs, out, where)

    def flat(self, name: str, args: Any, kwargs: Any) -> bool:
        """Whether a product is one with a matrix or a parameter, and so a projection."""
        tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
        tensors = list(args[1]) if name == "einsum" and len(args) == 2 and not tensors else tensors[-2:]
        return any(t.dim() < 3 or isinstance(t, nn.Parameter) for t in tensors)

    def projected(self, value: Any, where: Where) -> None:
        """A projection is given what comes of an attention."""
        origin = self.of(value)
        if origin is not None and origin.kind == "out" and origin.attention.merged is None:
            origin.attention.merged, origin.attention.merged_where = value, origin.where

    def fused(self, args: Any, kwargs: Any, out: Tensor, where: Where) -> None:
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        given = dict(zip(names, args, strict=False)) | kwargs
        query, key, mask = given["query"], given["key"], given.get("attn_mask")
        scale = given.get("scale")
        seen = self.begin(where, query, key, given["value"])
        seen.fused, seen.after = True, query.size(-1) ** -0.5 if scale is None else float(scale)
        seen.chosen |= scale is not None
        weights, blocked = weights_of(query, key, mask, bool(given.get("is_causal")), seen.after)
        seen.weights = seen.used = weights
        seen.out, seen.blocked = out, blocked
        self.seen.append(seen)
        self.keep(out, Origin("out", where, attention=seen))

    def begin(self, where: Where, query: Tensor, key: Tensor, value: Tensor | None = None) -> Attention:
        """An attention, from what is known of its query and key."""
        q, k = (self.of(tensor) or Origin("", where, clear=False) for tensor in (query, key))
        seen = Attention(self.stack[-1], where, query=query, key=key, value=value, width=query.size(-1))
        seen.before, seen.clear, seen.float32 = q.before * k.before, q.clear and k.clear, q.float32 and k.float32
        seen.chosen = q.chosen or k.chosen
        seen.norms = rms(query) / q.before, rms(key) / k.before
        seen.made = {"query": q.where, "key": k.where}
        if value is not None and self.of(value):
            seen.made["value"] = self.of(value).where
        return seen

    def product(self, name: str, args: Any, kwargs: Any, out: Tensor, where: Where) -> None:
        added, after, axes = None, 1.0, (-1, -2)
        if name == "einsum":
            spelled = str(args[0]).replace(" ", "")
            a, b = args[1:] if len(args) == 3 else args[1] if isinstance(args[1], tuple | list) else (None, None)
            if a is None or "..." in spelled or "->" not in spelled:
                return
            left, result = spelled.split("->")
            first, second = left.split(",")
            contracted = [letter for letter in first if letter in second and letter not in result]
            if len(contracted) != 1:
                return
            axes = first.index(contracted[0]) - len(first), second.index(contracted[0]) - len(second)
        elif name == "baddbmm":
            given = dict(zip(("input", "batch1", "batch2"), args, strict=False)) | kwargs
            added, a, b, after = given["input"], given["batch1"], given["batch2"], float(given.get("alpha", 1))
            if given.get("beta", 1) == 0:
                added = None
        else:
            a, b = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)][:2]
            a, b = (b, a) if name == "rmatmul" else (a, b)
        mine, other = self.of(a), self.of(b)
        for weights, values, tensor, axis in ((mine, b, a, axes[0]), (other, a, b, axes[1])):
            if weights is not None and weights.kind == "weights":
                seen = weights.attention
                seen.used, seen.axis, seen.out, seen.value = tensor, axis, out, values
                seen.blocked = weights.blocked
                if self.of(values):
                    seen.made["value"] = self.of(values).where
                self.keep(out, Origin("out", where, attention=seen))
                return
        # The fields of an attention, kept until a softmax shows that these are scores.
        seen = self.begin(where, a, b)
        seen.width = a.size(axes[0])
        if name != "einsum":
            seen.key = b.transpose(-1, -2)
        seen.chosen |= "alpha" in kwargs
        origin = Origin("scores", where, seen.before, after, seen.width, seen.clear, seen.chosen, attention=seen)
        low = None if not isinstance(added, Tensor) else low_of_two(added)
        self.keep(out, origin if low is None else replace(origin, blocked=(("added", low),)))

    def softmax(self, args: Any, kwargs: Any, out: Tensor, where: Where) -> None:
        scores = self.of(args[0] if args else kwargs["input"])
        dim = kwargs.get("dim", args[1] if len(args) > 1 else -1)
        seen = replace(scores.attention, module=self.stack[-1], where=where, after=scores.after, clear=scores.clear)
        seen.chosen = scores.chosen
        seen.blocked, seen.weights = scores.blocked, out
        seen.dim = (dim if isinstance(dim, int) else -1) % out.dim() - out.dim()
        self.seen.append(seen)
        self.keep(out, replace(scores, kind="weights", where=where, attention=seen))

    def written(self, target: Any, index: Any, value: Any, where: Where) -> None:
        """target[index] = value: a mask where the target is scores and the index says which."""
        origin = self.of(target)
        boolean = isinstance(index, Tensor) and index.dtype == torch.bool
        if origin is not None and origin.kind == "scores" and boolean and index.shape == target.shape:
            self.keep(target, replace(origin, blocked=(*origin.blocked, ("written", index))))

    def inherit(self, name: str, args: Any, kwargs: Any, out: Any, where: Where) -> None:
        """What any other operation hands on of what is known of its inputs."""
        flat = [x for a in (*args, *kwargs.values()) for x in (a if isinstance(a, tuple | list) else (a,))]
        known = [(x, self.of(x)) for x in flat if self.of(x) is not None]
        if not known:
            return
        source, origin = known[0]
        origin = replace(origin, where=where)
        name = name.rstrip("_")
        others = [x for x in flat if x is not source and isinstance(x, Tensor | int | float)]
        other = others[0] if others else None
        if name in NORMS or name in ("tanh", "sigmoid", "relu", "gelu", "silu", "softplus", "exp"):
            origin = replace(origin, clear=origin.clear and name == "tanh")
        if name in ("mul", "rmul", "div", "truediv", "multiply"):
            origin = self.scaled(name, source, origin, other, args)
        elif name in ("masked_fill", "where", "add", "radd", "sub"):
            origin = self.masked(name, source, origin, args, kwargs)
        elif name in ("float", "to", "type") and isinstance(out, Tensor) and out.dtype == torch.float32:
            origin = replace(origin, float32=True)
        self.keep(out, origin)

    def scaled(self, name: str, source: Tensor, origin: Origin, other: Any, args: Any) -> Origin:
        by = number(other)
        if by is None:
            if not isinstance(other, Tensor):
                return origin
            low = low_of_two(other) if name != "div" else None
            if low is not None and origin.kind in ("scores", "weights") and float(other.detach().amin()) == 0:
                return replace(origin, blocked=(*origin.blocked, (f"multiplied {origin.kind}", low)))
            # A norm, or a scale of its own for each head.
            own = other.dim() > 0 and other.size(-1) == 1
            return replace(origin, clear=False) if own and origin.kind in ("projection", "scores") else origin
        if name in ("div", "truediv"):
            if not args or args[0] is not source or by == 0:
                return replace(origin, clear=False)
            by = 1 / by
        origin = replace(origin, chosen=origin.chosen or origin.kind != "weights")
        if origin.kind == "scores":
            return replace(origin, after=origin.after * by)
        return replace(origin, before=origin.before * by) if origin.kind == "projection" else origin

    def masked(self, name: str, source: Tensor, origin: Origin, args: Any, kwargs: Any) -> Origin:
        if origin.kind not in ("scores", "weights"):
            return origin
        mask, how = None, "added"
        if name == "masked_fill":
            mask, how = args[1] if len(args) > 1 else kwargs.get("mask"), "filled"
        elif name == "where" and len(args) == 3:
            mask, how = (~args[0] if args[1] is source else args[0]), "filled"
        elif name in ("add", "radd", "sub") and origin.kind == "scores":
            other = next((a for a in (*args, *kwargs.values()) if a is not source and isinstance(a, Tensor)), None)
            if other is not None and self.of(other) is None and other.dim() > 1:
                mask = low_of_two(-other if name == "sub" else other)
        if mask is None or not isinstance(mask, Tensor):
            return origin
        if how == "filled" and origin.kind == "weights":
            how = "multiplied weights"
        return replace(origin, blocked=(*origin.blocked, (how, mask.bool())))


def rms(tensor: Tensor) -> float:
    return float(tensor.detach().double().square().mean().sqrt())


def user_code() -> Where:
    """The function of the user's that is running: the nearest frame that is neither in torch nor here."""
    frame: Any = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(
        (instruments.TORCH, __file__, instruments.__file__)
    ):
        frame = frame.f_back
    if frame.f_code not in CODES:
        CODES[frame.f_code] = Where.of_code(frame.f_code)
    return CODES[frame.f_code]


CODES: dict[Any, Where] = {}


def opened(func: Callable) -> Callable:
    """PyTorch's multi-head attention without its first question, whether somebody wants to run it instead."""
    world = {**func.__globals__, "has_torch_function": lambda *_: False}
    inside = types.FunctionType(func.__code__, world, func.__name__, func.__defaults__, func.__closure__)
    inside.__kwdefaults__ = func.__kwdefaults__
    return inside


def weights_of(query: Tensor, key: Tensor, mask: Tensor | None, causal: bool, scale: float) -> tuple[Tensor, tuple]:
    """What scaled_dot_product_attention weighs the values with, (…, T, S), and its masks, True = blocked."""
    with torch.no_grad():
        if key.dim() == 4 and key.size(1) != query.size(1) and query.size(1) % key.size(1) == 0:
            key = key.repeat_interleave(query.size(1) // key.size(1), dim=1)
        scores, blocked = query @ key.transpose(-1, -2) * scale, []
        if causal:
            past = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
            scores = scores.masked_fill(~past, -torch.inf)
        if mask is not None and mask.dtype == torch.bool:
            blocked.append(("fused", ~mask))
            scores = scores.masked_fill(~mask, -torch.inf)
        elif mask is not None:
            low = low_of_two(mask)
            if low is not None:
                blocked.append(("added", low))
            scores = scores + mask
        elif causal:
            blocked.append(("fused", ~past))
        return scores.softmax(-1).nan_to_num(0.0), tuple(blocked)


@contextmanager
def attentions(model: nn.Module) -> Iterator[list[Attention]]:
    """Inside, every attention that the model computes is read into the list."""
    reader, handles = Reader(), []

    def leave(*_: Any) -> None:  # a hook that returns a value would replace the output
        reader.stack.pop()

    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: reader.stack.append(name)))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        with reader:
            yield reader.seen
    finally:
        for handle in handles:
            handle.remove()
