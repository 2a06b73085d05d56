"""The committed figures: what is on each, its alt text, and how all of them are drawn again."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from . import faults, labels, masks, matrix
from .canvas import Grid, compose, put, save, table
from .data import translation
from .diagnosis import diagnose
from .draw import attend_mask, batch_grid, fault_matrix, modes
from .page import page
from .report import Report


def matrix_grids() -> list[Grid]:
    return [fault_matrix.grid(matrix.run())]


def batch_grids() -> list[Grid]:
    data, rows = translation(), [9, 19, 57, 10]
    healthy = data.batch("validation", rows)
    with faults.get("padding-crash").inject():
        faulty = data.batch("validation", rows)
    panels = {
        "labels: the loss skips -100": healthy["labels"],
        "decoder_input_ids, faulty: -100 is no row of the embedding": faulty["decoder_input_ids"],
        "decoder_input_ids, healthy: padding instead": healthy["decoder_input_ids"],
    }
    return [batch_grid.grid(ids, [data.tokens(row) for row in ids], title=title) for title, ids in panels.items()]


def mask_grids() -> list[Grid]:
    grids, pad_id = [], matrix.SPECIAL["pad_id"]
    names = {0: "<s>", pad_id: "<pad>", 3: "Fermer", 4: "▁tous"}
    for side, row in {"left": [1, 1, 0, 3, 4], "right": [0, 3, 4, 1, 1], "middle": [0, 3, 1, 1, 4]}.items():
        ids, tokens = torch.tensor([row]), [names[index] for index in row]
        both = masks.decoder(ids, pad_id)[0, 0]
        real = masks.key_is_real(ids, pad_id)[0, 0].expand_as(both)
        for name, mask in {"causal": masks.causal(len(row)), "key is real": real, "both": both}.items():
            title = f"{side}-padded: {name}"
            grids.append(attend_mask.grid(mask, tokens, tokens, title=title, pads=ids[0] == pad_id))
    return grids


def mode_grid(title: str, fault: str | None) -> Grid:
    """A small translator with a frozen encoder, before, during and after evaluate()."""
    seen: dict[str, dict[str, bool]] = {}
    model = matrix.translator().model.train()
    model.encoder.eval()

    def look(moment: str) -> None:
        seen[moment] = {name: part.training for name, part in model.named_children()}

    def batches() -> Iterator[dict[str, Tensor]]:
        look("during")
        yield labels.collate_pairs(matrix.PAIRS[:2], **matrix.SPECIAL)

    look("before")
    with faults.get(fault).inject() if fault else nullcontext():
        model.evaluate(batches())
    look("after")
    return modes.grid(seen, title=title)


def mode_grids() -> list[Grid]:
    cases = {"healthy": None, "stuck in eval": "stuck-in-eval-transformer", "train() at the end": "train-at-the-end"}
    return [mode_grid(title, fault) for title, fault in cases.items()]


def report() -> Report:
    """The translator with three faults in it at once, as somebody's project may have."""
    with ExitStack() as stack:
        for name in ("padding-crash", "sees-one-ahead", "stuck-in-eval-transformer"):
            stack.enter_context(faults.get(name).inject())
        return diagnose(matrix.translator())


@dataclass(frozen=True)
class Picture:
    """A committed figure: what makes its grids, its alt text, how many grids stand side by side."""

    grids: Callable[[], list[Grid]]
    alt: str
    across: int = 1

    def draw(self) -> tuple[Figure, bytes]:
        """The figure, and what stands in it as a table."""
        grids = self.grids()
        return compose(grids, self.across), table(grids)


@dataclass(frozen=True)
class Page:
    """A committed report as a picture, and its findings as a table."""

    report: Callable[[], Report]
    alt: str

    def draw(self) -> tuple[Figure, bytes]:
        made, file = self.report(), io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["severity", "check", "follows", "message", "repair"])
        writer.writerows([f.severity, f.check, f.follows, f.message, f.repair] for f in made.findings + made.notes)
        return page(made), file.getvalue().encode()


FIGURES = {
    "fault_matrix": Picture(
        matrix_grids,
        "A table of faults against checks. The two healthy models trip no check; grey cells are checks that cannot be "
        "asked of a model, or that rest on one which fired. Each fault is caught by its own check, along the diagonal; "
        "what else fires is explained by the fault, and nothing fires without an explanation.",
    ),
    "padded_batch": Picture(
        batch_grids,
        "Four French rows of unequal length as three grids of tokens. The labels hold -100 after each </s>. The faulty "
        "decoder inputs still hold -100; the healthy ones hold padding there.",
    ),
    "decoder_masks": Picture(
        mask_grids,
        "Nine attend masks: rows padded left, right and in the middle; the causal mask, the key-is-real mask and both. "
        "The causal mask alone lets real tokens attend to padding at the left and in the middle; with padding at the "
        "right only padding attends to padding.",
        across=3,
    ),
    "mode_timeline": Picture(
        mode_grids,
        "The modes of a model's parts before, during and after evaluate(), its encoder frozen in eval. Healthy: all as "
        "before. Stuck: all in eval after. With train() at the end: the frozen encoder wakes up in train mode.",
        across=3,
    ),
    "report": Page(
        report,
        "The report of a translator with three faults: a causal mask that is one late, -100 left in the decoder's "
        "inputs on padded batches, and evaluate() and generate() that leave the model in eval. Each finding has "
        "its severity, its file and lines, evidence and repair; below stand the checks that passed or were skipped.",
    ),
}


def write(name: str, out: Path) -> list[Path]:
    """Draw one committed figure into a folder: an SVG, and a CSV of what stands in it."""
    figure, content = FIGURES[name].draw()
    return [save(figure, Path(out) / f"{name}.svg"), put(Path(out) / f"{name}.csv", content)]


def write_all(out: Path) -> list[Path]:
    return [path for name in FIGURES for path in write(name, out)]
