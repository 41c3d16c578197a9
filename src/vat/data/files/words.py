"""Converts texts to numbers of words."""

import re
import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np

PADDING, UNKNOWN_WORD, FIRST_WORD = 0, 1, 2

# A letter or digit with its marks. `\w` does not match the marks of Indic, Arabic and Hebrew script.
_LETTER = r"[^\W_\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0900-\u0963\u0966-\u0dff]"
# Scripts without blanks between words: each character is a word.
_CHARACTER = r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"
_WORDS = re.compile(rf"{_CHARACTER}|(?:{_LETTER})+(?:['’](?:{_LETTER})+)*|[!?]")


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, with `!` and `?`. Each Chinese, Japanese, Thai and Lao character is a word."""
    return _WORDS.findall(unicodedata.normalize("NFC", text).lower())


def numbered_words(texts: Sequence[str], max_length: int) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Each text as numbers of its first words, and all words that occur.

    Args:
        texts: N texts.
        max_length: Number of words of a text that are kept, T.

    Returns:
        Numbers int32 (N, T), which start from 1. 0 follows the last word, and a text without words has the empty word. Then the words,
        of which the first has the number 1. Then the number of words of each text, (N,).
    """
    numbers: dict[str, int] = {}
    x, lengths = np.zeros((len(texts), max_length), np.int32), np.zeros(len(texts), np.int64)
    for row, text in enumerate(texts):
        words = words_of(text) or [""]
        lengths[row] = len(words)
        x[row, : len(words)] = [numbers.setdefault(word, len(numbers) + 1) for word in words[:max_length]]
    return x, [*numbers], lengths


def most_frequent(x: np.ndarray, words: Sequence[str], size: int) -> dict[str, int]:
    """The most frequent words in rows of `numbered_words`, with the number of each.

    Equally frequent words are in alphabetical order.

    Args:
        x: Numbers of words (N, T), 0 for none.
        words: The words of `numbered_words`.
        size: Largest number of words.
    """
    counts = np.bincount(x.ravel(), minlength=len(words) + 1)[1:].tolist()
    found = [(-count, word) for word, count in zip(words, counts, strict=True) if count and word]
    return {word: -count for count, word in sorted(found)[:size]}


def in_vocabulary(x: np.ndarray, words: Sequence[str], vocabulary: Mapping[str, int] | Sequence[str]) -> np.ndarray:
    """Convert numbers of `numbered_words` to those of a vocabulary, int32 (N, T): `PADDING`, `UNKNOWN_WORD`, then its words."""
    number = {word: k for k, word in enumerate(vocabulary, FIRST_WORD)}
    return np.array([PADDING, *(number.get(word, UNKNOWN_WORD) for word in words)], np.int32)[x]
