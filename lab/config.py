"""Model configurations, checked when they are made, and the presets by name."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any, Literal


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

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "num_heads", "num_layers", "d_ff", "max_seq_len"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.d_model % self.num_heads:
            raise ValueError(
                f"d_model {self.d_model} is not a multiple of num_heads {self.num_heads}; "
                f"each head needs the same whole width."
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it is a probability in [0, 1).")
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
    """How to train: `learning_rate` is the peak, reached after `warmup_steps`; gradients are clipped to `clip_norm`."""

    steps: int
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    eval_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "warmup_steps", "eval_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        for name in ("learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0.")


# The GPT-2 sizes have its vocabulary and no padding: their text is packed.
PRESETS: dict[str, ModelConfig] = {
    "tiny": ModelConfig(512, d_model=32, num_heads=2, num_layers=2, d_ff=128, max_seq_len=64),
    "translator": ModelConfig(2000, d_model=128, num_heads=4, num_layers=2, d_ff=512, max_seq_len=64),
    "reported-16m": ModelConfig(50257, d_model=256, num_heads=4, num_layers=4, d_ff=512, max_seq_len=256),
    "16m": ModelConfig(50257, d_model=256, num_heads=4, num_layers=4, d_ff=1024, max_seq_len=256),
    "50m": ModelConfig(50257, d_model=512, num_heads=8, num_layers=6, d_ff=2048, max_seq_len=512),
    "117m": ModelConfig(50257, d_model=768, num_heads=12, num_layers=12, d_ff=3072, max_seq_len=1024),
}


def preset(name: str, **changes: Any) -> ModelConfig:
    """The preset of that name with some fields changed. Raises ValueError naming the presets there are."""
    if name not in PRESETS:
        raise unknown("preset", name, list(PRESETS))
    return PRESETS[name].replace(**changes)
