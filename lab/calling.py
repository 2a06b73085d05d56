"""How somebody else's model is called: its logits, its loss, greedy generation, and decoding through its cache."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Missing(Exception):  # noqa: N818 - it is a reason to skip, not an error
    """The subject lacks what a check needs; the message says which keyword to give."""


def parameters_of(model: nn.Module) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(model.forward).parameters


def call(model: nn.Module, batch: Any) -> Any:
    """The model's own output on a batch; what its forward does not take is left out."""
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
        # Whatever its own config asks for, sampling, beams, or a shortest length, would hide what a check looks at.
        how = {"do_sample": False, "num_beams": 1, "max_new_tokens": new, "min_length": 0, "min_new_tokens": None}
        if subject.pad_id is not None:
            how["pad_token_id"] = subject.pad_id
        if mask_key is not None:
            how["attention_mask"] = batch[mask_key]
        elif subject.pad_id is not None and bool((ids == subject.pad_id).any()):
            how["attention_mask"] = (ids != subject.pad_id).long()
        return method(ids, **how)
    parameters = inspect.signature(method).parameters
    if "max_new_tokens" not in parameters:
        raise Missing("its generate() takes no max_new_tokens: give generate=lambda model, batch: ids, greedy")
    if "do_sample" in parameters:
        return method(ids, max_new_tokens=new, do_sample=False)
    if "top_k" in parameters and parameters["top_k"].default is None and "temperature" in parameters:
        if parameters["temperature"].default == 0:
            return method(ids, max_new_tokens=new)
        return method(ids, max_new_tokens=new, top_k=1)  # nanoGPT's samples, from one candidate
    if "sampl" in inspect.getsource(type(model)).lower() or "multinomial" in inspect.getsource(type(model)):
        raise Missing("its generate() may sample: give generate=lambda model, batch: ids, greedy")
    return method(ids, max_new_tokens=new)


def default_incremental(model: nn.Module, batch: Any, subject: Any) -> Tensor:
    """Logits (B, T, V), token by token through the cache of a Hugging Face model. Raises Missing for others."""
    if not hasattr(model, "generation_config") or "past_key_values" not in parameters_of(model):
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
    for t in range(ids.size(1)):
        if mask_key is not None:
            given[mask_key] = batch[mask_key][:, : t + 1]
        out = model(**given, **{key: ids[:, t : t + 1]}, past_key_values=past, use_cache=True)
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
    """The tensors of a batch by key."""
    items = batch.items() if isinstance(batch, Mapping) else enumerate(batch)
    return {key: value for key, value in items if isinstance(value, Tensor)}


def replaced(batch: Any, changes: dict[Any, Any]) -> Any:
    """The batch with some entries changed."""
    if isinstance(batch, Mapping):
        return {**batch, **changes}
    return tuple(changes.get(i, value) for i, value in enumerate(batch))
