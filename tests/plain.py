"""A decoder in the plain style of tutorials, whose parts can be exchanged for broken ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

PAD, VOCAB, WIDTH, HEADS = 1, 60, 24, 4
RIGHT = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, PAD, PAD]])
LEFT = torch.tensor([[5, 6, 7, 8, 9], [PAD, PAD, 10, 11, 12]])


def split(x: Tensor) -> Tensor:
    return x.view(*x.shape[:2], HEADS, -1).transpose(1, 2)


def merge(out: Tensor) -> Tensor:
    return out.transpose(1, 2).flatten(2)


def weigh(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    scores = (q @ k.transpose(-2, -1) / q.size(-1) ** 0.5).masked_fill(~mask, float("-inf"))
    return scores.softmax(-1).nan_to_num(0.0)


def see(ids: Tensor) -> Tensor:
    """True = may attend, (B, 1, T, T)."""
    causal = torch.ones(ids.size(1), ids.size(1), dtype=torch.bool).tril()
    return causal & (ids != PAD)[:, None, None, :]


def place(ids: Tensor, table: Tensor) -> Tensor:
    position = ((ids != PAD).cumsum(1) - 1).clamp(min=0)
    return table[position]


def add(x: Tensor, out: Tensor) -> Tensor:
    return x + out


PARTS = {"split": split, "merge": merge, "weigh": weigh, "see": see, "place": place, "add": add}


class Attention(nn.Module):
    def __init__(self, parts: dict[str, Callable]) -> None:
        super().__init__()
        self.parts = parts
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        part = self.parts
        q, k, v = (part["split"](layer(x)) for layer in (self.q, self.k, self.v))
        return self.o(part["merge"](part["weigh"](q, k, mask) @ v))


class Block(nn.Module):
    def __init__(self, parts: dict[str, Callable]) -> None:
        super().__init__()
        self.parts, self.attention = parts, Attention(parts)
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 80), nn.Linear(80, WIDTH)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.parts["add"](x, self.attention(self.first(x), mask))
        return self.parts["add"](x, self.down(self.up(self.second(x)).relu()))


class Plain(nn.Module):
    """Plain(weigh=...) is healthy but for its weigh."""

    def __init__(self, **broken: Callable) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.parts = PARTS | broken
        self.table = nn.Embedding(VOCAB, WIDTH)
        self.positions = nn.Parameter(torch.randn(40, WIDTH))
        self.blocks = nn.ModuleList(Block(self.parts) for _ in range(2))
        self.head = nn.Linear(WIDTH, VOCAB)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.table(input_ids) + self.parts["place"](input_ids, self.positions)
        for block in self.blocks:
            x = block(x, self.parts["see"](input_ids))
        return self.head(x)
