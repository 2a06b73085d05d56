"""What `lab bench` measures: our language model, Hugging Face's GPT-2 and nanoGPT, from the same weights."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .config import ModelConfig, TrainConfig, unknown
from .language_model import LanguageModel
from .parallel import moved
from .trainer import PRECISIONS, make_optimizer

CHUNK = 256  # positions of a chunk of head and loss
OURS = ("lab", "lab, chunked loss")
NAMES = (*OURS, "transformers", "nanoGPT")


@dataclass
class Contender:
    """model: what is trained; loss(model, input_ids, labels) -> (); code: what it is, and of which version."""

    name: str
    model: nn.Module
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor]
    optimizer: torch.optim.Optimizer
    code: str


def ours(config: ModelConfig, chunk: int | None) -> Contender:
    torch.manual_seed(0)
    model = LanguageModel(config.replace(dropout=0.0, loss_chunk=chunk))
    name = OURS[chunk is not None]
    optimizer = make_optimizer(model, TrainConfig(1, learning_rate=3e-4))
    return Contender(
        name, model, lambda model, x, y: model(input_ids=x, labels=y).loss, optimizer, "lab.LanguageModel; AdamW fused"
    )


def transformers_gpt2(config: ModelConfig) -> Contender:
    """Hugging Face's GPT-2 with our weights. Raises ImportError where the package is not there."""
    import transformers

    names = {"vocab_size": "vocab_size", "n_embd": "d_model", "n_head": "num_heads", "n_layer": "num_layers"}
    names |= {"n_inner": "d_ff", "n_positions": "max_seq_len"}
    size = {theirs: getattr(config, mine) for theirs, mine in names.items()}
    special = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    quiet = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**size, **special, **quiet, activation_function="gelu_new", attn_implementation="sdpa")
    )
    body = model.transformer
    copy_weights(ours(config, None).model, body, body.wte, body.wpe, transposed=True)
    optimizer = make_optimizer(model, TrainConfig(1, learning_rate=3e-4))
    # Its labels are the inputs, which it shifts itself; shift_labels are already one ahead, as ours.
    code = f"transformers {transformers.__version__}, GPT2LMHeadModel, sdpa; AdamW fused"
    return Contender(
        "transformers",
        model,
        lambda model, x, y: model(input_ids=x, labels=y, shift_labels=y, use_cache=False).loss,
        optimizer,
        code,
    )


def nanogpt(config: ModelConfig, checkout: Path) -> Contender:
    """nanoGPT with our weights. Raises ValueError for what is no checkout of it."""
    path = checkout / "model.py"
    if not path.is_file() or "class GPTConfig" not in path.read_text(encoding="utf-8"):
        raise ValueError(f"{checkout} is no checkout of nanoGPT: model.py with GPTConfig is not there.")
    spec = importlib.util.spec_from_file_location("nanogpt_model", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    if config.d_ff != 4 * config.d_model:
        raise ValueError(f"nanoGPT has d_ff = 4 x d_model; the preset's is {config.d_ff}, not {4 * config.d_model}.")
    shape = {"block_size": config.max_seq_len, "vocab_size": config.vocab_size, "n_layer": config.num_layers}
    with contextlib.redirect_stdout(io.StringIO()):
        model = module.GPT(module.GPTConfig(**shape, n_head=config.num_heads, n_embd=config.d_model, dropout=0.0))
        body = model.transformer
        copy_weights(ours(config, None).model, body, body.wte, body.wpe, transposed=False)
    commit = subprocess.run(["git", "-C", checkout, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    code = f"nanoGPT {commit.stdout.strip() or 'of unknown version'}, model.GPT; AdamW fused"
    optimizer = make_optimizer(model, TrainConfig(1, learning_rate=3e-4))
    return Contender("nanoGPT", model, lambda model, x, y: model(x, y)[1], optimizer, code)


@torch.no_grad()
def copy_weights(
    source: LanguageModel, body: nn.Module, token: nn.Module, position: nn.Module, transposed: bool
) -> None:
    """Ours into a GPT-2 by another hand; `transposed` where its matrices are (in, out)."""
    token.weight.copy_(source.embedder.token.weight)
    position.weight.copy_(source.embedder.position.weight)
    body.ln_f.load_state_dict(source.norm.state_dict())
    for block, layer in zip(source.blocks, body.h, strict=True):
        layer.ln_1.load_state_dict(block.self_norm.state_dict())
        layer.ln_2.load_state_dict(block.ff_norm.state_dict())
        for mine, theirs in (
            (block.self_attention.in_proj, layer.attn.c_attn),
            (block.self_attention.out_proj, layer.attn.c_proj),
            (block.feed_forward.up, layer.mlp.c_fc),
            (block.feed_forward.down, layer.mlp.c_proj),
        ):
            theirs.weight.copy_(mine.weight.T if transposed else mine.weight)
            theirs.bias.copy_(mine.bias)


def make(name: str, config: ModelConfig, checkout: Path | None, device: str) -> Contender:
    if name in OURS:
        made = ours(config, None if name == "lab" else CHUNK)
    elif name == "transformers":
        made = transformers_gpt2(config)
    elif name == "nanoGPT" and checkout is not None:
        made = nanogpt(config, checkout)
    else:
        raise unknown("contender", name, list(NAMES))
    made.model.to(device).train()
    return made


def stepper(contender: Contender, compiled: bool, precision: str, batch: dict[str, Tensor]) -> Callable[[], Tensor]:
    """One training step: forward, backward, clipped, AdamW. Returns its loss.

    What is compiled returns the loss alone. A compiled model that returned logits too would be given a gradient for
    them, zeros of their size: 412 MB at 16m, and a seventh of the step.
    """

    def loss_of(input_ids: Tensor, labels: Tensor) -> Tensor:
        return contender.loss(contender.model, input_ids, labels)

    forward = torch.compile(loss_of) if compiled else loss_of
    device = batch["input_ids"].device

    def step() -> Tensor:
        with torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "fp32"):
            loss = forward(batch["input_ids"], batch["labels"])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(contender.model.parameters(), 1.0)
        contender.optimizer.step()
        contender.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def make_batch(config: ModelConfig, tokens: int, device: str) -> dict[str, Tensor]:
    rows = max(1, tokens // config.max_seq_len)
    ids = torch.randint(config.vocab_size, (rows, config.max_seq_len + 1), generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": ids[:, :-1].contiguous(), "labels": ids[:, 1:].contiguous()}
    return moved(batch, torch.device(device))
