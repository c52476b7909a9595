"""Text as numbers: the symbols of a vocabulary, and the conversion between a text and a row of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Vocabulary"]


class Vocabulary:
    """The symbols that tokens 0 ... V - 1 stand for: characters, other strings, or the 256 bytes of UTF-8.

    Args:
        symbols: a str, each of whose characters is a symbol; a list of strings; or "bytes", which can encode any text,
            and turns a character outside ASCII into several tokens. (``list("bytes")`` is those five letters.)

    Raises:
        ValueError: if there are no symbols, if one is empty, or if one occurs twice.

    Example:
        >>> vocabulary = Vocabulary("abc ")
        >>> vocabulary.encode("cab")
        tensor([2, 0, 1])
        >>> vocabulary.decode(vocabulary.encode("cab"))
        'cab'
    """

    def __init__(self, symbols: str | Sequence[str]) -> None:
        self.is_bytes = isinstance(symbols, str) and symbols == "bytes"
        self.symbols = [] if self.is_bytes else list(symbols)
        if self.is_bytes:
            return
        for symbol in self.symbols:
            if not isinstance(symbol, str) or not symbol:
                raise ValueError(f"vocabulary must be 'bytes' or symbols, strings that are not empty, got {symbol!r}")
        self._numbers = {symbol: number for number, symbol in enumerate(self.symbols)}
        if not self.symbols:
            raise ValueError("vocabulary must have one symbol at least, got none")
        if len(self._numbers) < len(self.symbols):
            twice = next(s for number, s in enumerate(self.symbols) if self._numbers[s] != number)
            raise ValueError(f"vocabulary must have each symbol once, got {twice!r} more often")

    def __len__(self) -> int:
        return 256 if self.is_bytes else len(self.symbols)

    def encode(self, text: str | bytes | Sequence[str]) -> Tensor:
        """The tokens of a text, (T) int64.

        Args:
            text: a str is read character by character, and a list symbol by symbol; bytes work only with "bytes".

        Raises:
            ValueError: for a symbol that is not in the vocabulary.
        """
        if self.is_bytes:
            raw = text if isinstance(text, bytes) else "".join(text).encode()
            return torch.tensor(list(raw), dtype=torch.int64)
        if isinstance(text, bytes):
            raise ValueError("encode: text must be a str or a list of symbols with this vocabulary, got bytes")
        tokens = []
        for position, symbol in enumerate(text):
            if symbol not in self._numbers:
                raise ValueError(
                    f"encode: text must consist of the vocabulary's {len(self)} symbols, got {symbol!r} "
                    f"at position {position}"
                )
            tokens.append(self._numbers[symbol])
        return torch.tensor(tokens, dtype=torch.int64)

    def decode(self, tokens: Tensor) -> str:
        """The text of tokens (T); bytes that are not valid UTF-8 become U+FFFD.

        Raises:
            ValueError: for a number that is not a token, or more than one dimension.
        """
        if tokens.dim() != 1:
            raise ValueError(f"decode: tokens must have one dimension, got shape {tuple(tokens.shape)}")
        numbers = tokens.tolist()
        for position, number in enumerate(numbers):
            if not 0 <= number < len(self):
                raise ValueError(f"decode: tokens must lie in 0 ... {len(self) - 1}, got {number} at index {position}")
        if self.is_bytes:
            return bytes(numbers).decode("utf-8", errors="replace")
        return "".join(self.symbols[number] for number in numbers)

    def characters(self, tokens: Tensor) -> Tensor:
        """Bool, in the shape of tokens: whether a character begins there. Every symbol counts as a character."""
        # In UTF-8 all bytes of a character after the first are 0b10xxxxxx.
        return (tokens & 0xC0) != 0x80 if self.is_bytes else torch.ones_like(tokens, dtype=torch.bool)

    def config(self) -> str | list[str]:
        """The constructor's argument as JSON holds it."""
        return "bytes" if self.is_bytes else self.symbols

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.config() == other.config()

    def __hash__(self) -> int:
        return hash(str(self.config()))

    def __repr__(self) -> str:
        return f"Vocabulary({self.config()!r})"
