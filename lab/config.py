"""How a model is shaped and how it is trained; checked when it is made."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any, Literal

from .schedule import SCHEDULES


def unknown(kind: str, name: object, known: list[str]) -> ValueError:
    """The error for a name that is not in a registry: says which names are, and the nearest."""
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return ValueError(f"unknown {kind} {name!r}.{hint} There are: {', '.join(known)}.")


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a LanguageModel or a Transformer (which has `num_layers` in the encoder and again in the decoder).

    norm: "pre" normalises the input of each sub-layer (GPT-2), "post" its output (Vaswani et al. 2017). Both end in
    one more LayerNorm, as `torch.nn.Transformer` does.
    positions: "learned" (GPT-2), or "sinusoidal" with embeddings scaled by sqrt(d_model) (Vaswani et al. 2017, 3.4).
    pad_id: the id that masks and positions skip; None where no sequence is ever padded.
    label_smoothing: the share of each target that the training loss spreads over the vocabulary (Szegedy et al. 2016,
    7); like dropout, only in train mode.
    loss_chunk: with labels, head and loss are computed for that many positions at a time and the output holds no
    logits: their (B, T, V) is the largest tensor of a training step. None: all at once.

    Raises ValueError naming the field, its value and what it must be.
    """

    vocab_size: int
    d_model: int = 256
    num_heads: int = 4
    num_layers: int = 4
    d_ff: int = 1024
    max_seq_len: int = 256
    dropout: float = 0.1
    norm: Literal["pre", "post"] = "pre"
    positions: Literal["learned", "sinusoidal"] = "learned"
    activation: Literal["gelu", "relu"] = "gelu"
    tie_head: bool = True
    pad_id: int | None = None
    bos_id: int | None = None
    eos_id: int | None = None
    label_smoothing: float = 0.0
    loss_chunk: int | None = None

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "num_heads", "num_layers", "d_ff", "max_seq_len"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.d_model % self.num_heads:
            raise ValueError(
                f"d_model {self.d_model} is not a multiple of num_heads {self.num_heads}; "
                f"each head needs the same whole width."
            )
        for name in ("dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it is a probability in [0, 1).")
        if self.loss_chunk is not None and self.loss_chunk < 1:
            raise ValueError(f"loss_chunk is {self.loss_chunk}; it must be at least 1, or None for no chunks.")
        choices = {"norm": ("pre", "post"), "positions": ("learned", "sinusoidal"), "activation": ("gelu", "relu")}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), list(known))
        for name in ("pad_id", "bos_id", "eos_id"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < self.vocab_size:
                raise ValueError(f"{name} is {value}; the vocabulary has ids 0..{self.vocab_size - 1}.")
        for name in ("bos_id", "eos_id"):
            if self.pad_id is not None and self.pad_id == getattr(self, name):
                raise ValueError(
                    f"pad_id and {name} are both {self.pad_id}; masks would hide that token: give pads an id."
                )

    @property
    def head_width(self) -> int:
        return self.d_model // self.num_heads

    def replace(self, **changes: Any) -> ModelConfig:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    learning_rate: the peak, reached after `warmup_steps`; `schedule`, a name in schedule.SCHEDULES, then lowers it to
    `final_rate` of itself at the end. weight_decay: on matrices alone. beta2: AdamW's second, its first is 0.9.
    clip_norm: the most that the norm of all gradients may be.
    batch_tokens: tokens of a micro-batch over all devices, padding included; a step adds up `accumulate` of them, each
    target token counting once. eval_every: steps between validations, each followed by a checkpoint. patience: stop
    after that many validations without a new best. precision: "bf16" and "fp16" are autocast over fp32 weights.

    Raises ValueError naming the field, its value and what it must be.
    """

    steps: int
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    warmup_steps: int = 100
    final_rate: float = 0.1
    weight_decay: float = 0.01
    beta2: float = 0.98
    clip_norm: float = 1.0
    batch_tokens: int = 2048
    accumulate: int = 1
    eval_every: int = 100
    patience: int | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"steps": 1, "batch_tokens": 1, "accumulate": 1, "eval_every": 1, "warmup_steps": 0, "seed": 0}
        for name, low in {**least, **({} if self.patience is None else {"patience": 1})}.items():
            if not isinstance(value := getattr(self, name), int) or value < low:
                raise ValueError(f"{name} is {value!r}; it must be a whole number, at least {low}.")
        for name in ("learning_rate", "clip_norm"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0 and finite.")
        if not 0 <= self.weight_decay < float("inf"):
            raise ValueError(f"weight_decay is {self.weight_decay}; it must be 0 or more, and finite.")
        if not 0 <= self.final_rate <= 1:
            raise ValueError(f"final_rate is {self.final_rate}; it is a share of the peak, in [0, 1].")
        if not 0 <= self.beta2 < 1:
            raise ValueError(f"beta2 is {self.beta2}; it must be in [0, 1).")
        if self.schedule not in SCHEDULES:
            raise unknown("schedule", self.schedule, list(SCHEDULES))
        if self.precision not in ("fp32", "bf16", "fp16"):
            raise unknown("precision", self.precision, ["fp32", "bf16", "fp16"])

    def replace(self, **changes: Any) -> TrainConfig:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)
