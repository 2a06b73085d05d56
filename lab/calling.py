"""How somebody else's model is called: its logits, its loss, greedy generation, and decoding through its cache."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Missing(Exception):  # noqa: N818 - it is a reason to skip, not an error
    """The subject lacks what a check needs; the message says which keyword to give."""


def parameters_of(model: nn.Module) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(model.forward).parameters


def call(model: nn.Module, batch: Any) -> Any:
    """The model's own output on a batch; what its forward does not take is left out. Raises Missing without a batch."""
    if batch is None:
        raise Missing("needs a batch: give batch=")
    parameters = parameters_of(model)
    if not isinstance(batch, Mapping):
        # (inputs, targets) are often fed to a model that takes the inputs alone.
        many = any(p.kind is p.VAR_POSITIONAL for p in parameters.values())
        return model(*batch if many else batch[: len(parameters)])
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        batch = {key: value for key, value in batch.items() if key in parameters}
    return model(**batch)


def items_of(output: Any) -> list[Any]:
    if isinstance(output, Mapping):
        return list(output.values())
    if isinstance(output, tuple | list):
        return list(output)
    return list(vars(output).values()) if hasattr(output, "__dataclass_fields__") else [output]


def find_logits(output: Any) -> Tensor | None:
    """The tensor called `logits`, else the first floating one of three dimensions."""
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(named, Tensor):
        return named
    tensors = (item for item in items_of(output) if isinstance(item, Tensor))
    return next((tensor for tensor in tensors if tensor.dim() == 3 and tensor.is_floating_point()), None)


def find_loss(output: Any) -> Tensor | None:
    """The tensor called `loss`, else the first floating one without dimensions."""
    named = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if isinstance(named, Tensor):
        return named if named.dim() == 0 else named.mean() if named.numel() == 1 else None
    tensors = (item for item in items_of(output) if isinstance(item, Tensor))
    return next((tensor for tensor in tensors if tensor.dim() == 0 and tensor.is_floating_point()), None)


def default_generate(model: nn.Module, batch: Any, subject: Any, new: int) -> Tensor:
    """Greedy: Hugging Face's generate(), or a method generate(ids, max_new_tokens, ...). Raises Missing without one."""
    method = getattr(model, "generate", None)
    if method is None:
        raise Missing("needs generate=lambda model, batch: ids, greedy")
    stream = "source" if subject.kind == "seq2seq" else "target"
    key, mask_key = subject.streams.get(stream, (None, None))
    if key is None:
        raise Missing("needs generate=lambda model, batch: ids, greedy")
    ids = batch[key]
    if hasattr(model, "generation_config"):
        how = {"max_new_tokens": new}
        if mask_key is not None:
            how["attention_mask"] = batch[mask_key]
        elif subject.pad_id is not None and bool((ids == subject.pad_id).any()):
            how["attention_mask"] = (ids != subject.pad_id).long()
        with plain_greedy(model, subject):
            return method(ids, **how)
    parameters = inspect.signature(method).parameters
    if "max_new_tokens" not in parameters:
        raise Missing("its generate() takes no max_new_tokens: give generate=lambda model, batch: ids, greedy")
    how = {"max_new_tokens": new}
    for name in ("eos_id", "eos_token_id", "eos_idx", "stop_id"):
        if name in parameters and subject.eos_id is not None:
            how[name] = subject.eos_id
    if "do_sample" in parameters:
        return method(ids, **how, do_sample=False)
    temperature = parameters.get("temperature")
    if temperature is not None and temperature.default == 0:
        return method(ids, **how)
    if "top_k" in parameters and parameters["top_k"].default is None and temperature is not None:
        return method(ids, **how, top_k=1)  # nanoGPT's samples, from one candidate
    if "sampl" in inspect.getsource(type(model)).lower() or "multinomial" in inspect.getsource(type(model)):
        raise Missing("its generate() may sample: give generate=lambda model, batch: ids, greedy")
    return method(ids, **how)


@contextmanager
def plain_greedy(model: nn.Module, subject: Any) -> Iterator[None]:
    """Inside, a Hugging Face model generates greedily and does nothing else: whatever its own generation config asks
    for, sampling, beams, forced or suppressed tokens, a shortest length, would hide what a check looks at.
    """
    kept = model.generation_config
    plain = type(kept)(do_sample=False, num_beams=1)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"):
        setattr(plain, name, getattr(kept, name, None))
    if subject.pad_id is not None:
        plain.pad_token_id = subject.pad_id
    model.generation_config = plain
    try:
        yield
    finally:
        model.generation_config = kept


def default_incremental(model: nn.Module, batch: Any, subject: Any) -> Tensor:
    """Logits (B, T, V) through the cache of a Hugging Face model: two tokens at once, as a prompt, then one by one.

    Raises Missing for others.
    """
    takes = parameters_of(model)
    cached = "past_key_values" in takes or any(p.kind is p.VAR_KEYWORD for p in takes.values())
    if not hasattr(model, "generation_config") or not cached:
        raise Missing("needs incremental=lambda model, batch: logits (B, T, V), token by token through the cache")
    if "target" not in subject.streams:
        raise Missing("the batch has no decoder ids: give incremental=lambda model, batch: logits")
    key, mask_key = subject.streams["target"]
    given = {name: value for name, value in batch.items() if name not in (key, mask_key, subject.labels_key)}
    ids, steps, past = batch[key], [], None
    if subject.kind == "seq2seq":
        source = given.pop(subject.streams["source"][0])
        mask = given.get(subject.streams["source"][1])
        encoded = model.get_encoder()(source, **({} if mask is None else {"attention_mask": mask}))
        given["encoder_outputs"] = encoded
    spans = [(0, 2), *((t, t + 1) for t in range(2, ids.size(1)))]
    for first, last in spans:
        if mask_key is not None:
            given[mask_key] = batch[mask_key][:, :last]
        out = model(**given, **{key: ids[:, first:last]}, past_key_values=past, use_cache=True)
        past = getattr(out, "past_key_values", None)
        if past is None:
            raise Missing("the model hands back no past_key_values: give incremental=lambda model, batch: logits")
        steps.append(out.logits)
    return torch.cat(steps, dim=1)


def clone(batch: Any, device: torch.device | str | None = None) -> Any:
    """A copy of a batch whose tensors share nothing with it; on another device where one is named."""
    if isinstance(batch, Tensor):
        return batch.to(batch.device if device is None else device, copy=True)
    if isinstance(batch, Mapping):
        return {key: clone(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return type(batch)(clone(value, device) for value in batch)
    return batch


def tensors_of(batch: Any) -> dict[Any, Tensor]:
    """The tensors of a batch by key. Raises Missing without a batch."""
    if batch is None:
        raise Missing("needs a batch: give batch=")
    items = batch.items() if isinstance(batch, Mapping) else enumerate(batch)
    return {key: value for key, value in items if isinstance(value, Tensor)}


def replaced(batch: Any, changes: dict[Any, Any]) -> Any:
    """The batch with some entries changed."""
    if isinstance(batch, Mapping):
        return {**batch, **changes}
    return tuple(changes.get(i, value) for i, value in enumerate(batch))


def contents(batch: Any) -> tuple:
    """What tells two batches apart."""
    return tuple(
        (str(key), str(t.dtype), tuple(t.shape), tuple(t.flatten().tolist())) for key, t in tensors_of(batch).items()
    )
