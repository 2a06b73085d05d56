"""The embedded corpora: real text, human translations and a generated task, none of which needs a network."""

from __future__ import annotations

import ast
import difflib
import gc
import hashlib
import importlib.resources
import json
import os
import re
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

from . import counting

SPLITS = ("train", "validation", "test")

_LANGUAGE_PACK = "jupyterlab_language_pack_fr_FR"
# What is private; tests; what others installed; the interface toolkits, which many Linux Pythons lack; the codec
# tables, which are generated.
_OMITTED = re.compile(
    "_.*|config-.*|tests?|(site|dist)-packages|lib-dynload|idlelib|lib2to3|turtledemo|ensurepip|pydoc_data"
    "|tkinter|turtle|encodings"
)
_LONG_PARAGRAPH = 80  # characters


def split_of(text: str) -> str:
    """The split of a text: a hash of it, blind to case and white space, gives train 90, validation 5, test 5 %."""
    digest = hashlib.sha256(_normalised(text).encode("utf-8", "surrogatepass")).digest()
    percent = int.from_bytes(digest[:8], "big") % 100
    return "train" if percent < 90 else "validation" if percent < 95 else "test"


def names() -> list[str]:
    """The corpora there are, sorted."""
    return sorted(_CORPORA)


def load_text(name: str, split: str = "train") -> list[str]:
    """The documents of one split of a text corpus.

    `python-docs`: the language reference of `pydoc`, one document a topic, and the docstrings of the standard library,
    one document a module, read from its source and never imported. A long paragraph is kept where it occurs first: the
    reference repeats itself, and a split must not hold what another one was trained on.

    Raises ValueError for an unknown name or split, a corpus of pairs, and one that turns out empty.
    """
    return _load(name, "documents", split, source=lambda document: document)


def load_pairs(name: str, split: str = "train") -> list[tuple[str, str]]:
    """The (source, target) pairs of one split of a translation corpus; every pair of one English text is in one split.

    `jupyterlab-fr`: JupyterLab's interface, English and French by human translators: every distinct pair, of plurals
    the singular. `counting`: the numbers 0..9999 in words, English and German, shuffled.

    Raises ValueError for an unknown name or split, a corpus of documents, and one that turns out empty; ImportError
    where the package behind a corpus is not installed.
    """
    return _load(name, "pairs", split, source=lambda pair: pair[0])


def _load(name: str, kind: str, split: str, source: Callable[[object], str]) -> list:
    if name not in _CORPORA:
        nearest = difflib.get_close_matches(str(name), names(), n=1, cutoff=0.3)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(f"no corpus {name!r}; there are {', '.join(names())}.{hint}")
    held, read = _CORPORA[name]
    if held != kind:
        reader = "load_text" if kind == "pairs" else "load_pairs"
        others = ", ".join(other for other in names() if _CORPORA[other][0] == kind)
        raise ValueError(f"{name!r} holds {held}, not {kind}; use {reader}({name!r}), or one of {others}.")
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; give one of {', '.join(SPLITS)}.")
    rows = [row for row in read() if split_of(source(row)) == split]
    if not rows:
        raise ValueError(f"corpus {name!r} has no {kind} in split {split!r}; is what it is read from damaged or cut?")
    return rows


def _normalised(text: str) -> str:
    return " ".join(text.casefold().split())


@cache
def _python_docs() -> tuple[str, ...]:
    from pydoc_data.topics import topics

    root = Path(sysconfig.get_paths()["stdlib"])
    modules = [_docstrings(path) for path in _public_sources(root)]
    if not any(modules):
        raise ValueError(f"no docstring under {root}: this Python comes without sources; use one that has them.")
    seen: set[str] = set()
    documents = []
    for texts in [*([topics[topic]] for topic in sorted(topics)), *modules]:
        paragraphs = [part.rstrip() for text in texts for part in re.split(r"\n\s*\n", text) if part.strip()]
        if fresh := [paragraph for paragraph in paragraphs if _is_new(paragraph, seen)]:
            documents.append("\n\n".join(fresh))
    return tuple(documents)


def _public_sources(root: Path) -> Iterator[Path]:
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not _OMITTED.fullmatch(name))
        for file in sorted(files):
            stem, extension = os.path.splitext(file)
            if extension == ".py" and (stem == "__init__" or not _OMITTED.fullmatch(stem)):
                yield Path(folder, file)


def _docstrings(path: Path) -> list[str]:
    """The docstrings of a module, its public classes, functions and methods, in the order of the source."""
    collecting = gc.isenabled()
    gc.disable()  # a syntax tree is many objects and no garbage: looking for some takes two thirds of the time
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # escapes that a later Python will refuse
            return list(_walk(ast.parse(path.read_bytes())))
    except SyntaxError:  # a template, or source for another Python
        return []
    finally:
        if collecting:
            gc.enable()


def _walk(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    if text := ast.get_docstring(node):
        yield text
    if isinstance(node, (ast.Module, ast.ClassDef)):
        for child in node.body:
            definition = isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
            if definition and not child.name.startswith("_"):
                yield from _walk(child)


def _is_new(paragraph: str, seen: set[str]) -> bool:
    """False for a long paragraph that was there before; short ones such as "Example:" may return."""
    text = _normalised(paragraph)
    new = len(text) < _LONG_PARAGRAPH or text not in seen
    seen.add(text)
    return new


@cache
def _jupyterlab_fr() -> tuple[tuple[str, str], ...]:
    try:
        package = importlib.resources.files(_LANGUAGE_PACK)
    except ModuleNotFoundError as error:
        raise ImportError(
            "corpus 'jupyterlab-fr' is read from a package that is not installed; "
            "run: pip install jupyterlab-language-pack-fr-FR",
            name=_LANGUAGE_PACK,
        ) from error
    catalogs = package.joinpath("locale", "fr_FR", "LC_MESSAGES")
    files = sorted((file for file in catalogs.iterdir() if file.name.endswith(".json")), key=lambda file: file.name)
    return tuple(dict.fromkeys(pair for file in files for pair in _messages(file.read_text(encoding="utf-8"))))


def _messages(catalog: str) -> Iterator[tuple[str, str]]:
    """The pairs of a gettext catalog as JSON: {"context\\x04English": ["French singular", "French plural"]}."""
    for key, translations in json.loads(catalog).items():
        english = key.rpartition("\x04")[2]
        if english.strip() and translations[0].strip():  # the header's key is empty
            yield english, translations[0]


@cache
def _counting() -> tuple[tuple[str, str], ...]:
    pairs = [(counting.english(number), counting.german(number)) for number in range(counting.LIMIT)]
    return tuple(sorted(pairs, key=lambda pair: hashlib.sha256(pair[0].encode()).digest()))


# What a corpus holds, and who reads it.
_CORPORA: dict[str, tuple[str, Callable[[], Iterable]]] = {
    "python-docs": ("documents", _python_docs),
    "jupyterlab-fr": ("pairs", _jupyterlab_fr),
    "counting": ("pairs", _counting),
}
