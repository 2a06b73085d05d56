"""Named sizes and recipes; each docstring says what it costs and what to expect of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .config import ModelConfig, TrainConfig, unknown

GPT2_VOCABULARY = 50257
GPT2 = {"vocab_size": GPT2_VOCABULARY, "loss_chunk": 512}  # its logits are the largest tensor of a step by far


@dataclass(frozen=True)
class Preset:
    """A model, the recipe that trains it, and what its docstring promises."""

    model: ModelConfig
    train: TrainConfig
    doc: str


Maker = Callable[[], tuple[ModelConfig, TrainConfig]]
_MAKERS: dict[str, Maker] = {}


def register(name: str) -> Callable[[Maker], Maker]:
    def keep(make: Maker) -> Maker:
        _MAKERS[name] = make
        return make

    return keep


def names() -> list[str]:
    return list(_MAKERS)


def get(name: str) -> Preset:
    """The preset of that name. Raises ValueError naming those there are."""
    if name not in _MAKERS:
        raise unknown("preset", name, names())
    model, train = _MAKERS[name]()
    return Preset(model, train, _MAKERS[name].__doc__ or "")


def preset(name: str, **changes: Any) -> ModelConfig:
    """The model of a preset with some fields changed. Raises ValueError naming the presets there are."""
    return get(name).model.replace(**changes)


@register("tiny")
def tiny() -> tuple[ModelConfig, TrainConfig]:
    """A toy for tests: 43,904 parameters."""
    model = ModelConfig(512, d_model=32, num_heads=2, num_layers=2, d_ff=128, max_seq_len=64)
    return model, TrainConfig(200, learning_rate=3e-3, warmup_steps=20, eval_every=50)


@register("lesson")
def lesson() -> tuple[ModelConfig, TrainConfig]:
    """A language model for a laptop: 1,858,304 parameters with a vocabulary of 8,192.

    793,344 without embeddings; 12 MFLOP a token. On python-docs, 319k tokens 3.2 times: six minutes of one core, and
    then perplexity 248 a token, 2.19 bits a byte, on the validation split.
    """
    model = ModelConfig(8192, d_model=128, num_heads=4, num_layers=4, d_ff=512, max_seq_len=128)
    return model, TrainConfig(500, learning_rate=2e-3, warmup_steps=50, weight_decay=0.1, batch_tokens=2048)


@register("translator")
def translator() -> tuple[ModelConfig, TrainConfig]:
    """A translator for a laptop: 1,190,400 parameters with a vocabulary of 2,000.

    `lab demo` trains this shape, with a vocabulary of 1,000, on jupyterlab-fr in about two minutes on two cores, and
    prints its chrF2 on held-out sentences.
    """
    model = ModelConfig(2000, d_model=128, num_heads=4, num_layers=2, d_ff=512, max_seq_len=64)
    return model, TrainConfig(600, learning_rate=1e-3, warmup_steps=60, batch_tokens=2048, eval_every=60)


GPT2_RECIPE = TrainConfig(
    1800, learning_rate=6e-4, warmup_steps=90, weight_decay=0.1, beta2=0.95, batch_tokens=16384, eval_every=200,
    precision="bf16", compile=True,
)  # fmt: skip


@register("reported-16m")
def reported_16m() -> tuple[ModelConfig, TrainConfig]:
    """The review's configuration as it was: 15,040,256 parameters, d_ff twice d_model, no warmup, rate 3e-4.

    2,108,928 without embeddings; 93 MFLOP a token, forward and backward. The review reports perplexity 70 for it on
    WikiText-103; not run here. `lab train` prints the findings on its plan before the first step.
    """
    model = ModelConfig(**GPT2, d_model=256, num_heads=4, num_layers=4, d_ff=512, max_seq_len=256)
    return model, GPT2_RECIPE.replace(learning_rate=3e-4, warmup_steps=0)


@register("16m")
def repaired_16m() -> tuple[ModelConfig, TrainConfig]:
    """The same, repaired: 16,090,880 parameters, d_ff four times d_model, warmup, three times the rate.

    3,159,552 without embeddings; 99 MFLOP a token; 0.26 GB of weights, gradients and optimizer. On two cores without
    instructions for bf16 about 1,000 tokens/s in fp32, so 8 hours for the 29M tokens of its 1,800 steps: there give
    --precision fp32 --batch-tokens 2048 and fewer --steps. `lab experiment sizes` gave
    perplexity 345 a token after 5.0M tokens of wiki2015 (figures/data/sizes.csv).
    """
    model = ModelConfig(**GPT2, d_model=256, num_heads=4, num_layers=4, d_ff=1024, max_seq_len=256)
    return model, GPT2_RECIPE.replace(learning_rate=1e-3)


@register("50m")
def option_a() -> tuple[ModelConfig, TrainConfig]:
    """The review's Option A: 44,909,056 parameters.

    18,915,328 without embeddings; 287 MFLOP a token; 0.72 GB of weights, gradients and optimizer. For a GPU: two cores
    give 380 tokens/s in fp32. The review expects perplexity 50 to 60 on WikiText-103; `lab experiment
    sizes` gave perplexity 577 a token after 2.0M tokens of wiki2015 (figures/data/sizes.csv).
    """
    model = ModelConfig(**GPT2, d_model=512, num_heads=8, num_layers=6, d_ff=2048, max_seq_len=512)
    return model, GPT2_RECIPE


@register("117m")
def option_c() -> tuple[ModelConfig, TrainConfig]:
    """The review's Option C, GPT-2 small: 124,439,808 parameters, "117M" by the first GPT-2 count.

    85,056,000 without embeddings; 854 MFLOP a token; 2.0 GB of weights, gradients and optimizer. For a GPU: two
    cores give 132 tokens/s in fp32, and `lab experiment sizes` gave perplexity 983 a token after 0.7M tokens of
    wiki2015 (figures/data/sizes.csv). A public log of this size on WikiText-103 (BluebrainAI/gpt2-wikitext) has
    perplexity 67.9 a token after 0.84 epochs, 48.6 after 1.1 and 23.7 after 5.
    """
    model = ModelConfig(**GPT2, d_model=768, num_heads=12, num_layers=12, d_ff=3072, max_seq_len=1024)
    return model, GPT2_RECIPE
