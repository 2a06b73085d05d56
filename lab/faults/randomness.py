"""Faults in dropout and chance: on where it must be off, off where it must be on, new layers in every pass."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import LayerCache, attend, attention_weights
from ..blocks import Embedder, initialise, make_layers, tie
from ..config import ModelConfig
from .base import fault

LESSON = "03_stuck_in_eval"
AFTER = {"of": "lab.blocks:Block.after", "lesson": LESSON, "on": "language model"}


@fault("dropout-without-a-switch", **AFTER, caught_by="random-in-eval")
def drops_always(self, norm: nn.LayerNorm, x: Tensor, out: Tensor) -> Tensor:
    """F.dropout without training=self.training: it is on in eval mode too"""
    x = x + F.dropout(out, self.dropout.p)
    return x if self.pre else norm(x)


@fault("dropout-switched-off", **AFTER, caught_by="dropout-dead")
def drops_never(self, norm: nn.LayerNorm, x: Tensor, out: Tensor) -> Tensor:
    """F.dropout with training=False, to have generation deterministic: training is without it too"""
    x = x + F.dropout(out, self.dropout.p, training=False)
    return x if self.pre else norm(x)


@fault(
    "attention-drops-in-eval",
    of="lab.attention:MultiHeadAttention.forward",
    caught_by="random-in-eval",
    lesson=LESSON,
)
def attention_drops_always(
    self,
    x: Tensor,
    memory: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    cache: LayerCache | None = None,
    need_weights: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """scaled_dot_product_attention is given its dropout in eval mode too: it has no mode of its own"""
    if memory is None:
        query, key, value = map(self.split, self.in_proj(x).chunk(3, dim=-1))
        if cache is not None:
            key, value = cache.append(key, value)
    else:
        query, key, value = self.project_memory(x, memory, cache)
        if mask is None:
            mask = torch.ones(1, 1, dtype=torch.bool, device=x.device)
    out = attend(query, key, value, mask, self.dropout)
    weights = attention_weights(query, key, mask) if need_weights else None
    return self.out_proj(self.merge(out)), weights


@fault(
    "layers-rebuilt-in-forward",
    of="lab.blocks:FeedForward.forward",
    caught_by="random-in-eval",
    lesson=LESSON,
)
def rebuilds(self, x: Tensor) -> Tensor:
    """forward() makes its second matrix anew in each pass: random weights, which nothing trains"""
    x = self.up(x)
    down = nn.Linear(self.down.in_features, self.down.out_features, device=x.device, dtype=x.dtype)
    return down(F.gelu(x, approximate="tanh") if self.activation == "gelu" else F.relu(x))


@fault(
    "dropout-rate-lost",
    of="lab.language_model:LanguageModel.__init__",
    caught_by="dropout-dead",
    lesson=LESSON,
    on="language model",
)
def builds_without_dropout(self, config: ModelConfig) -> None:
    """the model is built for inference, at a dropout of 0, and then trained: its config still says 0.1"""
    nn.Module.__init__(self)
    self.config, config = config, config.replace(dropout=0.0)
    self.embedder = Embedder(config)
    self.blocks = make_layers(config)
    self.norm = nn.LayerNorm(config.d_model)
    self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
    initialise(self, config)
    tie(self.head, self.embedder.token, config)


@fault(
    "generates-with-dropout",
    of="lab.transformer:Transformer.generate",
    caught_by="generates-with-dropout",
    lesson=LESSON,
)
def generates_in_any_mode(self, input_ids: Tensor, max_new_tokens: int | None = None, **how) -> Tensor:
    """generate() runs in the mode that it finds: in the middle of a training, with dropout"""
    return self.continuation(input_ids, max_new_tokens, **how)
