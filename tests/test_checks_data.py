"""The batch and the tables that read it, on models that nobody here wrote: ids, ends of rows, cuts and padding."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from foreign import EOS, PAD, VOCAB, NanoGPT, TorchTransformer, hugging_face, pairs_batch
from torch import nn

import lab
from lab.subject import Subject

ROWS = torch.tensor([[5, 6, 7, 8, 9, EOS], [10, 11, 12, EOS, PAD, PAD], [13, 14, 15, 16, EOS, PAD]])


def asked(check, *subject, **known):
    subject = subject[0] if len(subject) == 1 and not known else Subject(*subject, **known)
    report = lab.diagnose(subject, only=[check])
    assert not report.errors, report.errors
    return report


def one(report, severity):
    (finding,) = report.findings + report.notes
    assert finding.severity == severity, report.text()
    return finding


def silent(report):
    assert not report.findings and not report.notes and report.passed, report.text()


def why(check, *subject, **known):
    report = asked(check, *subject, **known)
    assert not report.findings and not report.passed, report.text()
    return report.skipped[check]


def causal(ids, **changes):
    """A batch of Hugging Face's for a language model."""
    real = ids != PAD
    return {"input_ids": ids, "attention_mask": real.long(), "labels": ids.masked_fill(~real, -100)} | changes


# embedding-range


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bart", "t5"])
def test_a_tokenizer_with_an_id_too_many(kind):
    pairs = pairs_batch()
    batch = causal(ROWS) if kind in ("gpt2", "llama") else {"input_ids": pairs["src"], "labels": pairs["labels"]}
    model = hugging_face(kind)
    silent(asked("embedding-range", model, batch, pad_id=PAD))
    finding = one(asked("embedding-range", model, batch, pad_id=PAD, vocab_size=VOCAB + 1), "P1")
    assert finding.evidence == {"vocab_size": VOCAB + 1, "rows": VOCAB, "logits": VOCAB}
    assert finding.where.path.endswith(f"modeling_{kind}.py")


def test_a_table_that_is_rounded_up_passes():
    silent(asked("embedding-range", hugging_face("gpt2"), causal(ROWS), vocab_size=VOCAB - 3))


def test_a_short_table_of_positions():
    assert (hugging_face("gpt2").config.max_position_embeddings, NanoGPT().wpe.num_embeddings) == (40, 40)
    finding = one(asked("embedding-range", hugging_face("gpt2"), causal(ROWS), max_seq_len=48), "P1")
    assert finding.evidence["rows"] == 40 and "48" in finding.message
    one(asked("embedding-range", NanoGPT(), (ROWS, ROWS), max_seq_len=41), "P1")
    silent(asked("embedding-range", NanoGPT(), (ROWS, ROWS), max_seq_len=40))


def test_positions_that_begin_at_two():
    """BART's table has two rows more than positions."""
    pairs = pairs_batch()
    batch = {"input_ids": pairs["src"], "labels": pairs["labels"]}
    silent(asked("embedding-range", hugging_face("bart"), batch, max_seq_len=40))
    one(asked("embedding-range", hugging_face("bart"), batch, max_seq_len=41), "P1")


class Head(NanoGPT):
    """As many logits as it is told."""

    def __init__(self, size):
        super().__init__()
        self.head = nn.Linear(16, size, bias=False)


def test_heads_of_another_size_than_the_table():
    batch = (ROWS, ROWS)
    assert "logits" in one(asked("embedding-range", Head(VOCAB - 1), batch, vocab_size=VOCAB), "P1").message
    assert "cannot read" in one(asked("embedding-range", Head(VOCAB + 4), batch), "P2").message
    silent(asked("embedding-range", Head(VOCAB + 4), batch, vocab_size=VOCAB))


class Images(NanoGPT):
    """Keeps the ids of images from its table, as models of images and text do."""

    def forward(self, idx, targets=None):
        return super().forward(idx.masked_fill(idx >= VOCAB, 0), targets)


def test_ids_that_never_reach_the_table_need_no_row():
    silent(asked("embedding-range", Images(), (ROWS, ROWS), vocab_size=VOCAB))
    report = asked("embedding-range", Images(), (ROWS, ROWS), vocab_size=VOCAB + 2)
    assert all("logits" in finding.message for finding in report.findings)


class Indexes(nn.Module):
    """Reads its table by plain indexing."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(VOCAB, 8))

    def forward(self, input_ids):
        return self.table[input_ids] @ self.table.T


def test_plain_indexing_is_seen():
    finding = one(asked("embedding-range", Indexes(), {"input_ids": ROWS}, vocab_size=VOCAB + 1), "P1")
    assert finding.where.symbol == "Indexes.forward"


def test_a_batch_that_crashes_is_left_to_padding_crash():
    wrong = ROWS.clone()
    wrong[0, 0] = VOCAB + 3
    subject = Subject(NanoGPT(), (wrong, wrong), vocab_size=VOCAB + 5)
    report = lab.diagnose(subject, only=["padding-crash", "embedding-range"])
    assert [finding.check for finding in report.findings] == ["padding-crash"]
    assert "embedding-range" in report.skipped


# eos-missing


def without_eos(ids):
    return ids.masked_fill(ids == EOS, 20)


def test_rows_without_eos():
    batch = causal(without_eos(ROWS))
    finding = one(asked("eos-missing", hugging_face("gpt2"), batch, pad_id=PAD), "P2")
    assert finding.evidence["rows without EOS"] == finding.evidence["of"] == 2
    assert "never learns to stop" in finding.message
    silent(asked("eos-missing", hugging_face("gpt2"), causal(ROWS), pad_id=PAD))


def test_rows_of_which_some_lack_eos():
    ids = torch.cat([ROWS[1:], ROWS[1:], ROWS[1:]])
    ids[0, 3] = 20
    assert "1 of 6" in one(asked("eos-missing", hugging_face("gpt2"), causal(ids), pad_id=PAD), "P3").message


def test_the_place_is_the_collate_function():
    def collate(examples):
        return causal(without_eos(ROWS))

    subject = Subject(hugging_face("gpt2"), collate=collate, examples=[0], pad_id=PAD)
    assert one(asked("eos-missing", subject), "P2").where.symbol.endswith(("collate", "causal"))


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_translators_eos_is_in_its_labels(side):
    torch.manual_seed(0)
    known = {"pad_id": PAD, "eos_id": EOS}
    silent(asked("eos-missing", TorchTransformer(), pairs_batch(side), **known))
    batch = pairs_batch(side)
    batch["labels"] = without_eos(batch["labels"])
    batch["tgt"] = without_eos(batch["tgt"])
    one(asked("eos-missing", TorchTransformer(), batch, **known), "P2")


def test_eos_that_is_the_pad_too():
    """The mask tells: the first has its EOS within it, the second had none appended."""
    ids = ROWS.masked_fill(ROWS == PAD, EOS)
    mask = (ROWS != PAD).long()
    batch = {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
    silent(asked("eos-missing", hugging_face("gpt2"), batch, pad_id=EOS))
    batch["attention_mask"] = ((ROWS != PAD) & (ROWS != EOS)).long()
    batch["labels"] = ids.masked_fill(batch["attention_mask"] == 0, -100)
    one(asked("eos-missing", hugging_face("gpt2"), batch, pad_id=EOS), "P2")
    del batch["attention_mask"]
    assert "cannot be told" in why("eos-missing", hugging_face("gpt2"), batch, pad_id=EOS)


def test_what_need_not_end_is_not_asked():
    full = torch.randint(5, VOCAB, (3, 8))
    assert "unequal rows" in why("eos-missing", hugging_face("gpt2"), causal(full), pad_id=PAD)
    assert "eos_id=" in why("eos-missing", NanoGPT(), (ROWS, ROWS), pad_id=PAD)
    prompts = {"input_ids": ROWS[:, :3]}
    assert "nothing is trained" in why("eos-missing", hugging_face("gpt2"), prompts, pad_id=PAD)
    assert "encoder" in why("eos-missing", NanoGPT(), (ROWS, ROWS), kind="encoder", eos_id=EOS)


def test_a_dialogue_has_its_eos_after_each_turn():
    """What follows the last EOS is a line feed, or a turn of the user's."""
    ids = torch.tensor([[5, 6, EOS, 20, PAD], [7, 8, 9, EOS, 20], [7, EOS, 20, PAD, PAD]])
    silent(asked("eos-missing", hugging_face("gpt2"), causal(ids), pad_id=PAD))


def test_eos_as_the_first_token_ends_nothing():
    ids = torch.cat([torch.full((3, 1), EOS), without_eos(ROWS)], 1)
    one(asked("eos-missing", hugging_face("gpt2"), causal(ids), pad_id=PAD), "P2")


def test_columns_taken_for_rows_are_not_judged():
    ids = torch.tensor([[5, 6, 7], [8, 9, 10], [11, PAD, 12], [EOS, PAD, EOS]])
    assert "(B, T)" in why("eos-missing", hugging_face("gpt2"), causal(ids), pad_id=PAD)


def test_t5_starts_from_its_pad_id():
    """Its decoder's rows all begin with it, and none of these is padded."""
    model = hugging_face("t5")
    model.config.decoder_start_token_id = PAD
    batch = {"input_ids": ROWS, "labels": torch.tensor([[5, 6, 7], [8, 9, 10], [11, 12, 13]])}
    assert "unequal rows" in why("eos-missing", model, batch, pad_id=PAD)
    batch["labels"][1, 2] = -100
    one(asked("eos-missing", model, batch, pad_id=PAD), "P2")


# truncation

TEXTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14, 15], [16, 17]]


def collate_to(length, eos=True, cut_first=False):
    """A collate function as people write it for a causal model of Hugging Face's."""

    def collate(texts):
        end = [EOS] if eos else []
        rows = [text[: length - 1] + end if cut_first else (text + end)[:length] for text in texts]
        width = max(map(len, rows))
        return causal(torch.tensor([row + [PAD] * (width - len(row)) for row in rows]))

    return collate


def cutting(collate, examples=TEXTS):
    return Subject(hugging_face("gpt2"), collate=collate, examples=examples, pad_id=PAD)


def test_a_cut_that_takes_eos_with_it():
    finding = one(asked("truncation", cutting(collate_to(5))), "P2")
    assert finding.evidence == {
        "tokens": 13,
        "lost": 3,
        "rows cut": 1,
        "of": 3,
        "longest": 8,
        "rows without EOS": 1,
    }
    assert finding.where.symbol.endswith(("collate", "causal"))


def test_a_row_that_just_fits_loses_its_eos_and_is_not_called_cut():
    finding = one(asked("truncation", cutting(collate_to(5), [*TEXTS, [8, 9, 10, 11, 12]])), "P2")
    assert finding.message.startswith("1 of 4 rows are cut, ")
    assert finding.message.endswith("; 2 rows lose their EOS")


def test_a_cut_that_leaves_eos():
    finding = one(asked("truncation", cutting(collate_to(5, cut_first=True))), "P3")
    assert finding.evidence["lost"] == 4


def test_a_cut_where_no_row_has_eos_anyhow():
    assert "EOS" not in one(asked("truncation", cutting(collate_to(5, eos=False))), "P3").message


@pytest.mark.parametrize("form", [list, tuple, torch.tensor, np.array, lambda ids: {"input_ids": ids, "n": len(ids)}])
def test_examples_may_be_lists_tensors_arrays_and_mappings(form):
    def ids_of(example):
        return list(map(int, example["input_ids"] if isinstance(example, dict) else example))

    for length, lost in ((5, 3), (20, 0)):
        collate = collate_to(length)
        subject = cutting(lambda texts, collate=collate: collate([ids_of(text) for text in texts]), [*map(form, TEXTS)])
        report = asked("truncation", subject)
        assert [finding.evidence["lost"] for finding in report.findings] == ([lost] if lost else []), report.text()


def test_inputs_and_labels_may_share_a_row():
    """The inputs lack the last token and the labels the first: together they have all."""

    def collate(texts):
        rows = torch.nn.utils.rnn.pad_sequence([torch.tensor(t) for t in texts], True, PAD)
        return {"idx": rows[:, :-1], "targets": rows[:, 1:]}

    silent(asked("truncation", NanoGPT(), collate=collate, examples=TEXTS, pad_id=PAD))


def test_pairs_are_compared_with_both_sides():
    pairs = [([5, 6, 7, 8, 9, 10], [11, 12]), ([13], [14, 15, 16])]

    def collate(pairs):
        def pad(rows):
            return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], True, PAD)

        target = pad([t + [EOS] for _, t in pairs])
        return {"src": pad([s[:4] for s, _ in pairs]), "tgt": target, "labels": target.masked_fill(target == PAD, -100)}

    finding = one(asked("truncation", TorchTransformer(), collate=collate, examples=pairs, pad_id=PAD), "P3")
    assert finding.evidence["lost"] == 2 and finding.evidence["tokens"] == 12


def test_where_nothing_can_be_compared_it_is_a_skip():
    assert "collate=" in why("truncation", hugging_face("gpt2"), causal(ROWS))
    strings = cutting(lambda texts: causal(ROWS), ["one", "two", "three"])
    assert "examples= of ids" in why("truncation", strings)
    packed = cutting(lambda texts: causal(torch.tensor([sum(texts, [])])))
    assert "packed" in why("truncation", packed)


# padding-waste


def test_padding_to_the_context_is_noted():
    wide = F.pad(ROWS, (0, 20), value=PAD)
    finding = one(asked("padding-waste", hugging_face("gpt2"), causal(wide), pad_id=PAD), "note")
    assert finding.evidence == {"padding": 63, "of": 78, "columns of padding alone": 20}
    assert "1 of 3 rows" in finding.message
    silent(asked("padding-waste", hugging_face("gpt2"), causal(ROWS), pad_id=PAD))


def test_the_source_is_asked_too():
    batch = pairs_batch()
    batch["src"] = F.pad(batch["src"], (0, 20), value=PAD)
    assert "src" in one(asked("padding-waste", TorchTransformer(), batch, pad_id=PAD), "note").message
