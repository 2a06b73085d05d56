"""The work of `prepare` in its folder: documents to ids, and the journal by which a killed run is gone on with."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from .cache import writing_to
from .corpora import at_least_one
from .packed import FORMAT, MANIFEST, TOKENIZER, file_sha256
from .splits import SPLITS
from .texts import TextCorpus, count_words
from .tokenizer import find_eos, fit_bpe, gpt2_tokenizer, load_tokenizer

JOURNAL = "journal.json"
CHUNK = 2**20  # characters of text that are tokenised at a time
JOURNAL_EVERY = 16  # chunks between two entries in the journal
SAMPLE = 32 * 2**20  # bytes of text, at most, that a BPE is trained on
_ORDER = ("validation", "test", "train")  # what is wrong with a small split shows before an hour went into the large


def writing(folder: Path) -> AbstractContextManager[None]:
    """Makes the folder; an OSError in the block says which it is and what to do."""
    return writing_to(folder, "the prepared corpus", "free some space or give another folder; another run goes on here")


class Changed(Exception):
    """The text is not the one of which the journal speaks."""


class Run:
    """One run, in a folder that it has for itself."""

    def __init__(self, folder: Path, settings: dict[str, Any], corpus: TextCorpus, progress: bool) -> None:
        self.folder, self.settings, self.corpus, self.progress = folder, settings, corpus, progress
        self.journal = self.read_journal()

    # The journal: what is certainly in the files.

    def read_journal(self) -> dict[str, Any]:
        """The journal of a run with the same settings that was killed; empty where there is none."""
        try:
            journal = json.loads((self.folder / JOURNAL).read_text(encoding="utf-8"))
            same = journal["format"] == FORMAT and journal["settings"] == self.settings
        except (OSError, ValueError, KeyError, TypeError):
            same = False
        return journal if same else {}

    def begin(self) -> None:
        """Clears the folder of what an earlier run left."""
        with writing(self.folder):
            for path in self.folder.iterdir():
                if path.name in (JOURNAL, TOKENIZER, *(f"{split}.bin" for split in SPLITS)) or path.suffix == ".part":
                    path.unlink()
        nothing = {"documents": 0, "tokens": 0, "bytes": 0, "words": 0 if self.corpus.words else None}
        splits = {split: nothing | {"text_sha256": hashlib.sha256().hexdigest()} for split in SPLITS}
        self.journal = {"format": FORMAT, "settings": self.settings, "tokenizer": None, "splits": splits}
        self.write(JOURNAL, self.journal)

    def write(self, name: str, content: str | dict[str, Any]) -> None:
        """A file, whole or not at all."""
        text = content if isinstance(content, str) else json.dumps(content, indent=1) + "\n"
        part = self.folder / f"{name}.part"
        with writing(self.folder):
            with part.open("w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, self.folder / name)

    # The work.

    def tokenize(self, tokenizer: str | os.PathLike[str], vocab_size: int, data_dir: Any) -> None:
        """Writes the tokenizer and the ids of every split, beyond what the journal says is there."""
        encoder = self.make_tokenizer(tokenizer, vocab_size, data_dir)
        with self.bar("tokenising") as bar:
            for split in _ORDER:
                bar.set_postfix_str(split)
                self.write_ids(split, encoder, bar)

    def make_tokenizer(self, tokenizer: str | os.PathLike[str], vocab_size: int, data_dir: Any) -> Tokenizer:
        path, known = self.folder / TOKENIZER, self.journal.get("tokenizer")
        if known and path.is_file() and file_sha256(path) == known["sha256"]:
            return load_tokenizer(path)
        self.begin()
        for split in _ORDER:
            next(self.documents(split))  # raises where there is none
        about: dict[str, Any] = {"kind": self.settings["tokenizer"]}
        if tokenizer == "bpe":
            with self.bar("reading for the tokenizer") as bar:
                texts, every = sample(self.documents("train"), SAMPLE, bar)
                bar.set_description("training the tokenizer")
                made = fit_bpe(texts, vocab_size)
            size = sum(len(text.encode()) for text in texts)
            about["trained_on"] = {"every": every, "documents": len(texts), "bytes": size}
        else:
            made = gpt2_tokenizer(data_dir) if tokenizer == "gpt2" else load_tokenizer(Path(tokenizer).expanduser())
        find_eos(made)
        self.write(TOKENIZER, made.to_str())
        self.journal["tokenizer"] = about | {"sha256": file_sha256(path)}
        self.write(JOURNAL, self.journal)
        return made

    def documents(self, split: str) -> Iterator[str]:
        return at_least_one(self.corpus.read(split), self.corpus.name, "documents", split)

    def write_ids(self, split: str, encoder: Tokenizer, bar: tqdm) -> None:
        """Appends the ids of the documents that the journal does not count; raises Changed where it counts others."""
        counts, dtype = self.journal["splits"][split], np.dtype(_dtype(encoder)).newbyteorder("<")
        eos, digest = find_eos(encoder), hashlib.sha256()
        documents = self.documents(split)
        for text in itertools.islice(documents, counts["documents"]):
            _add(digest, text.encode(), bar)
        if digest.hexdigest() != counts["text_sha256"]:
            raise Changed
        with self.opened(split, counts["tokens"] * dtype.itemsize) as file:
            for number, texts in enumerate(chunks(documents, CHUNK), start=1):
                encodings = encoder.encode_batch_fast(texts, add_special_tokens=False)
                ids = np.concatenate([np.array([*encoding.ids, eos], dtype) for encoding in encodings])
                with writing(self.folder):
                    file.write(ids.tobytes())
                for text in texts:
                    data = text.encode()
                    _add(digest, data, bar)
                    counts["bytes"] += len(data)
                    if counts["words"] is not None:
                        counts["words"] += count_words(text)
                counts["documents"] += len(texts)
                counts["tokens"] += len(ids)
                if number % JOURNAL_EVERY == 0:
                    self.keep(file, counts, digest)
            self.keep(file, counts, digest)

    @contextmanager
    def opened(self, split: str, size: int) -> Iterator[BinaryIO]:
        """The file of a split, cut behind its first `size` bytes, to write on from there."""
        part, whole = self.part(split), self.folder / f"{split}.bin"
        with writing(self.folder):
            if whole.exists():  # the last run got as far as `finish`
                os.replace(whole, part)
            part.touch()
            if part.stat().st_size < size:
                raise Changed
            os.truncate(part, size)
            file = part.open("ab")
        try:
            yield file
        finally:
            with writing(self.folder):  # what is still to be written may not fit either
                file.close()

    def keep(self, file: BinaryIO, counts: dict[str, Any], digest: Any) -> None:
        """First the ids are safe on the disk, then the journal says so."""
        with writing(self.folder):
            file.flush()
            os.fsync(file.fileno())
        counts["text_sha256"] = digest.hexdigest()
        self.write(JOURNAL, self.journal)

    def finish(self) -> None:
        """Gives the files their names, the manifest last."""
        encoder = load_tokenizer(self.folder / TOKENIZER)
        for split in SPLITS:
            self.journal["splits"][split]["sha256"] = file_sha256(self.part(split))
        with writing(self.folder):
            for split in SPLITS:
                os.replace(self.part(split), self.folder / f"{split}.bin")
        manifest = {
            "format": FORMAT,
            "settings": self.settings,
            "place": self.corpus.place,
            "tokenizer": self.journal["tokenizer"],
            "vocab_size": _vocab_size(encoder),
            "special_ids": {"eos_id": find_eos(encoder)},
            "dtype": _dtype(encoder),
            "splits": self.journal["splits"],
        }
        self.write(MANIFEST, manifest)
        (self.folder / JOURNAL).unlink()

    def part(self, split: str) -> Path:
        return self.folder / f"{split}.bin.part"

    def bar(self, what: str) -> tqdm:
        return tqdm(total=self.corpus.size, desc=what, unit="B", unit_scale=True, disable=not self.progress)


def _add(digest: Any, data: bytes, bar: tqdm) -> None:
    digest.update(len(data).to_bytes(8, "big") + data)
    bar.update(len(data))


def sample(documents: Iterable[str], limit: int, bar: tqdm | None = None) -> tuple[list[str], int]:
    """Documents from all over a stream, `limit` bytes at most, and n: every n-th, the smallest power of two that fits.

    One document is kept whatever its size.
    """
    kept: list[str] = []
    size, every = 0, 1
    for number, document in enumerate(documents):
        length = len(document.encode())
        if bar is not None:
            bar.update(length)
        if number % every:
            continue
        kept.append(document)
        size += length
        while size > limit and len(kept) > 1:
            kept, every = kept[::2], 2 * every
            size = sum(len(text.encode()) for text in kept)
    return kept, every


def chunks(documents: Iterable[str], size: int) -> Iterator[list[str]]:
    """The documents in lists, each closed with the document that brings it to `size` characters."""
    held: list[str] = []
    length = 0
    for document in documents:
        held.append(document)
        length += len(document)
        if length >= size:
            yield held
            held, length = [], 0
    if held:
        yield held


def _vocab_size(tokenizer: Tokenizer) -> int:
    return 1 + max(tokenizer.get_vocab().values())  # ids may have gaps


def _dtype(tokenizer: Tokenizer) -> str:
    return "uint16" if _vocab_size(tokenizer) < 2**16 else "uint32"
