"""Tokenises a corpus once into memory-mapped files; a run that is killed goes on where it was."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .cache import cache_dir, fingerprint
from .corpora import find_text, text_kind
from .packed import FORMAT, MANIFEST, Prepared, file_sha256
from .prepare_run import Changed, Run, writing
from .splits import SPLITS
from .tokenizer import check_vocab_size

LOCK = ".prepare.lock"


def prepare(
    corpus: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    tokenizer: str | os.PathLike[str] = "bpe",
    vocab_size: int = 8192,
    data_dir: str | os.PathLike[str] | None = None,
    column: str = "text",
    progress: bool = True,
) -> Prepared:
    """Tokenises the documents of a text corpus, each followed by an EOS, into one file of ids a split; see `Prepared`.

    corpus, data_dir, column: as `find_text` takes them. out: the folder; without it, one in `cache_dir()`/prepared.
    tokenizer: "bpe", a byte-level BPE of `vocab_size` ids, trained on the training split: on all of it up to 32 MB of
    text, on every second, fourth … document of a larger one; "gpt2"; or the path of a tokenizer.json.

    A folder that is prepared so already is given back at once, unread. A run that was killed goes on from its journal,
    at most 16 MB of text before the point where it was. manifest.json comes last: a folder without it is not prepared.
    Another process that prepares the same folder is waited for.

    Raises what `find_text` raises; ValueError for a split without a document, for a folder that holds something else
    or was prepared otherwise, and for a tokenizer without an EOS; OSError where the folder cannot be written.
    """
    corpus = os.fspath(corpus)
    settings = _settings(corpus, tokenizer, vocab_size, column)
    folder = Path(out).expanduser() if out is not None else cache_dir() / "prepared" / _name(settings)
    if (prepared := _finished(folder, settings)) is not None:
        return prepared
    found = find_text(corpus, SPLITS, data_dir, column)
    with _alone(folder):
        if (prepared := _finished(folder, settings)) is not None:
            return prepared  # by the process that was waited for
        run = Run(folder, settings, found, progress)
        try:
            run.tokenize(tokenizer, vocab_size, data_dir)
        except Changed:
            run.journal = {}
            run.tokenize(tokenizer, vocab_size, data_dir)
        run.finish()
    return Prepared.open(folder)


def _settings(corpus: str, tokenizer: str | os.PathLike[str], vocab_size: int, column: str) -> dict[str, Any]:
    """What decides the files that are made; nothing in it depends on where this machine has the corpus."""
    settings: dict[str, Any] = {"corpus": corpus}
    kind = text_kind(corpus)
    if kind == "file":
        path = Path(corpus).expanduser()
        settings = {"corpus": path.name, "corpus_sha256": file_sha256(path)}
    elif kind == "hub":
        settings["column"] = column
    elif corpus == "python-docs":
        settings["python"] = platform.python_version()
    if tokenizer == "bpe":
        check_vocab_size(vocab_size)
        return settings | {"tokenizer": "bpe", "vocab_size": vocab_size}
    if tokenizer == "gpt2":
        return settings | {"tokenizer": "gpt2"}
    path = Path(tokenizer).expanduser()
    if not path.is_file():
        raise ValueError(f"tokenizer is {os.fspath(tokenizer)!r}; give 'bpe', 'gpt2' or the path of a tokenizer.json.")
    return settings | {"tokenizer": "file", "tokenizer_sha256": file_sha256(path)}


def _name(settings: dict[str, Any]) -> str:
    readable = [str(settings[key]) for key in ("corpus", "tokenizer", "vocab_size") if key in settings]
    short = fingerprint("prepare", str(FORMAT), json.dumps(settings, sort_keys=True))[:8]
    return re.sub(r"[^\w.-]+", "-", "-".join([*readable, short]))


def _finished(folder: Path, settings: dict[str, Any]) -> Prepared | None:
    """The prepared corpus in the folder, None where there is none yet."""
    if not (folder / MANIFEST).exists():
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder} is a file; give a folder (out, --out).")
        if folder.exists() and not (folder / LOCK).exists() and (others := sorted(os.listdir(folder))):
            raise ValueError(f"{folder} holds {others[0]}, which prepare did not make; give an empty or a new folder.")
        return None
    prepared = Prepared.open(folder)
    before = prepared.manifest["settings"]
    if before != settings:
        differing = [key for key in {**before, **settings} if before.get(key) != settings.get(key)]
        listed = "; ".join(f"{key} {before.get(key)!r} there, {settings.get(key)!r} asked" for key in differing)
        raise ValueError(f"{folder} was prepared otherwise: {listed}. Delete it, or give another folder (out, --out).")
    return prepared


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds the folder's lock, which the system takes back from a process that is killed; waits for another's."""
    with writing(folder):
        file = (folder / LOCK).open("a")
    with file:
        try:
            import fcntl
        except ImportError:  # Windows
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)  # gives up after ten seconds
        else:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"another process prepares {folder} now; waiting for it", file=sys.stderr)
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
