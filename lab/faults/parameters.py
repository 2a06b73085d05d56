"""Faults in parameters: not registered, cut from the loss, not in the optimizer, one where there should be two."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import masks
from ..blocks import Block, ModelOutput
from ..checkpoint import named
from ..config import ModelConfig, TrainConfig
from ..loss import head_and_loss
from .base import fault

LESSON = "06_why_perplexity_70"
FORWARD = {"of": "lab.blocks:FeedForward.forward", "caught_by": "no-gradient", "lesson": LESSON}
OPTIMIZER = {"of": "lab.trainer:make_optimizer", "caught_by": "optimizer-coverage", "lesson": LESSON}


@fault(
    "list-of-layers",
    of="lab.language_model:make_layers",
    caught_by="unregistered-parameters",
    lesson=LESSON,
    on="language model",
    also={
        "random-in-eval": "eval() does not reach the layers in the list, so their dropout stays on",
        "too-small-for-the-data": "the parameters that are registered are few",
    },
)
def makes_a_list(config: ModelConfig, cross: bool = False) -> nn.ModuleList:
    """the blocks are kept in a Python list: no parameters(), no state_dict() and no eval() reaches them"""
    return [Block(config, cross) for _ in range(config.num_layers)]


@fault(
    "layers-multiplied",
    of="lab.language_model:make_layers",
    caught_by="shared-layers",
    lesson=LESSON,
    on="language model",
)
def multiplies_one(config: ModelConfig, cross: bool = False) -> nn.ModuleList:
    """[Block(config)] * N is N times one block"""
    return nn.ModuleList([Block(config, cross)] * config.num_layers)


TIE = {"of": "lab.language_model:tie", "caught_by": "tied-weights", "lesson": LESSON, "on": "language model"}


@fault("head-not-tied", **TIE)
def reads_another_setting(head: nn.Linear, table: nn.Embedding, config: ModelConfig) -> None:
    """the config asks for a tied head by a name that the model does not read"""
    if getattr(config, "tie_word_embeddings", False):
        head.weight = table.weight


@fault("head-tied-by-value", **TIE, half_repair=True)
def ties_values(head: nn.Linear, table: nn.Embedding, config: ModelConfig) -> None:
    """the head is given the embedding's values, and not the embedding's parameter: one step, and they differ"""
    if config.tie_head:
        head.weight.data.copy_(table.weight.data)


@fault(
    "untied-by-loading",
    of="lab.checkpoint:load_weights",
    caught_by="tied-weights",
    lesson=LESSON,
    on="language model",
    also={"checkpoint-has-config": "the head keeps what it was made with"},
)
@torch.no_grad()
def assigns(model: nn.Module, weights: Mapping[str, Tensor], source: str = "the checkpoint") -> None:
    """loading puts new parameters in the old ones' place, as assign=True does: what was tied to an old one stays"""
    own = named(model)
    missing, extra = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    if missing or extra:
        lacks = f"lacks {', '.join(missing[:3]) or 'nothing'} ({len(missing)} in all)"
        more = f"has {', '.join(extra[:3]) or 'nothing'} ({len(extra)}) that the model has not"
        raise ValueError(f"{source} is of another model: it {lacks} and {more}.")
    for name, value in own.items():
        if value.shape != weights[name].shape:
            shapes = f"{tuple(weights[name].shape)} there and {tuple(value.shape)} in the model"
            raise ValueError(f"{source} is of another model: {name} is {shapes}.")
    for name in own:
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, nn.Parameter(weights[name]))


@fault("detached-hidden", **FORWARD)
def detaches(self, x: Tensor) -> Tensor:
    """a detach(), once put there to save memory, cuts the first matrix of each feed-forward layer from the loss"""
    x = self.up(x).detach()
    return self.down(F.gelu(x, approximate="tanh") if self.activation == "gelu" else F.relu(x))


@fault("weight-by-data", **FORWARD)
def reads_data(self, x: Tensor) -> Tensor:
    """the weight is read as .data, which has no gradient: the bias beside it learns, the matrix does not"""
    x = F.linear(x, self.up.weight.data, self.up.bias)
    return self.down(F.gelu(x, approximate="tanh") if self.activation == "gelu" else F.relu(x))


@fault(
    "encoder-without-gradients",
    of="lab.transformer:Transformer.forward",
    caught_by="no-gradient",
    lesson=LESSON,
)
def encodes_without_gradients(
    self, input_ids: Tensor, decoder_input_ids: Tensor, labels: Tensor | None = None, *, need_weights: bool = False
) -> ModelOutput:
    """the encoder runs under torch.no_grad(), as in generate(): only the decoder learns"""
    if len(input_ids) != len(decoder_input_ids):
        raise ValueError(
            f"input_ids has {len(input_ids)} rows and decoder_input_ids {len(decoder_input_ids)}; "
            f"each source needs its target."
        )
    attentions = {"encoder": [], "decoder": [], "cross": []} if need_weights else None
    with torch.no_grad():
        memory = self.encode(input_ids, attentions)
    hidden = self.decode(decoder_input_ids, memory, masks.key_is_real(input_ids, self.config.pad_id), attentions)
    logits, loss = head_and_loss(self.head, hidden, labels, self.config, self.training)
    return ModelOutput(logits, loss, attentions or {})


UNMOVED = {"step-changes-parameters": "what the optimizer does not hold is not moved"}


@fault("optimizer-without-norms", **OPTIMIZER, also=UNMOVED)
def matrices_alone(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """gains and biases are to be spared the weight decay, and are left out of the optimizer"""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": config.weight_decay},
    ]
    fused = all(p.device.type in ("cpu", "cuda") for p in trained)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, config.beta2), fused=fused)


@fault(
    "optimizer-of-a-copy",
    **OPTIMIZER,
    also=UNMOVED | {"zero-grad": "its zero_grad() reaches the copy's gradients alone"},
)
def of_a_copy(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """the optimizer is made of a copy of the model, put aside as the one to compare with"""
    trained = [p for p in copy.deepcopy(model).parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    fused = all(p.device.type in ("cpu", "cuda") for p in trained)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, config.beta2), fused=fused)


@fault(
    "optimizer-before-the-head",
    **OPTIMIZER,
    also=UNMOVED
    | {
        "tied-weights": "the new head is not tied",
        "checkpoint-has-config": "its config says that the head is tied, and the weights hold one of its own",
    },
)
def before_the_head(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """the head is replaced after the optimizer was made, which goes on with the parameters of the old one"""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    fused = all(p.device.type in ("cpu", "cuda") for p in trained)
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, config.beta2), fused=fused)
    model.head = nn.Linear(model.head.in_features, model.head.out_features, bias=False)
    return optimizer
