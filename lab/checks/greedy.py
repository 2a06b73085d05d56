"""Generation seen from outside: a copy whose tokens tell, what generate() writes, and what one full pass would."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn

from ..calling import Missing, clone, find_logits, replaced
from ..probe import Probe
from ..report import Where

NEW = 5  # tokens to ask of a generate() that can be told how many
LARGE = 50_000_000  # parameters; above it a copy stays in its own precision, to save time and memory


def matrices(model: nn.Module) -> Iterator[tuple[Tensor, int]]:
    """The weights of linear layers, and how many inputs each sums over; none that is shared with an embedding."""
    tables = {id(p) for m in model.modules() if hasattr(m, "num_embeddings") for p in m.parameters(recurse=False)}
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            if weight.dim() != 2 or id(weight) in tables:
                continue
            if isinstance(module, nn.Linear) or (isinstance(module, nn.MultiheadAttention) and "weight" in name):
                yield weight, weight.size(1)
            elif hasattr(module, "nf"):  # GPT-2's Conv1D
                yield weight, weight.size(0)


def lively(probe: Probe, batch: Any = None) -> nn.Module:
    """A copy in eval mode whose greedy tokens depend on all of the context.

    As initialised, most models repeat their last token whatever stands before it, and would hide any bug of a cache.
    So its weights are scaled up to those of a trained model, where they are smaller: the code stays what it is. In
    float64 where that works on `batch` (by default one without padding), else in the model's own precision.
    """
    model = probe.copy()
    small = sum(p.numel() for p in model.parameters()) <= LARGE
    model = scaled_up(model, probe.subject.vocab_size)
    if small:
        twin = copy.deepcopy(model).double()
        try:
            if bool(probe.logits(twin, probe.whole() if batch is None else batch).isfinite().all()):
                return twin
        except Missing:
            raise
        except Exception:
            pass  # some code has its precision written into it
    return model


def scaled_up(model: nn.Module, vocab: int | None) -> nn.Module:
    with torch.no_grad():
        for weight, inputs in matrices(model):
            size = float(weight.std()) if weight.numel() > 1 and vocab not in weight.shape else 0.0
            least = 1.5 * inputs**-0.5
            if 0 < size < least:
                weight.mul_(least / size)
    return model.eval()


def in_words(error: Exception) -> str:
    return shorten(f"{type(error).__name__}: {error}", 120)


@dataclass
class Written:
    """ids (B, P + n): the prompt or start token (P) and what generate wrote after it."""

    ids: Tensor
    prompt: int

    @property
    def new(self) -> Tensor:
        return self.ids[:, self.prompt :]


def write(probe: Probe, model: nn.Module, batch: Any, new: int = NEW, raises: bool = False) -> Written:
    """What generate() makes of a batch. raises: let its exception through, else it is a reason to skip.

    Raises Missing where it gives anything but prompt and continuation, or a decoder's ids with their start.
    """
    subject = probe.subject
    if subject.kind == "encoder":
        raise Missing("an encoder does not generate")
    if not subject.can_generate():
        raise Missing("needs generate=lambda model, batch: ids, greedy")
    model.eval()
    try:
        with torch.no_grad():
            out = subject.generated(model, clone(batch), new)
            if hasattr(out, "__next__"):
                out = torch.stack([ids.reshape(-1) for ids in out], dim=1)
    except Missing:
        raise
    except Exception as error:
        if raises:
            raise
        raise Missing(f"generate raises {in_words(error)}") from error
    out = getattr(out, "sequences", out)
    if not isinstance(out, Tensor) or out.dim() != 2 or out.is_floating_point() or not out.numel():
        raise Missing("generate gives no ids (B, T): give generate=lambda model, batch: ids, greedy")
    out = out.detach().cpu().long()
    if subject.kind == "seq2seq":
        start = start_id(probe, out)
        return Written(out, 1) if start is None else Written(torch.cat([out.new_full((len(out), 1), start), out], 1), 1)
    ids = subject.ids("target", batch)[: len(out)]
    if len(out) == len(ids) and torch.equal(out[:, : ids.size(1)], ids):
        return Written(out, ids.size(1))
    raise Missing("generate does not give the prompt and then its continuation: give a generate= that does")


def start_id(probe: Probe, out: Tensor) -> int | None:
    """The token that a decoder starts with, where generate leaves it out; None where it stands in the first column."""
    subject = probe.subject
    firsts = subject.ids("target")[:, 0].unique().tolist()
    config = getattr(subject.model, "generation_config", None)
    known = {*firsts, getattr(config, "decoder_start_token_id", None), getattr(config, "bos_token_id", None)}
    column = out[:, 0].unique().tolist()
    if len(column) == 1 and column[0] in known:
        return None
    if len(firsts) != 1:
        raise Missing("the decoder's rows start with different tokens, so where generate starts is unknown")
    return firsts[0]


def full_pass(probe: Probe, model: nn.Module, batch: Any, ids: Tensor) -> Tensor:
    """Logits (B, T, V) of one pass over the (decoder's) ids (B, T), on the batch's source."""
    subject = probe.subject
    model.eval()  # a generate() may have left it in train mode
    real = {"target": torch.ones(ids.shape, dtype=torch.bool)}
    changes = {subject.streams["target"][0]: ids}
    if "source" in subject.streams:
        key, mask = subject.streams["source"]
        source = batch[key][: len(ids)]
        real["source"] = torch.ones_like(source, dtype=torch.bool)
        changes[key] = source
        if mask is not None and mask in (batch if isinstance(batch, Mapping) else range(len(batch))):
            changes[mask] = batch[mask][: len(ids)]
    return probe.logits(model, replaced(probe.batch(real), changes))


def end_ids(probe: Probe, model: nn.Module) -> set[int]:
    """The ids that end a row, as far as is known."""
    config = getattr(model, "generation_config", None)
    theirs = getattr(config, "eos_token_id", None)
    ids = {probe.subject.eos_id, *(theirs if isinstance(theirs, list | tuple) else [theirs])}
    return {i for i in ids if isinstance(i, int)}


def alive(written: Written, ends: set[int], pad: int | None) -> Tensor:
    """(B, n): the new tokens up to a row's end, its EOS included."""
    new = written.new
    over = torch.zeros_like(new, dtype=torch.bool)
    for end in ends:
        over |= new == end
    before = over.cumsum(1) - over.long() == 0
    if pad is not None:
        padding = (new == pad).flip(1).cumprod(1).flip(1).bool()  # the run of pads at the row's end
        before &= ~padding
    return before


@contextmanager
def steered(model: nn.Module, vocab: int, change: Any) -> Iterator[list[int]]:
    """Inside, change(logits (B, ..., V), step) is what generate() gets of the head. Yields the steps that were seen.

    The head is the layer outside the numbered blocks that has an output for each token; where no module is it, what the
    whole model hands on.
    """
    seen: list[int] = []
    hit = [False]

    def at_head(module: nn.Module, args: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or output.size(-1) != vocab:
            return None
        hit[0] = True
        seen.append(len(seen))
        return change(output.clone(), seen[-1])

    def at_model(module: nn.Module, args: Any, output: Any) -> Any:
        done, hit[0] = hit[0], False
        logits = None if done else find_logits(output)
        if logits is None or logits.size(-1) != vocab:
            return None
        seen.append(len(seen))
        logits.copy_(change(logits.clone(), seen[-1]))
        return None

    heads = [
        module
        for name, module in model.named_modules()
        if not any(part.isdigit() for part in name.split("."))
        and isinstance(getattr(module, "weight", None), Tensor)
        and vocab in module.weight.shape
        and not hasattr(module, "num_embeddings")
    ]
    handles = [head.register_forward_hook(at_head) for head in heads]
    handles.append(model.register_forward_hook(at_model))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def where_of_generate(probe: Probe) -> Where | None:
    """Where the model's own generate() is written, or what was given for it."""
    method = getattr(type(probe.subject.model), "generate", None)
    return Where.of(method if method is not None else probe.subject.generate)
