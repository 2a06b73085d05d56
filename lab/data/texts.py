"""Text corpora in files and on the hub: found, read as a stream, and cut into documents."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from .sources import Search, dataset_folder, dataset_hub, lines, text_files, text_size
from .splits import SPLITS, split_of

WIKITEXT = "Salesforce/wikitext"
WIKITEXT_CONFIGS = ("wikitext-2-v1", "wikitext-103-v1", "wikitext-2-raw-v1", "wikitext-103-raw-v1")
_LONG_PARAGRAPH = 10_000  # characters
_TITLE = re.compile(r" = (?!= ).+(?<! =) = ")

Read = Callable[[], Iterator[str]]


@dataclass(frozen=True)
class TextCorpus:
    """A text corpus that was found.

    place: "embedded", "file", "data_dir", "LAB_DATA", "../shared/data" or "hub". read: split -> its documents.
    size: bytes of all splits, for a progress bar; None if unknown. words: whether words are known, as `count_words`
    counts them.
    """

    name: str
    place: str
    read: Callable[[str], Iterator[str]]
    size: int | None = None
    words: bool = False


def count_words(document: str) -> int:
    """Words as published perplexities of WikiText count them: what stands between spaces, and every end of line."""
    return len(document.split()) + document.count("\n")


def articles(rows: Iterable[str]) -> Iterator[str]:
    """The articles of WikiText and its like: rows without line ends -> documents in which each row ends in one.

    An article begins at its title, ` = Title = ` between two blank rows; elsewhere that is a formula cut in two. The
    documents joined are the rows joined: nothing is lost, and so no word is.
    """
    held: list[str] = []
    filled = maybe_title = False  # held has more than blank rows; its last may be a title
    for row in rows:
        blank = not row.strip()
        if maybe_title and blank:
            title = held.pop()
            if filled:
                yield "\n".join(held) + "\n"
                held = []
            held.append(title)
            filled = True
        maybe_title = (not held or not held[-1].strip()) and _TITLE.fullmatch(row) is not None
        filled = filled or not blank and not maybe_title
        held.append(row)
    if filled or maybe_title:
        yield "\n".join(held) + "\n"


def paragraphs(rows: Iterable[str]) -> Iterator[str]:
    """What stands between blank rows; what gets longer than 10,000 characters ends with the row in which it does."""
    held: list[str] = []
    size = 0
    for row in rows:
        blank = not row.strip()
        if not blank:
            held.append(row)
            size += len(row)
        if held and (blank or size > _LONG_PARAGRAPH):
            yield "\n".join(held)
            held, size = [], 0
    if held:
        yield "\n".join(held)


def divided(found: Mapping[str, Read], split: str) -> Iterator[str]:
    """The documents of one split; validation or test, where it is missing, is its share of train by `split_of`."""
    missing = [name for name in SPLITS if name not in found]
    cut = bool(missing) and split in ("train", *missing)
    for document in found["train" if split in missing else split]():
        text = document.strip("\n")
        if not text.strip():
            continue
        share = split_of(text) if cut else split
        if split == share or (split == "train" and share not in missing):
            yield text


# Corpora


def wiki2015(splits: Sequence[str], data_dir: str | os.PathLike[str] | None) -> TextCorpus:
    """wiki2015/{train*,validation*,test*}.txt in a data folder, or .txt.xz, .txt.gz."""
    search = Search("corpus 'wiki2015'", "wiki2015", data_dir)
    for place, folder in search.folders():
        files = {split: text_files(folder, split) for split in splits}
        if all(files.values()):
            rows = {split: partial(lines, paths) for split, paths in files.items()}
            size = text_size([path for paths in files.values() for path in paths])
            break
        search.fail(place, f"{folder} lacks text files of {_empty(files)}")
    else:
        raise search.error(", or use wikitext-103, which the hub has, or python-docs, which is embedded")
    return TextCorpus("wiki2015", place, lambda split: articles(rows[split]()), size)


def wikitext(name: str, config: str, splits: Sequence[str], data_dir: str | os.PathLike[str] | None) -> TextCorpus:
    """One config of Salesforce/wikitext: text files of a data folder, what `datasets` reads there, or the hub."""
    if config not in WIKITEXT_CONFIGS:
        raise ValueError(f"config of {WIKITEXT} is {config!r}; give one of {', '.join(WIKITEXT_CONFIGS)}.")
    search = Search(f"corpus {name!r}", WIKITEXT, data_dir)
    size = None
    for place, folder in search.folders():
        files = {split: text_files(folder / config, split) for split in splits}
        if all(files.values()):
            rows = {split: partial(lines, paths) for split, paths in files.items()}
            size = text_size([path for paths in files.values() for path in paths])
            break
        search.fail(place, f"{folder / config} lacks text files of {_empty(files)}")
        if (found := dataset_folder(search, place, folder, config, splits)) is not None:
            rows = _texts(found, "text", name)
            break
    else:
        place = "hub"
        rows = _texts(dataset_hub(search, WIKITEXT, config, splits), "text", name)
    # In the hub's rows a line end is included and a blank row is empty; in the files a blank row is one space.
    return TextCorpus(
        name, place, lambda split: articles(row.rstrip("\n") or " " for row in rows[split]()), size, words=True
    )


def hub_dataset(name: str, column: str, data_dir: str | os.PathLike[str] | None) -> TextCorpus:
    """`owner/name` or `owner/name:config`: a row of `column` is a document, in the dataset's own splits, `divided`."""
    path, _, config = name.partition(":")
    search = Search(f"dataset {name!r}", path, data_dir)
    for place, folder in search.folders():
        if (found := dataset_folder(search, place, folder, config or None, ["train"])) is not None:
            break
    else:
        place, found = "hub", dataset_hub(search, path, config or None, ["train"])
    return TextCorpus(name, place, partial(divided, _texts(found, column, name)))


def text_file(path: Path) -> TextCorpus:
    """A text file, plain, .xz or .gz: its `paragraphs` are its documents, `divided` into splits."""
    return TextCorpus(
        path.name, "file", partial(divided, {"train": lambda: paragraphs(lines([path]))}), text_size([path])
    )


def _empty(files: Mapping[str, list[Path]]) -> str:
    return ", ".join(split for split, found in files.items() if not found)


def _texts(found: Mapping[str, Any], column: str, name: str) -> dict[str, Read]:
    return {split: partial(_column, rows, column, name) for split, rows in found.items()}


def _column(dataset: Any, column: str, name: str) -> Iterator[str]:
    """The texts in one column of a `datasets` split; a row without one is left out."""
    for rows in dataset.iter(batch_size=1000):
        if column not in rows:
            listed = ", ".join(rows)
            raise ValueError(
                f"dataset {name!r} has no column {column!r}, but {listed}; choose one with column (--column)."
            )
        for text in rows[column]:
            if not isinstance(text, str | None):
                kind = type(text).__name__
                raise ValueError(f"column {column!r} of dataset {name!r} holds {kind}, not text; choose another.")
            if text is not None:
                yield text
