"""That a prepared folder is what its manifest says, and that blocks and batches hold the stream."""

from __future__ import annotations

import json
import random
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lab import data
from lab.data.packed import Blocks

EOS = 99


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    (folder / "text.txt").write_text("\n\n".join(f"number {number} is {number * number}" for number in range(400)))
    return data.prepare(folder / "text.txt", folder / "out", vocab_size=300, progress=False)


@pytest.fixture
def copy(prepared, tmp_path):
    return shutil.copytree(prepared.folder, tmp_path / "copy")


# Blocks

shapes = st.tuples(st.integers(1, 60), st.integers(1, 12), st.integers(1, 5))


@given(shapes)
def test_in_order_every_token_is_predicted_once_and_nothing_is_padded(shape):
    tokens, context, batch_size = shape
    stream = np.arange(tokens, dtype=np.uint16)
    if context > tokens:
        with pytest.raises(ValueError, match=f"context is {context}, but there are {tokens} tokens"):
            data.BlockSampler(tokens, context, batch_size, shuffle=False)
        return
    sampler = data.BlockSampler(tokens, context, batch_size, shuffle=False)
    batches = [Blocks(stream, context, EOS).__getitems__(starts) for starts in sampler]
    assert len(batches) == len(sampler)
    assert torch.cat([batch["labels"].flatten() for batch in batches]).tolist() == stream.tolist()
    inputs = torch.cat([batch["input_ids"].flatten() for batch in batches]).tolist()
    assert inputs == [EOS, *stream.tolist()][:-1]
    assert all(batch["labels"].size(1) == context for batch in batches[:-1])
    assert all(batch["labels"].size(0) == batch_size for batch in batches[:-2])


@given(shapes, st.integers(0, 5), st.integers(0, 5))
def test_shuffled_an_epoch_is_whole_batches_of_different_blocks_of_the_stream(shape, seed, epoch):
    tokens, context, batch_size = shape
    if context > tokens or max(1, (tokens - context + 1) // context) < batch_size:
        with pytest.raises(ValueError, match=r"(context|batch_size) is \d+, but .* tokens"):
            data.BlockSampler(tokens, context, batch_size)
        return
    sampler = data.BlockSampler(tokens, context, batch_size, seed=seed)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler) and batches == list(sampler)
    assert {len(batch) for batch in batches} == {batch_size}
    blocks = [Blocks(np.arange(tokens), context, EOS).__getitems__(batch) for batch in batches]
    labels = torch.cat([block["labels"] for block in blocks])
    assert torch.equal(labels, labels[:, :1] + torch.arange(context))
    assert len(set(labels.flatten().tolist())) == labels.numel()  # no token is predicted twice
    offsets = set((labels[:, 0] % context).tolist())
    assert len(offsets) == 1
    left_out = tokens - labels.numel()
    assert left_out < 2 * context + batch_size * context
    inputs = torch.cat([block["input_ids"] for block in blocks])
    assert torch.equal(inputs, torch.where(labels == 0, EOS, labels - 1))


def test_epochs_together_cover_the_stream_from_every_offset():
    sampler = data.BlockSampler(107, 10, 3)
    offsets, seen = set(), set()
    for epoch in range(200):
        sampler.set_epoch(epoch)
        starts = [start for batch in sampler for start in batch]
        offsets |= {start % 10 for start in starts}
        seen |= {start + step for start in starts for step in range(10)}
    assert offsets == set(range(10)) and seen == set(range(107))


def test_seed_and_epoch_decide_the_order():
    def order(seed, epoch):
        sampler = data.BlockSampler(1000, 10, 4, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 2) == order(1, 2)
    assert len({str(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_goes_on_at_any_batch(shuffle):
    sampler = data.BlockSampler(1003, 10, 4, shuffle=shuffle)
    sampler.set_epoch(3)
    whole = list(sampler)
    for start in (0, 1, len(whole) - 2, len(whole) - 1, len(whole)):
        sampler.set_epoch(3, start)
        assert list(sampler) == whole[start:] and len(sampler) == len(whole)
    sampler.set_epoch(3)
    assert list(sampler) == whole
    for start in (-1, len(whole) + 1):
        with pytest.raises(ValueError, match=f"start is {start}; an epoch has {len(whole)} batches"):
            sampler.set_epoch(3, start)


def test_batches_left_out_are_not_loaded(prepared, monkeypatch):
    loader = prepared.loader("train", 16, 4, seed=5)
    loader.batch_sampler.set_epoch(1)
    whole = list(loader)
    gathered = []
    gather = Blocks.__getitems__
    monkeypatch.setattr(Blocks, "__getitems__", lambda self, starts: gathered.append(1) or gather(self, starts))
    loader.batch_sampler.set_epoch(1, len(whole) - 2)
    rest = list(loader)
    assert len(gathered) == len(rest) == 2
    assert all(torch.equal(a[key], b[key]) for a, b in zip(whole[-2:], rest, strict=True) for key in a)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", 10**6, 1), ["split 'train'", "context is 1000000, but there are", "more text"]),
        (("validation", 10**6, 1), ["split 'validation'", "context is 1000000, but there are"]),
        (("train", 16, 10**5), ["batch_size is 100000", "blocks of context 16", "smaller batch"]),
        (("train", 0, 1), ["context is 0", "at least 1"]),
        (("train", 1, 0), ["batch_size is 0", "at least 1"]),
        (("dev", 1, 1), ["split is 'dev'", "train, validation, test"]),
    ],
)
def test_what_the_split_cannot_fill_is_an_error(prepared, arguments, words):
    with pytest.raises(ValueError) as error:
        prepared.loader(*arguments)
    assert all(word in str(error.value) for word in words), error.value


# The loader


def test_a_loader_gives_the_stream(prepared):
    batches = list(prepared.loader("validation", 16, 3))
    stream = prepared.tokens("validation")
    assert torch.cat([batch["labels"].flatten() for batch in batches]).tolist() == stream.tolist()
    assert all(ids.dtype == torch.int64 and ids.is_contiguous() for batch in batches for ids in batch.values())
    for batch in prepared.loader("train", 16, 3):
        assert batch["input_ids"].shape == batch["labels"].shape == (3, 16)
        assert torch.equal(batch["input_ids"][:, 1:], batch["labels"][:, :-1])
    assert [list(batch) for batch in prepared.loader("train", 16, 3).batch_sampler] != list(
        prepared.loader("train", 16, 3, shuffle=False).batch_sampler
    )
    (first,) = (batch for batch in prepared.loader("train", 16, 3, shuffle=False).batch_sampler if batch[0] == 0)
    assert first == [0, 16, 32]


def test_one_block_is_a_row_of_a_batch(prepared):
    blocks = Blocks(prepared.tokens("train"), 16, prepared.eos_id)
    one, many = blocks[5], blocks.__getitems__([5, 40])
    assert all(torch.equal(one[key], many[key][0]) for key in one)


def test_a_loader_leaves_the_global_random_state(prepared):
    def states():
        return torch.random.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()

    before = states()
    list(prepared.loader("train", 16, 3))
    assert states() == before


# The folder


def test_open_gives_back_what_was_prepared(prepared):
    opened = data.Prepared.open(prepared.folder, verify=True)
    assert opened.manifest == prepared.manifest and opened.hash == prepared.hash and len(opened.hash) == 16
    assert opened.vocab_size == 300 and opened.eos_id == data.EOS_ID
    tokens = opened.tokens("test")
    assert isinstance(tokens, np.memmap) and not tokens.flags.writeable and tokens.dtype == np.uint16
    assert (
        len(tokens) == opened.counts("test")["tokens"]
        and int((tokens == opened.eos_id).sum()) == 0 + opened.counts("test")["documents"]
    )
    assert opened.tokenizer.encode("</s>").ids != [opened.eos_id]


def test_another_text_or_tokenizer_has_another_hash(prepared, tmp_path):
    text = prepared.folder.parent / "text.txt"
    again = data.prepare(text, tmp_path / "again", vocab_size=300, progress=False)
    other = data.prepare(text, tmp_path / "other", vocab_size=280, progress=False)
    (tmp_path / "text.txt").write_text(text.read_text() + "\n\nthe end of train")
    longer = data.prepare(tmp_path / "text.txt", tmp_path / "longer", vocab_size=300, progress=False)
    assert again.hash == prepared.hash and len({prepared.hash, other.hash, longer.hash}) == 3


@pytest.mark.parametrize("file", ["train.bin", "validation.bin", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["gone", "cut", "longer"])
def test_a_damaged_file_is_named(copy, file, damage):
    content = (copy / file).read_bytes()
    (copy / file).write_bytes(content[:-2] if damage == "cut" else content + b"  ")
    if damage == "gone":
        (copy / file).unlink()
    with pytest.raises(ValueError, match=f"{file} (is missing|has|was changed).*prepare it again"):
        data.Prepared.open(copy)


def test_a_changed_id_is_found_on_request(copy):
    content = bytearray((copy / "test.bin").read_bytes())
    content[0] ^= 1
    (copy / "test.bin").write_bytes(content)
    data.Prepared.open(copy)
    with pytest.raises(ValueError, match="test.bin was changed: its sha256"):
        data.Prepared.open(copy, verify=True)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 1, "splits": {}}', "\x00"])
def test_a_foreign_manifest_is_an_error(copy, content):
    (copy / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match="manifest.json is not the manifest of a prepared corpus.*prepare it again"):
        data.Prepared.open(copy)


def test_another_format_and_a_folder_without_manifest_are_errors(copy, tmp_path):
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"format": 0}))
    with pytest.raises(ValueError, match="format 0, this version reads 1"):
        data.Prepared.open(copy)
    (copy / "manifest.json").unlink()
    for folder in (copy, tmp_path / "none"):
        with pytest.raises(FileNotFoundError, match="holds no prepared corpus.*prepare one"):
            data.Prepared.open(folder)
