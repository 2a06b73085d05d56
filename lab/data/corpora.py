"""The corpora by name: which there are, what they hold, and their texts or pairs by split."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from .embedded import jupyterlab_fr, numbers, python_docs
from .sources import Search, lines
from .splits import SPLITS, split_of
from .texts import WIKITEXT, TextCorpus, hub_dataset, text_file, wiki2015, wikitext

Folder = str | os.PathLike[str] | None
T = TypeVar("T")

# What a corpus holds, and who reads it if it is embedded.
_CORPORA: dict[str, tuple[str, Callable[[], Iterable] | None]] = {
    "python-docs": ("documents", python_docs),
    "wikitext-2": ("documents", None),
    "wikitext-103": ("documents", None),
    "wiki2015": ("documents", None),
    "jupyterlab-fr": ("pairs", jupyterlab_fr),
    "counting": ("pairs", numbers),
    "tatoeba-deu-eng": ("pairs", None),
    "tatoeba-fra-eng": ("pairs", None),
}


def names(kind: str | None = None) -> list[str]:
    """The corpora there are by name, sorted; of one kind, "documents" or "pairs", or of both."""
    return sorted(name for name, (held, _) in _CORPORA.items() if kind in (None, held))


# Documents


def iter_text(name: str, split: str = "train", data_dir: Folder = None, column: str = "text") -> Iterator[str]:
    """The documents of one split of a text corpus, one after the other; names and errors are `find_text`'s."""
    check_split(split)
    return at_least_one(find_text(name, [split], data_dir, column).read(split), name, "documents", split)


def load_text(name: str, split: str = "train", data_dir: Folder = None, column: str = "text") -> list[str]:
    """`iter_text` as a list."""
    return list(iter_text(name, split, data_dir, column))


def find_text(name: str, splits: Sequence[str] = SPLITS, data_dir: Folder = None, column: str = "text") -> TextCorpus:
    """The text corpus of that name, in the first place that holds these splits of it.

    `python-docs`: the language reference of `pydoc`, one document a topic, and the docstrings of the standard library,
    one document a module, read from its source and never imported. A long paragraph is kept where it occurs first: the
    reference repeats itself, and a split must not hold what another one was trained on.

    `wikitext-2`, `wikitext-103` (Merity et al. 2016, word-tokenised, with `<unk>`) and `wiki2015`: a document is an
    article. Asked in this order: data_dir, $LAB_DATA, ../shared/data; for WikiText then the hub or its cache, through
    `datasets`. Raw WikiText is `Salesforce/wikitext:wikitext-2-raw-v1`, `Salesforce/wikitext:wikitext-103-raw-v1`.

    The path of a text file (.xz and .gz are unpacked): a document is a paragraph, up to a blank line; the splits are
    90, 5 and 5 % of them by `split_of`.

    `owner/name` or `owner/name:config`, a dataset of a data folder or of the hub: a row's `column` is a document; a
    validation or test split that it lacks is cut from its train by `split_of`.

    Raises ValueError for an unknown name or split, a corpus of pairs, a missing column and, once it is read, a split
    without a document; FileNotFoundError where no place has it, with all that were asked.
    """
    kind = text_kind(name)
    if kind == "file":
        return text_file(Path(name).expanduser())
    if kind == "hub":
        path, _, config = name.partition(":")
        return wikitext(name, config, splits, data_dir) if path == WIKITEXT else hub_dataset(name, column, data_dir)
    if name == "wiki2015":
        return wiki2015(splits, data_dir)
    if name.startswith("wikitext"):
        return wikitext(name, f"{name}-v1", splits, data_dir)
    documents = _CORPORA[name][1]()
    size = sum(len(document.encode()) for document in documents)
    return TextCorpus(name, "embedded", lambda split: (text for text in documents if split_of(text) == split), size)


def text_kind(name: str) -> str:
    """What the name of a text corpus is, "named", "file" or "hub", without looking for it; raises as `find_text`."""
    if name in _CORPORA:
        check_kind(name, "documents")
        return "named"
    path = Path(name).expanduser()
    if path.is_file():
        return "file"
    if path.is_dir():
        raise ValueError(
            f"{name!r} is a folder; give the path of a text file, or one of {', '.join(names('documents'))}."
        )
    if path.suffix in (".txt", ".xz", ".gz") or path.is_absolute() or name.startswith("."):
        raise FileNotFoundError(
            f"there is no file {name!r}; give another path, or one of {', '.join(names('documents'))}."
        )
    if re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", name):
        return "hub"
    raise unknown(name, ", the path of a text file, or owner/name of a dataset of the hub")


# Pairs


def load_pairs(name: str, split: str = "train", data_dir: Folder = None) -> list[tuple[str, str]]:
    """The (source, target) pairs of one split of a translation corpus; no English text is in two splits.

    `jupyterlab-fr`: JupyterLab's interface, English and French by human translators: every distinct pair, of plurals
    the singular. `counting`: the numbers 0..9999 in words, English and German, shuffled. `tatoeba-deu-eng` and
    `tatoeba-fra-eng`: sentences, English to German (166,485 pairs to train on) and to French (30,000), in translation/
    of data_dir, $LAB_DATA or ../shared/data.

    Raises ValueError for an unknown name or split, a corpus of documents, and one that turns out empty; ImportError
    where the package behind a corpus is not installed; FileNotFoundError where no place has it, with all that were
    asked.
    """
    if name not in _CORPORA:
        raise unknown(name)
    check_kind(name, "pairs")
    check_split(split)
    read = _CORPORA[name][1]
    if read is None:
        pairs: Iterable[tuple[str, str]] = _tatoeba(name, split, data_dir)
    else:
        pairs = (pair for pair in read() if split_of(pair[0]) == split)
    return list(at_least_one(pairs, name, "pairs", split))


def _tatoeba(name: str, split: str, data_dir: Folder) -> Iterator[tuple[str, str]]:
    """Lines of English, a tab and the translation; where there is no whole training file, the one of 30,000 pairs."""
    search = Search(f"corpus {name!r}", f"translation/{name}", data_dir)
    stems = {"train": ("train", "train30k"), "validation": ("valid",), "test": ("test",)}[split]
    for place, folder in search.folders():
        for stem in stems:
            if files := sorted(folder.glob(f"{name}.{stem}.tsv*")):
                return (_pair(line, files[0]) for line in lines(files[:1]))
        search.fail(place, f"{folder} has no {name}.{stems[0]}.tsv or .tsv.xz")
    raise search.error(", or use jupyterlab-fr or counting, which are embedded")


def _pair(line: str, path: Path) -> tuple[str, str]:
    english, tab, translation = line.partition("\t")
    if not tab:
        raise ValueError(f"{path} has a line without a tab, {line[:40]!r}; each must be English, a tab, translation.")
    return english, translation


# What is asked for


def unknown(name: str, besides: str = "") -> ValueError:
    nearest = difflib.get_close_matches(str(name), names(), n=1, cutoff=0.3)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return ValueError(f"no corpus {name!r}; there are {', '.join(names())}{besides}.{hint}")


def check_kind(name: str, kind: str) -> None:
    held = _CORPORA[name][0]
    if held != kind:
        reader = "load_text" if kind == "pairs" else "load_pairs"
        listed = ", ".join(names(kind))
        raise ValueError(f"{name!r} holds {held}, not {kind}; use {reader}({name!r}), or one of {listed}.")


def check_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; give one of {', '.join(SPLITS)}.")


def at_least_one(rows: Iterable[T], name: str, kind: str, split: str) -> Iterator[T]:
    """The rows; raises ValueError where there is none."""
    empty = True
    for row in rows:
        empty = False
        yield row
    if empty:
        raise ValueError(f"corpus {name!r} has no {kind} in split {split!r}; is what it is read from damaged or cut?")
