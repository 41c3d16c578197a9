"""The tokenizer of a Hugging Face model, from its folder."""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np


class Tokenizer:
    """Converts texts to numbers of tokens.

    Args:
        json: Content of `tokenizer.json`.
        padding: Number of the padding token.

    Raises:
        ValueError: If it cannot be read, or the package `tokenizers` is not installed.
    """

    def __init__(self, json: str, padding: int) -> None:
        if importlib.util.find_spec("tokenizers") is None:
            raise ValueError("data.tokenizer needs tokenizers. Run: pip install tokenizers")
        import tokenizers  # pyright: ignore[reportMissingImports]  # an optional extra

        self.json, self.padding = json, padding
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(json)
        except Exception as error:  # the library raises a bare Exception
            raise ValueError(f"the tokenizer cannot be read: {error}") from error
        self.size: int = self._tokenizer.get_vocab_size()

    def numbers(self, texts: Sequence[str], max_length: int) -> np.ndarray:
        """Numbers of the first tokens of each text, int32 (N, T), with special tokens. The rest is padding."""
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length)
        x = np.full((len(texts), max_length), self.padding, np.int32)
        for row, encoded in enumerate(self._tokenizer.encode_batch([*texts])):
            x[row, : len(encoded.ids)] = encoded.ids
        return x


def read_tokenizer(folder: Path | None) -> Tokenizer:
    """The tokenizer in a model's folder. Its `config.json` names the padding token.

    Raises:
        ValueError: If the folder lacks one of the two files, or one cannot be read.
    """
    assert folder is not None
    for name in ("tokenizer.json", "config.json"):
        if not (folder / name).is_file():
            raise ValueError(f"data.tokenizer={folder}: there is no {name} in it. Name the folder of a Hugging Face model")
    try:
        padding = json.loads((folder / "config.json").read_text(encoding="utf-8"))["pad_token_id"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"data.tokenizer={folder}: its config.json does not say pad_token_id") from error
    if not isinstance(padding, int):
        raise ValueError(f"data.tokenizer={folder}: pad_token_id in its config.json must be a number, got {padding}")
    return Tokenizer((folder / "tokenizer.json").read_text(encoding="utf-8"), padding)
