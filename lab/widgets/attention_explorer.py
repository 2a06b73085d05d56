"""The attentions that a model computed on a batch, with controls: kind, layer, head, sentence, faulty or healthy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from .. import looking
from ..grid_picture import GridPicture
from ..seen import Seen
from .base import Explorer

Model = nn.Module | Sequence[Seen]
BOTH = "both, and the difference"


class AttentionExplorer(Explorer):
    """What `lab.seen.seen` read off one pass of a model, one head of one sentence at a time; no pass is made anew.

    model: a module, what `seen` returned, or several of these by name, {name: model}. batch: what a module is called
    with. healthy: the same for the repaired one; then each is shown, or both with their difference. tokens, about: as
    in `seen`. Controls: model (where there are several), kind, layer, head, row.

    Raises TypeError for another model, and what `seen` raises.
    """

    title = "Attention weights, as the model computed them"

    def __init__(
        self,
        model: Model | Mapping[str, Model],
        batch: Any = None,
        *,
        healthy: Model | None = None,
        tokens: Any = None,
        theme: str | None = None,
        **about: Any,
    ) -> None:
        super().__init__(theme)
        if isinstance(model, Mapping) and healthy is not None:
            raise ValueError("healthy is given beside models by name; put it among them: {'faulty': …, 'healthy': …}.")
        models = dict(model) if isinstance(model, Mapping) else {"faulty": model, "healthy": healthy}
        models = {name: one for name, one in models.items() if one is not None}
        if not models:
            raise ValueError("model is empty; give at least one, {name: model}.")
        self.found = {name: looking.seen_of(one, batch, tokens, about) for name, one in models.items()}
        first = next(iter(self.found.values()))
        kinds = list(dict.fromkeys(one.kind for one in first))
        names = [*self.found, *([BOTH] if len(self.found) == 2 else [])]
        self.controls = {
            **({"model": self.choice("model", names, names[0])} if len(names) > 1 else {}),
            "kind": self.choice("kind", kinds, "decoder" if "decoder" in kinds else kinds[0]),
            "layer": self.slider("layer", 0, 0, 0),
            "head": self.slider("head", 0, 0, 0),
            "row": self.slider("sentence", 0, 0, len(first[0].weights) - 1),
        }
        self.start()

    def adapt(self) -> None:
        """A kind has its own number of layers, and a layer of heads: what every model has."""
        controls = self.controls
        kind, layer = controls["kind"], controls["layer"]
        of_kind = [looking.picked(found, kind.value, None) for found in self.found.values()]
        layer.max = min(map(len, of_kind)) - 1
        controls["head"].max = min(found[layer.value].weights.size(1) for found in of_kind) - 1
        for name in ("layer", "head", "row"):
            controls[name].disabled = controls[name].max == 0

    def draw(
        self, kind: str, layer: int, head: int, row: int, model: str | None = None
    ) -> tuple[GridPicture, list[str]]:
        names = list(self.found) if model == BOTH else [model or next(iter(self.found))]
        chosen = {name: looking.picked(self.found[name], kind, layer)[0] for name in names}
        if model == BOTH:
            faulty, healthy = (self.found[name] for name in names)
            picture = looking.compare(faulty, healthy, None, layer, head, kind=kind, row=row)
        else:
            picture = looking.attention(self.found[names[0]], None, layer, head, kind=kind, row=row)
        return picture, [said(one, head, row, name if model else "") for name, one in chosen.items()]


def said(one: Seen, head: int, row: int, name: str) -> str:
    """The numbers of this head and sentence, and of the whole layer."""
    mine = one.of(row, head)
    pads = int(mine.key_pads.sum())
    return (
        f"{name + ': ' if name else ''}{one.kind} layer {one.layer}, head {head}, sentence {row} with {pads} pads: "
        f"{leaked(mine)}. All heads and sentences of the layer: {leaked(one)}."
    )


def leaked(one: Seen) -> str:
    return (
        f"real queries give {one.on_padding:.1%} of their weight to padding, with {one.leaks} leaks; "
        f"{one.idle_leaks} leaks are from padding's own rows"
    )
