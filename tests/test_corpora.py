"""Where corpora are found, and that every way to the same corpus gives the same documents."""

from __future__ import annotations

import gzip
import lzma
import socket
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab import data
from lab.data import sources, texts

WORDS = {"train": 2_088_628, "validation": 217_646, "test": 245_569}  # Merity et al. 2016, an end of line a word
ROWS = {
    "train": [
        "",
        " = One = ",
        "",
        " a formula ",
        " = x , y = ",
        "",
        " = = Part = = ",
        "",
        " = Two = ",
        "",
        " more ",
        "",
    ],
    "validation": ["", " = Three = ", "", " words ", ""],
    "test": ["", " = Four = ", "", " words \u0085 more ", ""],
}
README = "\n".join(
    [
        "---\nconfigs:\n- config_name: wikitext-2-v1\n  data_files:",
        *(f"  - split: {split}\n    path: wikitext-2-v1/{split}*" for split in data.SPLITS),
        "---\n",
    ]
)


@pytest.fixture
def shared():
    for place, folder in sources.places():
        if place == "../shared/data" and (folder / "Salesforce" / "wikitext").is_dir():
            return folder
    pytest.skip("../shared/data is not there")


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """No data folder but those that a test makes; returns the one that it would find beside its working directory."""
    home = tmp_path / "home" / "repository"
    home.mkdir(parents=True)
    monkeypatch.chdir(home)
    monkeypatch.setattr(sources, "_REPOSITORY", home)
    monkeypatch.delenv("LAB_DATA", raising=False)
    return home.parent / "shared" / "data"


def write_text_files(root, rows=ROWS, title=""):
    folder = root / texts.WIKITEXT / "wikitext-2-v1"
    folder.mkdir(parents=True)
    for split, lines in rows.items():
        text = "".join((line or " ") + "\n" for line in lines).replace("more", title or "more")
        (folder / f"{split}.txt.xz").write_bytes(lzma.compress(text.encode()))
    return root


def write_hub_rows(root):
    """As the hub has them: parquet, each row with its line end, a blank one empty."""
    from datasets import Dataset, disable_progress_bars, enable_progress_bars

    folder = root / texts.WIKITEXT
    (folder / "wikitext-2-v1").mkdir(parents=True)
    (folder / "README.md").write_text(README)
    disable_progress_bars()
    for split, lines in ROWS.items():
        rows = Dataset.from_dict({"text": [line and line + "\n" for line in lines]})
        rows.to_parquet(folder / "wikitext-2-v1" / f"{split}-00000-of-00001.parquet")
    enable_progress_bars()
    return root


def documents(name="wikitext-2", **options):
    return {split: list(data.iter_text(name, split, **options)) for split in data.SPLITS}


# What the published corpora hold


@pytest.mark.parametrize("split", data.SPLITS)
def test_wikitext_2_has_its_published_words_and_articles(shared, split):
    articles = data.load_text("wikitext-2", split, data_dir=shared)
    assert sum(map(texts.count_words, articles)) == WORDS[split]
    assert len(articles) == {"train": 600, "validation": 60, "test": 60}[split]
    assert all(text.lstrip().startswith("= ") for text in articles)
    file = shared / texts.WIKITEXT / "wikitext-2-v1" / f"{split}.txt.xz"
    assert "".join(articles).encode() == lzma.decompress(file.read_bytes())


def test_the_raw_wikitext_has_the_same_words(shared):
    raw = data.find_text("Salesforce/wikitext:wikitext-2-raw-v1", ["test"], shared)
    articles = list(raw.read("test"))
    assert raw.words and sum(map(texts.count_words, articles)) == WORDS["test"] and len(articles) == 60
    assert not any("<unk>" in text for text in articles)


def test_wiki2015_has_the_articles_that_its_list_names(shared):
    listed = [line.split("\t") for line in sources.lines([shared / "wiki2015" / "articles.tsv.xz"])]
    for split, prefix in (("validation", "valid"), ("test", "test")):
        titles = [title for part, _, title in listed if part == prefix]
        articles = data.load_text("wiki2015", split, data_dir=shared)
        assert [text.partition("\n")[0].strip(" =") for text in articles] == [title.strip(" =") for title in titles]


def test_wiki2015_is_read_as_a_stream(shared):
    corpus = data.find_text("wiki2015", data_dir=shared)
    first = next(corpus.read("train"))
    assert first.startswith(" = ") and first.count("\n") > 2
    assert 130e6 < corpus.size < 131e6 and not corpus.words


@pytest.mark.parametrize(("name", "pairs"), [("tatoeba-deu-eng", 166_485), ("tatoeba-fra-eng", 30_000)])
def test_tatoeba(shared, name, pairs):
    splits = {split: data.load_pairs(name, split, shared) for split in data.SPLITS}
    assert [len(rows) for rows in splits.values()] == [pairs, 1000, 1000]
    sources_of = [{source.casefold() for source, _ in rows} for rows in splits.values()]
    assert not (sources_of[0] & sources_of[1] or sources_of[0] & sources_of[2] or sources_of[1] & sources_of[2])
    assert all(source.strip() and target.strip() for rows in splits.values() for source, target in rows)


def test_translation_takes_tatoeba(nowhere, tmp_path, monkeypatch):
    monkeypatch.setenv("LAB_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "translation" / "tatoeba-fra-eng"
    folder.mkdir(parents=True)
    for stem, lines in {"train30k": "the cat\tle chat\n" * 9, "valid": "a\tb\n", "test": "c\td\n"}.items():
        (folder / f"tatoeba-fra-eng.{stem}.tsv").write_text(lines)
    pairs = data.translation("tatoeba-fra-eng", vocab_size=260, data_dir=tmp_path)
    assert {split: len(rows) for split, rows in pairs.splits.items()} == {"train": 9, "validation": 1, "test": 1}
    assert pairs.text(pairs.batch("train", [0])["labels"][0]) == "le chat"
    (folder / "tatoeba-fra-eng.test.tsv").write_text("no tab\n")
    with pytest.raises(ValueError, match="test.tsv has a line without a tab, 'no tab'"):
        data.load_pairs("tatoeba-fra-eng", "test", tmp_path)


# Documents


blank, title, row = st.sampled_from(["", " "]), st.sampled_from([" = A = ", " = B C = "]), st.text("a =", max_size=8)


@given(st.lists(blank | title | row, max_size=30))
def test_articles_lose_no_row_and_begin_at_titles_between_blank_rows(rows):
    found = list(texts.articles(rows))
    filled = any(map(str.strip, rows))
    assert "".join(found) == ("".join(row + "\n" for row in rows) if filled else "")
    titles = [
        number
        for number, row in enumerate(rows)
        if texts._TITLE.fullmatch(row)
        and (number == 0 or not rows[number - 1].strip())
        and number + 1 < len(rows)
        and not rows[number + 1].strip()
    ]
    before_first = filled and any(map(str.strip, rows[: titles[0]] if titles else rows))
    assert len(found) == len(titles) + before_first
    assert all(text.lstrip(" \n").startswith("= ") for text in found[before_first:])


def test_a_text_file_is_cut_at_blank_lines(tmp_path):
    paragraphs = [f"paragraph {number}\nits second line" for number in range(300)]
    text = "\ufeff" + "\n\n \n".join(paragraphs).replace("\n", "\r\n")
    plain, xz, gz = (tmp_path / f"text.txt{ending}" for ending in ("", ".xz", ".gz"))
    plain.write_bytes(text.encode())
    xz.write_bytes(lzma.compress(text.encode()))
    gz.write_bytes(gzip.compress(text.encode()))
    splits = documents(str(plain))
    assert sorted(sum(splits.values(), [])) == sorted(paragraphs)
    assert all(data.split_of(text) == split for split, found in splits.items() for text in found)
    assert documents(str(xz)) == documents(str(gz)) == splits
    assert [data.find_text(str(path)).size for path in (plain, xz, gz)] == [len(text.encode())] * 2 + [None]


def test_a_text_without_blank_lines_is_cut_at_line_ends():
    rows = [f"{number:05} " + "x" * 94 for number in range(1000)]
    found = list(texts.paragraphs(rows))
    assert "\n".join(found).split("\n") == rows
    assert {len(text) for text in found[:-1]} == {101 * 101 - 1}


@pytest.mark.parametrize("size", [0, 1, 100, 300_000])
def test_the_size_in_an_xz_file_is_that_of_its_text(tmp_path, size):
    (tmp_path / "a.xz").write_bytes(lzma.compress(bytes(size)))
    assert sources.text_size([tmp_path / "a.xz"] * 2) == 2 * size


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("latin.txt", "Übung".encode("latin-1"), ["latin.txt is not UTF-8", "iconv"]),
        ("cut.txt.xz", lzma.compress(b"a" * 1000)[:-20], ["cut.txt.xz is damaged or cut short"]),
        ("not.txt.xz", b"plain text", ["not.txt.xz is damaged or cut short"]),
        ("not.txt.gz", b"plain text", ["not.txt.gz is damaged or cut short"]),
        ("empty.txt", b"\n \n", ["'empty.txt'", "no documents", "'train'"]),
    ],
)
def test_a_damaged_file_is_named(tmp_path, file, content, words):
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError) as error:
        data.load_text(str(tmp_path / file))
    assert all(word in str(error.value).replace(str(tmp_path) + "/", "") for word in words), error.value


def test_documents_come_before_the_file_is_read_to_its_end(tmp_path):
    text = "\n\n".join(f"paragraph {number}" for number in range(10_000)).encode()
    (tmp_path / "cut.txt.xz").write_bytes(lzma.compress(text)[:-1000])
    assert next(data.iter_text(str(tmp_path / "cut.txt.xz"))).startswith("paragraph ")
    with pytest.raises(ValueError, match="cut short"):
        data.load_text(str(tmp_path / "cut.txt.xz"))


# Places


def test_the_places_are_asked_in_order(nowhere, tmp_path, monkeypatch):
    folders = {place: write_text_files(tmp_path / place, title=place) for place in ("given", "variable")}
    write_text_files(nowhere, title="beside")
    monkeypatch.setenv("LAB_DATA", str(folders["variable"]))
    found = data.find_text("wikitext-2", data_dir=folders["given"])
    assert found.place == "data_dir" and "given" in list(found.read("train"))[1]
    found = data.find_text("wikitext-2")
    assert found.place == "LAB_DATA" and "variable" in list(found.read("train"))[1]
    monkeypatch.delenv("LAB_DATA")
    found = data.find_text("wikitext-2")
    assert found.place == "../shared/data" and "beside" in list(found.read("train"))[1]


def test_a_place_without_the_split_is_passed_over(nowhere, tmp_path):
    whole = write_text_files(nowhere, title="whole")
    part = write_text_files(tmp_path / "part", {"test": ROWS["test"]}, title="part")
    assert data.find_text("wikitext-2", data_dir=part).place == "../shared/data"
    assert "part" in data.load_text("wikitext-2", "test", data_dir=part)[0]
    assert "whole" in data.load_text("wikitext-2", "train", data_dir=part)[1]
    assert whole == nowhere


@pytest.mark.parametrize(
    ("call", "relative", "last"),
    [
        (lambda: data.load_text("wikitext-2"), "Salesforce/wikitext", "hub: Salesforce/wikitext (offline"),
        (lambda: data.load_text("wikitext-103"), "Salesforce/wikitext", "hub: Salesforce/wikitext (offline"),
        (lambda: data.load_text("owner/texts"), "owner/texts", "hub: owner/texts (offline"),
        (lambda: data.load_text("wiki2015"), "wiki2015", "../shared/data"),
        (lambda: data.load_pairs("tatoeba-deu-eng"), "translation/tatoeba-deu-eng", "../shared/data"),
        (lambda: data.gpt2_tokenizer(), "tokenizers/gpt2", "hub: openai-community/gpt2 (offline"),
    ],
)
def test_one_error_lists_every_place(nowhere, tmp_path, monkeypatch, call, relative, last):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("LAB_DATA", str(tmp_path / "there"))
    with pytest.raises(FileNotFoundError) as error:
        call()
    first, *tried, remedy = str(error.value).split("\n")
    assert "was found nowhere" in first and f"folder that holds {relative}" in remedy
    assert tried[0] == "  data_dir: not given"
    assert tried[1] == f"  LAB_DATA: {tmp_path / 'there' / relative} is no folder"
    assert tried[2] == f"  ../shared/data: {nowhere / relative} is no folder"
    assert tried[-1].strip().startswith(last)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: data.load_text("wikitext-2", data_dir="/no/such"), ["data_dir is '/no/such'", "no folder"]),
        (lambda: data.load_text("no/such/file.txt"), ["no file 'no/such/file.txt'", "wikitext-2"]),
        (lambda: data.load_text("."), ["'.' is a folder", "text file"]),
        (lambda: data.load_text("wikitxt-2"), ["no corpus 'wikitxt-2'", "Did you mean 'wikitext-2'"]),
        (lambda: data.load_text("wikitext-2", "valid"), ["split is 'valid'", "train, validation, test"]),
        (lambda: data.load_text("Salesforce/wikitext"), ["config", "''", "wikitext-103-raw-v1"]),
        (lambda: data.load_text("tatoeba-deu-eng"), ["holds pairs", "load_pairs('tatoeba-deu-eng')", "wiki2015"]),
        (lambda: data.load_pairs("wiki2015"), ["holds documents", "load_text('wiki2015')", "tatoeba-fra-eng"]),
    ],
)
def test_errors_name_the_value_and_the_remedy(nowhere, call, words):
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        call()
    assert all(word in str(error.value) for word in words), error.value


# datasets and the hub


def test_hub_folder_cache_and_text_files_give_the_same_documents(nowhere, tmp_path, monkeypatch):
    import datasets

    files = documents(data_dir=write_text_files(tmp_path / "files"))
    assert files["train"] == [
        " \n = One = \n \n a formula \n = x , y = \n \n = = Part = = \n \n",
        " = Two = \n \n more \n \n",
    ]
    folder = write_hub_rows(tmp_path / "folder")
    assert documents(data_dir=folder) == files

    # A cache as loading from the hub leaves it.
    cache = tmp_path / "cache"
    datasets.load_dataset(str(folder / texts.WIKITEXT), "wikitext-2-v1", cache_dir=str(cache))
    (cache / "wikitext").rename(cache / "Salesforce___wikitext")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache))
    assert data.find_text("wikitext-2").place == "hub"
    assert documents() == files
    ids = [
        data.prepare("wikitext-2", tmp_path / f"out {place}", vocab_size=300, data_dir=root, progress=False).hash
        for place, root in {"files": tmp_path / "files", "folder": folder, "hub": None}.items()
    ]
    assert len(set(ids)) == 1


def test_a_dataset_keeps_its_splits_and_lends_those_it_lacks(nowhere, tmp_path):
    folder = tmp_path / "owner" / "texts"
    folder.mkdir(parents=True)
    lines = [f'{{"text": "document {number}", "other": 1}}\n' for number in range(200)]
    (folder / "train.jsonl").write_text("".join(lines) + '{"text": null, "other": 1}\n{"text": "  ", "other": 1}\n')
    (folder / "test.jsonl").write_text('{"text": "one\\n", "other": 2}\n')
    found = documents("owner/texts", data_dir=tmp_path)
    assert found["test"] == ["one"]
    assert sorted(found["train"] + found["validation"]) == sorted(f"document {number}" for number in range(200))
    assert found["validation"] and all(data.split_of(text) == "validation" for text in found["validation"])
    with pytest.raises(ValueError, match="no column 'content', but text, other; .*--column"):
        data.load_text("owner/texts", data_dir=tmp_path, column="content")
    with pytest.raises(ValueError, match="column 'other' .* holds int, not text"):
        data.load_text("owner/texts", data_dir=tmp_path, column="other")


def test_without_datasets_files_are_still_read(nowhere, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert len(data.load_text("wikitext-2", data_dir=write_text_files(tmp_path))) == 2
    (tmp_path / "wiki2015").mkdir()
    for split in data.SPLITS:
        (tmp_path / "wiki2015" / f"{split}-0.txt").write_text(" = Title = \n\ntext\n\n = Second = \n\ntext\n")
    assert len(data.load_text("wiki2015", data_dir=tmp_path)) == 2
    assert data.load_text("python-docs")
    with pytest.raises(FileNotFoundError, match="hub: the package datasets is not installed(.|\n)*pip install"):
        data.load_text("owner/texts")


@pytest.fixture
def online(monkeypatch):
    """As in a process that was not told to stay off the network."""
    import datasets
    from huggingface_hub import constants

    for module in (constants, datasets.config):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
    return constants, datasets.config


def test_without_a_network_the_hub_is_not_asked(nowhere, online, monkeypatch):
    monkeypatch.setattr(sources, "_connects", lambda endpoint: False)
    with pytest.raises(FileNotFoundError, match=r"hub: Salesforce/wikitext \(no connection to .*only the cache\)"):
        data.load_text("wikitext-2")  # would take 23 s
    with pytest.raises(FileNotFoundError, match=r"hub: openai-community/gpt2 \(no connection"):
        data.gpt2_tokenizer()
    assert not any(module.HF_HUB_OFFLINE for module in online)
    with pytest.raises(RuntimeError), sources.hub():
        assert all(module.HF_HUB_OFFLINE for module in online)
        raise RuntimeError
    assert not any(module.HF_HUB_OFFLINE for module in online)
    monkeypatch.setattr(sources, "_connects", lambda endpoint: True)
    with sources.hub() as state:
        assert state.startswith("connected to ") and not any(module.HF_HUB_OFFLINE for module in online)


def test_a_connection_is_tried_with_patience(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert sources._connects(url)
        monkeypatch.setenv("https_proxy", url)
        assert sources._connects("https://name.invalid")  # by the proxy
        monkeypatch.delenv("https_proxy")
    assert not sources._connects(url)
    release = threading.Event()
    monkeypatch.setattr(sources, "_PATIENCE", 0.01)
    monkeypatch.setattr(sources.socket, "create_connection", lambda *_, **__: release.wait(60) and server)
    assert not sources._connects(url)  # a look-up of a name that hangs
    release.set()


def test_every_text_corpus_by_name_is_streamed(shared):
    for name in data.names("documents"):
        if name != "wikitext-103":
            assert isinstance(next(data.iter_text(name, "validation", shared)), str)
