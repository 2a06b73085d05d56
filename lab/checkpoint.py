"""Checkpoints: weights, configs, optimizer, random states and position; whole or absent, and safe to load.

    RUN/checkpoints.json         {"last": "step-00000200", "best": "step-00000100"}
    RUN/step-00000200/
        checkpoint.json          configs, data, versions, progress; size and sha256 of each file
        model.safetensors        parameters and persistent buffers by name
        state.safetensors        optimizer and random states
        tokenizer.json           where there is one

A step's folder is written under a temporary name, flushed to the disk and renamed; then checkpoints.json is replaced.
Killed at any moment, it names whole checkpoints. Nothing that is read can execute: JSON and safetensors alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import random
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .config import ModelConfig, TrainConfig

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FORMAT = 1
INDEX, ABOUT, WEIGHTS, STATE, TOKENIZER = (
    "checkpoints.json",
    "checkpoint.json",
    "model.safetensors",
    "state.safetensors",
    "tokenizer.json",
)
Which = Literal["last", "best"]


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint on disk; `about` is its checkpoint.json."""

    folder: Path
    about: dict[str, Any]

    def weights(self) -> dict[str, Tensor]:
        """Raises ValueError naming the file where it is missing, cut short or damaged."""
        return self.tensors(WEIGHTS)

    def state(self) -> dict[str, Tensor]:
        """Optimizer and random states; raises as `weights` does."""
        return self.tensors(STATE)

    def tensors(self, name: str) -> dict[str, Tensor]:
        path = self.verified(name)
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is no safetensors file ({error}); take another checkpoint.") from error

    def verified(self, name: str) -> Path:
        """The path of a file that is what was written."""
        path, written = self.folder / name, self.about["files"].get(name)
        if written is None or not path.is_file():
            raise ValueError(f"{path} is missing; take another checkpoint.")
        if (size := path.stat().st_size) != written["bytes"]:
            raise ValueError(
                f"{path} has {size} bytes and was written with {written['bytes']}; take another checkpoint."
            )
        if digest(path) != written["sha256"]:
            raise ValueError(f"{path} is damaged: its sha256 is not the one it was written with; take another.")
        return path

    @property
    def train(self) -> TrainConfig:
        return TrainConfig(**self.about["train"])

    def build(self) -> nn.Module:
        """The model with its weights, from the checkpoint alone, in eval mode on the CPU."""
        from .language_model import LanguageModel
        from .transformer import Transformer

        kinds = {"LanguageModel": LanguageModel, "Transformer": Transformer}
        if self.about["kind"] not in kinds or self.about["model"] is None:
            raise ValueError(
                f"{self.folder} holds a {self.about['kind']}; from a checkpoint alone only {' or '.join(kinds)} can be "
                "built: build yours and call checkpoint.load_weights(model, weights)."
            )
        try:
            config = ModelConfig(**self.about["model"])
        except TypeError as error:
            raise ValueError(f"{self.folder / ABOUT} has a model config of another version ({error}).") from error
        model = kinds[self.about["kind"]](config)
        load_weights(model, self.weights(), str(self.folder / WEIGHTS))
        return model.eval()

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the model was trained with. Raises ValueError where the checkpoint holds none."""
        from tokenizers import Tokenizer

        if TOKENIZER not in self.about["files"]:
            raise ValueError(f"{self.folder} holds no tokenizer; encode and decode with the one you trained with.")
        tokenizer = Tokenizer.from_file(str(self.verified(TOKENIZER)))
        tokenizer.encode_special_tokens = True  # the library does not save it
        return tokenizer


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({error}); is it a checkpoint of this lab?") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, not an object; is it a checkpoint of this lab?")
    return value


def find(path: str | os.PathLike[str], which: Which = "last") -> Checkpoint:
    """The checkpoint in a run's folder, or the one whose own folder this is. Raises ValueError where there is none."""
    folder = Path(path)
    if (folder / INDEX).is_file():
        name = read_json(folder / INDEX).get(which)
        if not isinstance(name, str) or os.sep in name:
            raise ValueError(f"{folder / INDEX} names no {which!r} checkpoint; give the folder of a step.")
        folder = folder / name
    if not (folder / ABOUT).is_file():
        raise ValueError(f"there is no checkpoint in {folder}: no {INDEX} or {ABOUT}; give the --out of a training.")
    about = read_json(folder / ABOUT)
    if about.get("format") != FORMAT:
        raise ValueError(f"{folder / ABOUT} has format {about.get('format')!r}; this version reads {FORMAT}.")
    if missing := {"kind", "model", "train", "data", "progress", "files"} - set(about):
        raise ValueError(f"{folder / ABOUT} lacks {', '.join(sorted(missing))}; is it a checkpoint of this lab?")
    return Checkpoint(folder, about)


def describe(
    model: nn.Module, train: TrainConfig, data: Mapping[str, Any], progress: Mapping[str, Any]
) -> dict[str, Any]:
    """What checkpoint.json says, but for the files. A config that is no dataclass is left out."""
    config = getattr(model, "config", None)
    return {
        "format": FORMAT,
        "kind": type(model).__name__,
        "model": asdict(config) if is_dataclass(config) else None,
        "train": asdict(train),
        "data": dict(data),
        "progress": dict(progress),
        "versions": {"torch": torch.__version__, "python": platform.python_version(), "numpy": np.__version__},
    }


def save(
    run: Path,
    about: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    *,
    tokenizer: str | None = None,
    best: bool = False,
) -> Path:
    """Write a checkpoint and make it the run's last, and its best where asked; older ones that are neither go.

    about: from `describe`; its progress["step"] names the folder. Raises OSError where it cannot be written: what was
    there before is untouched.
    """
    run.mkdir(parents=True, exist_ok=True)
    index = read_json(run / INDEX) if (run / INDEX).is_file() else {}
    prune(run, index.values())
    name = f"step-{about['progress']['step']:08d}"
    if name not in index.values():
        part = run / f".{name}.part"
        try:
            part.mkdir()
            writers: dict[str, Callable[[Path], Any]] = {
                WEIGHTS: lambda path: save_file(dict(weights), path),
                STATE: lambda path: save_file(dict(state), path),
            }
            if tokenizer is not None:
                writers[TOKENIZER] = lambda path: path.write_text(tokenizer, encoding="utf-8")
            for file, write in writers.items():
                write(part / file)
            files = {file: {"bytes": (part / file).stat().st_size, "sha256": digest(part / file)} for file in writers}
            (part / ABOUT).write_text(json.dumps({**about, "files": files}, indent=2), encoding="utf-8")
            for file in (*writers, ABOUT):
                flush(part / file)
            flush(part)
            os.rename(part, run / name)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(part, ignore_errors=True)
            raise OSError(
                getattr(error, "errno", None),
                f"the checkpoint of step {about['progress']['step']} cannot be written ({error}); the one before it is "
                "whole. Make room, then go on from it with --resume",
                str(run),
            ) from error
    index = {"last": name, "best": name if best or "best" not in index else index["best"]}
    replace_text(run / INDEX, json.dumps(index))
    prune(run, index.values())
    return run / name


def prune(run: Path, kept: Iterable[str]) -> None:
    """Remove steps that are not kept, and what a killed process left half-written."""
    kept = set(kept)
    for pattern in ("step-*", ".step-*.part"):
        for folder in run.glob(pattern):
            if folder.name not in kept:
                shutil.rmtree(folder, ignore_errors=True)


def replace_text(path: Path, text: str) -> None:
    """Write the file whole or not at all, and have it on the disk on return."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    flush(part)
    os.replace(part, path)
    flush(path.parent)


def flush(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk: a rename may otherwise overtake what it names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# Parameters that share one tensor (a tied head) have one name here; sharded ones (DTensor) are made whole by all ranks.


def whole(value: Tensor) -> Tensor:
    value = value.full_tensor() if hasattr(value, "full_tensor") else value
    return value.detach().cpu().contiguous()


def named(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers, each tensor under its first name."""
    parameters = dict(model.named_parameters())
    every = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return parameters | {name: value for name, value in model.state_dict().items() if name not in every}


def get_weights(model: nn.Module) -> dict[str, Tensor]:
    """What `named` names, on the CPU; of a model there, its own memory."""
    return {name: whole(value) for name, value in named(model).items()}


def fill(target: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into its place, or this rank's shard of it."""
    if hasattr(target, "full_tensor"):
        from torch.distributed.tensor import distribute_tensor

        value = distribute_tensor(value.to(target.device), target.device_mesh, target.placements)
    target.copy_(value)


@torch.no_grad()
def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str = "the checkpoint") -> None:
    """Raises ValueError naming what is missing, left over or of another shape; then the model is unchanged."""
    own = named(model)
    missing, extra = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    if missing or extra:
        raise ValueError(f"{source} is of another model: it lacks {missing[:3]} and has {extra[:3]} beside it.")
    for name, value in own.items():
        if value.shape != weights[name].shape:
            shapes = f"{tuple(weights[name].shape)} there and {tuple(value.shape)} in the model"
            raise ValueError(f"{source} is of another model: {name} is {shapes}.")
    for name, value in own.items():
        fill(value, weights[name])


def get_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as "optimizer/<parameter>/<what>" -> tensor."""
    return {
        f"optimizer/{name}/{what}": whole(value)
        for name, parameter in model.named_parameters()
        for what, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
    """Raises ValueError where a trainable parameter has no state."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    loaded: dict[int, dict[str, Tensor]] = {}
    order = (parameter for group in optimizer.param_groups for parameter in group["params"])
    for number, parameter in enumerate(order):
        prefix = f"optimizer/{names[parameter]}/"
        found = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if not found:
            raise ValueError(f"the checkpoint has no optimizer state of {names[parameter]}; is it of another model?")
        for what, value in found.items():
            if value.shape == parameter.shape and hasattr(parameter, "full_tensor"):
                found[what] = torch.zeros_like(parameter)
                fill(found[what], value)
        loaded[number] = found
    optimizer.load_state_dict({"state": loaded, "param_groups": optimizer.state_dict()["param_groups"]})


def get_random(device: torch.device) -> dict[str, Tensor]:
    """The state of every generator of this process: torch's on the CPU and on the device, Python's and NumPy's."""
    name, keys, *rest = np.random.get_state()
    plain = {"python": random.getstate(), "numpy": [name, keys.tolist(), *rest]}
    states = {key: torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8) for key, value in plain.items()}
    states["torch"] = torch.get_rng_state()
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random(states: Mapping[str, Tensor], device: torch.device) -> None:
    version, internal, gauss = json.loads(bytes(states["python"].tolist()))
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = json.loads(bytes(states["numpy"].tolist()))
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
