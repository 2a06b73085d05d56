"""The folder for what is derived once and read often: where it is, what its files are named after, how to write it."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_dir(path: str | os.PathLike[str] | None = None) -> Path:
    """`path` if given, else $LAB_CACHE, else $XDG_CACHE_HOME/lab, else ~/.cache/lab. Nothing is created."""
    if path is None:
        path = os.environ.get("LAB_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "lab")
    return Path(path).expanduser()


def fingerprint(*parts: str) -> str:
    """The sha256 of a sequence of strings; the length goes before each, so that ("ab",) is not ("a", "b")."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


@contextmanager
def writing_to(
    folder: Path, what: str = "the cache", remedy: str = "set LAB_CACHE to a folder you can write to"
) -> Iterator[None]:
    """Makes `folder`; an OSError in it or in the block is raised again with the folder and the remedy in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        message = f"cannot write {what} ({error.strerror or error}); {remedy}"
        raise OSError(error.errno, message, str(folder)) from error


def write_text(path: Path, text: str) -> None:
    """Writes the file whole or not at all: another process sees the old one or the new one, never a half."""
    with writing_to(path.parent):
        handle, part = tempfile.mkstemp(dir=path.parent, suffix=".part")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(part, path)
        except BaseException:
            os.unlink(part)
            raise
