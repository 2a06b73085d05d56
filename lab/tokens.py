"""Ids as tokens that can be read, by whatever a user has that names them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


def names(tokens: Any, ids: Tensor) -> list[list[str]]:
    """The tokens of each row of ids (B, T). Raises TypeError for what names no ids."""
    rows = ids.tolist()
    if hasattr(tokens, "tokens") and hasattr(tokens, "splits"):  # a Translation
        return [tokens.tokens(row) for row in rows]
    name = namer(tokens)
    return [[str(index if (word := name(index)) is None else word) for index in row] for row in rows]


def namer(tokens: Any) -> Callable[[int], Any]:
    if tokens is None:
        return str
    if hasattr(tokens, "convert_ids_to_tokens"):
        return lambda index: index if index < 0 else tokens.convert_ids_to_tokens(index)
    if hasattr(tokens, "id_to_token"):
        return lambda index: readable(tokens, index)
    if callable(tokens):
        return tokens
    raise TypeError(
        f"tokens is a {type(tokens).__name__}; give a function from an id to its token, a tokenizer, or None."
    )


def readable(tokenizer: Any, index: int) -> str:
    """A token's name; its text, "▁" for a space, where its name is spelled in bytes, as in "cafÃ©"."""
    name = tokenizer.id_to_token(index) if index >= 0 else None
    if name is None or type(tokenizer.decoder).__name__ != "ByteLevel":
        return name
    text = tokenizer.decode([index]).replace(" ", "▁")
    return text if text and "\ufffd" not in text else name
