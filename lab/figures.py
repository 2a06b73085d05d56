"""The committed figures: what is measured for each, the CSV that holds it, and the picture drawn from that alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from . import draw, faults, labels, masks, matrix
from .attend import AXES
from .attention import attend
from .canvas import put
from .data import SPECIAL_IDS, Translation, translation
from .diagnosis import diagnose
from .faults.masks import infinite_fill, large_negative_fill
from .grid_picture import GridPicture, from_csv
from .language_model import LanguageModel
from .looking import CAUSES
from .page import lines_of, page
from .picture import Picture
from .report import Report
from .results import CHARTS, Chart
from .seen import seen
from .shipped import experiment


def fault_matrix() -> GridPicture:
    return draw.fault_matrix(matrix.run())


def padded_batch() -> GridPicture:
    data, rows = translation(), [9, 19, 57, 10]
    healthy = data.batch("validation", rows)
    with faults.get("padding-crash").inject():
        faulty = data.batch("validation", rows)
    panels = {
        "labels: the loss skips -100": healthy["labels"],
        "decoder_input_ids, faulty: -100 is no row of the embedding": faulty["decoder_input_ids"],
        "decoder_input_ids, healthy: padding instead": healthy["decoder_input_ids"],
    }
    return joined(draw.batch_grid(ids, [data.tokens(row) for row in ids], title=title) for title, ids in panels.items())


def joined(pictures: Iterator[GridPicture], across: int = 1) -> GridPicture:
    return GridPicture([grid for picture in pictures for grid in picture.grids], across=across)


ROWS = {
    "padded at the left": ["<pad>", "<pad>", "<s>", "Fermer", "▁tous"],
    "padded at the right": ["<s>", "Fermer", "▁tous", "<pad>", "<pad>"],
}


def mask_conjunction() -> GridPicture:
    """Self-attention for rows padded at either side, and cross-attention from the second to the first."""
    pads = {name: [token == "<pad>" for token in row] for name, row in ROWS.items()}
    steps = [draw.conjunction(row, pads[name], title=name) for name, row in ROWS.items()]
    source = ["Close", "▁all", "</s>", "<pad>"]
    target = ROWS["padded at the right"][:3]
    steps.append(draw.conjunction(target, [token == "<pad>" for token in source], keys=source))
    return joined(iter(steps), across=3)


def fully_masked_row() -> GridPicture:
    """A row padded at the left, where nothing may be attended from its first two positions, by three conventions."""
    torch.manual_seed(0)
    row = ROWS["padded at the left"]
    ids = torch.tensor([[matrix.SPECIAL["pad_id"] if token == "<pad>" else 5 for token in row]])
    allowed = masks.decoder(ids, matrix.SPECIAL["pad_id"])
    query, key = torch.randn(2, 1, 1, len(row), 8)
    conventions = {
        "-inf, then softmax": infinite_fill,
        "-1e9, then softmax": large_negative_fill,
        "scaled_dot_product_attention": attend,
    }
    identity = torch.eye(len(row))[None, None]  # as values, so that the output is the weights
    return joined(
        (
            draw.weights(how(query, key, identity, allowed)[0, 0], row, row, should=allowed, pads=[0, 1], title=name)
            for name, how in conventions.items()
        ),
        across=3,
    )


def french(side: Literal["left", "right"]) -> tuple[LanguageModel, dict[str, Tensor], Translation]:
    """A small language model as it is initialised, two French rows of unequal length, and the names of their ids."""
    data = translation()
    torch.manual_seed(0)
    model = LanguageModel(data.config(d_model=32, num_heads=1, num_layers=1, d_ff=64))
    texts = [target for _, target in data.examples("validation", [57, 19])]
    return model, labels.collate_texts(texts, side=side, **SPECIAL_IDS), data


def attends_to_pads() -> GridPicture:
    """The shorter of two rows, at either side, with the fault and without."""
    pictures = []
    for side in ("left", "right"):
        model, batch, tokens = french(side)
        with faults.get("attends-to-pads").inject():
            faulty = seen(model, batch, tokens=tokens)
        title = f"padded at the {side}"
        pictures.append(draw.compare(faulty, model, batch, row=1, tokens=tokens, title=title))
    return joined(iter(pictures), across=3)


def influence() -> GridPicture:
    """What each token of a row changes, with the causal mask and without."""
    model, batch, tokens = french("right")
    healthy = draw.influence(model, batch, row=1, tokens=tokens, title="causal")
    with faults.get("no-causal-mask").inject():
        faulty = draw.influence(model, batch, row=1, tokens=tokens, title="without the causal mask")
    return joined(iter((healthy, faulty)), across=2)


def mode_timeline() -> GridPicture:
    cases = {"healthy": None, "stuck in eval": "stuck-in-eval-transformer", "train() at the end": "train-at-the-end"}
    return joined((timeline(title, fault) for title, fault in cases.items()), across=3)


def timeline(title: str, fault: str | None) -> GridPicture:
    """A small translator with a frozen encoder, before, during and after evaluate()."""
    model, batch = matrix.translator().model.train(), labels.collate_pairs(matrix.PAIRS[:2], **matrix.SPECIAL)
    model.encoder.eval()
    with faults.get(fault).inject() if fault else nullcontext():
        return draw.modes(model, {"evaluate()": lambda: model.evaluate([batch])}, depth=2, title=title)


def report() -> Report:
    """The translator with three faults in it at once, as somebody's project may have."""
    with ExitStack() as stack:
        for name in ("padding-crash", "sees-one-ahead", "stuck-in-eval-transformer"):
            stack.enter_context(faults.get(name).inject())
        return diagnose(matrix.translator())


@dataclass(frozen=True)
class Sheet:
    """A committed picture made of grids. compute() measures; alt: what it shows; how: caption, least and rule of it."""

    compute: Callable[[], GridPicture]
    alt: str
    across: int = 1
    how: dict[str, Any] = field(default_factory=dict)

    def data(self) -> bytes:
        return self.compute().csv()

    def picture(self, data: bytes) -> Picture:
        return GridPicture(from_csv(data, **self.how), self.alt, self.across)


@dataclass(frozen=True)
class Text:
    """A committed report."""

    compute: Callable[[], Report]
    alt: str

    def data(self) -> bytes:
        return lines_of(self.compute())

    def picture(self, data: bytes) -> Picture:
        return page(data, self.alt)


FIGURES: dict[str, Sheet | Text | Chart] = {
    "fault_matrix": Sheet(
        fault_matrix,
        "A table of faults against checks. The two healthy models trip no check; grey cells are checks that cannot be "
        "asked of a model, or that rest on one which fired. Each fault is caught by its own check, along the diagonal; "
        "what else fires is explained by the fault, and nothing fires without an explanation.",
        how={"caption": ("↓ fault", "→ check"), "least": 0.26, "rule": len(matrix.SUBJECTS)},
    ),
    "padded_batch": Sheet(
        padded_batch,
        "Four French rows of unequal length as three grids of tokens. The labels hold -100 after each </s>. The faulty "
        "decoder inputs still hold -100; the healthy ones hold padding there.",
        how={"caption": ("→ position",), "least": 0.42},
    ),
    "mask_conjunction": Sheet(
        mask_conjunction,
        "Attend masks step by step: key padding, causal, and both, for a row padded at the left and one padded at the "
        "right; and key padding alone for cross-attention. Key padding alone lets tokens see the future. The causal "
        "mask alone lets real tokens see padding at the left; at the right only padding sees padding.",
        across=3,
        how={"caption": AXES},
    ),
    "fully_masked_row": Sheet(
        fully_masked_row,
        "Weights of a row padded at the left, by three conventions. From its first two positions nothing may be "
        "attended: -inf gives NaN there, -1e9 gives every key the same weight, padding and the future included, "
        "scaled_dot_product_attention gives zeros. The other rows are the same in all three.",
        across=3,
        how={"caption": AXES},
    ),
    "attends_to_pads": Sheet(
        attends_to_pads,
        "Attention weights of a row padded at the left and at the right: faulty, healthy, and the difference. Padded "
        "at the left, every real token of the faulty model gives weight to padding. Padded at the right, only "
        "padding's own rows do, and no weight of a real token differs.",
        across=3,
        how={"caption": AXES},
    ),
    "influence": Sheet(
        influence,
        "Which token changes the logits at which position, measured by changing each. With the causal mask: each "
        "position depends on itself and on those before. Without it: also on those after, which are framed as leaks.",
        across=2,
        how={"caption": CAUSES},
    ),
    "mode_timeline": Sheet(
        mode_timeline,
        "The modes of a model's parts before, during and after evaluate(), its encoder frozen in eval. Healthy: all as "
        "before. Stuck: all in eval after. With train() at the end: the frozen encoder wakes up in train mode.",
        across=3,
        how={"least": 0.72},
    ),
    "report": Text(
        report,
        "The report of a translator with three faults: a causal mask that is one late, -100 left in the decoder's "
        "inputs on padded batches, and evaluate() and generate() that leave the model in eval. Each finding has "
        "its severity, its file and lines, evidence and repair; below stand the checks that passed or were skipped.",
    ),
    **CHARTS,
}


def tables(name: str) -> tuple[str, ...]:
    """The CSVs in data/ that a figure is drawn from, without their suffix."""
    figure = FIGURES[name]
    return figure.tables if isinstance(figure, Chart) else (name,)


def compute(name: str, out: Path) -> Path | None:
    """Measure again what stands on a figure: out/data/NAME.csv. None for a chart of runs, which train for hours."""
    figure = FIGURES[name]
    return None if isinstance(figure, Chart) else put(Path(out) / "data" / f"{name}.csv", figure.data())


def write(name: str, out: Path, theme: str | None = "light") -> Path:
    """Draw one figure from its CSVs in out/data: out/NAME.svg. Raises FileNotFoundError where one is not there."""
    figure = FIGURES[name]
    paths = [Path(out) / "data" / f"{table}.csv" for table in tables(name)]
    for path in paths:
        if not path.is_file():
            command = f"experiment {experiment(path.stem)}" if isinstance(figure, Chart) else "figures --recompute"
            raise FileNotFoundError(f"there is no {path}; measure it with `lab {command}`.")
    picture = figure.picture(*paths) if isinstance(figure, Chart) else figure.picture(paths[0].read_bytes())
    return picture.save(Path(out) / f"{name}.svg", theme)


def write_all(out: Path, recompute: bool = False, theme: str | None = "light") -> Iterator[Path]:
    """Draw all of them, each after its CSV was measured again if that is asked; the runs of experiments stay."""
    for name in FIGURES:
        if recompute and (path := compute(name, out)) is not None:
            yield path
        yield write(name, out, theme)
