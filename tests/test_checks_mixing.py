"""Who depends on whom: each broken relation is found on a model that is not the kit's, and sound models are let be."""

import pytest
import torch
from foreign import NanoGPT, TorchTransformer, hugging_face, pairs_batch
from plain import LEFT, PAD, RIGHT, VOCAB, WIDTH, Plain
from torch import nn

import lab
from lab.subject import Subject

OURS = [
    "batch-independence",
    "sees-the-future",
    "blind-to-the-past",
    "blind-to-itself",
    "source-ignored",
    "residual",
    "positions",
    "padding-amount",
    "mask-ignored",
]
PAIRS = pairs_batch("right")


def diagnosed(model, ids=LEFT, only=OURS, **more):
    batch = more.pop("batch", {"input_ids": ids})
    report = lab.diagnose(Subject(model, batch, pad_id=PAD, **({"kind": "causal_lm"} | more)), only=only)
    assert not report.errors, report.errors
    return report


def roots(report):
    return {finding.check for finding in report.findings if not finding.follows}


def test_a_healthy_decoder_passes():
    report = diagnosed(Plain())
    assert set(report.passed) == set(OURS) - {"source-ignored"} and not report.notes, report.text()
    assert "no source" in report.skipped["source-ignored"]


def causal(ids, ahead=0):
    mask = torch.ones(ids.size(1), ids.size(1), dtype=torch.bool).tril(ahead)
    return mask & (ids != PAD)[:, None, None, :]


def test_a_mask_off_by_one_sees_one_ahead():
    report = diagnosed(Plain(see=lambda ids: causal(ids, 1)))
    assert roots(report) == {"sees-the-future"}, report.text()
    (finding,) = report.findings
    assert finding.severity == "P0" and finding.evidence["tokens ahead there"] == 1
    assert finding.evidence["module"] == "blocks.0.attention" and finding.where.symbol == "Attention.forward"


def test_no_mask_at_all_is_not_called_blind():
    report = diagnosed(Plain(see=lambda ids: (ids != PAD)[:, None, None, :]))
    assert roots(report) == {"sees-the-future"} and {"blind-to-the-past", "blind-to-itself"} <= set(report.passed)
    assert report.findings[0].evidence["tokens ahead there"] == 6


def test_an_encoder_may_see_the_future():
    report = diagnosed(Plain(see=lambda ids: (ids != PAD)[:, None, None, :]), kind="encoder")
    assert not report.findings and "kind='causal_lm'" in report.skipped["sees-the-future"], report.text()


class Gated(Plain):
    """Causal with a mask, and not without: two paths through one attention."""

    def forward(self, input_ids, attention_mask=None):
        if attention_mask is None:
            self.parts["see"] = lambda ids: torch.ones(1, 1, 1, 1, dtype=torch.bool)
        else:
            self.parts["see"] = lambda ids: causal(ids) & attention_mask.bool()[:, None, None, :]
        return super().forward(input_ids)


class Lazy(Gated):
    """Forgets the future as soon as a row is padded."""

    def forward(self, input_ids, attention_mask=None):
        if attention_mask is not None and not attention_mask.all():
            self.parts["see"] = lambda ids: attention_mask.bool()[:, None, None, :]
            return Plain.forward(self, input_ids)
        return super().forward(input_ids, torch.ones_like(input_ids))


@pytest.mark.parametrize(("model", "path"), [(Gated, "where no mask is given"), (Lazy, "a row of the batch is padded")])
def test_each_path_of_a_mask_is_asked(model, path):
    batch = {"input_ids": RIGHT, "attention_mask": (RIGHT != PAD).long()}
    report = diagnosed(model(), batch=batch, only=["sees-the-future"])
    assert [path in finding.message for finding in report.findings] == [True], report.text()
    assert report.findings[0].severity == "P1"


def test_a_diagonal_mask_is_blind_to_the_past():
    report = diagnosed(Plain(see=lambda ids: causal(ids) & torch.eye(ids.size(1), dtype=torch.bool)))
    assert "blind-to-the-past" in roots(report) and "blind-to-itself" in report.passed, report.text()


def test_a_window_is_not_blind():
    def see(ids):
        return causal(ids) & torch.ones(ids.size(1), ids.size(1), dtype=torch.bool).triu(-1)

    assert not diagnosed(Plain(see=see)).findings


def test_projections_that_start_at_zero_are_not_blind():
    model = Plain()
    for block in model.blocks:
        for layer in (block.attention.o, block.down):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    report = diagnosed(model, only=["blind-to-the-past", "sees-the-future", "blind-to-itself", "batch-independence"])
    assert len(report.passed) == 4, report.text()


def test_a_strict_mask_is_blind_to_itself():
    report = diagnosed(Plain(see=lambda ids: causal(ids, -1)))
    assert roots(report) == {"blind-to-itself"}, report.text()
    assert "strict" in report.findings[0].message and report.findings[0].severity == "P1"


class Shifts(Plain):
    """Predicts at t the token that it is fed at t: it puts a start token before its input and drops the last."""

    def forward(self, input_ids, labels=None):
        shifted = torch.cat([torch.zeros_like(input_ids[:, :1]), input_ids[:, :-1]], 1)
        logits = super().forward(shifted)
        loss = None if labels is None else nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return logits if loss is None else (loss, logits)


def test_a_model_that_shifts_inside_is_not_blind():
    batch = {"input_ids": RIGHT, "labels": RIGHT}
    report = diagnosed(Shifts(), batch=batch, only=["blind-to-itself", "blind-to-the-past", "sees-the-future"])
    assert not report.findings and "must not see it" in report.skipped["blind-to-itself"], report.text()


def test_a_shift_inside_of_labels_that_are_ahead_already_is_blind():
    ahead = torch.cat([RIGHT[:, 1:], RIGHT[:, :1]], 1)
    report = diagnosed(Shifts(), batch={"input_ids": RIGHT, "labels": ahead}, only=["blind-to-itself"])
    assert roots(report) == {"blind-to-itself"}, report.text()
    assert "give loss=" in diagnosed(Shifts(), only=["blind-to-itself"]).skipped["blind-to-itself"]


class BatchSecond(nn.Module):
    """PyTorch's encoder layer as it comes, with the batch second, fed the batch first."""

    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Embedding(VOCAB, 16), nn.Linear(16, VOCAB)
        layer = nn.TransformerEncoderLayer(16, 2, 40, **options)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, input_ids):
        return self.head(self.layers(self.table(input_ids)))


def test_the_batch_on_the_wrong_axis_is_the_root():
    report = diagnosed(BatchSecond())
    (finding,) = [finding for finding in report.findings if finding.check == "batch-independence"]
    assert finding.severity == "P0" and "self_attn" in finding.evidence["module"]
    assert all("rests on batch-independence" in report.skipped[check] for check in ("sees-the-future", "residual"))


class Centred(Plain):
    def forward(self, input_ids):
        logits = super().forward(input_ids)
        return logits - logits.mean(0)


def test_a_mean_over_the_rows_is_found():
    report = diagnosed(Centred(), only=["batch-independence"])
    assert len(report.findings) == 1 and report.findings[0].evidence["module"] == "Centred"


def test_batch_norm_in_eval_is_independent():
    model = Plain()
    model.head = nn.Sequential(nn.Flatten(0, 1), nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, VOCAB))
    subject = {"forward": lambda m, b: m(b["input_ids"]).unflatten(0, b["input_ids"].shape)}
    assert diagnosed(model, only=["batch-independence"], **subject).passed == ["batch-independence"]


class Deaf(TorchTransformer):
    """What its encoder makes is multiplied by 0 on the way."""

    def __init__(self):
        super().__init__()
        self.transformer.encoder.register_forward_hook(lambda module, args, output: 0 * output)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_a_source_that_is_not_read_is_found():
    torch.manual_seed(0)
    report = diagnosed(Deaf(), batch=PAIRS, kind="seq2seq", only=["source-ignored"])
    assert [finding.severity for finding in report.findings] == ["P0"], report.text()
    assert report.findings[0].evidence["source tokens without effect"] == 9


class Cuts(TorchTransformer):
    def forward(self, src, tgt):
        return super().forward(src[:, :5], tgt)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_a_source_that_is_read_in_part_is_found():
    torch.manual_seed(0)
    report = diagnosed(Cuts(), batch=PAIRS, kind="seq2seq", only=["source-ignored"])
    assert [finding.severity for finding in report.findings] == ["P1"], report.text()
    assert "tokens 5 to 8" in report.findings[0].message
    healthy = diagnosed(TorchTransformer(), batch=PAIRS, kind="seq2seq")
    assert not healthy.findings and "source-ignored" in healthy.passed, healthy.text()


@pytest.mark.parametrize("norm_first", [True, False])
def test_pytorchs_residuals_come_through(norm_first):
    model = BatchSecond(norm_first=norm_first, batch_first=True)
    assert diagnosed(model, kind="encoder", only=["residual"]).passed == ["residual"]


@pytest.mark.parametrize("broken", [lambda x, out: out, lambda x, out: 0 * x + out])
def test_a_missing_residual_is_named(broken):
    report = diagnosed(Plain(add=broken))
    assert roots(report) == {"residual"}, report.text()
    assert report.findings[0].evidence["module"] == "blocks.0" and report.findings[0].where.symbol == "Block.forward"


NOWHERE = {
    "constant": lambda ids, table: table[torch.zeros_like(ids)],
    "by row": lambda ids, table: table[torch.arange(len(ids))][:, None].expand(-1, ids.size(1), -1),
    "one offset": lambda ids, table: table[7],
    "none": lambda ids, table: torch.zeros(()),
}


@pytest.mark.parametrize("how", list(NOWHERE))
def test_positions_that_are_none_are_found(how):
    report = diagnosed(Plain(place=NOWHERE[how]))
    assert roots(report) == {"positions"}, report.text()
    assert report.by_check("positions")[0].severity == "P1"


def test_a_table_of_positions_that_starts_at_zero_is_a_position():
    model = Plain()
    nn.init.zeros_(model.positions)
    assert "positions" in diagnosed(model).passed


def test_a_causal_model_that_means_to_have_no_positions_gets_a_note():
    model = Plain(place=NOWHERE["none"])
    del model.positions
    model.positions, model.blocks[0].first.eps = None, 1e-5
    model.__dict__["table_of"] = None
    report = diagnosed(Nope(model), only=["positions"])
    assert [note.check for note in report.notes] == ["positions"] and not report.findings, report.text()
    report = diagnosed(Nope(Plain(place=NOWHERE["none"], see=lambda ids: causal(ids, 40))), kind="encoder")
    assert "positions" in roots(report)  # without a causal mask nothing tells the order


class Nope(nn.Module):
    """Without anything that is called a position."""

    def __init__(self, model):
        super().__init__()
        self.table, self.blocks, self.head, self.parts = model.table, model.blocks, model.head, model.parts

    def forward(self, input_ids):
        x = self.table(input_ids)
        for block in self.blocks:
            x = block(x, self.parts["see"](input_ids))
        return self.head(x)


def counted(ids, table):
    return table[torch.arange(ids.size(1))]


class Generates(Plain):
    def generate(self, ids, max_new_tokens):
        for _ in range(max_new_tokens):
            ids = torch.cat([ids, self(ids)[:, -1:].argmax(-1)], 1)
        return ids


def test_absolute_positions_under_left_padding_are_a_note_unless_prompts_are_continued_so():
    report = diagnosed(Plain(place=counted), only=["padding-amount"])
    assert [note.check for note in report.notes] == ["padding-amount"] and not report.findings
    report = diagnosed(Generates(place=counted), only=["padding-amount"])
    assert [finding.severity for finding in report.findings] == ["P2"], report.text()
    report = diagnosed(Generates(place=counted), ids=RIGHT, only=["padding-amount"])
    assert not report.findings and report.notes


def test_position_ids_that_can_be_given_are_named():
    batch = {"input_ids": LEFT, "attention_mask": (LEFT != PAD).long()}
    report = diagnosed(hugging_face("gpt2"), batch=batch, only=["padding-amount"])
    assert not report.findings and "give position_ids" in report.notes[0].message
    assert diagnosed(hugging_face("llama"), batch=batch, only=["padding-amount"]).passed == ["padding-amount"]


def test_positions_counted_from_the_end_move_with_padding_at_the_right():
    model = Plain(place=lambda ids, table: table[torch.arange(ids.size(1)).flip(0)])
    assert diagnosed(model, ids=RIGHT, only=["padding-amount"]).findings[0].severity == "P2"
    assert diagnosed(model, ids=LEFT, only=["padding-amount"]).findings[0].severity == "P3"


class Given(Plain):
    """Takes a mask, and may do nothing with it."""

    def __init__(self, uses, knows):
        super().__init__()
        self.uses, self.knows = uses, knows

    def forward(self, input_ids, attention_mask=None):
        def see(ids):
            real = attention_mask.bool() if self.uses and attention_mask is not None else torch.ones_like(ids) > 0
            real = real & (ids != PAD) if self.knows else real
            return torch.ones(ids.size(1), ids.size(1)).tril().bool() & real[:, None, None, :]

        self.parts["see"] = see
        return super().forward(input_ids)


@pytest.mark.parametrize(
    ("uses", "knows", "ids", "expected"),
    [
        (True, False, LEFT, "passed"),
        (False, False, LEFT, "P1"),
        (False, True, LEFT, "note"),
        (False, False, RIGHT, "note"),
    ],
)
def test_a_mask_of_the_batch_that_does_nothing(uses, knows, ids, expected):
    batch = {"input_ids": ids, "attention_mask": (ids != PAD).long()}
    report = diagnosed(Given(uses, knows), batch=batch, only=["mask-ignored"])
    said = [finding.severity for finding in report.findings + report.notes] or ["passed"]
    assert said == [expected], report.text()


def test_a_mask_that_a_block_does_not_hand_on_is_found():
    model = Plain()
    kept = causal(torch.full((1, 7), 5))
    model.blocks[0].attention.parts = model.parts | {
        "weigh": lambda q, k, mask: model.parts["weigh"](q, k, kept[..., : q.size(2), : q.size(2)])
    }
    report = diagnosed(model, only=["mask-ignored"])
    assert [finding.evidence["module"] for finding in report.findings] == ["blocks.0.attention"], report.text()


def test_no_mask_anywhere_is_a_skip():
    report = lab.diagnose(NanoGPT(), (RIGHT, RIGHT), only=OURS)
    assert "no mask is given" in report.skipped["mask-ignored"] and not report.findings, report.text()


class Unsorted(nn.Module):
    """Sorts its rows by length, as packing once asked for, and forgets to put them back."""

    def __init__(self):
        super().__init__()
        self.model = Plain()

    def forward(self, input_ids):
        return self.model(input_ids[(input_ids[:, 0]).argsort()])


def test_rows_that_come_back_in_another_order_are_found():
    assert "batch-independence" in roots(diagnosed(Unsorted(), only=["batch-independence"]))


class Zeroed(Plain):
    """Knows its pads by their vectors, which are zero."""

    def __init__(self, hides=True):
        super().__init__()
        self.hides = hides
        nn.init.zeros_(self.table.weight[PAD])

    def forward(self, input_ids):
        vectors = self.table(input_ids)
        real = (vectors.abs().sum(-1) > 0) | (not self.hides)
        mask = torch.ones(input_ids.size(1), input_ids.size(1)).tril().bool() & real[:, None, None, :]
        x = vectors + self.parts["place"](input_ids, self.positions)
        for block in self.blocks:
            x = block(x, mask)
        return self.head(x)


def test_pads_that_are_known_by_their_zeros_are_masked():
    assert diagnosed(Zeroed(), only=["attends-to-pads"]).passed == ["attends-to-pads"]
    report = diagnosed(Zeroed(hides=False), only=["attends-to-pads"])
    assert [finding.severity for finding in report.findings] == ["P2"]  # a vector of zeros is attended to all the same
    assert "off by one" not in report.findings[0].message


def test_a_mask_of_padding_that_is_one_late_is_told_pad_by_pad():
    def see(ids):
        late = (ids != PAD) | (ids.roll(-1, 1) != PAD)
        return torch.ones(ids.size(1), ids.size(1)).tril().bool() & late[:, None, None, :]

    report = diagnosed(Plain(see=see), only=["attends-to-pads"])
    assert [("off by one" in finding.message) for finding in report.findings] == [True], report.text()
