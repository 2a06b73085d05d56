"""Checks on a checkpoint: a model can be made of it alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn

from ..calling import Missing
from ..probe import Probe
from ..report import Finding, Where
from .base import check
from .randomness import distance, seed_all

# What a checkpoint calls the settings of its model, and the files that hold them beside it.
KEYS = ("config", "cfg", "args", "hparams", "hyper_parameters", "hyperparameters", "model_args", "settings", "options")
FILES = ("config", "params", "args", "hparams", "hyper_parameters", "checkpoint", "settings", "options", "model_args")


@check(
    "checkpoint-has-config",
    severity="P3",
    family="loop",
    lesson="06_why_perplexity_70",
    silent="it loads today, by the script that made it; next year nobody knows the number of heads",
    repair="save the model's config beside its weights, and build the model from that",
    after=("random-in-eval", "unregistered-parameters"),
)
def checkpoint_has_config(probe: Probe) -> Iterator[Finding]:
    """From the checkpoint alone the model can be rebuilt, and gives the logits of the one that was saved.

    The number of heads cannot be read off the weights, nor can the dropout rate, the padding id or the norm's epsilon.
    Without load=, the file and its neighbours are searched for a config.
    """
    subject = probe.subject
    if subject.checkpoint is None:
        raise Missing("needs checkpoint=, a file or folder, and load=lambda path: model")
    if subject.load is None:
        path = Path(subject.checkpoint)
        if not holds_config(path):
            yield probe.finding(
                f"{path.name} holds weights and no config: no model can be built from it alone",
                evidence={"files": len(neighbours(path))},
            )
        return
    where = Where.of(subject.load)
    try:
        probe.at_risk()  # by a load that fills the model in use
        seed_all(123)  # what the checkpoint does not fill shall not be by chance what it was
        loaded = subject.load(subject.checkpoint)
    except Exception as error:
        yield probe.finding(
            f"no model can be rebuilt from the checkpoint alone: {type(error).__name__}: {shorten(str(error), 200)}",
            where=where,
        )
        return
    if not isinstance(loaded, nn.Module):
        raise Missing(f"load gives a {type(loaded).__name__}; it must give the model")
    if loaded is subject.model:
        raise Missing("load gives the model in use itself; it must build another")
    if subject.batch is None:
        raise Missing("needs a batch, to compare logits: give batch=")
    batch = probe.whole()
    model = probe.precise(batch)[0]
    dtype = next(model.parameters()).dtype
    try:
        expected = probe.logits(model, batch)
        logits = probe.logits(loaded.cpu().eval().to(dtype), batch)
    except Missing:
        raise
    except Exception as error:
        yield probe.finding(
            f"the model rebuilt from the checkpoint fails: {shorten(f'{type(error).__name__}: {error}', 150)}",
            where=where,
        )
        return
    apart, scale = distance(logits, expected), float(expected.nan_to_num().abs().max())
    if apart > 1e-3 * scale:
        same = same_weights(loaded, model)
        yield probe.finding(
            "the model rebuilt from the checkpoint gives other logits"
            + (", with the same weights: it is built with other settings" if same else ": its weights are others"),
            evidence={"largest difference": apart, "largest logit": scale},
            where=where,
        )


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = dict(a.named_parameters()), dict(b.named_parameters())
    return ours.keys() == theirs.keys() and all(
        ours[name].shape == theirs[name].shape and torch.allclose(ours[name].double(), theirs[name].double(), atol=1e-6)
        for name in ours
    )


def neighbours(path: Path) -> list[Path]:
    """The files of a checkpoint's folder, or those beside its file."""
    folder = path if path.is_dir() else path.parent
    try:
        return [file for file in folder.iterdir() if file.is_file()]
    except OSError as error:
        raise Missing(f"the checkpoint cannot be read ({error})") from error


def holds_config(path: Path) -> bool:
    """Whether a file beside the weights, or an entry among them, is a config; raises Missing where that is unclear."""
    for file in neighbours(path):
        readable = file.suffix in (".json", ".yaml", ".yml", ".toml")
        if readable and any(name in file.stem.lower() for name in FILES) and file.stat().st_size > 2:
            return True
    if path.is_dir():
        weights = [file for file in neighbours(path) if file.suffix in (".pt", ".pth", ".bin", ".ckpt")]
        return any(names_config(file) for file in weights)
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            return any(key in KEYS for key in file.metadata() or {})
    return names_config(path)


def names_config(path: Path) -> bool:
    """Whether a file that torch saved has an entry like a config, or none that is not a tensor."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise Missing(
            f"{path.name} cannot be read safely ({type(error).__name__}): give load=lambda path: model"
        ) from error
    return named(found)


def named(found: Any) -> bool:
    if not isinstance(found, Mapping):
        return False
    for key, value in found.items():
        if isinstance(key, str) and any(word in key.lower() for word in KEYS) and not isinstance(value, Tensor):
            return True
    return any(named(value) for value in found.values() if isinstance(value, Mapping))
