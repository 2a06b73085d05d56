"""What the corpora hold, that the tokenizer gives every text back, and that batches neither lose nor overfill."""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import os
import random
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from lab import data
from lab.data import cache, corpora, embedded
from lab.labels import collate_pairs

CORPORA = [("python-docs", data.load_text), ("jupyterlab-fr", data.load_pairs), ("counting", data.load_pairs)]
TEXTS = ["the cat sat on the mat", "the dog sat on the log", "Übung macht den Meister", "<s> is struck through </s>"]
PAIRS = [("the cat", "le chat"), ("the dog sat", "le chien était assis"), ("", "x"), ("a\nb", "")]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def tokenizer(folder):
    return data.train_tokenizer(TEXTS, vocab_size=300, cache_dir=folder)


def normal(text):
    return " ".join(text.casefold().split())


# Corpora


@pytest.mark.parametrize(("name", "load"), CORPORA)
def test_splits_share_no_source_text_and_are_90_5_5(name, load):
    splits = [load(name, split) for split in data.SPLITS]
    sources = [{normal(row if isinstance(row, str) else row[0]) for row in rows} for rows in splits]
    assert not (sources[0] & sources[1] or sources[0] & sources[2] or sources[1] & sources[2])
    shares = np.array([len(rows) for rows in splits]) / sum(map(len, splits))
    assert np.allclose(shares, [0.9, 0.05, 0.05], atol=0.02)


@given(st.text())
def test_split_is_blind_to_case_and_white_space(text):
    assert data.split_of(text) == data.split_of(f"\t{text}  \n") == data.split_of(text.casefold())


def test_python_docs_is_big_english_and_repeats_no_long_paragraph():
    documents = [document for split in data.SPLITS for document in data.load_text("python-docs", split)]
    size = sum(len(document.encode()) for document in documents)
    expected = (1_350_000, 1_450_000) if sys.version_info[:2] == (3, 11) else (1_000_000, 2_500_000)
    assert expected[0] < size < expected[1]
    assert any("Assert statements are a convenient way to insert debugging assertions" in text for text in documents)
    paragraphs = [normal(part) for text in documents for part in re.split(r"\n\s*\n", text)]
    long = [paragraph for paragraph in paragraphs if len(paragraph) >= 80]
    assert len(long) == len(set(long)) > 1000


def test_jupyterlab_fr_counts_every_distinct_pair():
    pairs = [pair for split in data.SPLITS for pair in data.load_pairs("jupyterlab-fr", split)]
    assert len(set(pairs)) == len(pairs)
    if importlib.metadata.version("jupyterlab-language-pack-fr-FR") == "4.5.post3":
        assert len(pairs) == 3242
    assert ("Copy Cell", "Copier la cellule") in pairs
    assert all(en.strip() and fr.strip() and "\x04" not in en and "Content-Type:" not in fr for en, fr in pairs)


@pytest.mark.parametrize(
    ("number", "english", "german"),
    [
        (0, "zero", "null"),
        (1, "one", "eins"),
        (17, "seventeen", "siebzehn"),
        (21, "twenty-one", "ein und zwanzig"),
        (30, "thirty", "dreißig"),
        (100, "one hundred", "ein hundert"),
        (101, "one hundred one", "ein hundert eins"),
        (342, "three hundred forty-two", "drei hundert zwei und vierzig"),
        (1012, "one thousand twelve", "ein tausend zwölf"),
        (9999, "nine thousand nine hundred ninety-nine", "neun tausend neun hundert neun und neunzig"),
    ],
)
def test_counting(number, english, german):
    assert (data.english(number), data.german(number)) == (english, german)
    assert (english, german) in data.load_pairs("counting", data.split_of(english))


def test_counting_is_one_to_one_and_shuffled():
    pairs = [pair for split in data.SPLITS for pair in data.load_pairs("counting", split)]
    assert len(pairs) == len({en for en, _ in pairs}) == len({de for _, de in pairs}) == 10_000
    assert data.load_pairs("counting")[:2] != [("zero", "null"), ("one", "eins")]


def test_a_caller_may_change_what_it_got():
    data.load_pairs("counting").clear()
    assert data.load_pairs("counting")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: data.load_pairs("jupyterlab-de"),
            ["'jupyterlab-de'", "counting, jupyterlab-fr, python-docs", "Did you"],
        ),
        (lambda: data.load_pairs("python-docs"), ["'python-docs' holds documents", "load_text", "counting"]),
        (lambda: data.load_text("counting"), ["'counting' holds pairs", "load_pairs", "python-docs"]),
        (lambda: data.load_text("python-docs", "dev"), ["'dev'", "train, validation, test"]),
        (lambda: data.english(10_000), ["10000", "0 to 9999"]),
        (lambda: data.german(-1), ["-1", "0 to 9999"]),
        (lambda: data.train_tokenizer(["a"], vocab_size=258), ["258", "259"]),
        (lambda: data.train_tokenizer(["", ""]), ["2 texts", "at least one"]),
        (lambda: data.encode_pairs([], None), ["no pair", "at least one"]),
        (lambda: data.BucketBatchSampler([], 8), ["empty", "at least one"]),
        (
            lambda: data.BucketBatchSampler([3, 9, 4], 8),
            ["example 1", "length 9", "max_tokens = 8", "raise max_tokens"],
        ),
    ],
)
def test_errors_name_the_value_and_the_remedy(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert all(word in str(error.value) for word in words), error.value


def test_one_string_is_not_a_list_of_texts():
    with pytest.raises(TypeError, match="give a list"):
        data.train_tokenizer("hello")


def test_an_empty_corpus_is_an_error(monkeypatch):
    monkeypatch.setitem(corpora._CORPORA, "counting", ("pairs", tuple))
    with pytest.raises(ValueError, match="'counting' has no pairs in split 'test'"):
        data.load_pairs("counting", "test")


def test_a_python_without_sources_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(embedded.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(ValueError, match="no docstring under .*use one that has them"):
        embedded.python_docs.__wrapped__()


def test_a_missing_package_is_named_as_pip_knows_it(monkeypatch):
    embedded.jupyterlab_fr.cache_clear()
    monkeypatch.setitem(sys.modules, "jupyterlab_language_pack_fr_FR", None)
    with pytest.raises(ImportError, match="pip install jupyterlab-language-pack-fr-FR"):
        data.load_pairs("jupyterlab-fr")


# Tokenizer


def test_special_ids(tokenizer):
    assert [tokenizer.id_to_token(i) for i in range(3)] == ["<s>", "<pad>", "</s>"]
    assert (data.BOS_ID, data.PAD_ID, data.EOS_ID) == (0, 1, 2)
    assert tokenizer.decode([0, *tokenizer.encode("the cat").ids, 2, 1, 1]) == "the cat"


@given(st.text() | st.lists(st.sampled_from(["<s>", "</s>", "<pad>", " ", "\n", "a", "ß", "😀"])).map("".join))
def test_round_trip_is_exact_and_holds_no_special_id(tokenizer, text):
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids) == text
    assert not {data.BOS_ID, data.PAD_ID, data.EOS_ID} & set(ids)


def test_a_cached_tokenizer_equals_a_fresh_one(tmp_path, folder, tokenizer):
    cached, fresh = (data.train_tokenizer(TEXTS, vocab_size=300, cache_dir=path) for path in (folder, tmp_path))
    assert cached.to_str() == fresh.to_str() == tokenizer.to_str()
    assert cached.encode("<s>").ids == fresh.encode("<s>").ids
    data.train_tokenizer(TEXTS[:2], vocab_size=300, cache_dir=tmp_path)
    data.train_tokenizer(TEXTS, vocab_size=301, cache_dir=tmp_path)
    assert len(list(tmp_path.glob("tokenizers/*"))) == 3  # and no half-written file


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"version": "1.0", "mod', b"\xff\xfe", None])
def test_a_damaged_cache_is_made_anew(tmp_path, tokenizer, damage):
    def build():
        data.train_tokenizer(TEXTS, vocab_size=300, cache_dir=tmp_path)
        return data.encode_pairs(PAIRS, tokenizer, cache_dir=tmp_path)[:]

    fresh = build()
    for path in [*tmp_path.glob("tokenizers/*.json"), *tmp_path.glob("pairs/*.arrow")]:
        path.write_bytes(path.read_bytes()[:-50] if damage is None else damage)
    assert build() == fresh
    assert data.train_tokenizer(TEXTS, vocab_size=300, cache_dir=tmp_path).to_str() == tokenizer.to_str()


def test_a_cache_that_cannot_be_written_names_the_folder_and_the_remedy(tmp_path, tokenizer):
    (tmp_path / "file").touch()
    below = tmp_path / "file" / "cache"
    for call in (partial(data.train_tokenizer, TEXTS), partial(data.encode_pairs, PAIRS, tokenizer)):
        with pytest.raises(NotADirectoryError, match="set LAB_CACHE") as error:
            call(cache_dir=below)
        assert str(below) in str(error.value)


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(cache.os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left.*set LAB_CACHE"):
        cache.write_text(tmp_path / "a" / "b", "text")
    assert not list((tmp_path / "a").iterdir())


def test_cache_dir_asks_in_order(monkeypatch, tmp_path):
    monkeypatch.setenv("LAB_CACHE", "/one")
    monkeypatch.setenv("XDG_CACHE_HOME", "/two")
    monkeypatch.setenv("HOME", "/three")
    assert data.cache_dir(tmp_path) == tmp_path
    assert data.cache_dir() == Path("/one")
    monkeypatch.setenv("LAB_CACHE", "")
    assert data.cache_dir() == Path("/two/lab")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert data.cache_dir() == Path("/three/.cache/lab")


# Pairs


def test_pairs_are_encoded_in_order_and_kept(tmp_path, tokenizer, capfd):
    fresh = data.encode_pairs(PAIRS, tokenizer, cache_dir=tmp_path)
    written = list(tmp_path.rglob("*.arrow"))
    stamp = written[0].stat().st_mtime_ns
    cached = data.encode_pairs(PAIRS, tokenizer, cache_dir=tmp_path)
    assert cached[:] == fresh[:] and cached.features == fresh.features
    assert len(written) == 1 and written[0].stat().st_mtime_ns == stamp
    assert [(tokenizer.decode(row["source"]), tokenizer.decode(row["target"])) for row in fresh] == PAIRS
    assert all(row["length"] == max(len(row["source"]), len(row["target"])) + 1 for row in fresh)
    assert "Map" not in capfd.readouterr().err


def test_other_pairs_are_not_taken_for_these(tmp_path, tokenizer):
    for pairs in ([("ab", "c")], [("a", "bc")], [("a", "b"), ("c", "")]):
        rows = data.encode_pairs(pairs, tokenizer, cache_dir=tmp_path)
        assert [(tokenizer.decode(row["source"]), tokenizer.decode(row["target"])) for row in rows] == pairs


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=80),
    st.integers(40, 200),
    st.booleans(),
    st.integers(0, 9),
    st.integers(0, 9),
)
def test_batches_cover_every_index_once_within_the_bound(lengths, max_tokens, shuffle, seed, epoch):
    sampler = data.BucketBatchSampler(lengths, max_tokens, shuffle, seed)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler) and batches == list(sampler)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(max(lengths[index] for index in batch) * len(batch) <= max_tokens for batch in batches)
    spans = sorted((min(lengths[i] for i in batch), max(lengths[i] for i in batch)) for batch in batches)
    assert all(upper <= lower for (_, upper), (lower, _) in zip(spans, spans[1:], strict=False))


def test_the_epoch_decides_the_order():
    lengths = [1 + i % 7 for i in range(200)]
    first, second = data.BucketBatchSampler(lengths, 32, seed=3), data.BucketBatchSampler(lengths, 32, seed=3)
    order = list(first)
    first.set_epoch(1)
    assert list(first) != order == list(second)
    second.set_epoch(1)
    assert list(first) == list(second)
    assert list(data.BucketBatchSampler(lengths, 32, seed=4)) != order
    lazy = data.BucketBatchSampler(lengths, 32, shuffle=False)
    assert [lengths[i] for batch in lazy for i in batch] == sorted(lengths)


@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_goes_on_at_any_batch(shuffle):
    sampler = data.BucketBatchSampler([1 + i % 7 for i in range(200)], 32, shuffle, seed=3)
    sampler.set_epoch(2)
    whole = list(sampler)
    for start in (0, 1, len(whole) // 2, len(whole)):
        sampler.set_epoch(2, start)
        assert list(sampler) == whole[start:] and len(sampler) == len(whole)
    sampler.set_epoch(2)
    assert list(sampler) == whole
    for start in (-1, len(whole) + 1):
        with pytest.raises(ValueError, match=f"start is {start}; an epoch has {len(whole)} batches"):
            sampler.set_epoch(2, start)


def random_states():
    return torch.random.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()


def test_a_loader_fills_batches_and_leaves_the_global_random_state(tmp_path):
    pairs = data.load_pairs("counting", "test")
    tokenizer = data.train_tokenizer([text for pair in pairs for text in pair], 400, cache_dir=tmp_path)
    collate = partial(collate_pairs, pad_id=data.PAD_ID, bos_id=data.BOS_ID, eos_id=data.EOS_ID)
    before = random_states()
    loader = data.pair_loader(data.encode_pairs(pairs, tokenizer, tmp_path), collate, max_tokens=256)
    batches = list(loader)
    assert random_states() == before
    list(DataLoader([1]))  # the control: a loader without a generator moves it
    assert random_states() != before

    assert len(batches) == len(loader)
    assert all(batch[side].numel() <= 256 for batch in batches for side in ("input_ids", "labels"))
    sources = [tokenizer.decode(row) for batch in batches for row in batch["input_ids"].tolist()]
    assert sorted(sources) == sorted(en for en, _ in pairs)


# Another process


def digest(folder):
    """One hash over all that is derived: the corpora, a tokenizer, the order of batches."""
    docs = [data.load_text("python-docs", split) for split in data.SPLITS]
    pairs = [data.load_pairs(name, split) for name in ("jupyterlab-fr", "counting") for split in data.SPLITS]
    tokenizer = data.train_tokenizer([text for pair in pairs[0] for text in pair], 1000, cache_dir=folder)
    sampler = data.BucketBatchSampler([len(source) + 1 for source, _ in pairs[0]], 2048)
    return hashlib.sha256(repr((docs, pairs, tokenizer.to_str(), list(sampler))).encode()).hexdigest()


SCRIPT = f"""
import hashlib, sys
from lab import data
{inspect.getsource(digest)}
print(sorted({{"datasets", "transformers", "pandas"}} & set(sys.modules)))
before = set(sys.modules)
data.load_text("python-docs")
print(sorted(name for name in set(sys.modules) - before if not name.startswith(("_", "pydoc_data"))))
print(digest(sys.argv[1]))
"""


def test_a_process_with_other_hashes_agrees_and_imports_only_what_it_needs(tmp_path):
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    output = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "theirs")],
        env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(data.__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert output.returncode == 0, output.stderr
    heavy, imported_for_docstrings, theirs = output.stdout.splitlines()
    assert heavy == imported_for_docstrings == "[]"
    assert theirs == digest(tmp_path / "ours")
