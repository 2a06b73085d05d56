"""Which ids a tensor was computed from: the source's, the target's, or both; whatever its shape and its module."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from .calling import tensors_of
from .subject import Subject


class Streams(TorchFunctionMode):
    """Follows which ids every tensor was computed from: those of the source, of the target, or of both."""

    def __init__(self, batch: Any, subject: Subject) -> None:
        super().__init__()
        self.known: dict[int, tuple[Tensor, frozenset[str]]] = {}
        roots = {key: stream for stream, (key, _) in subject.streams.items()}
        if subject.labels_key is not None:
            roots.setdefault(subject.labels_key, "target")  # a model may make its decoder inputs of them
        for key, tensor in tensors_of(batch).items():
            if key in roots:
                self.known[id(tensor)] = tensor, frozenset({roots[key]})

    def of(self, value: Any) -> frozenset[str]:
        """The streams; none where the tensor depends on no ids, or it is not known how it was made."""
        if isinstance(value, Tensor):
            return self.known.get(id(value), (None, frozenset()))[1]
        if isinstance(value, tuple | list):
            return frozenset().union(*map(self.of, value))
        return frozenset()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        streams = self.of((*args, *kwargs.values()))
        if streams:
            made = args[0] if func is Tensor.__setitem__ else out
            for tensor in made if isinstance(made, tuple | list) else (made,):
                if isinstance(tensor, Tensor):
                    self.known[id(tensor)] = tensor, streams  # held, so that its id is not given to another
        return out
