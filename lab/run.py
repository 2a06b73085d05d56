"""What `lab train`, `eval` and `generate` do: data and preset to model, a training in a folder, and back to text."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn

from . import checkpoint, presets
from .config import ModelConfig, TrainConfig, unknown
from .data import PAD_ID, SPECIAL_IDS, Prepared, Translation, names, prepare, translation
from .data.cache import fingerprint
from .diagnosis import diagnose
from .evaluation import Evaluation
from .flops import measured_matmul_peak
from .language_model import LanguageModel
from .parallel import World, find_device, joined
from .preflight import check_first
from .report import Report
from .subject import Subject
from .trainer import PRECISIONS, Batch, History, fit, planned_rates
from .transformer import Transformer

Measure = Callable[[Evaluation], dict[str, float]]


@dataclass(frozen=True)
class Source:
    """What a training reads.

    about: what a checkpoint says of it; `hash` is that of the ids, `place` is how to open it again.
    shape: what it fixes of a model's config. loader(split, rows or tokens of a batch, context, seed) -> batches.
    lengths: tokens of each training document or pair. tokens: targets of the training split.
    """

    about: dict[str, Any]
    model: type[nn.Module]
    shape: dict[str, int | None]
    tokenizer: Tokenizer
    loader: Callable[[str, int, int, int], Iterable[Batch]]
    measure: Callable[[str], Measure]
    lengths: Callable[[], list[int]]
    tokens: int
    packed: bool


def open_source(place: str, data_dir: str | None = None, **how: Any) -> Source:
    """A prepared folder, or the name of a corpus, prepared on the way (how: as `data.prepare` takes it).

    Raises ValueError for what is neither, and what `Prepared.open`, `prepare` and `translation` raise.
    """
    if place in names("pairs"):
        return pair_source(place, data_dir, **how)
    if Path(place).is_dir():
        return text_source(Prepared.open(place), place)
    return text_source(prepare(place, data_dir=data_dir, **how), place)


def text_source(data: Prepared, place: str) -> Source:
    def loader(split: str, tokens: int, context: int, seed: int) -> Iterable[Batch]:
        if tokens < context:
            raise ValueError(f"batch_tokens is {tokens}, under one block of max_seq_len = {context}; give a multiple.")
        return data.loader(split, context, tokens // context, seed=seed)

    return Source(
        about={"place": str(data.folder), "name": place, "kind": "text", "hash": data.hash},
        model=LanguageModel,
        shape={"vocab_size": data.vocab_size, "pad_id": None, "bos_id": None, "eos_id": data.eos_id},
        tokenizer=data.tokenizer,
        loader=loader,
        measure=lambda split: units(data.counts(split)),
        lengths=lambda: document_lengths(data),
        tokens=data.counts("train")["tokens"],
        packed=True,
    )


def pair_source(name: str, data_dir: str | None = None, vocab_size: int = 2000) -> Source:
    data = translation(name, vocab_size=vocab_size, data_dir=data_dir)
    lengths = data.splits["train"]["length"]
    return Source(
        about={"place": name, "name": name, "kind": "pairs", "vocab_size": vocab_size, "hash": hash_of(data)},
        model=Transformer,
        shape={"vocab_size": data.tokenizer.get_vocab_size(), **SPECIAL_IDS},
        tokenizer=data.tokenizer,
        loader=lambda split, tokens, context, seed: data.loader(split, max_tokens=tokens, seed=seed),
        measure=lambda split: lambda result: {"perplexity": result.perplexity},
        lengths=lambda: list(lengths),
        tokens=sum(len(target) + 1 for target in data.splits["train"]["target"]),
        packed=False,
    )


def document_lengths(data: Prepared) -> list[int]:
    """Tokens of each training document, its EOS included."""
    return np.diff(np.flatnonzero(data.tokens("train") == data.eos_id), prepend=-1).tolist()


def hash_of(data: Translation) -> str:
    """Of the tokenizer and of all training pairs as ids."""
    train = data.splits["train"]
    return fingerprint(data.tokenizer.to_str(), *(json.dumps(list(train[side])) for side in ("source", "target")))


def units(counts: Mapping[str, int | None]) -> Measure:
    """Perplexity per token, per word where words are known, and bits per byte, of a split with these counts.

    The last two compare models with different tokenizers: nats per token x tokens / words, or / bytes.
    """

    def measure(result: Evaluation) -> dict[str, float]:
        values = {"perplexity": result.perplexity}
        if counts["words"]:
            values["word_perplexity"] = Evaluation(result.loss * counts["tokens"] / counts["words"], 1).perplexity
        values["bits_per_byte"] = result.loss * counts["tokens"] / (counts["bytes"] * math.log(2))
        return values

    return measure


def changed(configs: tuple[ModelConfig, TrainConfig], changes: Iterable[str]) -> tuple[ModelConfig, TrainConfig]:
    """Both configs with "field=value" changes. Raises ValueError for an unknown field or a value of another type."""
    model, train = configs
    fields = {field.name: config for config in configs for field in dataclasses.fields(config)}
    for change in changes:
        name, sign, text = change.partition("=")
        if not sign:
            raise ValueError(f"--set {change!r} is not of the form field=value, as in --set d_ff=1024.")
        if name not in fields:
            raise unknown("field", name, sorted(fields))
        value = parsed(text)
        here = getattr(fields[name], name)
        allowed = (
            (type(here), int) if isinstance(here, float) else (int, float, type(None)) if here is None else type(here)
        )
        if not isinstance(value, allowed) or isinstance(value, bool) != isinstance(here, bool):
            raise ValueError(f"--set {change!r}: {name} is {here!r} by default; {text!r} is of another type.")
        if fields[name] is configs[0]:
            model = model.replace(**{name: value})
        else:
            train = train.replace(**{name: value})
    return model, train


def parsed(text: str) -> Any:
    constants = {"true": True, "false": False, "none": None}
    if text.lower() in constants:
        return constants[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def plan_of(source: Source, config: TrainConfig) -> dict[str, Any]:
    """What is planned, as a Subject takes it."""
    return {
        "rates": planned_rates(config),
        "lengths": source.lengths(),
        "packed": source.packed,
        "train_tokens": source.tokens,
        "step_tokens": config.batch_tokens * config.accumulate,
    }


def advice(model: nn.Module, source: Source, config: TrainConfig) -> Report:
    """What the review's list says of this plan: feed-forward width, context, warmup, size and data."""
    from . import checks

    subject = Subject(model, **plan_of(source, config), name=f"this plan on {source.about['name']}")
    return diagnose(subject, only=checks.family("sizing"))


def train(
    place: str | None,
    out: Path,
    *,
    preset: str | None = None,
    changes: Iterable[str] = (),
    resume: bool = False,
    device: str = "cpu",
    parallel: str = "ddp",
    data_dir: str | None = None,
    tensorboard: Path | None = None,
    preflight: bool = False,
    progress: bool = True,
    on_step: Callable[[dict[str, Any]], Any] | None = None,
) -> History:
    """Train a preset on a source in the folder `out`, or go on with what is there.

    place, data_dir: as open_source takes them; a corpus gets a tokenizer of the preset's vocabulary. preset: by default
    "lesson" for text and "translator" for pairs. The kind of model follows the source. preflight: put every check to
    the model and the first batch before the first step.
    Raises ValueError naming what does not fit, preflight.Stopped, and what `fit` raises.
    """
    with joined(device, parallel) as world:
        if resume:
            found = checkpoint.find(out)
            kept = found.about["data"]
            how = {"vocab_size": kept["vocab_size"]} if "vocab_size" in kept else {}
            source = open_source(place or kept["place"], data_dir, **how)
            if source.about["hash"] != kept["hash"]:
                raise ValueError(
                    f"{source.about['place']} is not the data that {out} was trained on; give that with --data."
                )
            model_config, config = found.parsed("model", ModelConfig), found.train
            model_config, config = changed((model_config, config), changes)
        elif place is None:
            raise ValueError("there is nothing to train on: give --data, a prepared folder or the name of a corpus.")
        else:
            chosen = presets.get(preset or ("translator" if place in names("pairs") else "lesson"))
            vocabulary = chosen.model.vocab_size
            how = {"tokenizer": "gpt2"} if vocabulary == presets.GPT2_VOCABULARY else {"vocab_size": vocabulary}
            source = open_source(place, data_dir, **how)
            kept = source.about
            model_config, config = changed((chosen.model.replace(**source.shape), chosen.train), changes)
        if wrong := [name for name, value in source.shape.items() if getattr(model_config, name) != value]:
            raise ValueError(
                f"{wrong[0]} is {getattr(model_config, wrong[0])}, and the data's is {source.shape[wrong[0]]}: that "
                "comes with the tokenizer; prepare the data with another one."
            )
        torch.manual_seed(config.seed)
        model = source.model(model_config).to(world.device)
        if world.chief:
            announce(model, source, config, world, advise=not preflight)  # which says it too
        if preflight:
            # A loader of its own: the training's begins where it would without.
            first = next(iter(source.loader("train", config.batch_tokens, model_config.max_seq_len, config.seed)))
            check_first(model, first, plan_of(source, config), world)
        loaders = [
            source.loader(split, config.batch_tokens, model_config.max_seq_len, config.seed)
            for split in ("train", "validation")
        ]
        return fit(
            model,
            loaders[0],
            config,
            validation=loaders[1],
            out=out,
            resume=resume,
            data=kept,
            tokenizer=source.tokenizer.to_str(),
            measure=source.measure("validation"),
            world=world,
            progress=progress,
            tensorboard=tensorboard,
            on_step=on_step,
        )


def announce(model: nn.Module, source: Source, config: TrainConfig, world: World, advise: bool = True) -> None:
    """What is about to be trained, and the findings on the plan."""
    parameters = sum(p.numel() for p in model.parameters())
    body = parameters - sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Embedding))
    seen = config.steps * config.batch_tokens * config.accumulate
    print(
        f"{type(model).__name__}, {parameters:,} parameters ({body:,} without embeddings), on {source.about['name']}: "
        f"{source.tokens:,} tokens, {seen / source.tokens:.1f} epochs in {config.steps:,} steps, {world.size} x "
        f"{world.device.type}, {config.precision}{', compiled' if config.compile else ''}.",
        file=sys.stderr,
    )
    if slower := slow_precision(config.precision, world.device):
        print(slower, file=sys.stderr)
    if advise and (found := advice(model, source, config).brief()):
        print(found, file=sys.stderr)


def slow_precision(precision: str, device: torch.device) -> str:
    """What to change where this device multiplies matrices faster in float32 than in the precision asked for."""
    if precision == "fp32":
        return ""
    asked, full = (measured_matmul_peak(device, PRECISIONS[name], seconds=0.2) for name in (precision, "fp32"))
    if asked >= full:
        return ""
    return (
        f"{precision} is slow here: its matmuls run {full / asked:.1f} times slower than fp32's; try --precision fp32."
    )


def evaluate(
    path: Path, *, place: str | None, split: str, which: checkpoint.Which, device: str, data_dir: str | None = None
) -> dict[str, Any]:
    """The units of a checkpoint on one split of its own data, or of another source with the same tokenizer."""
    where = find_device(device)
    found = checkpoint.find(path, which)
    kept = found.about["data"]
    how = {"vocab_size": kept["vocab_size"]} if "vocab_size" in kept else {}
    source = open_source(place or kept["place"], data_dir, **how)
    if source.tokenizer.to_str() != found.tokenizer().to_str():
        raise ValueError(
            f"{source.about['place']} was tokenised otherwise than the data of {found.folder}: its ids mean other "
            f"text. Prepare it again with --tokenizer {found.folder / checkpoint.TOKENIZER}."
        )
    model = found.build().to(where)
    loader = source.loader(split, max(found.train.batch_tokens, model.config.max_seq_len), model.config.max_seq_len, 0)
    result = model.evaluate(loader)
    return {
        "checkpoint": str(found.folder),
        "step": found.about["progress"]["step"],
        "split": split,
        "loss": result.loss,
        "tokens": result.tokens,
        **source.measure(split)(result),
    }


def generate(
    path: Path, prompt: str, *, which: checkpoint.Which, device: str, max_new_tokens: int | None, seed: int, **how: Any
) -> Iterator[str]:
    """The continuation, or the translation, of a text, piece by piece as it is decided; from the checkpoint alone."""
    where = find_device(device)
    found = checkpoint.find(path, which)
    tokenizer, model = found.tokenizer(), found.build().to(where)
    eos_id, ids = model.config.eos_id, tokenizer.encode(prompt, add_special_tokens=False).ids
    # A language model has seen EOS before each document, a Transformer after each source.
    ids = [*ids, eos_id] if isinstance(model, Transformer) else [eos_id, *ids]
    generator = torch.Generator(where).manual_seed(seed)
    new: list[int] = []
    said = ""
    for token in model.stream(torch.tensor([ids], device=where), max_new_tokens, generator=generator, **how):
        if int(token) in (eos_id, PAD_ID if isinstance(model, Transformer) else None):
            return
        new.append(int(token))
        text = tokenizer.decode(new)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):  # else in the middle of a character
            yield text[len(said) :]
            said = text
