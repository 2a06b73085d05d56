"""That what prepare writes is the text, whenever it is killed; and GPT-2's tokenizer against what others computed."""

from __future__ import annotations

import errno
import fcntl
import importlib
import json
import lzma
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

from lab import data
from lab.data import prepare_run, sources, texts
from lab.data import tokenizer as tokenizers_of_ours

prepare_module = importlib.import_module("lab.data.prepare")  # the package has the function under this name
ROOT = Path(__file__).parents[1]


@pytest.fixture
def gpt2():
    for place, folder in sources.places():
        if place == "../shared/data" and (folder / "tokenizers" / "gpt2").is_dir():
            return data.gpt2_tokenizer(folder)
    pytest.skip("../shared/data is not there")


@pytest.fixture
def text(tmp_path):
    """A text file of 300 paragraphs, with special tokens written in it."""
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(f"number {i}: </s> <s> <|endoftext|> Übung {i * i}" for i in range(300)))
    return path


def quietly(corpus, out=None, **options):
    return data.prepare(corpus, out, progress=False, **{"vocab_size": 300, **options})


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != prepare_module.LOCK}


def check_holds(prepared, corpus, **options):
    """Cut at the EOS and decoded, the ids are the documents; and the counts are theirs."""
    for split in data.SPLITS:
        documents = data.load_text(os.fspath(corpus), split, **options)
        tokens, counts = prepared.tokens(split), prepared.counts(split)
        ends = np.flatnonzero(tokens == prepared.eos_id)
        parts = np.split(tokens, ends + 1)
        assert parts.pop().size == 0 and len(parts) == len(documents)
        assert [prepared.tokenizer.decode(part[:-1].tolist()) for part in parts] == documents
        assert counts["documents"] == len(documents) and counts["tokens"] == len(tokens)
        assert counts["bytes"] == sum(len(document.encode()) for document in documents)
        assert int(tokens.max()) < prepared.vocab_size


# What is written


def test_the_ids_are_the_documents(text, tmp_path):
    prepared = quietly(text, tmp_path / "out")
    check_holds(prepared, text)
    assert prepared.counts("train")["words"] is None
    assert sorted(content(tmp_path / "out")) == [
        "manifest.json",
        "test.bin",
        "tokenizer.json",
        "train.bin",
        "validation.bin",
    ]
    assert prepared.manifest["place"] == "file"
    assert str(tmp_path) not in (tmp_path / "out" / "manifest.json").read_text()


def test_python_docs_can_be_prepared_anywhere(tmp_path, monkeypatch):
    monkeypatch.setenv("LAB_CACHE", str(tmp_path))
    prepared = quietly("python-docs")
    assert prepared.folder.parent == tmp_path / "prepared" and prepared.folder.name.startswith("python-docs-bpe-300-")
    check_holds(prepared, "python-docs")


def test_words_are_counted_for_wikitext(tmp_path):
    folder = tmp_path / texts.WIKITEXT / "wikitext-2-v1"
    folder.mkdir(parents=True)
    for split in data.SPLITS:
        (folder / f"{split}.txt").write_text(" \n = A = \n \n one two <unk> \n \n = B = \n \n three \n")
    prepared = quietly("wikitext-2", tmp_path / "out", data_dir=tmp_path)
    check_holds(prepared, "wikitext-2", data_dir=tmp_path)
    assert prepared.counts("test")["words"] == 10 + 8  # and eight line ends
    assert prepared.manifest["place"] == "data_dir"


def test_a_tokenizer_from_a_file_is_used_whole(text, tmp_path):
    made = tokenizers_of_ours.fit_bpe(data.load_text(str(text)), 290)
    made.enable_truncation(4)
    made.enable_padding(length=64)
    made.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    made.save(str(tmp_path / "mine.json"))
    prepared = quietly(text, tmp_path / "out", tokenizer=tmp_path / "mine.json")
    check_holds(prepared, text)
    assert not np.isin(prepared.tokens("train"), [0, 1]).any()


def test_a_large_vocabulary_takes_four_bytes(text, tmp_path):
    vocab = {"</s>": 0, "<unk>": 1} | {str(number): number for number in range(2, 70_000)}
    large = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    large.pre_tokenizer = pre_tokenizers.Whitespace()
    large.add_special_tokens([AddedToken("</s>")])
    large.save(str(tmp_path / "large.json"))
    prepared = quietly(text, tmp_path / "out", tokenizer=tmp_path / "large.json")
    assert prepared.manifest["dtype"] == "uint32" and prepared.vocab_size == 70_000
    assert {i * i for i in range(260, 264)} & set(prepared.tokens("train").tolist())


def test_a_tokenizer_is_trained_on_documents_from_all_over():
    documents = [f"{number:04}" for number in range(1000)]
    for limit, every in ((10_000, 1), (4_000, 1), (3_999, 2), (1_000, 4), (900, 8), (4, 1024)):
        assert prepare_run.sample(iter(documents), limit) == (documents[::every], every)
    assert prepare_run.sample(["a" * 100], 10) == (["a" * 100], 1)


def test_documents_come_in_lists_of_about_a_size():
    documents = ["ab", "c", "", "defg", "h"]
    assert list(prepare_run.chunks(documents, 3)) == [["ab", "c"], ["", "defg"], ["h"]]


# A folder that is there


def test_the_second_time_nothing_is_read(text, tmp_path, monkeypatch):
    first = quietly(text, tmp_path / "out")
    monkeypatch.setattr(prepare_module, "find_text", lambda *_: pytest.fail("looked for the corpus"))
    assert quietly(text, tmp_path / "out").manifest == first.manifest


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vocab_size": 301}, ["vocab_size 300 there, 301 asked"]),
        ({"corpus": "python-docs"}, ["corpus 'text.txt' there, 'python-docs' asked"]),
        ({"tokenizer": "gpt2"}, ["tokenizer 'bpe' there, 'gpt2' asked", "vocab_size 300 there, None asked"]),
        ({"append": "\n\none more"}, ["corpus_sha256"]),
    ],
)
def test_a_folder_prepared_otherwise_is_named(text, tmp_path, change, words):
    before = quietly(text, tmp_path / "out").hash
    text.write_text(text.read_text() + change.pop("append", ""))
    with pytest.raises(ValueError) as error:
        quietly(**{"corpus": text, "out": tmp_path / "out", **change})
    expected = [f"{tmp_path / 'out'} was prepared otherwise", "Delete it, or give another folder", *words]
    assert all(word in str(error.value) for word in expected), error.value
    assert data.Prepared.open(tmp_path / "out", verify=True).hash == before


def test_settings_have_folders_of_their_own(text, tmp_path, monkeypatch):
    monkeypatch.setenv("LAB_CACHE", str(tmp_path / "cache"))
    first = quietly(text)
    text.write_text(text.read_text() + "\n\none more")
    folders = {prepared.folder for prepared in (first, quietly(text), quietly(text, vocab_size=301))}
    assert len(folders) == 3 and all(folder.name.startswith("text.txt-bpe-30") for folder in folders)


def test_a_folder_with_other_things_is_left_alone(text, tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "train.bin").write_bytes(b"theirs")
    with pytest.raises(ValueError, match="theirs holds train.bin, which prepare did not make"):
        quietly(text, tmp_path / "theirs")
    assert content(tmp_path / "theirs") == {"train.bin": b"theirs"}
    with pytest.raises(ValueError, match="text.txt is a file; give a folder"):
        quietly(text, text)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"corpus": "counting"}, ["'counting' holds pairs", "load_pairs"]),
        ({"tokenizer": "gpt4"}, ["tokenizer is 'gpt4'", "'bpe', 'gpt2' or the path"]),
        ({"vocab_size": 100}, ["vocab_size is 100", "259"]),
        ({"text": ""}, ["'text.txt' has no documents in split 'validation'"]),
        ({"text": "only one"}, ["'text.txt' has no documents in split"]),
        ({"tokenizer": "text.txt"}, ["text.txt holds no tokenizer"]),
        ({"tokenizer": "no_eos.json"}, ["no token to end a document with", "<|endoftext|>"]),
    ],
)
def test_errors_name_the_value_and_the_remedy(text, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save("no_eos.json")
    if "text" in arguments:
        text.write_text(arguments.pop("text"))
    with pytest.raises(ValueError) as error:
        quietly(**{"corpus": text, "out": tmp_path / "out", **arguments})
    assert all(word in str(error.value) for word in words), error.value
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_another_process_is_waited_for(text, tmp_path, monkeypatch):
    expected = content(quietly(text, tmp_path / "expected").folder)
    out, waiting, results = tmp_path / "out", threading.Event(), []
    out.mkdir()
    monkeypatch.setattr("builtins.print", lambda line, **_: (results.append(line), waiting.set()))
    fit, fits = prepare_run.fit_bpe, []
    monkeypatch.setattr(prepare_run, "fit_bpe", lambda *arguments: fits.append(1) or fit(*arguments))
    with (out / prepare_module.LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        threads = [threading.Thread(target=lambda: results.append(quietly(text, out))) for _ in range(2)]
        for thread in threads:
            thread.start()
        assert waiting.wait(60)
        assert content(out) == {}
    for thread in threads:
        thread.join(60)
    assert f"another process prepares {out} now; waiting for it" in results
    assert sum(isinstance(result, data.Prepared) for result in results) == 2
    assert content(out) == expected and len(fits) == 1  # one worked, the other took what it had made


# Interruptions


def test_a_full_disk_is_an_error_and_what_is_there_is_gone_on_with(text, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_run, "CHUNK", 1000)
    monkeypatch.setattr(prepare_run, "JOURNAL_EVERY", 3)
    expected = content(quietly(text, tmp_path / "expected").folder)
    fsync, failures = os.fsync, 0
    for number in range(200):
        calls = iter([False] * number + [True])

        def full(handle, calls=calls):
            if next(calls, False):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fsync(handle)

        monkeypatch.setattr(prepare_run.os, "fsync", full)
        out = tmp_path / f"out{number}"
        try:
            quietly(text, out)
        except OSError as error:
            failures += 1
            assert error.errno == errno.ENOSPC and str(out) in str(error)
            assert "No space left on device" in str(error) and "free some space" in str(error)
            with pytest.raises(FileNotFoundError):
                data.Prepared.open(out)
        else:
            break
        monkeypatch.setattr(prepare_run.os, "fsync", fsync)
        assert content(quietly(text, out).folder) == expected
    assert failures > 10


def test_a_text_that_changed_since_begins_anew(text, tmp_path, monkeypatch):
    folder = tmp_path / texts.WIKITEXT / "wikitext-2-v1"
    folder.mkdir(parents=True)

    def write(word):
        for split in data.SPLITS:
            lines = "".join(f" \n = {number} = \n \n {word} \n" for number in range(100))
            (folder / f"{split}.txt").write_text(lines)

    def interrupted(*_):
        raise KeyboardInterrupt

    write("new")
    expected = content(quietly("wikitext-2", tmp_path / "expected", data_dir=tmp_path).folder)
    write("old")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(prepare_run.Run, "finish", interrupted)
        quietly("wikitext-2", tmp_path / "out", data_dir=tmp_path)
    write("new")
    assert content(quietly("wikitext-2", tmp_path / "out", data_dir=tmp_path).folder) == expected


def test_a_journal_of_other_settings_or_a_damaged_one_is_not_gone_on_with(text, tmp_path, monkeypatch):
    expected = content(quietly(text, tmp_path / "expected").folder)
    for number, damage in enumerate(["", "{}", "[]", None]):
        out = tmp_path / f"out{number}"
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(prepare_run.Run, "finish", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
            quietly(text, out, vocab_size=310 if damage is None else 300)
        if damage is not None:
            (out / prepare_run.JOURNAL).write_text(damage)
        assert content(quietly(text, out).folder) == expected


# A parent that has imported everything forks one child a run; the child kills itself at its n-th write, or is killed
# from outside after some time. What is left is then finished by another child, and counted as far as it had to go.
KILLS = """
import json, os, pathlib, random, signal, sys, time
from lab.data import prepare, prepare_run as module
folder = pathlib.Path(sys.argv[1])
module.CHUNK, module.JOURNAL_EVERY = 2000, 3
text = folder / "text.txt"
words = random.Random(0).choices(["alpha", "beta", "gamma", "delta", "épsilon", "zeta"], k=6000)
text.write_text("\\n\\n".join(" ".join(words[i : i + 30]) for i in range(0, len(words), 30)))

def child(out, kill_at=None, after=None, size=300):
    pid = os.fork()
    if pid == 0:
        calls = 0
        def counted(function):
            def call(*arguments):
                nonlocal calls
                if calls == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                calls += 1
                result = function(*arguments)
                if calls == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result
            return call
        for name in ("fsync", "replace", "truncate"):
            setattr(os, name, counted(getattr(os, name)))
        chunks = module.chunks
        def logged(documents, size):
            for texts in chunks(documents, size):
                with (folder / "chunks").open("a") as file:
                    file.write(".")
                yield texts
        module.chunks = logged
        try:
            prepare(text, out, vocab_size=size, progress=False)
            os._exit(0)
        finally:
            os._exit(1)
    if after is not None:
        time.sleep(after)
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    assert status in (0, signal.SIGKILL), status
    return status == 0

def content(out):
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != '.prepare.lock'}

def chunks_of(run):
    (folder / "chunks").write_text("")
    assert run()
    return len((folder / "chunks").read_text())

whole = chunks_of(lambda: child(folder / "expected"))
expected = content(folder / "expected")
log = {"whole": whole, "kills": 0, "saved": [], "different": []}
for number in range(1000):
    out = folder / f"out{number}"
    if child(out, kill_at=number):
        break
    log["kills"] += 1
    finished = (out / "manifest.json").exists()
    log["saved"].append(whole - chunks_of(lambda: child(out)))
    if content(out) != expected and not (finished and content(out).items() >= expected.items()):
        log["different"].append(number)

delays, log["outside"] = random.Random(1), 0
out = folder / "outside"
module.CHUNK, module.JOURNAL_EVERY = 50, 1
while not child(out, after=delays.uniform(0, 0.2)):
    log["outside"] += 1
    if log["outside"] == 12:
        assert child(out)
        break
log["outside equal"] = content(out) == expected
print(json.dumps(log))
"""


def in_another_process(script, *arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_killed_at_any_moment_it_goes_on_and_ends_the_same(tmp_path):
    log = in_another_process(KILLS, tmp_path)
    assert log["different"] == [] and log["outside equal"]
    assert log["kills"] > 25 and log["outside"] > 0
    assert log["saved"][0] == 0 and max(log["saved"]) == log["whole"] > 15  # it goes on, and not from the beginning
    assert log["saved"] == sorted(log["saved"])


# Ids that are one a word, so that almost all time and memory is prepare's own.
MEMORY = """
import json, pathlib, resource, sys
from lab.data import prepare, prepare_run
from tokenizers import Tokenizer, models, pre_tokenizers
folder = pathlib.Path(sys.argv[1])
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
fast = Tokenizer(models.WordLevel({"</s>": 0, "a": 1}, unk_token="a"))
fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
fast.save(str(folder / "fast.json"))
article = " = Title = \\n\\n" + ("some words of a row " * 20 + "\\n") * 50 + "\\n"
peaks = []
for megabytes in (2, 16):
    place = folder / str(megabytes) / "wiki2015"
    place.mkdir(parents=True)
    for split, share in (("train", megabytes), ("validation", 0), ("test", 0)):
        with (place / f"{split}.txt").open("w") as file:
            for _ in range(1 + share * 10**6 // len(article)):
                file.write(article)
    options = {"tokenizer": folder / "fast.json", "data_dir": place.parent, "progress": False}
    prepared = prepare("wiki2015", folder / f"out{megabytes}", **options)
    peaks.append(peak())
sample, every = prepare_run.sample((article for _ in range(2000)), 2**20)
print(json.dumps({"peaks": peaks, "tokens": prepared.counts("train")["tokens"], "sample": peak(), "every": every}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only")
def test_memory_does_not_grow_with_the_text(tmp_path):
    log = in_another_process(MEMORY, tmp_path)
    small, large = log["peaks"]
    assert log["tokens"] > 3_000_000 and log["every"] > 8
    assert large - small < 12 and log["sample"] - large < 12  # MiB; the text alone would be 16


# GPT-2's tokenizer


def test_gpt2_gives_known_ids(gpt2):
    known = {  # from the documentation of transformers and of tiktoken, and from GPT-2's own repository
        "Hello world": [15496, 995],
        " Hello world": [18435, 995],
        "Hello, my dog is cute": [15496, 11, 616, 3290, 318, 13779],
        "hello world": [31373, 995],
        "tiktoken is great!": [83, 1134, 30001, 318, 1049, 0],
    }
    assert {text: gpt2.encode(text).ids for text in known} == known
    assert gpt2.get_vocab_size() == 50257 and gpt2.token_to_id("<|endoftext|>") == 50256
    assert 50256 not in gpt2.encode("a<|endoftext|>b").ids


def raw_test_rows():
    for _, folder in sources.places():
        path = folder / texts.WIKITEXT / "wikitext-2-raw-v1" / "test.txt.xz" if folder else None
        if path and path.is_file():
            return lzma.decompress(path.read_bytes()).decode().split("\n")[:-1]
    pytest.skip("../shared/data is not there")


def test_gpt2_gives_the_known_count_of_wikitext(gpt2):
    # The length in the guide "Perplexity of fixed-length models" of transformers, for the hub's rows and this joint.
    rows = [row + "\n" if row.strip() else "" for row in raw_test_rows()]
    assert len(gpt2.encode("\n\n".join(rows)).ids) == 287_644


def test_gpt2_agrees_with_the_algorithm_written_down_plainly(gpt2):
    regex = pytest.importorskip("regex")
    model = json.loads(gpt2.to_str())["model"]
    ranks = {tuple(pair): rank for rank, pair in enumerate(model["merges"])}
    letters = [b for b in range(256) if chr(b).isprintable() and not chr(b).isspace() and b != 0xAD]
    others = iter(range(256, 512))
    symbols = {b: chr(b) if b in letters else chr(next(others)) for b in range(256)}

    def encode(text):
        for word in regex.findall(r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", text):
            parts = [symbols[byte] for byte in word.encode()]
            while len(parts) > 1:
                best = min(range(len(parts) - 1), key=lambda i: ranks.get((parts[i], parts[i + 1]), 1e9))
                if (parts[best], parts[best + 1]) not in ranks:
                    break
                parts[best : best + 2] = [parts[best] + parts[best + 1]]
            yield from (model["vocab"][part] for part in parts)

    rows = raw_test_rows()
    odd = ["", "  \n\n tab\tÜbung macht 1,234.5 naïve 東京 😀\u200d don't WE'LL <|endoftext|>\r\n"]
    for text in [*rows[:200], *rows[-100:], *odd]:
        assert gpt2.encode(text).ids == list(encode(text))


@pytest.mark.parametrize("joined", [True, False])
def test_gpt2_is_the_same_from_the_hub(gpt2, monkeypatch, joined):
    model = json.loads(gpt2.to_str())["model"]
    merges = [" ".join(pair) for pair in model["merges"]] if joined else model["merges"]
    monkeypatch.setattr(sources, "places", lambda data_dir: [])
    monkeypatch.setattr(tokenizers_of_ours, "_hub_model", lambda name: model | {"merges": merges})
    assert data.gpt2_tokenizer().to_str() == gpt2.to_str()


def test_prepared_with_gpt2(gpt2, text, tmp_path):
    prepared = quietly(text, tmp_path / "out", tokenizer="gpt2")
    check_holds(prepared, text)
    assert prepared.eos_id == 50256 and prepared.vocab_size == 50257 and prepared.manifest["dtype"] == "uint16"
