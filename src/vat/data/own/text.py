"""A user's own texts, and labels of some of them."""

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vat.data.files.names import UNKNOWN
from vat.data.files.tables import parquet_files
from vat.data.files.texts import TextTable, read_texts
from vat.data.files.tokens import Tokenizer, read_tokenizer
from vat.data.files.words import PADDING, UNKNOWN_WORD, in_vocabulary, most_frequent, numbered_words
from vat.data.own.arrays import classes_of
from vat.data.own.base import OwnData, numbered, refuse_labels_as_groups
from vat.data.splits import Split
from vat.files import as_path


class Texts(OwnData):
    """Texts of a CSV, Parquet or JSON-lines file, as numbers of words.

    Inputs are int32 (N, T). 0 is padding, and 1 is a word outside the vocabulary. The vocabulary has the most frequent words of the
    training pool, in lower case. Validation and test texts do not contribute to it. It is part of the checkpoint.

    Args:
        train: The file: .csv, .parquet or a folder of these, .jsonl, .jsonl.gz or .jsonl.xz.
        text: Name of the column or field of the texts.
        label: Name of the labels. A blank one, -1 and null are no label.
        group: Name of the groups. None means that every text is a group.
        unlabeled: A second file of texts for training. Its labels are not read.
        max_length: Number of words at the start of a text that the network reads.
        vocabulary_size: Largest number of words in the vocabulary.
        tokenizer: Folder with the `tokenizer.json` of a Hugging Face model, which replaces the words by tokens. None for words.
        options: As in `OwnData`.

    Raises:
        FileNotFoundError: In `setup`, if there is no such file.
        ValueError: If a size is too small. In `setup`, if a file is not as described, files do not fit each other, or as in `OwnData`.
    """

    unit = "normalised embeddings of words"

    def __init__(
        self,
        *,
        train: str,
        text: str = "text",
        label: str = "label",
        group: str | None = None,
        unlabeled: str | None = None,
        max_length: int = 400,
        vocabulary_size: int = 20_000,
        tokenizer: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        for name, value in {"max_length": max_length, "vocabulary_size": vocabulary_size}.items():
            if value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        self.train = as_path(train, "data.train")
        self.text, self.label, self.group = text, label, group
        self.unlabeled = None if unlabeled is None else as_path(unlabeled, "data.unlabeled")
        self.max_length, self.vocabulary_size = max_length, vocabulary_size
        self.tokenizer = None if tokenizer is None else as_path(tokenizer, "data.tokenizer")

    @cached_property
    def lds_eps(self) -> float:
        """See `ResidentDataModule`. It is constant, because distances between numbers of words say nothing about texts."""
        return 5.0

    @property
    def files(self) -> Sequence[Path]:
        """See `OwnData`."""
        named = [path for path in (self.train, self.unlabeled, self.test) if path is not None]
        return [file for path in named for file in (parquet_files(path) if path.is_dir() else [path])]

    def load(self) -> tuple[Tensor, Tensor, Split]:
        """Inputs, labels and parts. The texts of `unlabeled` come after those of `train`, and those of `test` last."""
        refuse_labels_as_groups(self.label, self.group)
        same = [path for path in (self.unlabeled, self.test) if path is not None and os.path.realpath(path) == os.path.realpath(self.train)]
        if same:
            raise ValueError(f"{same[0]} is data.train too. Leave it out. Without data.test, a test part is cut from data.train")
        tables = [read_texts(self.train, text=self.text, label=self.label, group=self.group)]
        self.class_names = classes_of(tables[0].labels, self.train)
        self.warn_of_lookalikes()
        unlabeled_as = dict(tables[0].unlabeled)
        if self.unlabeled is not None:
            tables.append(read_texts(self.unlabeled, text=self.text, group=self.group))
            unlabeled_as["in unlabeled"] = len(tables[1].texts)
        if self.test is not None:
            tables.append(read_texts(self.test, text=self.text, label=self.label, group=self.group))
            self._refuse_unfit(tables[-1], tables[:-1])
        y = torch.tensor([self._number(table, row) for table in tables for row in range(len(table.texts))])
        groups = None if self.group is None else numbered([name for table in tables for name in table.groups or ()])
        num_test = 0 if self.test is None else len(tables[-1].texts)
        split = self.cut(y, groups=groups, num_test=num_test, unlabeled_as=unlabeled_as)
        texts = [text for table in tables for text in table.texts]
        self.warn_of_copies(torch.tensor([hash(" ".join(text.split())) for text in texts]).unsqueeze(1), split)
        return self._inputs(texts, split), y, split

    def _number(self, table: TextTable, row: int) -> int:
        name = table.labels[row]
        if name == UNKNOWN:
            return -1
        try:
            return self.class_names.index(name)
        except ValueError:
            known = ", ".join(self.class_names)
            raise ValueError(f"{self.test}: {table.places[row]} has the label {name!r}. The classes are {known}") from None

    def _refuse_unfit(self, test: TextTable, others: Sequence[TextTable]) -> None:
        if UNKNOWN in test.labels:
            raise ValueError(f"{self.test}: test texts must be labelled. {test.places[test.labels.index(UNKNOWN)]} is not")
        if shared := sorted({*(test.groups or ())} & {name for table in others for name in table.groups or ()}):
            raise ValueError(f"{self.test} and {self.train} both have texts of {self.group} {shared[0]}. Keep it in one of them")

    def _inputs(self, texts: Sequence[str], split: Split) -> Tensor:
        """The numbers of words or tokens. Also sets `preparation`, which describes them."""
        given = self.given or {}
        if self.tokenizer is not None or "tokenizer" in given:
            tokenizer = Tokenizer(given["tokenizer"], given["padding"]) if "tokenizer" in given else read_tokenizer(self.tokenizer)
            self.unit = "embeddings of tokens"
            self.preparation = {
                "text": self.text,
                "max_length": given.get("max_length", self.max_length),
                "tokenizer": tokenizer.json,
                "padding": tokenizer.padding,
                "vocabulary_size": tokenizer.size,
            }
            return torch.from_numpy(tokenizer.numbers(texts, self.preparation["max_length"]))
        words_of_texts, words, lengths = numbered_words(texts, self.max_length)
        pool, held_out = split.unlabeled.numpy(), torch.cat([split.validation, split.test]).numpy()
        longest = int(min(self.max_length, lengths[pool].max()))
        vocabulary = most_frequent(words_of_texts[pool], words, self.vocabulary_size)
        x = in_vocabulary(words_of_texts, words, given.get("vocabulary", vocabulary))
        counts = np.bincount(x[pool].ravel(), minlength=len(vocabulary) + 2).tolist()
        counts[PADDING] = 0
        own = {"text": self.text, "max_length": longest, "vocabulary": [*vocabulary], "counts": counts, "vocabulary_size": len(counts)}
        self.preparation = {**own, **given}
        x = x[:, : self.preparation["max_length"]]
        absent = (x[held_out] == UNKNOWN_WORD).sum() / max(1, (x[held_out] != PADDING).sum())
        self.summary += (
            f"; a vocabulary of {len(self.preparation['vocabulary'])} words, without {100 * absent:.1f} % of those held out; "
            f"{100 * (lengths > x.shape[1]).mean():.0f} % of the texts are cut after {x.shape[1]} words"
        )
        return torch.from_numpy(np.ascontiguousarray(x))


def encode(texts: Sequence[str], preparation: dict[str, Any]) -> Tensor:
    """Texts as inputs of a network that was trained with this `preparation`, int32 (N, T)."""
    if "tokenizer" in preparation:
        tokenizer = Tokenizer(preparation["tokenizer"], preparation["padding"])
        return torch.from_numpy(tokenizer.numbers(texts, preparation["max_length"]))
    x, words, _ = numbered_words(texts, preparation["max_length"])
    return torch.from_numpy(in_vocabulary(x, words, preparation["vocabulary"]))
