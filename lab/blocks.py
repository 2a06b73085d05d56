"""What both models are made of: embeddings with positions, the feed-forward layer, the block, the output."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import LayerCache, MultiHeadAttention
from .config import ModelConfig
from .labels import IGNORE_INDEX


@dataclass
class ModelOutput:
    """logits (B, T, V), but none where the loss was computed in chunks; loss () where labels were given.

    attentions: name -> one (B, H, T, S) a layer, on request.
    """

    logits: Tensor | None
    loss: Tensor | None = None
    attentions: dict[str, list[Tensor]] = field(default_factory=dict)


def sinusoids(length: int, d_model: int) -> Tensor:
    """Sine on even columns, cosine on odd ones, wavelengths from 2 pi to 10000 x 2 pi (Vaswani et al. 2017, 3.5)."""
    angle = torch.arange(length)[:, None] * torch.exp(torch.arange(0, d_model, 2) * (-math.log(10000.0) / d_model))
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :d_model]


def position_of(ids: Tensor, pad_id: int | None, last: int) -> Tensor:
    """The position of the last tokens of ids (B, T), counted without padding -> (B, last), or (last,) without pads.

    A row padded at the left so gets the positions that it has alone.
    """
    if pad_id is None:
        return torch.arange(ids.size(1) - last, ids.size(1), device=ids.device)
    return ((ids != pad_id).cumsum(dim=1) - 1).clamp(min=0)[:, -last:]


def check_shape(ids: Tensor, name: str = "input_ids") -> None:
    if ids.dim() != 2 or not ids.numel():
        raise ValueError(f"{name} has shape {tuple(ids.shape)}; it must be (B, T) with at least one row and token.")


def check_length(ids: Tensor, name: str, max_seq_len: int) -> None:
    if ids.size(1) > max_seq_len:
        raise ValueError(
            f"{name} is {ids.size(1)} tokens long; the context is max_seq_len = {max_seq_len}. "
            f"Cut the input or build the model with a longer context."
        )


def token_table(config: ModelConfig) -> nn.Embedding:
    """A row for each id of the vocabulary."""
    return nn.Embedding(config.vocab_size, config.d_model)


def position_table(config: ModelConfig) -> nn.Embedding:
    """A row for each position of the context."""
    return nn.Embedding(config.max_seq_len, config.d_model)


class Embedder(nn.Module):
    """Token embedding plus position, then dropout (Vaswani et al. 2017, 3.4, 3.5 and 5.4)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.token = token_table(config)
        self.dropout = nn.Dropout(config.dropout)
        self.scale = 1.0
        if config.positions == "learned":
            self.position = position_table(config)
        else:
            # The sinusoids have unit amplitude: without the factor they would drown the tokens.
            self.scale = math.sqrt(config.d_model)
            self.register_buffer("table", sinusoids(config.max_seq_len, config.d_model), persistent=False)

    def forward(self, ids: Tensor, past: Tensor | None = None, name: str = "input_ids") -> Tensor:
        """ids (B, T) -> (B, T, D). past (B, t): ids so far with these at the end, where a cache holds the others.

        Raises IndexError for an id without a row in the table (on a CPU: a GPU stops with an assert of its own), and
        ValueError for more positions than max_seq_len.
        """
        check_shape(ids, name)
        everything = ids if past is None else past
        check_length(everything, name, self.config.max_seq_len)
        try:
            x = self.token(ids)
        except IndexError as error:
            raise IndexError(self.explain(ids, name)) from error
        x = x if self.scale == 1 else x * self.scale
        return self.dropout(self.placed(x, everything))

    def placed(self, x: Tensor, past: Tensor) -> Tensor:
        """x (B, T, D), the last tokens of past (B, t), with their positions added."""
        position = position_of(past, self.config.pad_id, x.size(1))
        return x + (self.position(position) if self.config.positions == "learned" else self.table[position])

    def explain(self, ids: Tensor, name: str) -> str:
        wrong = (ids < 0) | (ids >= self.config.vocab_size)
        row, column = wrong.nonzero()[0].tolist()
        value = int(ids[row, column])
        text = (
            f"index out of range: {name}[{row}, {column}] is {value}, and {int(wrong.sum())} ids in all have no row in "
            f"the embedding table (rows 0..{self.config.vocab_size - 1})."
        )
        if value == IGNORE_INDEX:
            return f"{text} {value} is IGNORE_INDEX, a label for the loss: put pad_id where the input is padding."
        return f"{text} Was another tokenizer used than the one that vocab_size was taken from?"


class FeedForward(nn.Module):
    """Two matrices with an activation between them, at each position alone (Vaswani et al. 2017, 3.3)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.d_model, config.d_ff)
        self.down = nn.Linear(config.d_ff, config.d_model)
        self.activation = config.activation

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        return self.down(F.gelu(x, approximate="tanh") if self.activation == "gelu" else F.relu(x))


class Block(nn.Module):
    """Self-attention, cross-attention where there is a memory, feed-forward; each with norm and residual."""

    def __init__(self, config: ModelConfig, cross: bool = False) -> None:
        super().__init__()
        self.pre = config.norm == "pre"
        self.self_norm = nn.LayerNorm(config.d_model)
        self.self_attention = MultiHeadAttention(config.d_model, config.num_heads, config.dropout)
        if cross:
            self.cross_norm = nn.LayerNorm(config.d_model)
            self.cross_attention = MultiHeadAttention(config.d_model, config.num_heads, config.dropout)
        self.ff_norm = nn.LayerNorm(config.d_model)
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        *,
        cache: LayerCache | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, list[Tensor]]:
        """x (B, T, D), masks as in `masks`, memory (B, S, D) -> (B, T, D), weights of self- and cross-attention."""
        options = {"cache": cache, "need_weights": need_weights}
        out, weights = self.self_attention(self.before(self.self_norm, x), mask=mask, **options)
        x, all_weights = self.after(self.self_norm, x, out), [weights]
        if memory is not None:
            out, weights = self.cross_attention(self.before(self.cross_norm, x), memory, memory_mask, **options)
            x = self.after(self.cross_norm, x, out)
            all_weights.append(weights)
        x = self.after(self.ff_norm, x, self.feed_forward(self.before(self.ff_norm, x)))
        return x, all_weights

    def before(self, norm: nn.LayerNorm, x: Tensor) -> Tensor:
        return norm(x) if self.pre else x

    def after(self, norm: nn.LayerNorm, x: Tensor, out: Tensor) -> Tensor:
        x = x + self.dropout(out)
        return x if self.pre else norm(x)


def make_layers(config: ModelConfig, cross: bool = False) -> nn.ModuleList:
    """num_layers blocks, each with parameters of its own."""
    return nn.ModuleList(Block(config, cross) for _ in range(config.num_layers))


def tie(head: nn.Linear, table: nn.Embedding, config: ModelConfig) -> None:
    """Make head and token embedding one parameter, where the config asks for it (Press & Wolf 2017)."""
    if config.tie_head:
        head.weight = table.weight


def initialise(model: nn.Module, config: ModelConfig) -> None:
    """GPT-2's: normal with deviation 0.02, smaller where a layer adds to the residual stream; biases zero.

    Sinusoidal models scale their embeddings by sqrt(d_model), so these start at its inverse.
    """
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif name.endswith(("out_proj.weight", "down.weight")):
            nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * config.num_layers))
        elif name.endswith("token.weight") and config.positions == "sinusoidal":
            nn.init.normal_(parameter, std=config.d_model**-0.5)
        elif parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.02)
