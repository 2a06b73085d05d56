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
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .config import ModelConfig, TrainConfig

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FORMAT = 1
INDEX, ABOUT = "checkpoints.json", "checkpoint.json"
WEIGHTS, STATE, TOKENIZER = "model.safetensors", "state.safetensors", "tokenizer.json"
STEP = re.compile(r"step-\d{8,}")
FIELDS = {"kind": str, "model": dict | None, "train": dict, "data": dict, "progress": dict, "files": dict}
Which = Literal["last", "best"]
Kind = TypeVar("Kind")


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
        if not isinstance(written, dict) or not path.is_file():
            raise ValueError(f"{path} is missing; take another checkpoint.")
        if (size := path.stat().st_size) != (whole := written.get("bytes")):
            raise ValueError(f"{path} has {size} bytes and was written with {whole}; take another checkpoint.")
        if digest(path) != written.get("sha256"):
            raise ValueError(f"{path} is damaged: its sha256 is not the one it was written with; take another.")
        return path

    def parsed(self, name: str, kind: type[Kind]) -> Kind:
        """What checkpoint.json says under that name. Raises ValueError where another version wrote it."""
        try:
            return kind(**self.about[name])
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.folder / ABOUT}: this version cannot read its {name!r} ({error}).") from error

    @property
    def train(self) -> TrainConfig:
        return self.parsed("train", TrainConfig)

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
        model = kinds[self.about["kind"]](self.parsed("model", ModelConfig))
        load_weights(model, self.weights(), str(self.folder / WEIGHTS))
        return model.eval()

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the model was trained with. Raises ValueError where the checkpoint holds none."""
        from .data.tokenizer import load_tokenizer

        if TOKENIZER not in self.about["files"]:
            raise ValueError(f"{self.folder} holds no tokenizer; encode and decode with the one you trained with.")
        tokenizer = load_tokenizer(self.verified(TOKENIZER))
        ids, rows = tokenizer.get_vocab_size(), (self.about["model"] or {}).get("vocab_size")
        if rows is not None and ids > rows:
            raise ValueError(
                f"{self.folder / TOKENIZER} has {ids} ids and the model {rows} rows; take the tokenizer it was "
                "trained with."
            )
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
        if not isinstance(name, str) or not STEP.fullmatch(name):
            raise ValueError(f"{folder / INDEX} names no {which!r} checkpoint; give the folder of a step.")
        folder = folder / name
    if not (folder / ABOUT).is_file():
        raise ValueError(f"there is no checkpoint in {folder}: no {INDEX} or {ABOUT}; give a run that has saved one.")
    about = read_json(folder / ABOUT)
    if about.get("format") != FORMAT:
        raise ValueError(f"{folder / ABOUT} has format {about.get('format')!r}; this version reads {FORMAT}.")
    if wrong := [name for name, kind in FIELDS.items() if not isinstance(about.get(name, ...), kind)]:
        raise ValueError(f"{folder / ABOUT} lacks a proper {', '.join(wrong)}; is it a checkpoint of this lab?")
    return Checkpoint(folder, about)


def describe(model: nn.Module, train: TrainConfig, data: Mapping[str, Any]) -> dict[str, Any]:
    """What checkpoint.json says of a run. A model's config that is no dataclass is left out."""
    config = getattr(model, "config", None)
    about = {
        "format": FORMAT,
        "kind": type(model).__name__,
        "model": asdict(config) if is_dataclass(config) else None,
        "train": asdict(train),
        "data": dict(data),
        "versions": {"torch": torch.__version__, "python": platform.python_version(), "numpy": np.__version__},
    }
    return json.loads(json.dumps(about, default=str))  # as it will be read


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

    about: `describe` and "progress", whose step names the folder. Raises OSError where it cannot be written: what was
    there before is untouched.
    """
    step = about["progress"]["step"]
    name = f"step-{step:08d}"
    part = run / f".{name}.part"
    writers: dict[str, Callable[[Path], Any]] = {
        WEIGHTS: lambda path: save_file(dict(weights), path),
        STATE: lambda path: save_file(dict(state), path),
    }
    if tokenizer is not None:
        writers[TOKENIZER] = lambda path: path.write_text(tokenizer, encoding="utf-8")
    try:
        run.mkdir(parents=True, exist_ok=True)
        index = prune(run)
        part.mkdir()
        for file, write in writers.items():
            write(part / file)
        files = {file: {"bytes": (part / file).stat().st_size, "sha256": digest(part / file)} for file in writers}
        (part / ABOUT).write_text(json.dumps({**about, "files": files}, indent=2), encoding="utf-8")
        for file in (*writers, ABOUT):
            flush(part / file)
        flush(part)
        os.rename(part, run / name)
        flush(run)
        index = {"last": name, "best": name if best or "best" not in index else index["best"]}
        replace_text(run / INDEX, json.dumps(index))
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise OSError(
            f"the checkpoint of step {step} cannot be written in {run} ({error}). What was saved before is whole: make "
            "room, or give the right to write, and go on from it with --resume."
        ) from error
    prune(run)
    return run / name


def prune(run: Path) -> dict[str, Any]:
    """Remove steps that are not in checkpoints.json, which is returned, and what a killed process left half-written."""
    index = read_json(run / INDEX) if (run / INDEX).is_file() else {}
    for folder in run.iterdir():
        name = folder.name.removeprefix(".").removesuffix(".part")
        if STEP.fullmatch(name) and folder.name not in index.values():
            shutil.rmtree(folder, ignore_errors=True)
    return index


def replace_text(path: Path, text: str) -> None:
    """Write the file whole or not at all, and have it on the disk on return."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    flush(part)
    os.replace(part, path)
    flush(path.parent)


def flush(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk: a rename may otherwise overtake what it names."""
    if os.name == "nt":  # which has no such call for a folder, nor for a file that is open to read
        return
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
    weights, seen = {}, set()
    for name, value in named(model).items():
        value = whole(value)
        place = value.untyped_storage().data_ptr()
        weights[name] = value.clone() if place in seen else value  # safetensors refuses views of one memory
        seen.add(place)
    return weights


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
        lacks = f"lacks {', '.join(missing[:3]) or 'nothing'} ({len(missing)} in all)"
        more = f"has {', '.join(extra[:3]) or 'nothing'} ({len(extra)}) that the model has not"
        raise ValueError(f"{source} is of another model: it {lacks} and {more}.")
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
    """A parameter that never had a gradient has no state. Raises ValueError where one that is not trained has some."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    found: dict[str, dict[str, Tensor]] = {}
    for key in (key for key in state if key.startswith("optimizer/")):
        name, _, what = key.removeprefix("optimizer/").rpartition("/")
        found.setdefault(name, {})[what] = state[key]
    loaded: dict[int, dict[str, Tensor]] = {}
    order = (parameter for group in optimizer.param_groups for parameter in group["params"])
    for number, parameter in enumerate(order):
        if kept := found.pop(names[parameter], None):
            for what, value in kept.items():
                if value.shape == parameter.shape and hasattr(parameter, "full_tensor"):
                    kept[what] = torch.zeros_like(parameter)
                    fill(kept[what], value)
            loaded[number] = kept
    if found:
        raise ValueError(f"the checkpoint trained {', '.join(list(found)[:3])}, frozen here; freeze what was frozen.")
    optimizer.load_state_dict({"state": loaded, "param_groups": optimizer.state_dict()["param_groups"]})
