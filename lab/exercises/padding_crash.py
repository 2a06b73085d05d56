"""Graders of lesson 01: the shift that keeps IGNORE_INDEX out, and a check on the ids that are looked up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import faults, labels
from ..config import ModelConfig
from ..labels import IGNORE_INDEX
from ..subject import clone
from ..transformer import Transformer
from . import grader

# Lengths 4, 3 and 1, so that rows end one, and more than one, column before the longest.
PAIRS = [([10, 11], [20, 21, 22, 23]), ([12, 13, 14], [24, 25, 26]), ([15], [27])]
SPECIAL = {"pad_id": 1, "bos_id": 0, "eos_id": 2}
START, PAD = 6, 9  # neither is an id of the kit's tokenizer, so a number that is written into the answer shows


def require(condition: object, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def padded(side: str) -> Tensor:
    return labels.pad([[*target, SPECIAL["eos_id"]] for _, target in PAIRS], IGNORE_INDEX, side)


@grader("01a", title="-100 never reaches the embedding")
def repair(shift_right: Callable[[Tensor, int, int], Tensor]) -> None:
    """The learner's function stands in for labels.shift_right: same ids for padding at the right, the left, inside."""
    given = padded("right")
    kept = given.clone()
    shifted = shift_right(given, START, PAD)
    require(isinstance(shifted, Tensor), f"your function returned {type(shifted).__name__}: return the shifted ids")
    require(
        torch.equal(given, kept),
        "your function changed the labels that it was given, and the loss still needs their -100: "
        "did you fill in place? Make a new tensor",
    )
    require(shifted.shape == given.shape, f"labels {tuple(given.shape)} became {tuple(shifted.shape)}: one id a label")
    require(shifted.dtype == given.dtype, f"the ids are {shifted.dtype}; an embedding wants {given.dtype}")
    compare(shifted, given, "right")
    given = padded("left")
    compare(shift_right(given, START, PAD), given, "left")
    holed = torch.tensor([[20, IGNORE_INDEX, 21, 22, 2]])
    require(
        int((shift_right(holed, START, PAD) == START).sum()) == 1,
        "a row with one ignored label inside got the start token twice: only its first real label starts it",
    )
    require(
        torch.equal(shift_right(holed, START, PAD), labels.shift_right(holed, START, PAD)),
        "a row with one ignored label inside came out wrong: put pad_id after that label, and keep the rest in place",
    )
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
    left_over = int((shifted == IGNORE_INDEX).sum())
    require(not left_over, f"-100 is still among the ids, {left_over} times: replace it before you shift, or after")
    require(not torch.equal(shifted[:, 1:], given[:, 1:].masked_fill(~real[:, 1:], PAD)), "the ids are not shifted")
    require(not torch.equal(shifted[:, :-1][real[:, 1:]], given[:, 1:][real[:, 1:]]), "the ids are shifted to the left")
    pads = wanted == PAD
    wrong = sorted(set(shifted[pads].tolist()) - {PAD})
    if wrong and wrong != [START] and set(wrong) <= {0, 1}:
        how = "clamped" if wrong == [0] else "written as a number"
        raise AssertionError(f"pad_id was {PAD}, but the padding holds {wrong[0]}: was it {how}? Use pad_id")
    if side == "left":
        require(
            not bool((shifted[~real[:, 0], 0] == START).any()) and bool((shifted[first] == START).all()),
            "the first token of a left-padded row is not the start token: where does the row begin?",
        )
    starts = set(shifted[first].tolist())
    require(not starts & {2}, "a full row starts with its own last label: roll brings the end round to the front")
    require(not starts & {0}, f"start_id was {START}, but a row starts with 0: use start_id")
    require(starts == {START}, f"start_id was {START}, but rows start with {sorted(starts)}")
    require(not wrong, f"pad_id was {PAD}, but padding of a {side}-padded batch holds {wrong}")
    raise AssertionError(f"the ids of a {side}-padded batch are not each label's predecessor")


class HandWritten(nn.Embedding):
    """An embedding that is read by plain indexing, where a negative id counts from the end."""

    def forward(self, ids: Tensor) -> Tensor:
        return self.weight[ids]


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
        require(all(torch.equal(batch[key], kept[key]) for key in kept), "your check changed the batch: only look at it")
        return bool(answer)

    with faults.get("padding-crash").inject():
        faulty = labels.collate_pairs(PAIRS, **SPECIAL)
    one = labels.collate_pairs(PAIRS[:1], **SPECIAL)
    highest = {**one, "input_ids": torch.tensor([[0, 127]])}
    verdicts = [ask(model, batch) for batch in (healthy, one, highest, faulty)]
    require(any(verdicts), "your check never says True, not even for a healthy batch without padding")
    require(not all(verdicts), "your check says True for everything, also for decoder inputs that hold -100")
    require(verdicts[1], "your check says False for one healthy pair without padding")
    require(
        verdicts[0],
        "your check says False for a healthy padded batch. Its labels hold -100 and may: no embedding reads labels",
    )
    require(verdicts[2], "your check says False for an id equal to rows - 1, which is the last row of the table")
    require(not verdicts[3], "your check says True for decoder inputs that hold -100")
    grown = {**one, "decoder_input_ids": one["decoder_input_ids"].clone()}
    grown["decoder_input_ids"][0, -1] = 128
    require(
        not ask(model, grown),
        "your check lets an id through that equals the number of rows (128; the last row is 127). "
        "-100 is only one wrong id: compare with the size of the table",
    )
    minus_one = {**one, "decoder_input_ids": one["decoder_input_ids"].masked_fill(one["labels"] == 2, -1)}
    require(not ask(model, minus_one), "your check lets -1 through: -100 is only one wrong id, no negative one has a row")
    source = {**healthy, "input_ids": healthy["input_ids"].masked_fill(healthy["input_ids"] == 1, IGNORE_INDEX)}
    require(not ask(model, source), "your check says True for -100 in input_ids: the encoder has an embedding too")
    model.embedder.token = HandWritten(128, 16)
    require(
        not ask(model, faulty),
        "with a hand-written embedding, weight[ids], -100 reads another row and nothing is raised, so your check says "
        "True. Do not wait for the crash: look at the ids",
    )
