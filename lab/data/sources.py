"""Where data that is not embedded is looked for: the data folders in their order, then the hub or its cache."""

from __future__ import annotations

import gzip
import lzma
import os
import socket
import sys
import threading
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

VARIABLE = "LAB_DATA"
_REPOSITORY = Path(__file__).resolve().parents[2]
_LONGEST_LINE = 2**20  # characters; a longer one comes in parts, so that a file without line ends is no danger
_PATIENCE = 3.0  # seconds that the hub has to answer


def places(data_dir: str | os.PathLike[str] | None = None) -> list[tuple[str, Path | None]]:
    """What the data folders are called, and where they are, in the order in which they are asked.

    `data_dir`, then $LAB_DATA, each None where it is not given; then ../shared/data beside the working directory and
    beside the repository. Raises FileNotFoundError for a `data_dir` that is no folder.
    """
    given = Path(data_dir).expanduser() if data_dir is not None else None
    if given is not None and not given.is_dir():
        raise FileNotFoundError(f"data_dir is {str(data_dir)!r}, which is no folder; give one, or leave it out.")
    variable = os.environ.get(VARIABLE)
    beside = dict.fromkeys(home.parent / "shared" / "data" for home in (Path.cwd(), _REPOSITORY))
    return [
        ("data_dir", given),
        (VARIABLE, Path(variable).expanduser() if variable else None),
        *(("../shared/data", folder) for folder in beside),
    ]


class Search:
    """The search for one thing: remembers where it was in vain, and says so in one error."""

    def __init__(self, what: str, relative: str, data_dir: str | os.PathLike[str] | None = None) -> None:
        self.what, self.relative, self.data_dir = what, relative, data_dir
        self.tried: list[str] = []

    def folders(self) -> Iterator[tuple[str, Path]]:
        """Each data folder's `relative` that is there, with the name of its place."""
        for place, root in places(self.data_dir):
            if root is None:
                self.fail(place, "not given")
            elif (folder := root / self.relative).is_dir():
                yield place, folder
            else:
                self.fail(place, f"{folder} is no folder")

    def fail(self, place: str, reason: object) -> None:
        self.tried.append(f"{place}: {' '.join(str(reason).split())}")

    def error(self, remedy: str = "") -> FileNotFoundError:
        listed = "".join(f"\n  {line}" for line in self.tried)
        return FileNotFoundError(
            f"{self.what} was found nowhere. Tried:{listed}\n"
            f"Give data_dir (--data-dir) or set {VARIABLE} to a folder that holds {self.relative}{remedy}."
        )


def text_files(folder: Path, stem: str) -> list[Path]:
    """The text files in a folder whose name begins with `stem`: .txt, .txt.xz, .txt.gz; sorted."""
    return sorted(path for ending in ("txt", "txt.xz", "txt.gz") for path in folder.glob(f"{stem}*.{ending}"))


def lines(paths: Sequence[Path]) -> Iterator[str]:
    """The lines of UTF-8 text files, plain, .xz or .gz, one file after the other, without their line ends.

    Raises ValueError naming the file that is not UTF-8, or compressed and damaged.
    """
    for path in paths:
        opened: Callable[..., Any] = {".xz": lzma.open, ".gz": gzip.open}.get(path.suffix, open)
        try:
            with opened(path, "rt", encoding="utf-8-sig") as file:
                while line := file.readline(_LONGEST_LINE):
                    yield line.removesuffix("\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text ({error.reason}); convert it, for example by iconv.") from error
        except (lzma.LZMAError, gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise ValueError(f"{path} is damaged or cut short ({error}); fetch it again.") from error


def text_size(paths: Sequence[Path]) -> int | None:
    """The bytes of text in these files, for a progress bar; None where that takes reading one through."""
    sizes = [_size(path) for path in paths]
    return None if None in sizes else sum(sizes)


def _size(path: Path) -> int | None:
    if path.suffix == ".gz":
        return None
    data = path.read_bytes() if path.suffix == ".xz" else b""
    return _xz_size(data) if data else path.stat().st_size


def _xz_size(data: bytes) -> int | None:
    """From the index at the end of an .xz file (xz-file-format.txt 2.1.2.2 and 4): the sizes of its blocks."""
    if data[-2:] != b"YZ":
        return None
    index = data[-12 - 4 * (int.from_bytes(data[-8:-4], "little") + 1) : -12]
    numbers, value, shift = [], 0, 0
    for byte in index[1:]:  # behind the indicator: seven bits a byte, the eighth says that more follow
        value |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            numbers.append(value)
            value = shift = 0
    return sum(numbers[2 : 1 + 2 * numbers[0] : 2])  # count, then (size in the file, size of the text) a block


# The hub


def dataset_folder(
    search: Search, place: str, folder: Path, config: str | None, splits: Sequence[str]
) -> Mapping[str, Any] | None:
    """The splits of a local folder by the call that reads the hub, streamed; None, and noted, where they lack one."""
    try:
        import datasets

        return _with(splits, datasets.load_dataset(str(folder), config, streaming=True))
    except Exception as error:  # the library and its readers raise their own by the dozen
        search.fail(place, f"{folder}: {error}")
        return None


def dataset_hub(search: Search, path: str, config: str | None, splits: Sequence[str]) -> Mapping[str, Any]:
    """The splits of a dataset of the hub, fetched once and from then on in the cache of `datasets`.

    Raises the search's error where neither has it.
    """
    remedy = f"; or connect to the hub once, so that its cache holds {path}"
    try:
        import datasets
    except ImportError as error:
        search.fail("hub", "the package datasets is not installed")
        raise search.error(f"{remedy}, with datasets installed (pip install datasets)") from error
    with hub() as state:
        try:
            return _with(splits, datasets.load_dataset(path, config))
        except Exception as error:
            search.fail("hub", f"{path} ({state}): {error}")
            raise search.error(remedy) from error


def _with(splits: Sequence[str], found: Mapping[str, Any]) -> Mapping[str, Any]:
    if missing := [split for split in splits if split not in found]:
        raise ValueError(f"has no split {', '.join(missing)}, but {', '.join(found)}")
    return found


@contextmanager
def hub() -> Iterator[str]:
    """Inside, the hub's libraries use the network if there is one and their cache alone if not; yields which.

    Without a network they would try again for 23 s, unless HF_HUB_OFFLINE=1 was set before their import. So this asks
    for a connection first, for three seconds at most, and where there is none sets what that variable sets, until the
    end of the block.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        yield "offline, as HF_HUB_OFFLINE is set, so only the cache"
        return
    host = urllib.parse.urlsplit(constants.ENDPOINT).hostname
    if _connects(constants.ENDPOINT):
        yield f"connected to {host}"
        return
    flags = [module for module in (constants, sys.modules.get("datasets.config")) if module is not None]
    before = [module.HF_HUB_OFFLINE for module in flags]
    for module in flags:
        module.HF_HUB_OFFLINE = True
    try:
        yield f"no connection to {host}, so only the cache"
    finally:
        for module, value in zip(flags, before, strict=True):
            module.HF_HUB_OFFLINE = value


def _connects(endpoint: str) -> bool:
    """Whether the endpoint, or the proxy on the way to it, takes a connection."""
    url = urllib.parse.urlsplit(endpoint)
    if not urllib.request.proxy_bypass(url.hostname or "") and (proxy := urllib.request.getproxies().get(url.scheme)):
        url = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    done: list[bool] = []

    def connect() -> None:
        try:
            address = (url.hostname, url.port or (443 if url.scheme == "https" else 80))
            socket.create_connection(address, timeout=_PATIENCE).close()
            done.append(True)
        except OSError:
            pass

    # A thread, because the look-up of a name has no time limit of its own.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    return bool(done)
