"""Checks on numbers: their precision, and the several ways in which one attention can be computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ..calling import Missing, clone
from ..instruments import Lookups, Trace, culprit, first_non_finite, traced, user_frame
from ..probe import LENGTH, ROWS, Probe
from ..report import Finding, Where
from .base import check
from .generation import spread
from .greedy import in_words, scaled_up

ABOUT = {"family": "numerics", "lesson": "08_diagnose_your_model"}
LOW = (torch.float16, torch.bfloat16)


class Downcasts(TorchDispatchMode):
    """Records each operation that makes half precision out of more: the precision, and the user's line."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[torch.dtype, Where, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.dtype in LOW:
            given = [a.dtype for a in args if isinstance(a, Tensor) and a.is_floating_point()]
            if given and not any(dtype in LOW for dtype in given):
                frame = user_frame(2)
                self.seen.append((out.dtype, Where.of_code(frame.f_code), frame.f_lineno))
        return out


class Kept(TorchFunctionMode):
    """Takes back what makes half precision out of more: casts do nothing, and other functions keep their precision.

    left: how many could not be taken back; autocast: whether autocast was on there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.left, self.autocast = 0, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        out = func(*args, **kwargs)
        tensor, name = args[0] if args else None, getattr(func, "__name__", "")
        full = isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.dtype not in LOW
        if not (full and isinstance(out, Tensor) and out.dtype in LOW):
            return out
        if name in ("to", "half", "bfloat16", "type"):
            return tensor
        if "dtype" in kwargs:
            return func(*args, **{**kwargs, "dtype": tensor.dtype})
        self.left += 1
        self.autocast = self.autocast or torch.is_autocast_enabled(out.device.type)
        return out


def own_precision(model: nn.Module) -> torch.dtype | None:
    """The precision of most of the model's numbers."""
    counts: dict[torch.dtype, int] = {}
    for p in model.parameters():
        if p.is_floating_point():
            counts[p.dtype] = counts.get(p.dtype, 0) + p.numel()
    return max(counts, key=counts.get) if counts else None


@check(
    "precision-drift",
    severity="P3",
    **ABOUT,
    silent="the loss falls as before; it is some hundredths higher, and small gradients are lost",
    repair="keep softmax, norms and sums in float32; where speed needs half precision, let autocast choose",
    after=("random-in-eval",),
)
def precision_drift(probe: Probe) -> Iterator[Finding]:
    """The output in the model's precision differs from that in float64 by no more than rounding explains.

    A cast that is written into the code happens in the float64 copy as well, so comparing the two would not show it:
    operations that make half precision out of more are watched for, and their effect is measured by taking them back.
    What rounding explains is measured too, by changing the embeddings by one rounding error.
    """
    subject = probe.subject
    batch = probe.whole(ROWS)
    dtype = own_precision(subject.model)
    if dtype is None:
        raise Missing("the model has no floating parameters")
    model, noise = probe.precise(batch)
    logits = probe.logits(model, batch)
    scale = spread(logits.double())
    if not scale > 0:
        raise Missing("all logits of a position are equal, so nothing can be told")
    if dtype not in LOW:
        yield from cast_down(probe, model, batch, logits, scale)
    if noise > 1e-6:
        return  # float64 fails on this model; there is nothing to compare with
    eps = torch.finfo(dtype).eps

    def rounded(ids: Tensor, vectors: Tensor) -> Tensor:
        sign = torch.randint(0, 2, vectors.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
        return vectors * (1 + eps * sign.to(vectors)) if vectors.is_floating_point() else vectors

    with Lookups(rounded):
        explained = float((probe.logits(model, batch) - logits).abs().max())
    expected = logits
    del model  # two copies at once would take too much memory
    model = probe.copy()
    with torch.no_grad(), traced(model) as trace:
        try:
            own = subject.logits(model, clone(batch)).double()
        except Exception as error:
            raise Missing(f"the model fails in its own precision here ({in_words(error)})") from error
    drift = float((own - expected).abs().max())
    evidence = {"precision": str(dtype).removeprefix("torch."), "drift": drift, "spread of the logits": scale}
    if not bool(own.isfinite().all()) and bool(expected.isfinite().all()):
        name, where = first_non_finite(model, trace)
        yield probe.finding(
            f"in {evidence['precision']} the output is NaN or infinite, in float64 it is not: it overflows, first in "
            f"{name}",
            "P2",
            evidence=evidence,
            where=where,
            repair="mask with the precision's own smallest number or -inf, and scale before the product, not after",
        )
    elif dtype not in LOW and drift > 1e-2 * scale and drift > 1000 * explained:
        yield probe.finding(
            f"the output in {evidence['precision']} differs from float64 by far more than rounding explains",
            evidence=evidence | {"what rounding explains": explained},
        )


def cast_down(probe: Probe, model: nn.Module, batch: Any, logits: Tensor, scale: float) -> Iterator[Finding]:
    """The findings for casts to half precision, one for each line that makes them."""
    with Downcasts() as casts:
        probe.logits(model, batch)
    places: dict[tuple[str, int], tuple[torch.dtype, Where, int]] = {}
    for dtype, where, line in casts.seen:
        known = places.get((where.path, line))
        places[where.path, line] = (dtype, where, 1 + (known[2] if known else 0))
    if not places:
        return
    kept, effect = Kept(), None
    try:
        with kept:
            change = float((probe.logits(model, batch) - logits).abs().max())
        effect = None if kept.left else change
    except Exception:
        pass  # code that asks for that precision: the casts stand, and how much they change is unknown
    if effect == 0:
        return
    for (_, line), (dtype, where, count) in places.items():
        evidence: dict[str, Any] = {"at line": line, "casts in a pass": count, "spread of the logits": scale}
        if effect is not None:
            evidence["change of a logit by all such casts"] = effect
        how = "by an autocast of its own" if kept.autocast else "whatever precision it is given"
        yield probe.finding(
            f"a part of the model computes in {str(dtype).removeprefix('torch.')}, {how}",
            "note" if kept.autocast else None,
            evidence=evidence,
            where=where,
        )


@contextmanager
def implementation(model: nn.Module, name: str) -> Iterator[None]:
    """Inside, a Hugging Face model computes its attention in that way."""
    config = model.config
    before = config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def flipped(modules: list[tuple[nn.Module, str]]) -> Iterator[None]:
    """Inside, these switches of modules stand the other way."""
    for module, name in modules:
        setattr(module, name, not getattr(module, name))
    try:
        yield
    finally:
        for module, name in modules:
            setattr(module, name, not getattr(module, name))


@contextmanager
def fast_path() -> Iterator[None]:
    """Inside, nn.Transformer takes its fast path of eval mode; a diagnosis has it switched off."""
    torch.backends.mha.set_fastpath_enabled(True)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(False)


SWITCHES = ("flash", "use_flash", "use_flash_attn", "flash_attn", "use_sdpa", "fused_attn", "use_flash_attention")


def paths(model: nn.Module) -> dict[str, Callable[[], Any]]:
    """The ways of computing attention that may run here, besides the one that the model takes by itself."""
    found: dict[str, Callable[[], Any]] = {
        "the math kernel": lambda: sdpa_kernel([SDPBackend.MATH]),
        "the flash kernel": lambda: sdpa_kernel([SDPBackend.FLASH_ATTENTION]),
        "the efficient kernel": lambda: sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION]),
    }
    if any(isinstance(m, nn.TransformerEncoder | nn.TransformerEncoderLayer) for m in model.modules()):
        found["the fast path of nn.Transformer"] = fast_path
    now = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if now in ("eager", "sdpa") and hasattr(model, "set_attn_implementation"):
        other = "sdpa" if now == "eager" else "eager"
        found[f"attn_implementation={other!r}"] = lambda: implementation(model, other)
    switches = [(m, name) for m in model.modules() for name in SWITCHES if isinstance(vars(m).get(name), bool)]
    if switches:
        name = switches[0][1]
        found[f"{name}={not getattr(*switches[0])}"] = lambda: flipped(switches)
    return found


class UsesSDPA(TorchFunctionMode):
    """Whether scaled_dot_product_attention is called."""

    used = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        attention = (nn.functional.scaled_dot_product_attention, nn.functional.multi_head_attention_forward)
        self.used = self.used or func in attention
        return func(*args, **(kwargs or {}))


@check(
    "backend-parity",
    severity="P2",
    **ABOUT,
    silent="each machine takes the path that is fastest there, and only one of them is tested",
    repair="give every path the same mask, the same scale and the same dropout",
    after=("random-in-eval",),
)
def backend_parity(probe: Probe) -> Iterator[Finding]:
    """Eager, math, efficient and flash attention agree where more than one of them runs.

    Asked without a mask, with one of all ones and with padding, for back-ends take different code for each. Positions
    that are padding may differ. Tried are the kernels of PyTorch, the two implementations of Hugging Face, the fast
    path of nn.Transformer, and switches of modules that are called `flash` and the like.
    """
    model = probe.copy()
    if own_precision(model) in LOW:
        model = model.float()  # there the paths differ by rounding alone
    model = scaled_up(model, probe.subject.vocab_size)
    torch.backends.mha.set_fastpath_enabled(False)
    ways, compared, told = paths(model), 0, set()
    for how, batch, real in batches(probe):
        try:
            with torch.no_grad(), UsesSDPA() as uses:
                expected = probe.subject.logits(model, clone(batch))
        except Missing:
            raise
        except Exception as error:
            if not how:
                raise Missing(f"a pass over a batch made like yours fails ({in_words(error)})") from error
            continue
        if expected.shape[:2] != real.shape or not bool(expected[real].isfinite().all()):
            continue
        scale = spread(expected[real])
        for name, way in ways.items():
            if name in told or ("kernel" in name and not uses.used):
                continue
            try:
                with way():
                    logits = probe.logits(model, batch)
            except Exception:
                continue  # this path does not run here, or not for such a mask
            compared += 1
            difference = (logits - expected)[real].abs().nan_to_num(nan=torch.inf)
            if float(difference.max()) > 1e-2 * scale:
                told.add(name)
                module, where = first_apart(probe, model, batch, real, way)
                what = "others" if difference.isfinite().all() else "NaN or infinite"
                yield probe.finding(
                    f"with {name} the logits{how} are {what}, first in {module}",
                    evidence={"largest difference": float(difference.max()), "spread of the logits": scale},
                    where=where,
                )
    if not compared:
        raise Missing("only one way of computing its attention was found, or runs here")


def batches(probe: Probe) -> Iterator[tuple[str, Any, Tensor]]:
    """(how it is masked, batch, which positions of the target are real): all ones, no mask, padding as the user's."""
    whole, subject = probe.whole(ROWS), probe.subject
    target = torch.ones(ROWS, LENGTH["target"], dtype=torch.bool)
    yield "", whole, target
    masks = {mask for _, mask in subject.streams.values() if mask is not None}
    if masks and isinstance(whole, dict) and subject.forward is None:
        yield " without a mask", {key: value for key, value in whole.items() if key not in masks}, target
    real = {name: torch.ones(ROWS, LENGTH[name], dtype=torch.bool) for name in subject.streams}
    for name, there in real.items():
        there[2, -2:] = False
        if bool((~subject.real(name)[:, 0]).any()):  # at the left too, where the user pads there
            there[1, :2] = False
    try:
        yield " of padded rows", probe.batch(real), real.get("target", target)
    except Missing:
        return  # it cannot be told of padding


def first_apart(probe: Probe, model: nn.Module, batch: Any, real: Tensor, way: Callable[[], Any]) -> tuple:
    """The first module whose output is another on that path: (name, its code)."""

    def differs(a: Tensor, b: Tensor) -> bool | None:
        if a.shape != b.shape or a.dim() != 3 or a.shape[:2] != real.shape:
            return None
        return float((a - b)[real].abs().max()) > 1e-3 * float(a[real].abs().max())

    def trace() -> Trace:
        return probe.trace(model, batch)[1]

    with way():
        after = trace()
    return culprit(model, trace(), after, differs)
