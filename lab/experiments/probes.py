"""What some runs measure at each validation beside the loss: rows read alone, endings, and text that they generate."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..evaluation import mean_loss
from ..language_model import LanguageModel
from ..mode import evaluating
from .batches import Reading, windows

Probe = Callable[[LanguageModel, Reading], dict[str, float]]
SAMPLES, ROWS = 32, 256


def alone(model: LanguageModel, reading: Reading) -> dict[str, float]:
    """rows_loss: the loss of the validation rows, each read alone in windows of the context, every token once."""
    with evaluating(model):
        batches = windows(reading.rows, model.config.max_seq_len, model.config.eos_id)
        return {"rows_loss": mean_loss(model, batches).loss}


@torch.no_grad()
def endings(model: LanguageModel, reading: Reading) -> dict[str, float]:
    """How well the model knows where a row ends, and how long its own rows are.

    eos_at_end, eos_elsewhere: the mean probability of EOS where a validation row ends, and at its other positions.
    generated_tokens, ended: of 32 rows sampled at temperature 1 from an EOS, the mean length without EOS, where the
    context is the most it can be, and the share that ended by itself.
    """
    eos, context = model.config.eos_id, model.config.max_seq_len
    rows = [row for row in reading.rows if len(row) < context][:ROWS]
    at_end: list[Tensor] = []
    elsewhere: list[Tensor] = []
    with evaluating(model):
        for batch in windows(rows, context, eos):
            probability = model(batch["input_ids"].to(device(model))).logits.softmax(-1)[..., eos].cpu()
            at_end.append(probability[batch["labels"] == eos])
            elsewhere.append(probability[(batch["labels"] != eos) & (batch["labels"] >= 0)])
    start = torch.full((SAMPLES, 1), eos, device=device(model))
    generator = torch.Generator(device(model)).manual_seed(0)
    new = model.generate(start, context - 1, temperature=1.0, generator=generator)[:, 1:]
    ended = (new == eos).any(dim=1)
    lengths = torch.where(ended, (new == eos).int().argmax(dim=1), new.size(1))
    return {
        "eos_at_end": float(torch.cat(at_end).mean()),
        "eos_elsewhere": float(torch.cat(elsewhere).mean()),
        "generated_tokens": float(lengths.float().mean()),
        "ended": float(ended.float().mean()),
    }


@torch.no_grad()
def samples(model: LanguageModel, reading: Reading) -> dict[str, float]:
    """Generate a little, as many a training does to look on; awake: the share of modules in train mode after it."""
    model.generate(torch.full((1, 1), model.config.eos_id, device=device(model)), 8)
    modes = [module.training for module in model.modules()]
    return {"awake": sum(modes) / len(modes)}


def device(model: LanguageModel) -> torch.device:
    return next(model.parameters()).device


PROBES: dict[str, Probe] = {
    "alone": alone,
    "endings": lambda model, reading: alone(model, reading) | endings(model, reading),
    "samples": samples,
}
