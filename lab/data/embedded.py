"""The embedded corpora: real text, human translations and a generated task, none of which needs a network."""

from __future__ import annotations

import ast
import gc
import hashlib
import importlib.resources
import json
import os
import re
import sysconfig
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from . import counting
from .splits import normalised

_LANGUAGE_PACK = "jupyterlab_language_pack_fr_FR"
# What is private; tests; what others installed; the interface toolkits, which many Linux Pythons lack; the codec
# tables, which are generated.
_OMITTED = re.compile(
    "_.*|config-.*|tests?|(site|dist)-packages|lib-dynload|idlelib|lib2to3|turtledemo|ensurepip|pydoc_data"
    "|tkinter|turtle|encodings"
)
_LONG_PARAGRAPH = 80  # characters


@cache
def python_docs() -> tuple[str, ...]:
    """The topics of `pydoc`, then the docstrings of the standard library, a module a document; described in corpora."""
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
    text = normalised(paragraph)
    new = len(text) < _LONG_PARAGRAPH or text not in seen
    seen.add(text)
    return new


@cache
def jupyterlab_fr() -> tuple[tuple[str, str], ...]:
    """Every distinct pair of JupyterLab's French language pack."""
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
def numbers() -> tuple[tuple[str, str], ...]:
    """The numbers 0..9999 in English and German, shuffled."""
    pairs = [(counting.english(number), counting.german(number)) for number in range(counting.LIMIT)]
    return tuple(sorted(pairs, key=lambda pair: hashlib.sha256(pair[0].encode()).digest()))
