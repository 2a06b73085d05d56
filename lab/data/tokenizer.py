"""Tokenizers: a byte-level BPE trained on the texts at hand and kept, GPT-2's, and one in a file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from .cache import cache_dir as resolve_cache_dir
from .cache import fingerprint, write_text
from .sources import Search, hub

# fairseq's and BART's order. The pad is not 0 on purpose: code that takes 0 for the pad goes wrong here at once.
BOS_ID, PAD_ID, EOS_ID = 0, 1, 2
SPECIAL_TOKENS = ("<s>", "<pad>", "</s>")
GPT2, GPT2_EOS = "openai-community/gpt2", "<|endoftext|>"
EOS_TOKENS = ("</s>", GPT2_EOS, "<|end_of_text|>", "<eos>", "[EOS]", "[SEP]")
_ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
_FORMAT = "1"  # raise it when a change of this file changes what is trained


def train_tokenizer(
    texts: Iterable[str], vocab_size: int = 2000, cache_dir: str | os.PathLike[str] | None = None
) -> Tokenizer:
    """A byte-level BPE of at most `vocab_size` ids; 0 is `<s>`, 1 `<pad>`, 2 `</s>`. From the cache where it is there.

    Encoding adds no special token, and `<s>` written in a text is three characters, not id 0; decoding gives any text
    back exactly and leaves special ids out. (That second property is not saved with a tokenizer: see `plain`.)

    Raises ValueError for no text or a `vocab_size` under the 256 bytes and the special tokens, OSError for a cache
    folder (see `cache_dir`) that cannot be written.
    """
    texts = _checked(texts, vocab_size)
    key = fingerprint("tokenizer", _FORMAT, str(vocab_size), *texts)
    path = resolve_cache_dir(cache_dir) / "tokenizers" / f"{key}.json"
    tokenizer = _read(path)
    if tokenizer is None:
        tokenizer = fit_bpe(texts, vocab_size)
        write_text(path, tokenizer.to_str())
    return plain(tokenizer)


def fit_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """What `train_tokenizer` gives, without its cache."""
    texts = _checked(texts, vocab_size)
    tokenizer = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=_ALPHABET,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer, length=len(texts))
    return plain(tokenizer)


def _checked(texts: Iterable[str], vocab_size: int) -> list[str]:
    if isinstance(texts, str):
        raise TypeError(f"texts is one str, {texts[:20]!r}; give a list of them.")
    texts = list(texts)
    if not any(texts):
        raise ValueError(f"no text to train on: {len(texts)} texts, none with a character; give at least one.")
    check_vocab_size(vocab_size)
    return texts


def check_vocab_size(vocab_size: int) -> None:
    """Raises ValueError for a vocabulary that has no room for the bytes and the special tokens."""
    smallest = len(_ALPHABET) + len(SPECIAL_TOKENS)
    if vocab_size < smallest:
        raise ValueError(f"vocab_size is {vocab_size}; bytes and special tokens alone take {smallest}; give more.")


def _byte_level(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    # A space put before the text would come back from decoding.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def plain(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer, set to encode any text as text: whole, unpadded, special tokens that are written in it included.

    The first two are saved with a tokenizer, and the file may say otherwise; the last, `encode_special_tokens`, is
    never saved, and without it `<s>` in a text becomes the id of that token.
    """
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a tokenizer.json, made `plain`. Raises ValueError naming a file that holds none."""
    try:
        return plain(Tokenizer.from_str(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise FileNotFoundError(f"cannot read the tokenizer {path} ({error.strerror}); give another path.") from error
    except Exception as error:  # the library raises Exception itself for text that is no tokenizer
        raise ValueError(f"{path} holds no tokenizer of the tokenizers library ({error}); give another.") from error


def gpt2_tokenizer(data_dir: str | os.PathLike[str] | None = None) -> Tokenizer:
    """GPT-2's byte-level BPE (Radford et al. 2019): 50,257 ids, the last one `<|endoftext|>`.

    From vocab.json and merges.txt in tokenizers/gpt2 of data_dir, $LAB_DATA or ../shared/data, else from the hub or
    its cache; the same tokenizer to the last byte from each. Raises FileNotFoundError naming every place asked.
    """
    search = Search("the tokenizer 'gpt2'", "tokenizers/gpt2", data_dir)
    for place, folder in search.folders():
        files = [folder / "vocab.json", folder / "merges.txt"]
        if all(file.is_file() for file in files):
            return _gpt2(*models.BPE.read_file(*map(str, files)))
        search.fail(place, f"{folder} lacks vocab.json or merges.txt")
    with hub() as state:
        try:
            model = _hub_model(GPT2)
        except Exception as error:  # the library and what it fetches with raise their own
            search.fail("hub", f"{GPT2} ({state}): {error}")
            raise search.error(", or connect to the hub once; or use the tokenizer 'bpe', trained here") from error
    return _gpt2(model["vocab"], model["merges"])


def _hub_model(name: str) -> dict:
    return json.loads(Tokenizer.from_pretrained(name).to_str())["model"]


def _gpt2(vocab: dict[str, int], merges: Iterable[str | Sequence[str]]) -> Tokenizer:
    # GPT2TokenizerFast of transformers 5.23 makes a vocabulary of one of these two files, without a word.
    pairs = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in merges]  # "a b" in older versions
    tokenizer = _byte_level(models.BPE(vocab=vocab, merges=pairs))
    tokenizer.add_special_tokens([GPT2_EOS])
    return plain(tokenizer)


def find_eos(tokenizer: Tokenizer) -> int:
    """The id of the token that ends a document. Raises ValueError for a tokenizer without one of the usual names."""
    for token in EOS_TOKENS:
        if (index := tokenizer.token_to_id(token)) is not None:
            return index
    raise ValueError(f"the tokenizer has no token to end a document with; it needs one of {', '.join(EOS_TOKENS)}.")


def _read(path: Path) -> Tokenizer | None:
    """The tokenizer in a cache file, None where there is none that is whole."""
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception:  # the library raises Exception itself for text that is no tokenizer
        return None
    ids = [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS]
    return tokenizer if ids == [BOS_ID, PAD_ID, EOS_ID] else None
