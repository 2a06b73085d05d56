"""Pictures of a model at work: what stands in their cells, what their alt text counts, what they leave behind."""

from __future__ import annotations

import html
import re

import pytest
import torch
from foreign import VOCAB
from test_seen import Mixing, language_model, texts, translations, translator
from torch import nn

from lab import draw, faults
from lab.seen import influence, seen
from lab.states import STATES

DIGITS = {"rtol": 0, "atol": 6e-5}  # of a cell's value


def leaking(model: nn.Module, batch: dict, fault: str = "attends-to-pads") -> list:
    with faults.get(fault).inject():
        return seen(model, batch)


def shown(picture, panel: int = 0) -> list[list[str]]:
    return [[cell.state for cell in row] for row in picture.grids[panel].cells]


# Attention


def test_cells_are_the_weights() -> None:
    model, batch = translator(), translations()
    picture = draw.attention(model, batch, 1, 1, kind="cross", row=1)
    weights = model.eval()(**batch, need_weights=True).attentions["cross"][1][1, 1]
    (grid,) = picture.grids
    assert (grid.rows, list(grid.columns)) == (["1", "1", "0", "24", "25"], ["▨ 1"] * 3 + ["10", "11", "2"])
    values = torch.tensor([[cell.value or 0.0 for cell in row] for row in grid.cells])
    torch.testing.assert_close(values, weights, **DIGITS)
    assert shown(picture)[0] == ["exactly 0 on padding"] * 3 + ["padding's own row"] * 3
    assert shown(picture)[4] == ["exactly 0 on padding"] * 3 + ["weight"] * 3
    assert picture.alt == (
        "Attention weights of cross layer 1, head 1, as the model computed them for row 1. "
        "Nothing of a real query's weight falls on padding; no leak from real queries."
    )


def test_leaks_are_counted_apart_from_those_of_padding() -> None:
    model = translator()
    for side, leaks in (("left", 6), ("right", 0)):
        found = leaking(model, translations(side))
        picture = draw.attention(found, translations(side), 0, 1, kind="decoder", row=1)
        one = found[2].of(1, 1)
        assert picture.leaks == one.leaks == leaks and one.idle_leaks > 0
        said = f"{leaks} leaks" if leaks else "no leak"
        assert f"{said} from real queries, and apart from these {one.idle_leaks} from padding's own" in picture.alt
        assert f"on padding: {one.on_padding:.2g}" in picture.grids[0].caption
        assert (f"{one.on_padding:.2g} falls on padding" in picture.alt) == bool(leaks)


def test_all_layers_and_heads_of_all_kinds() -> None:
    model, batch = translator(), translations()
    assert len(draw.attention(model, batch).grids) == 12
    assert len(draw.attention(model, batch, 0).grids) == 6
    decoder = draw.attention(model, batch, kind="decoder", title="ours")
    assert [grid.title for grid in decoder.grids] == [
        f"ours: decoder layer {layer}, head {head}" for layer in (0, 1) for head in (0, 1)
    ]
    assert "4 heads (2 decoder layers)" in decoder.alt and decoder.across == 4
    assert [grid.title for grid in draw.attention(model, batch, 1, 0, kind="encoder").grids] == [
        "encoder layer 1, head 0"
    ]
    with_padding, without = (draw.attention(model, batch, row=row).alt for row in (1, 0))
    assert "falls on padding" in with_padding and "The row has no padding" not in with_padding
    assert "0 leaks" not in without and "no leak from real queries" in without


def test_numbers_are_never_cut_and_give_way_where_there_are_many() -> None:
    ids = torch.randint(5, VOCAB, (1, 20))
    for length in (4, 8, 12, 20):
        picture = draw.attention(language_model(), {"input_ids": ids[:, :length]}, None if length == 8 else 0)
        texts_ = {cell.text for grid in picture.grids for row in grid.cells for cell in row}
        assert (len(texts_) > 1) == (length <= 12)
        assert "…" not in "".join(text.get_text() for text in picture.figure().axes[0].texts)
        assert all(cell.note for grid in picture.grids for row in grid.cells for cell in row if cell.state == "weight")


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        ({"row": 2}, "row is 2, but the batch has 2 rows: give a number from 0 to 1"),
        ({"layer": 2}, "layer is 2, but the model has 2 layers of attention"),
        ({"layer": -1, "kind": "cross"}, "layer is -1, but its cross has 2 layers"),
        ({"head": 5, "kind": "encoder"}, "head is 5, but encoder layer 0 has 2 heads"),
        ({"kind": "self"}, "kind is 'self'; the model has attention of kind encoder, decoder, cross"),
    ],
)
def test_errors_name_what_was_wrong(ask: dict, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        draw.attention(translator(), translations(), **ask)


def test_what_is_no_model_is_an_error() -> None:
    for wrong in ([], "gpt2", [1]):
        with pytest.raises(TypeError, match="give a torch.nn.Module, or the list that lab.seen.seen returns"):
            draw.attention(wrong, texts())


# Compare


def test_compare_shows_both_and_frames_the_leaks_of_the_faulty() -> None:
    model, batch = translator(), translations()
    found = leaking(model, batch)
    picture = draw.compare(found, model, batch, 0, 1, row=1)
    assert [grid.title for grid in picture.grids] == ["decoder layer 0, head 1: faulty", "healthy", "faulty − healthy"]
    healthy = draw.attention(model, batch, 0, 1, kind="decoder", row=1)
    assert shown(picture, 1) == shown(healthy)
    faulty, difference = (torch.tensor([[c.startswith(s) for c in row] for row in shown(picture, at)])
                          for at, s in ((0, "leak"), (2, "more than healthy, where nothing should be")))  # fmt: skip
    assert torch.equal(faulty, difference) and faulty.sum() == picture.leaks == 6
    mine, theirs = found[2].weights[1, 1], seen(model, batch)[2].weights[1, 1]
    values = torch.tensor([[c.value or 0.0 for c in row] for row in picture.grids[2].cells])
    torch.testing.assert_close(values, (mine - theirs).abs(), **DIGITS)
    for t, row in enumerate(shown(picture, 2)):
        for s, state in enumerate(row):
            change = float(mine[t, s] - theirs[t, s])
            assert (state == "the same") == (change == 0)
            assert (state == "less than healthy") == (change < 0 and t > 1)
    assert "leaks from real queries: 6 and 0; from padding's own: 3 and 0." in picture.alt
    most = (mine - theirs)[2:].abs().max()
    assert f"The largest difference is {most:.2g}, where " in picture.alt


def test_compare_of_a_model_with_itself_and_with_what_does_not_fit() -> None:
    model, batch = language_model(), texts()
    same = draw.compare(model, model, batch)
    assert set(same.counts(2)) == {"the same"} and "Real queries attend alike." in same.alt
    other = seen(model, {"input_ids": batch["input_ids"][:, :3]})
    with pytest.raises(ValueError, match=re.escape("is (6, 6) and the healthy one (3, 3)")):
        draw.compare(model, other, batch)


# Influence


def test_influence_tells_every_case() -> None:
    model, batch = language_model(), texts()
    healthy = draw.influence(model, batch, row=1)
    pads = ["no influence"] * 3
    assert shown(healthy)[3:] == [pads + ["influence"] * (t + 1) + ["no influence"] * (2 - t) for t in range(3)]
    assert [row.index("padding's own row") for row in shown(healthy)[:3]] == [0, 1, 2]  # itself, and nothing else
    assert healthy.leaks == 0 and "No real position depends on what it should not" in healthy.alt
    with faults.get("no-causal-mask").inject():
        ahead = draw.influence(model, batch, row=1)
    assert shown(ahead)[3] == [*pads, "influence"] + ["leak: influence of the future"] * 2
    assert ahead.leaks == 3 and "3 leaks: 3 of the future; apart from these 9 at padding's own positions" in ahead.alt
    with faults.get("attends-to-pads").inject():
        padding = draw.influence(model, batch, row=1)
    assert shown(padding)[5] == ["leak: influence of padding"] * 3 + ["influence"] * 3
    assert padding.leaks == 9 and "9 leaks: 9 of padding" in padding.alt
    with faults.get("only-itself").inject():
        alone = draw.influence(model, batch, row=1)
    assert shown(alone)[5][3:] == ["no influence, but there should be"] * 2 + ["influence"]
    assert "3 influences missing" in alone.alt
    with faults.get("only-itself").inject():
        right = draw.influence(model, texts("right"), row=1)
    assert set(shown(right)[5][:5]) == {"no influence"}  # of padding's own row none is missed


def test_influence_of_nan_is_said() -> None:
    with faults.get("minus-infinity").inject():
        picture = draw.influence(language_model(), texts(), row=1)
    assert picture.counts()["not a number"] > 0 and "not a number" in picture.alt


def test_influence_colours_by_the_largest_and_tells_the_change_itself() -> None:
    model, batch = Mixing(1), {"input_ids": texts("right")["input_ids"]}
    found = influence(model, batch, pad_id=1)
    picture = draw.influence(model, batch, pad_id=1, tokens=lambda index: f"w{index}", title="mixed")
    (grid,) = picture.grids
    values = torch.tensor([[cell.value for cell in row] for row in grid.cells], dtype=torch.double)
    torch.testing.assert_close(values, found.by.T / found.by.max(), **DIGITS)
    assert grid.cells[1][0].note == f"{float(found.by[0, 1]):.4g}" and grid.title == "mixed" and grid.rows[0] == "w0"
    assert picture.leaks == 15 and max(cell.value for row in grid.cells for cell in row) == 1


def test_influence_of_the_source_on_the_target() -> None:
    picture = draw.influence(translator(), translations(), row=1, stream="source")
    assert len(picture.grids[0].rows) == 5 and len(picture.grids[0].columns) == 6
    assert shown(picture)[4] == ["no influence"] * 3 + ["influence"] * 3 and picture.leaks == 0


# Modes


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers, self.unused = nn.ModuleList([nn.Linear(2, 2), nn.Dropout()]), nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers[1](self.layers[0](x))


def test_modes_before_during_and_after_each_call() -> None:
    model, x = nn.Sequential(Part()).train(), torch.ones(1, 2)
    model[0].layers[0].eval()

    def evaluate() -> None:
        model.eval()
        model(x)
        model.train()

    picture = draw.modes(model, {"evaluate": evaluate, "step": lambda: model[0](x)}, depth=3, title="t")
    (grid,) = picture.grids
    assert list(grid.columns) == ["before", "during evaluate", "after evaluate", "during step", "after step"]
    none = STATES["not run"].symbol
    marks = {name: [cell.shown for cell in row] for name, row in zip(grid.rows, grid.cells, strict=True)}
    assert marks == {
        "(model)": ["T", "E", "T", none, "T"],
        "0": ["T", "E", "T", "T", "T"],
        "0.layers.0": ["E", "E", "T ≠", "T", "T ≠"],
        "0.layers.1": ["T", "E", "T", "T", "T"],
        "0.unused": ["T", none, "T", none, "T"],
    }
    assert picture.alt == (
        "4 of 5 submodules are in train mode before the first call. After evaluate 1 of them are left in train mode. "
        "After step 1 of them are left in train mode."
    )
    assert model.training and not model[0].layers[0].training  # each has its own again
    assert list(draw.modes(model, {"step": lambda: None}, depth=1).grids[0].rows) == ["(model)", "0"]


def test_modes_of_a_call_that_raises() -> None:
    model = Part()

    def broken() -> None:
        model.eval()
        raise ZeroDivisionError("in the call")

    with pytest.raises(ZeroDivisionError, match="in the call"):
        draw.modes(model, {"broken": broken})
    assert all(module.training and not module._forward_pre_hooks for module in model.modules())


def test_modes_without_a_call_or_a_model() -> None:
    with pytest.raises(ValueError, match="calls is empty"):
        draw.modes(Part(), {})
    with pytest.raises(ValueError, match="depth is 0; it must be at least 1"):
        draw.modes(Part(), {"a": lambda: None}, depth=0)
    with pytest.raises(TypeError, match="model is a str"):
        draw.modes("model", {"a": lambda: None})


def test_every_picture_is_drawn_in_both_themes() -> None:
    model, batch = translator(), translations()
    for picture in (
        draw.attention(model, batch, 0, 0, kind="cross", row=1),
        draw.compare(leaking(model, batch), model, batch, row=1),
        draw.influence(model, batch, row=1),
        draw.modes(model, {"nothing": lambda: None}),
    ):
        assert picture.render("svg") != picture.render("svg", "dark")
        assert picture.alt in html.unescape(picture.on_page())
        assert not picture.as_frame().empty


def test_the_same_twice_to_the_last_byte() -> None:
    model, batch = translator(), translations()
    first, again = (draw.compare(leaking(model, batch), model, batch, row=1) for _ in range(2))
    assert first.render("svg") == again.render("svg") and first.csv() == again.csv()
    assert draw.influence(model, batch).csv() == draw.influence(model, batch).csv()
