"""A decoder's mask with controls: what it lets through in a padded batch, the weights over it, what the loss sees."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from .. import attend, faults, masks
from ..config import ModelConfig, unknown
from ..grid import Grid
from ..grid_picture import GridPicture, described
from ..labels import IGNORE_INDEX
from ..language_model import LanguageModel
from ..states import Cell
from .base import Explorer

PAD, BOS, EOS = 0, 1, 2
TEXT = "the quick brown fox jumps over the lazy dog while a small grey cat sleeps on the warm roof"
WORDS = TEXT.split()
VOCABULARY = ["<pad>", "<s>", "</s>", *dict.fromkeys(WORDS)]
SIDES = ("right", "left", "middle")
FAULTS = (
    "attends-to-pads",
    "pad-mask-one-late",
    "no-causal-mask",
    "sees-one-ahead",
    "strict-mask",
    "mask-argument-ignored",
    "scores-times-mask",
    "minus-1e9",
    "minus-infinity",
)


class MaskExplorer(Explorer):
    """Padding x causal in a batch of up to four sentences: the mask, the weights, the leaks, and what the loss sees.

    A small LanguageModel of fixed random parameters reads the batch; the controls change the one function
    `masks.decoder` that it masks with, and a fault of the kit is injected as its check would meet it. What is drawn
    is what that model did, beside what it should have done. The first of its two layers is shown.

    lengths: tokens of each sentence, "<s>" included. longest: the most that a slider gives. Controls: lengths, row (the
    sentence that is drawn, from 0), padding ("right", "left", "middle"), causal, padding_mask, fault ("none" or one of
    FAULTS), ignore_padding (does the loss skip what is to be predicted at padding?).
    """

    title = "The mask of a decoder"

    def __init__(
        self,
        lengths: Sequence[int] = (7, 4, 5),
        *,
        padding: str = "right",
        longest: int = 12,
        seed: int = 0,
        theme: str | None = None,
    ) -> None:
        super().__init__(theme)
        if not 1 <= len(lengths) <= 4:
            raise ValueError(f"lengths has {len(lengths)} sentences; give 1 to 4.")
        if wrong := [length for length in lengths if not 0 <= length <= longest]:
            raise ValueError(f"lengths holds {wrong[0]}; each must be from 0 to longest = {longest}.")
        if padding not in SIDES:
            raise unknown("padding", padding, list(SIDES))
        self.models = [small_model(longest, seed), small_model(longest, seed)]
        with torch.no_grad():  # all the same but for what is in the pads
            self.models[1].embedder.token.weight[PAD] = -self.models[0].embedder.token.weight[PAD]
        self.numbers: dict[str, float] = {}
        self.controls = {
            "lengths": [self.slider(f"tokens in sentence {i}", n, 0, longest) for i, n in enumerate(lengths)],
            "row": self.choice("sentence drawn", range(len(lengths)), 1 if len(lengths) > 1 else 0),
            "padding": self.choice("padding", SIDES, padding),
            "causal": self.switch("causal mask", True),
            "padding_mask": self.switch("padding mask", True),
            "ignore_padding": self.switch("the loss ignores padding", True),
            "fault": self.choice("fault", ("none", *FAULTS), "none"),
        }
        self.start()

    def draw(
        self,
        lengths: tuple[int, ...],
        row: int,
        padding: str,
        causal: bool,
        padding_mask: bool,
        ignore_padding: bool,
        fault: str,
    ) -> tuple[GridPicture, list[str]]:
        ids, labels = batch(lengths, padding, ignore_padding)
        should = masks.decoder(ids, PAD)
        healthy = run(self.models[0], ids, labels)[2]
        with ExitStack() as stack:
            if fault != "none":
                stack.enter_context(faults.get(fault).inject())
            if not (causal and padding_mask):
                stack.enter_context(faults.substituted("lab.masks:decoder", switched(causal, padding_mask)))
            used, weights, loss = run(self.models[0], ids, labels)
            other = run(self.models[1], ids, labels)[2]
        self.numbers = {
            **leaks(weights, should[:, 0], ids == PAD, row),
            "counted": int((labels != IGNORE_INDEX).sum()),
            "loss": loss,
            "loss_other_pads": other,
            "loss_healthy": healthy,
        }
        idle = fault if not (causal and padding_mask) and sits_in_decoder(fault) else ""
        lines = said(self.numbers, row, int((ids[row] != PAD).sum()), int((ids[row] == PAD).sum()), idle)
        grids = panels(ids[row], labels[row], used[row], weights[row], should[row, 0])
        return GridPicture(grids, f"{' '.join(lines)} {described(grids)}", across=2), lines


def small_model(longest: int, seed: int) -> LanguageModel:
    """Two layers of one head, with parameters large enough for weights to differ. The caller's RNG stays as it is."""
    shape = {"d_model": 16, "num_heads": 1, "num_layers": 2, "d_ff": 32, "dropout": 0.0, "tie_head": False}
    config = ModelConfig(len(VOCABULARY), max_seq_len=max(longest, 1), pad_id=PAD, bos_id=BOS, eos_id=EOS, **shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LanguageModel(config).eval()
        for parameter in model.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.3)
    return model


def batch(lengths: Sequence[int], side: str, ignore: bool) -> tuple[Tensor, Tensor]:
    """Sentences of those lengths -> input ids and labels, each (B, T); a label is the token after."""
    width = max(1, *lengths)
    ids = torch.full((len(lengths), width), PAD)
    labels = torch.full_like(ids, IGNORE_INDEX if ignore else PAD)
    for row, length in enumerate(lengths):
        words = [VOCABULARY.index(WORDS[(5 * row + at) % len(WORDS)]) for at in range(length)]
        pads = width - length
        before = {"right": length, "left": 0, "middle": (length + 1) // 2}[side]  # how many stand before the pads
        at = [*range(before), *range(before + pads, width)]
        ids[row, at] = torch.tensor([BOS, *words][:length], dtype=torch.long)
        labels[row, at] = torch.tensor([*words[: length - 1], EOS][:length], dtype=torch.long)
    return ids, labels


def switched(causal: bool, padding: bool):  # noqa: ANN201 - a twin of masks.decoder
    """`masks.decoder` with one of its two halves, or with none."""

    def decoder(ids: Tensor, pad_id: int, last: int | None = None) -> Tensor:
        size = ids.size(1)
        mask = masks.causal(size, last) if causal else torch.ones(last or size, size, dtype=torch.bool)
        return mask & masks.key_is_real(ids, pad_id) if padding else mask[None, None]

    return decoder


@torch.no_grad()
def run(model: LanguageModel, ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, float]:
    """The mask that the model used (B, T, T), the weights of its first layer (B, T, T), its loss."""
    used = masks.decoder(ids, PAD).expand(len(ids), 1, ids.size(1), -1)[:, 0]
    out = model(ids, labels, need_weights=True)
    return used, out.attentions["decoder"][0][:, 0], float(out.loss)


def leaks(weights: Tensor, should: Tensor, pads: Tensor, row: int) -> dict[str, float]:
    """Weights where there should be none, from real queries and from padding's own rows, of a sentence and of all.

    weights, should (B, T, T), pads (B, T). on_padding: the mean share of a real query's weight that falls on padding.
    """
    wrong = (weights != 0) & ~should  # NaN is not 0 either
    real, own = wrong & ~pads[..., None], wrong & pads[..., None]
    shares = (weights * pads[:, None]).sum(-1)[row][~pads[row]]
    return {
        "leaks": int(real[row].sum()),
        "idle_leaks": int(own[row].sum()),
        "leaks_in_batch": int(real.sum()),
        "idle_leaks_in_batch": int(own.sum()),
        "on_padding": float(shares.mean()) if len(shares) else 0.0,
    }


def sits_in_decoder(fault: str) -> bool:
    return fault != "none" and any(twin.target == "lab.masks:decoder" for twin in faults.get(fault).twins)


def said(numbers: dict[str, float], row: int, real: int, pads: int, idle: str) -> list[str]:
    """The numbers in words, a line each for the leaks and for the loss."""
    n = numbers
    lines = [
        f"Sentence {row}, {real} tokens and {pads} pads. Leaks: {n['leaks']} from real queries, {n['idle_leaks']} from "
        f"padding's own rows (all sentences: {n['leaks_in_batch']} and {n['idle_leaks_in_batch']}). "
        f"Real queries give {n['on_padding']:.1%} of their weight to padding.",
    ]
    loss, other, healthy = (n[name] for name in ("loss", "loss_other_pads", "loss_healthy"))
    if not n["counted"]:
        lines.append("The loss counts no position: there is no token.")
    elif loss != loss:
        lines.append(f"The loss counts {n['counted']} positions and is not a number; it should be {healthy:.6f}.")
    else:
        reach = "the same: what is in the pads does not reach it" if loss == other else "what is in the pads reaches it"
        good = ", the same to the last bit" if loss == healthy else ""
        lines.append(
            f"The loss, over {n['counted']} positions, is {loss:.6f}; with other content in the pads {other:.6f}, "
            f"{reach}; with the mask as it should be {healthy:.6f}{good}."
        )
    if idle:
        lines.append(f"The fault {idle} sits in masks.decoder, which is in use only while both masks are on.")
    return lines


def panels(ids: Tensor, labels: Tensor, used: Tensor, weights: Tensor, should: Tensor) -> list[Grid]:
    """Mask, weights and targets of one sentence: ids and labels (T,), the rest (T, T)."""
    tokens = [VOCABULARY[index] for index in ids.tolist()]
    how = {"should": should, "pads": ids == PAD}
    mask = attend.mask(used, tokens, title="the mask used", **how).grids[0]
    looks = attend.weights(weights, tokens, title="the weights of the first layer", **how).grids[0]

    def cell(index: int) -> Cell:
        if index == IGNORE_INDEX:
            return Cell("for the loss alone: no token", str(IGNORE_INDEX))
        if index == PAD:
            return Cell("padding")
        return Cell("start or end" if index in (BOS, EOS) else "token", VOCABULARY[index])

    cells = [[cell(index) for index in labels.tolist()]]
    wide = min(0.62, 8 / len(ids))  # inches: room for a word, while there is
    targets = Grid(cells, ["to predict"], mask.columns, "what the loss sees", ("→ token fed in",), least=wide)
    return [mask, looks, targets]
