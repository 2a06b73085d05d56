"""Faults in the weights: a part that is dead, a layer that differs from its siblings, heads that are copies."""

from __future__ import annotations

import math

import torch
from torch import nn

from ..blocks import Block
from ..config import ModelConfig
from .base import fault

LM = {"lesson": "08_diagnose_your_model", "on": "language model"}
START = {"of": "lab.language_model:initialise", **LM}
LAYERS = {"of": "lab.language_model:make_layers", "caught_by": "odd-one-out", **LM}


@fault("dead-output-projection", **START, caught_by="dead-weights")
def zeroes_a_projection(model: nn.Module, config: ModelConfig) -> None:
    """the last layer's attention is projected to zero: nothing that it finds reaches the residual stream"""
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or name == "blocks.1.self_attention.out_proj.weight":
            nn.init.zeros_(parameter)
        elif name.endswith(("out_proj.weight", "down.weight")):
            nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * config.num_layers))
        elif name.endswith("token.weight") and config.positions == "sinusoidal":
            nn.init.normal_(parameter, std=config.d_model**-0.5)
        elif parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.02)


@fault("gain-of-zero", **START, caught_by="dead-weights")
def zeroes_a_gain(model: nn.Module, config: ModelConfig) -> None:
    """the last layer's feed-forward norm has a gain of zero: its feed-forward layer sees nothing"""
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or name == "blocks.1.ff_norm.weight":
            nn.init.zeros_(parameter)
        elif name.endswith(("out_proj.weight", "down.weight")):
            nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * config.num_layers))
        elif name.endswith("token.weight") and config.positions == "sinusoidal":
            nn.init.normal_(parameter, std=config.d_model**-0.5)
        elif parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.02)


@fault("dead-head", **START, caught_by="dead-weights")
def zeroes_a_head(model: nn.Module, config: ModelConfig) -> None:
    """the last head of the last layer has queries, keys and values of zero"""
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif name.endswith(("out_proj.weight", "down.weight")):
            nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * config.num_layers))
        elif name.endswith("token.weight") and config.positions == "sinusoidal":
            nn.init.normal_(parameter, std=config.d_model**-0.5)
        elif parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.02)
        if name == "blocks.1.self_attention.in_proj.weight":
            with torch.no_grad():
                parameter.view(3, config.num_heads, -1, config.d_model)[:, -1] = 0


@fault("copied-heads", **START, caught_by="head-independence")
def copies_a_head(model: nn.Module, config: ModelConfig) -> None:
    """the heads of the last layer start as copies of one: they get the same gradients, and stay copies"""
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif name.endswith(("out_proj.weight", "down.weight")):
            nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * config.num_layers))
        elif name.endswith("token.weight") and config.positions == "sinusoidal":
            nn.init.normal_(parameter, std=config.d_model**-0.5)
        elif parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.02)
        if name == "blocks.1.self_attention.in_proj.weight":
            with torch.no_grad():
                heads = parameter.view(3, config.num_heads, -1, config.d_model)
                heads.copy_(heads[:, :1].clone().expand_as(heads))


@fault("one-layer-ten-times-as-large", **START, caught_by="odd-one-out")
def enlarges_a_layer(model: nn.Module, config: ModelConfig) -> None:
    """one matrix of one layer starts ten times as large as in the other layers"""
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif name.endswith(("out_proj.weight", "down.weight")):
            nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * config.num_layers))
        elif name.endswith("token.weight") and config.positions == "sinusoidal":
            nn.init.normal_(parameter, std=config.d_model**-0.5)
        elif parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.2 if name == "blocks.1.feed_forward.up.weight" else 0.02)


@fault("one-layers-epsilon", **LAYERS)
def another_epsilon(config: ModelConfig, cross: bool = False) -> nn.ModuleList:
    """one layer's norm was made anew, with an epsilon of its own"""
    layers = nn.ModuleList(Block(config, cross) for _ in range(config.num_layers))
    layers[-1].ff_norm = nn.LayerNorm(config.d_model, eps=1e-3)
    return layers


@fault("one-layers-dropout", **LAYERS)
def another_dropout(config: ModelConfig, cross: bool = False) -> nn.ModuleList:
    """one layer drops five times as much as the others"""
    layers = nn.ModuleList(Block(config, cross) for _ in range(config.num_layers))
    layers[-1].dropout = nn.Dropout(0.5)
    return layers


@fault("one-layers-activation", **LAYERS)
def another_activation(config: ModelConfig, cross: bool = False) -> nn.ModuleList:
    """one layer has another activation than the others"""
    layers = nn.ModuleList(Block(config, cross) for _ in range(config.num_layers))
    layers[-1].feed_forward.activation = "relu"
    return layers
