"""Graders of lesson 01: the shift that keeps IGNORE_INDEX out, and a check on the ids that are looked up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import faults, labels
from ..calling import clone
from ..config import ModelConfig
from ..labels import IGNORE_INDEX
from ..transformer import Transformer
from . import grader, require

# Lengths 4, 3 and 1, so that rows end one, and more than one, column before the longest.
PAIRS = [([10, 11], [20, 21, 22, 23]), ([12, 13, 14], [24, 25, 26]), ([15], [27])]
SPECIAL = {"pad_id": 1, "bos_id": 0, "eos_id": 2}
START, PAD = 6, 9  # neither is an id of the kit's tokenizer, so a number that is written into the answer shows


def padded(side: str) -> Tensor:
    return labels.pad([[*target, SPECIAL["eos_id"]] for _, target in PAIRS], IGNORE_INDEX, side)


@grader("01a", title="-100 never reaches the embedding")
def repair(shift_right: Callable[[Tensor, int, int], Tensor]) -> None:
    """The learner's function stands in for labels.shift_right: same ids for padding at the right, the left, inside."""
    shifted = shift_right(given := padded("right"), START, PAD)
    require(isinstance(shifted, Tensor), f"your function returned {type(shifted).__name__}: return the shifted ids")
    same = torch.equal(given, padded("right"))
    require(same, "your function changed its labels, and the loss needs their -100: did you fill in place?")
    require(shifted.shape == given.shape, f"labels {tuple(given.shape)} became {tuple(shifted.shape)}: one id a label")
    require(shifted.dtype == given.dtype, f"the ids are {shifted.dtype}; an embedding wants {given.dtype}")
    compare(shifted, given, "right")
    compare(shift_right(padded("left"), START, PAD), padded("left"), "left")
    holed = torch.tensor([[20, IGNORE_INDEX, 21, 22, 2]])
    shifted = shift_right(holed, START, PAD)
    twice = int((shifted == START).sum()) > 1
    require(not twice, "a row with an ignored label inside got the start token twice: only its first label starts it")
    right = torch.equal(shifted, labels.shift_right(holed, START, PAD))
    require(right, "a row with an ignored label inside came out wrong: only where that label moves to, put pad_id")
    for side in ("right", "left"):
        healthy = labels.collate_pairs(PAIRS, side=side, **SPECIAL)
        with faults.substituted("lab.labels:shift_right", shift_right):
            yours = labels.collate_pairs(PAIRS, side=side, **SPECIAL)
        for key, value in healthy.items():
            require(torch.equal(value, yours[key]), f"in the kit's collate ({side} padding) {key} is not what it was")


def compare(shifted: Tensor, given: Tensor, side: str) -> None:
    """Name the mistake, the crudest first. The wording is that of a batch padded at this side."""
    wanted = labels.shift_right(given, START, PAD)
    real = given != IGNORE_INDEX
    first = real & (real.cumsum(dim=1) == 1)
    if torch.equal(shifted, wanted):
        return
    require(not (shifted == IGNORE_INDEX).any(), "-100 is still among the ids: replace it before you shift, or after")
    require(not torch.equal(shifted[:, 1:], given[:, 1:].masked_fill(~real[:, 1:], PAD)), "the ids are not shifted")
    require(not torch.equal(shifted[:, :-1][real[:, 1:]], given[:, 1:][real[:, 1:]]), "the ids are shifted to the left")
    wrong = set(shifted[wanted == PAD].tolist()) - {PAD}
    how = "clamped" if wrong == {0} else "written as a number"
    require(wrong not in ({0}, {1}), f"pad_id was {PAD}, but the padding holds {wrong}: was it {how}? Use pad_id")
    if side == "left":
        begins = not (shifted[~real[:, 0], 0] == START).any() and (shifted[first] == START).all()
        require(begins, "the first token of a left-padded row is not the start token: where does the row begin?")
    starts = set(shifted[first].tolist())
    require(not starts & {2}, "a full row starts with its own last label: roll brings the end round to the front")
    require(starts == {START}, f"start_id was {START}, but rows start with {sorted(starts)}: use start_id")
    raise AssertionError(f"the ids of a {side}-padded batch are not each label's predecessor")


class HandWritten(nn.Embedding):
    def forward(self, ids: Tensor) -> Tensor:
        return self.weight[ids]  # a negative id counts from the end


@grader("01b", title="your check kills the fault and four mutants")
def check(ids_are_safe: Callable[[nn.Module, dict[str, Tensor]], Any]) -> None:
    """True for healthy batches; False for the fault, an id past the table, a bad source, and a silent wrap."""
    torch.manual_seed(0)
    model = Transformer(ModelConfig(128, d_model=16, num_heads=2, num_layers=1, d_ff=32, max_seq_len=16, **SPECIAL))
    healthy = labels.collate_pairs(PAIRS, **SPECIAL)

    def ask(model: nn.Module, batch: dict[str, Tensor]) -> bool:
        kept = clone(batch)
        try:
            answer = ids_are_safe(model, batch)
        except IndexError as error:
            raise AssertionError("your check crashes with the model; it should answer False instead") from error
        require(isinstance(answer, bool | Tensor), f"your check returned {answer!r}: return True or False")
        same = [torch.equal(batch[key], kept[key]) for key in kept]
        require(all(same), "your check changed the batch: only look at it")
        return bool(answer)

    with faults.get("padding-crash").inject():
        faulty = labels.collate_pairs(PAIRS, **SPECIAL)
    one = {**labels.collate_pairs(PAIRS[:1], **SPECIAL), "input_ids": torch.tensor([[0, 127]])}
    verdicts = [ask(model, batch) for batch in (healthy, one, faulty)]
    require(any(verdicts), "your check never says True, not even for a healthy batch without padding")
    require(not all(verdicts), "your check says True for everything, also for decoder inputs that hold -100")
    require(
        verdicts[0], "your check says False for a healthy padded batch: no embedding reads labels, they may hold -100"
    )
    require(verdicts[1], "your check says False for a pair without padding: are 0 and rows - 1 ids for you? They are")
    require(not verdicts[2], "your check says True for decoder inputs that hold -100")
    for wrong in (128, -1):
        ids = one["decoder_input_ids"].clone()
        ids[0, -1] = wrong
        require(
            not ask(model, {**one, "decoder_input_ids": ids}),
            f"your check lets the id {wrong} through, and the table has rows 0 to 127. -100 is not the only wrong id: "
            f"compare with the size of the table",
        )
    source = {**healthy, "input_ids": healthy["input_ids"].masked_fill(healthy["input_ids"] == 1, IGNORE_INDEX)}
    require(not ask(model, source), "your check says True for -100 in input_ids: the encoder has an embedding too")
    model.embedder.token = HandWritten(128, 16)
    require(
        not ask(model, faulty),
        "with a hand-written embedding, weight[ids], -100 reads another row and nothing is raised, so your check says "
        "True. Do not wait for the crash: look at the ids",
    )
