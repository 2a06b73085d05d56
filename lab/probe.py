"""A subject under the instruments of one check: copies of its model, batches made like its own, what changes what."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn

from .calling import Missing, clone, contents, find_logits, replaced, tensors_of
from .instruments import Trace, traced
from .readings import Dependency, Teaching
from .report import Finding
from .spelling import attend_to, respelled
from .subject import Subject

# Sizes of a probe's batch; pairwise distinct, so that a wrong axis cannot look right.
ROWS, LENGTH = 3, {"source": 9, "target": 7}
# Rows of the batch that measures dependencies: one a token to change, and at least one unchanged twin of the first.
MANY = 11


@dataclass
class Shared:
    """What the checks of one diagnosis share, so that each thing is made once. protect: see Snapshot."""

    protect: Callable[[], None] = lambda: None
    precise: dict[Any, tuple[nn.Module, float]] = field(default_factory=dict)
    versions: list[int] = field(default_factory=list)
    made: dict[str, Any] = field(default_factory=dict)


class Probe:
    """A subject under the instruments of one check. Its batch is a copy on the CPU, and so is the model that `copy` and
    `precise` give; `own` and `own_batch` are for calls of the user's functions on the user's model itself.
    """

    def __init__(self, subject: Subject, check: Any, seed: int = 0, shared: Shared | None = None) -> None:
        self.subject = subject.replace(batch=clone(subject.batch, "cpu"))
        self.check, self.seed = check, seed
        self.shared = Shared() if shared is None else shared

    def own(self) -> nn.Module:
        """The user's model itself. Whatever is done to it is undone after the check."""
        self.at_risk()
        return self.subject.model

    def at_risk(self) -> None:
        """Call before code of the user's runs that may reach their own model, which is given back after the check."""
        self.shared.precise.clear()  # a copy of all its tensors is enough
        self.shared.protect()

    def own_batch(self) -> Any:
        """A copy of the user's batch on the device of their model."""
        parameter = next(self.subject.model.parameters(), None)
        return clone(self.subject.batch, "cpu" if parameter is None else parameter.device)

    def copy(self) -> nn.Module:
        """A deep copy on the CPU in eval mode, in the model's own precision, without gradients: the caller's to change.

        Raises Missing where the model cannot be copied.
        """
        self.shared.precise.clear()  # two copies at once would take too much memory
        return self.deep_copy()

    def deep_copy(self) -> nn.Module:
        try:
            model = copy.deepcopy(self.subject.model).cpu().eval()
        except Exception as error:
            raise Missing(f"the model cannot be deep-copied ({type(error).__name__}: {error})") from error
        model.zero_grad()
        return model

    def precise(self, batch: Any) -> tuple[nn.Module, float]:
        """A copy in eval mode and float64, and the noise to expect of it, relative to an effect; in the model's own
        precision where float64 fails on `batch` or invents a NaN. It is shared: do not change it, nor its mode.

        Raises Missing where neither takes the batch.
        """
        torch.backends.mha.set_fastpath_enabled(False)  # it skips the masked positions of a padded batch; see Around
        name, problem = ("passes", contents(batch)), ""
        if name in self.shared.made:
            dtype, noise = self.shared.made[name]
            return self.in_precision(dtype), noise
        for dtype, noise in ((torch.float64, 1e-9), (None, 1e-4)):
            model = self.in_precision(dtype)
            try:
                with torch.no_grad():
                    logits = self.subject.logits(model, clone(batch))
                finite = bool(logits.isfinite().all())
            except Missing:
                raise
            except Exception as error:
                problem = f"{type(error).__name__}: {error}"
                continue
            if finite or dtype is None:
                self.shared.made[name] = dtype, noise
                kept = self.shared.made.setdefault("logits", {})
                kept[name] = logits.detach()
                if len(kept) > 6:  # they are large where the vocabulary is
                    del kept[next(iter(kept))]
                return model, noise
        raise Missing(f"the model fails on a batch made like yours ({problem.splitlines()[0]})")

    def base(self, batch: Any) -> Tensor:
        """The logits (B, T, V) of `precise`'s copy on a batch, without a pass of their own where they are known."""
        model, _ = self.precise(batch)
        kept = self.shared.made.get("logits", {}).get(("passes", contents(batch)))
        return self.logits(model, batch) if kept is None else kept

    def in_precision(self, dtype: torch.dtype | None) -> nn.Module:
        """The shared copy in that precision, made anew where something has written to it."""
        kept = self.shared.precise.get(dtype)
        state = [(id(t), t._version) for t in (*kept.parameters(), *kept.buffers())] if kept is not None else None
        if kept is None or self.shared.versions != state:
            self.shared.precise.clear()
            kept = self.deep_copy() if dtype is None else self.deep_copy().to(dtype)
            self.shared.precise[dtype] = kept
        kept.eval()
        self.shared.versions = [(id(t), t._version) for t in (*kept.parameters(), *kept.buffers())]
        return kept

    def logits(self, model: nn.Module, batch: Any) -> Tensor:
        """(B, T, V) of a copy on a batch, without gradients. Raises Missing where the model fails on it."""
        try:
            with torch.no_grad():
                return self.subject.logits(model, clone(batch))
        except Missing:
            raise
        except Exception as error:
            reason = shorten(f"{type(error).__name__}: {error}", 100)
            raise Missing(f"the model fails on a batch made like yours ({reason})") from error

    def trace(self, model: nn.Module, batch: Any) -> tuple[Tensor, Trace]:
        """The logits, and what each module was given and gave."""
        with traced(model) as trace:
            return self.logits(model, batch), trace

    def readable(self) -> Any:
        """The user's batch, with left-over labels among its ids (padding-crash reports them) taken for padding."""
        subject = self.subject
        if subject.pad_id is None:
            return subject.batch
        keys = [key for key, _ in subject.streams.values()]
        repaired = {
            key: subject.batch[key].masked_fill(subject.batch[key] == subject.ignore_index, subject.pad_id)
            for key in keys
        }
        return replaced(subject.batch, repaired)

    def ordinary(self) -> Tensor:
        """The token ids that are not special, as far as is known, (n,)."""
        subject = self.subject
        vocab = subject.vocab_size or 1 + int(max(subject.ids(stream).max() for stream in subject.streams))
        special = {0, 1, 2, subject.pad_id, subject.eos_id}
        config = getattr(subject.model, "config", None)
        for name in dir(config) if config is not None else ():
            if name.endswith(("token_id", "_token_index")):  # of images, masks and the like
                special.add(value if isinstance(value := getattr(config, name), int) else None)
        return torch.tensor([i for i in range(vocab) if i not in special] or list(range(vocab)))

    def ordinary_ids(self, shape: torch.Size | tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Random token ids with no special one among them; no two in a row are equal where the vocabulary allows it."""
        usable = self.ordinary()
        if len(shape) == 2 and shape[1] <= len(usable):
            picks = torch.stack([torch.randperm(len(usable), generator=generator)[: shape[1]] for _ in range(shape[0])])
            return usable[picks]
        return usable[torch.randint(len(usable), shape, generator=generator)]

    def whole(self, rows: int = ROWS, length: Mapping[str, int] = LENGTH) -> Any:
        """A batch like the user's of ordinary tokens, without padding."""
        return self.batch({name: torch.ones(rows, size, dtype=torch.bool) for name, size in length.items()})

    def batch(self, real: dict[str, Tensor]) -> Any:
        """A batch like the user's, padded where real[stream] (B, T) is False; its tokens are random, and the same each
        time for the same sizes. Its labels follow its tokens as the user's do, where these are the ids or one ahead.

        Raises Missing where the model has no way to be told of padding.
        """
        subject, changes = self.subject, {}
        generator = torch.Generator().manual_seed(self.seed)
        for stream, (key, mask_key) in subject.streams.items():
            there = real[stream]
            if subject.max_seq_len is not None and there.size(1) > subject.max_seq_len:
                raise Missing(f"max_seq_len is {subject.max_seq_len}; the checks need {there.size(1)} tokens")
            ids = self.ordinary_ids(there.shape, generator)
            if subject.pad_id is not None:
                ids = ids.masked_fill(~there, subject.pad_id)
            elif mask_key is None and not bool(there.all()):
                raise Missing("which positions are padding is unknown: give pad_id= or streams={...: (key, mask key)}")
            changes[key] = ids
            if mask_key is not None:
                example = tensors_of(subject.batch)[mask_key]
                changes[mask_key] = attend_to(example, subject.real(stream))(there)
        changes |= self.square_masks(real, set(changes))
        if subject.labels_key is not None:
            changes |= self.labels_like(real, changes, generator)
        base = subject.batch
        if base is None:
            raise Missing("needs a batch: give batch=")
        if isinstance(base, Mapping):
            # What else the user's batch holds has the user's sizes; the model must do without it.
            known = {key: value for key, value in base.items() if not isinstance(value, Tensor) or value.dim() == 0}
            return {**known, **changes}
        return replaced(base, changes)

    def square_masks(self, real: dict[str, Tensor], done: set[Any]) -> dict[Any, Tensor]:
        """The masks over queries and keys that the user's batch holds, spelled for the batch with those `real` ones."""
        subject, found = self.subject, {}
        pairs = [(query, key) for query in ("target", "source") for key in (query, "source")]
        for name, mask in tensors_of(subject.batch).items():
            if name in done or name == subject.labels_key or mask.dim() < 2:
                continue
            for query, key in pairs:
                if query in subject.streams and key in subject.streams and name not in found:
                    spell = respelled(mask, subject.real(query), subject.real(key))
                    if spell is not None:
                        found[name] = spell(real[query], real[key])
        return found

    def labels_like(self, real: dict[str, Tensor], changes: dict, generator: torch.Generator) -> dict[Any, Tensor]:
        """Labels of such a batch: the ids themselves, or one ahead of them, as the user's are."""
        subject = self.subject
        theirs = subject.labels()
        if "target" not in subject.streams or subject.kind == "encoder" or theirs.shape != subject.ids("target").shape:
            return {}  # the model must do without them
        there = real["target"]
        ids = changes[subject.streams["target"][0]]
        if same_share(theirs, subject.ids("target"), subject.ignore_index) > 0.5:
            labels = ids
        else:
            labels = torch.cat([ids[:, 1:], self.ordinary_ids((len(ids), 1), generator)], dim=1)
            there = torch.cat([there[:, 1:], there[:, -1:]], dim=1)
        if bool((theirs == subject.ignore_index).any()):  # else nothing says that the loss would skip it
            labels = labels.masked_fill(~there, subject.ignore_index)
        return {subject.labels_key: labels}

    def dependency(self, stream: str = "target") -> Dependency:
        """What changing each token of a stream does to each position of the logits. Measured once for all checks.

        Row j of a batch has another token at j; two equal rows measure the noise. Rests on rows being independent.
        Raises Missing where nothing changes anything.
        """
        name = f"dependency on {stream}"
        if name not in self.shared.made:
            self.shared.made[name] = self.measure(stream)
        return self.shared.made[name]

    def measure(self, stream: str) -> Dependency:
        subject = self.subject
        if stream not in subject.streams:
            raise Missing(
                f"the batch has no {stream} ids by a usual name: give streams={{'{stream}': (key, mask key)}}"
            )
        batch = self.alike()
        key, length = subject.streams[stream][0], LENGTH[stream]
        ids = batch[key].clone()
        unused = self.ordinary()
        unused = unused[~torch.isin(unused, ids)]
        for j in range(length):
            ids[j + 1, j] = unused[j % len(unused)] if len(unused) else (ids[0, j - 1])
        batch = replaced(batch, {key: ids})
        relative, logits = self.precise(batch)[1], self.base(batch)
        if logits.shape[:2] != (MANY, LENGTH["target"]):
            raise Missing(
                f"logits have shape {tuple(logits.shape)} for {MANY} rows of {LENGTH['target']} tokens; they must be "
                f"(B, T, V): give forward=lambda model, batch: logits"
            )
        change = (logits - logits[:1]).abs().amax(-1)
        change = change.nan_to_num(nan=0.0, posinf=math.inf)
        noise = float(change[length + 1 :].max()) if length + 1 < MANY else 0.0
        by = change[1 : length + 1]
        if not float(by.max()) > 10 * noise:
            raise Missing("changing a token has no effect on any logit, so nothing can be told")
        return Dependency(by, noise, float(by.max()), relative)

    def alike(self) -> Any:
        """A batch of MANY equal rows without padding."""
        batch = self.whole(MANY)
        keys = [key for key, _ in self.subject.streams.values()] + [self.subject.labels_key]
        rows = {key: value[:1].expand_as(value).clone() for key, value in tensors_of(batch).items() if key in keys}
        return replaced(batch, rows)

    def teaching(self, batch: Any, model: nn.Module | None = None) -> Teaching:
        """What the loss trains on a batch: the gradient of the loss for the logits, of a copy in eval mode.

        Raises Missing where there is no loss, where it fails, or where no logits are seen that it is computed from.
        """
        subject = self.subject
        if model is None:
            model = self.precise(batch)[0]
        key = subject.streams["target"][0] if "target" in subject.streams else None
        if key is None:
            raise Missing("the batch has no decoder ids by a usual name: give streams={'target': (key, mask key)}")
        seen: list[Tensor] = []

        def keep(module: nn.Module, args: Any, output: Any) -> None:
            found = find_logits(output)
            if found is not None and found.requires_grad and found.dim() == 3:
                seen.append(found)

        modules = [module for module in model.modules() if not list(module.children())] + [model]
        frozen = [p for p in model.parameters() if not p.requires_grad and p.is_floating_point()]
        handles = [module.register_forward_hook(keep) for module in modules]
        try:
            for parameter in frozen:
                parameter.requires_grad_(True)
            with torch.enable_grad():
                loss = subject.loss_of(model, clone(batch))
                if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
                    raise Missing("the loss is no scalar with a gradient: give loss=lambda model, batch: scalar")
                # The last are the model's own output; before them its head, where the loss is not made of the output.
                for logits in reversed(seen):
                    known = subject.vocab_size in (None, logits.size(-1)) or logits is seen[-1]
                    if logits.shape[:2] != batch[key].shape or not known:
                        continue
                    (gradient,) = torch.autograd.grad(loss.sum(), logits, retain_graph=True, allow_unused=True)
                    if gradient is not None and bool(gradient.any()):
                        return Teaching(logits.detach(), gradient, float(loss.detach()), batch[key])
        except Missing:
            raise
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0]
            raise Missing(f"the loss fails on a batch made like yours ({type(error).__name__}: {reason})") from error
        finally:
            for handle in handles:
                handle.remove()
            for parameter in frozen:
                parameter.requires_grad_(False)
        raise Missing("the loss is not computed from logits (B, T, V) that a module hands on: give forward= and loss=")

    def finding(self, message: str, severity: str | None = None, **details: Any) -> Finding:
        """A finding of this check, at its own severity and with its own repair unless others are given."""
        check = self.check
        details.setdefault("repair", check.repair)
        return Finding(check.id, severity or check.severity, message, lesson=check.lesson, **details)


def same_share(a: Tensor, b: Tensor, ignored: int) -> float:
    """The share of positions at which two ids agree, among those that are not ignored in the first."""
    counts = a != ignored
    return float((a == b)[counts].float().mean()) if bool(counts.any()) else 0.0
