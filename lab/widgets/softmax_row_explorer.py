"""One row of scores with controls: what each way of blocking keys makes of it, above all when every key is blocked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..grid import Grid
from ..grid_picture import GridPicture, described
from ..states import Cell
from .base import Explorer

Rule = Callable[[Tensor, Tensor], Tensor]  # scores (S,), blocked (S,) bool -> weights (S,)


def filled(value: float) -> Rule:
    """Blocked scores get the value, then comes a plain softmax."""
    return lambda scores, blocked: scores.masked_fill(blocked, value).softmax(-1)


def fused(scores: Tensor, blocked: Tensor) -> Tensor:
    """scaled_dot_product_attention with a boolean mask, True = may attend; the identity as values gives the weights."""
    query, key, identity = torch.ones(1, 1, 1, 1), scores[None, None, :, None], torch.eye(len(scores))[None, None]
    return F.scaled_dot_product_attention(query, key, identity, attn_mask=~blocked[None, None, None])[0, 0, 0]


def multihead(need_weights: bool) -> Rule:
    """nn.MultiheadAttention with identities as its matrices; its mask is the other way round, True = blocked."""

    def weights(scores: Tensor, blocked: Tensor) -> Tensor:
        size = len(scores)
        layer, identity = nn.MultiheadAttention(size, 1, bias=False, batch_first=True), torch.eye(size)
        with torch.no_grad():
            layer.in_proj_weight.copy_(identity.repeat(3, 1))
            layer.out_proj.weight.copy_(identity)
        query = scores[None, None] * size**0.5  # for it divides by the root of its width
        how = {"attn_mask": blocked[None], "need_weights": need_weights}
        return layer(query, identity[None], identity[None], **how)[0][0, 0]

    return weights


CONVENTIONS: dict[str, Rule] = {
    "−inf, then softmax": filled(-torch.inf),
    "−1e9, then softmax": filled(-1e9),
    "finfo.min, then softmax": filled(torch.finfo(torch.float32).min),
    "scaled_dot_product_attention": fused,
    "nn.MultiheadAttention, need_weights=True": multihead(True),
    "nn.MultiheadAttention, need_weights=False": multihead(False),
}


class SoftmaxRowExplorer(Explorer):
    """The weights of one query under each convention, computed by torch as it is installed, with sum and gradient.

    scores: one for each key. keys: their names; those after number `query` are in the future. blocked: which keys may
    not be attended to; by default all, as for a padding query in a row padded at the left. Controls: scores, blocked.
    """

    title = "A row of scores, masked"

    def __init__(
        self,
        scores: Sequence[float] = (1.0, 0.5, 2.0, -1.0),
        *,
        keys: Sequence[str] = ("<pad>", "<pad>", "the", "cat"),
        query: int = 1,
        blocked: Sequence[bool] | None = None,
        theme: str | None = None,
    ) -> None:
        super().__init__(theme)
        blocked = [True] * len(scores) if blocked is None else list(blocked)
        if not 1 <= len(scores) <= 12:
            raise ValueError(f"scores has {len(scores)} numbers; give 1 to 12, one for each key.")
        for name, given in (("keys", keys), ("blocked", blocked)):
            if len(given) != len(scores):
                raise ValueError(
                    f"{name} has {len(given)} entries, but there are {len(scores)} scores; give one for each."
                )
        if not 0 <= query < len(scores):
            raise ValueError(f"query is {query}; the keys are numbered 0..{len(scores) - 1}.")
        if wrong := [score for score in scores if not -10 <= score <= 10]:
            raise ValueError(f"scores holds {wrong[0]}; each must be from -10 to 10.")
        self.query = query
        self.keys = [f"{at} {key}{' (future)' if at > query else ''}" for at, key in enumerate(keys)]
        self.rows: dict[str, Row] = {}
        self.controls = {
            "scores": [
                self.slider(f"score of {key}", float(score), -10, 10, 0.1)
                for key, score in zip(self.keys, scores, strict=True)
            ],
            "blocked": [self.switch(f"block {key}", flag) for key, flag in zip(self.keys, blocked, strict=True)],
        }
        self.start()

    def draw(self, scores: tuple[float, ...], blocked: tuple[bool, ...]) -> tuple[GridPicture, list[str]]:
        self.rows = {name: answer(rule, scores, blocked) for name, rule in CONVENTIONS.items()}
        cells = [
            [
                *(self.cell(weight, at, blocked[at]) for at, weight in enumerate(row.weights.tolist())),
                plain(row.total, f"{row.total:.4g}"),
                plain(*gradient_of(row.to_scores)),
                plain(*gradient_of(row.to_values)),
            ]
            for row in self.rows.values()
        ]
        keys = [f"▨ {key}" if flag else key for key, flag in zip(self.keys, blocked, strict=True)]
        columns = [*keys, "sum", "gradient of the scores", "gradient of the values"]
        caption = ("↓ convention", f"→ key (▨ blocked); the query is number {self.query}")
        names = [name.replace("nn.MultiheadAttention", "MHA") for name in CONVENTIONS]
        grid = Grid(cells, names, columns, "the weights of one query", caption)
        left = "nothing is left" if all(blocked) else f"{blocked.count(False)} left"
        lines = [f"{sum(blocked)} of {len(blocked)} keys are blocked: {left}."]
        lines += [f"{name}: {self.said(row, blocked)}" for name, row in self.rows.items()]
        return GridPicture([grid], f"{' '.join(lines)} {described([grid])}"), lines

    def cell(self, weight: float, at: int, blocked: bool) -> Cell:
        if weight != weight:
            return Cell("not a number")
        if weight == 0:
            return Cell("exactly 0")
        state = "weight" if not blocked else f"leak: weight on {'the future' if at > self.query else 'padding'}"
        return Cell(state, f"{weight:.2f}", weight, f"{weight:.4g}")

    def said(self, row: Row, blocked: Sequence[bool]) -> str:
        """One convention's row in words."""
        gradients = {"scores": row.to_scores, "values": row.to_values}
        bad = " and of the ".join(name for name, gradient in gradients.items() if not gradient.isfinite().all())
        if row.weights.isnan().any():
            return f"each weight is NaN{f', and so is the gradient of the {bad}' if bad else ''}."
        amounts = [weight if flag else 0.0 for weight, flag in zip(row.weights.tolist(), blocked, strict=True)]
        leaked = (
            f"{sum(amounts):.2f} of it on blocked keys, {sum(amounts[self.query + 1 :]):.2f} on those in the future"
        )
        words = f"sums to {row.total:.4g}, {leaked if any(amounts) else 'nothing on blocked keys'}"
        return f"{words}{f'; the gradient of the {bad} is NaN' if bad else ''}."


@dataclass
class Row:
    """What a convention gives: the weights (S,), and the gradients of the scores and of the values, (S,) each."""

    weights: Tensor
    to_scores: Tensor
    to_values: Tensor

    @property
    def total(self) -> float:
        return float(self.weights.sum())


def answer(rule: Rule, scores: Sequence[float], blocked: Sequence[bool]) -> Row:
    """What the convention makes of the scores, where the values are 1, 2, 3 …"""
    given = torch.tensor(scores, requires_grad=True)
    values = torch.arange(1.0, len(scores) + 1, requires_grad=True)
    weights = rule(given, torch.tensor(blocked))
    return Row(weights.detach(), *torch.autograd.grad(weights @ values, [given, values]))


def gradient_of(gradient: Tensor) -> tuple[float, str]:
    total = float(gradient.abs().sum())
    return total, "finite" if total else "0"


def plain(value: float, text: str) -> Cell:
    return Cell("not a number") if value != value else Cell("", text)
