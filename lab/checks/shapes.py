"""What the shapes of anybody's model say: its feed-forward layers, and its parameters with and without embeddings."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import nn


@dataclass(frozen=True)
class FeedForward:
    """The feed-forward layers of a block, experts and half-steps together: `matrices` of d_model x d_ff in all.

    One layer has two matrices, with a gate three. name: the module that holds the first.
    """

    d_model: int
    d_ff: int
    gated: bool
    matrices: int
    name: str

    @property
    def parameters(self) -> int:
        return self.matrices * self.d_model * self.d_ff

    @property
    def width(self) -> float:
        """d_ff / d_model of two plain matrices with as many parameters."""
        return self.matrices * self.d_ff / (2 * self.d_model)


def matrix_size(module: nn.Module) -> tuple[int, int] | None:
    """(in, out) of what is one matrix: Linear and its like, GPT-2's Conv1D, a convolution of width 1; else None."""
    if isinstance(module, nn.Conv1d):
        single = module.kernel_size == (1,) and module.groups == 1
        return (module.in_channels, module.out_channels) if single else None
    weight = getattr(module, "weight", None)
    if hasattr(module, "nf") and getattr(weight, "ndim", 0) == 2:
        return tuple(weight.shape)  # Conv1D: transposed against Linear
    size = getattr(module, "in_features", 0), getattr(module, "out_features", 0)
    whole = weight is not None or not list(module.children())  # else its parts are; a quantised one has no weight
    return size if whole and all(isinstance(n, int) and n > 0 for n in size) else None


def pairs_in(sizes: list[tuple[int, int]], name: str) -> tuple[list[FeedForward], list[tuple[int, int]]]:
    """Feed-forward layers among matrices of these (in, out), in the order they were made in, and what is left over.

    One matrix up and one back down; or two up, one of them the gate; or both of these in one. Three up and one down
    are query, key, value and output of an attention whose heads are not d_model wide in all.
    """
    count, layers = Counter(sizes), []
    for d_model, d_ff in count:
        ups, downs = count[d_model, d_ff], count[d_ff, d_model]
        if d_model != d_ff and ups and downs:
            count[d_model, d_ff] = count[d_ff, d_model] = 0
            if ups < 3 * downs:
                layers.append(FeedForward(d_model, d_ff, ups == 2 * downs, ups + downs, name))
    for d_model, twice in count:
        downs = count[twice // 2, d_model]
        if twice % 2 == 0 and twice // 2 != d_model and downs and count[d_model, twice] == downs:
            count[d_model, twice] = count[twice // 2, d_model] = 0
            layers.append(FeedForward(d_model, twice // 2, True, 3 * downs, name))
    return layers, list(count.elements())


def found_in(module: nn.Module, name: str) -> tuple[list[FeedForward], list[tuple[int, int]]]:
    """The feed-forward layers in a module, each matched in the smallest part that holds it whole; matrices left over.

    Parts that are nothing but a feed-forward layer of one size, as experts and half-steps are, count as one.
    """
    size = matrix_size(module)
    if size is not None:
        return [], [size]
    layers: list[FeedForward] = []
    alone: dict[tuple, FeedForward] = {}
    left: list[tuple[int, int]] = []
    for child_name, child in module.named_children():
        theirs, rest = found_in(child, f"{name}.{child_name}".lstrip("."))
        left += rest
        if len(theirs) == 1 and not rest:
            (part,) = theirs
            kind = part.d_model, part.d_ff, part.gated
            before = alone.get(kind)
            alone[kind] = replace(before, matrices=before.matrices + part.matrices) if before else part
        else:
            layers += theirs
    more, left = pairs_in(left, name)
    return [*layers, *alone.values(), *more], left


def blocks(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The outermost numbered modules: the layers that a model repeats."""
    for child_name, child in module.named_children():
        path = f"{name}.{child_name}".lstrip(".")
        if child_name.isdigit():
            yield path, child
        else:
            yield from blocks(child, path)


def mixture(block: nn.Module, d_model: int) -> bool:
    """Whether a block holds experts as one tensor (experts, d_model, d_ff): its width is then not one number."""
    for module in block.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.dim() == 3 and not isinstance(module, nn.modules.conv._ConvNd):
                experts, *sizes = parameter.shape
                if d_model in sizes and experts * math.prod(sizes) > d_model**2:  # not the heads of an attention
                    return True
    return False


def feed_forward_layers(model: nn.Module) -> list[FeedForward]:
    """The largest feed-forward layer of each block, by the shapes of its matrices; mixtures of experts are left out."""
    for parts in (blocks(model), [("", model)]):  # as a whole where nothing in it is numbered
        found = []
        for name, part in parts:
            layers, _ = found_in(part, name)
            if layers:
                largest = max(layers, key=lambda layer: (layer.parameters, layer.width))
                if not mixture(part, largest.d_model):
                    found.append(largest)
        if found:
            return found
    return []


def count_parameters(model: nn.Module, vocab_size: int | None = None) -> tuple[int, int]:
    """(all parameters, those that are no embedding): each counted once; a head counts as an embedding, tied or not."""
    tables = {p: m.num_embeddings for m in model.modules() if hasattr(m, "num_embeddings") for p in m.parameters()}
    vocabulary = vocab_size or max(tables.values(), default=None)
    inside = {p for _, block in blocks(model) for p in block.parameters()}
    embeddings = {p for p in model.parameters() if p in tables or (p not in inside and vocabulary in p.shape)}
    total = sum(p.numel() for p in model.parameters())
    return total, total - sum(p.numel() for p in embeddings)
