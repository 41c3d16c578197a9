"""Base of a user's own data sets: parts cut from the labelled examples, and a pool with all unlabelled ones."""

import math
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from vat.data.datamodule import ResidentDataModule
from vat.data.files.names import lookalikes
from vat.data.loader import Inputs, as_input
from vat.data.neighbours import neighbours
from vat.data.own.copies import find_copies
from vat.data.splits import Split, grouped_parts, stratified_parts, with_every_class
from vat.files import as_path
from vat.seeds import stable_seed

MOST_FOR_MOMENTS = 10_000  # images; the error of their pixels' mean and standard deviation is then far below a grey level


class OwnData(ResidentDataModule):
    """Examples of which some have labels. The label of the others is −1.

    The test and validation parts are stratified samples of the labelled examples. The pool is the rest, with all unlabelled examples.
    Each class keeps a labelled example for training, even if a part gets none of it.

    Examples may come in groups, such as the images of one patient. No group has examples in two parts. An unlabelled example that belongs
    to a group of the validation or test part is in no part.

    Args:
        test: Labelled test examples, in the same form as those for training. None cuts the test part from the labelled examples.
        validation_share: Share of the labelled examples for validation. With 0, nothing measures the progress of the training, or ranks
            checkpoints and settings.
        test_share: Share of the labelled examples for the test. It has no effect if test examples are given.
        folds: Number of parts into which the labelled examples that are not for the test are cut, instead of `validation_share`. None
            for no folds.
        fold: Number of the fold, from 0, that is the validation part. None trains on all folds. Examples of a class that only this fold
            has are still trained on.
        split_seed: Seed of the validation and test parts. None is `seed`. A spread over seeds then includes that over splits.
        options: As in `ResidentDataModule`. Unlabelled examples are of no class, so `unlabeled_classes` leaves them out.

    Raises:
        ValueError: If a share is out of range. In `setup`, if the data cannot be read, split or trained on.
    """

    def __init__(
        self,
        *,
        test: str | Dataset[Any] | None = None,
        validation_share: float = 0.1,
        test_share: float = 0.2,
        folds: int | None = None,
        fold: int | None = None,
        split_seed: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.test: Any = as_path(test, "data.test") if isinstance(test, str) else test
        if folds is not None and folds < 2:
            raise ValueError(f"folds={folds}: must be >= 2, or null for none")
        if fold is not None and not 0 <= fold < (folds or 0):
            raise ValueError(f"fold={fold}: must be >= 0 and less than folds={folds}, or null to train on all of them")
        self.folds, self.fold = folds, fold
        validation_share = validation_share if folds is None else 0.0
        shares = {"validation_share": validation_share} | ({} if self.test else {"test_share": test_share})
        if not (validation_share >= 0 and min(shares.get("test_share", 1), 1) > 0 and sum(shares.values()) < 1):
            raise ValueError(
                "validation_share must be >= 0 and test_share > 0, with a sum below 1, "
                f"got {', '.join(f'{name}={share}' for name, share in shares.items())}"
            )
        self.validation_share, self.test_share = validation_share, test_share
        self.split_seed = self.seed if split_seed is None else split_seed

    @cached_property
    def lds_eps(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]  # a number, computed from the data
        """The default radius for these data (`vat.data.neighbours`). It is 1 if all inputs are equal."""
        found = neighbours(self.x, self.y, labeled=self.split.labeled, pool=self.split.unlabeled)
        return 1.0 if math.isnan(found.nearest) else found.default_eps

    @property
    def files(self) -> Sequence[Path]:
        """Files that hold all of the inputs. Empty if they are too many to read for a comparison."""
        return ()

    def cut(
        self,
        y: Tensor,
        *,
        groups: Tensor | None = None,
        num_validation: int = 0,
        num_test: int = 0,
        unlabeled_as: Mapping[str, int] | None = None,
    ) -> Split:
        """Cut the parts.

        Args:
            y: Labels of all examples, −1 for none, shape (N,).
            groups: Number of each example's group, int64 of shape (N,). None means that every example is a group.
            num_validation: Number of given validation examples. They come before those for the test. 0 cuts the part from the labelled
                examples.
            num_test: Number of given test examples. They come last. 0 cuts the part from the labelled examples.
            unlabeled_as: How often each spelling of no label occurs.

        Raises:
            ValueError: If there are too few labelled examples or groups, or one class alone.
        """
        train, validation, test = torch.arange(len(y)).split([len(y) - num_validation - num_test, num_validation, num_test])
        known = y[train] >= 0
        labeled, unlabeled = train[known], train[~known]
        said = ", ".join(f"{number} × {spelling}" for spelling, number in (unlabeled_as or {}).items())
        _refuse_one_class(y[labeled], unlabeled_as or {}, said)
        sizes = [] if num_test else [max(1, round(self.test_share * len(labeled)))]
        if self.validation_share and not num_validation:
            sizes.append(max(1, round(self.validation_share * len(labeled))))
        if sum(sizes) >= len(labeled):
            raise ValueError(f"{len(labeled)} labelled examples are too few to hold out {' + '.join(map(str, sizes))} and train on others")
        sizes.append(len(labeled) - sum(sizes))
        of_labeled = None if groups is None else groups[labeled]
        parts = with_every_class(_dealt(y[labeled], of_labeled, sizes, self.split_seed), y[labeled], of_labeled)
        *held_out, pool = (labeled[part] for part in parts)
        if not num_test:
            test, *held_out = held_out
        if held_out:
            (validation,) = held_out
        if self.folds is not None:
            if num_validation:
                raise ValueError(f"folds={self.folds}: validation examples are given too. Leave these or the folds out")
            validation, pool = self._fold(pool, y, groups)
        if groups is not None:
            unlabeled = unlabeled[~torch.isin(groups[unlabeled], groups[torch.cat([validation, test])])]
        parts_of = {"left to train on": pool, "in the validation part": validation, "in the test part": test}
        self._warn_of_absent_classes({name: y[part] for name, part in parts_of.items() if len(part)})
        if self.unlabeled_classes is not None and len(unlabeled):
            warnings.warn(
                f"unlabeled_classes leaves out the {len(unlabeled)} examples without a label, which are of no class", stacklevel=2
            )
        if self.num_labeled is not None and self.num_labeled > len(pool):
            raise ValueError(
                f"num_labeled must be from 1 to {len(pool)}, the number of labelled training examples, or None for all of them, "
                f"got {self.num_labeled}. Of {len(labeled)} labelled examples, {len(validation) - num_validation} are for validation and "
                f"{len(test) - num_test} for the test"
            )
        counts = ", ".join(f"{name}: {number}" for name, number in self._counts(y[labeled]).items())
        self.summary = f"{len(y)} examples: {len(labeled)} labelled ({counts}), {len(train) - len(labeled)} without a label" + (
            f": {said}" if said else ""
        )
        given = {"validation": num_validation, "the test": num_test}
        self.summary += "".join(f"; {number} given for {part}" for part, number in given.items() if number)
        if not len(validation) and self.folds is None:
            warnings.warn(
                "validation_share=0: no example is held out for validation. So nothing measures the progress of the training, or ranks "
                "checkpoints and settings. A killed run resumes from its last epoch",
                stacklevel=2,
            )
        return self.divide(y, pool=pool, validation=validation, test=test, extra=unlabeled)

    def _fold(self, rows: Tensor, y: Tensor, groups: Tensor | None) -> tuple[Tensor, Tensor]:
        """Rows of the validation part and rows to train on.

        Raises:
            ValueError: If there are fewer rows or groups than folds.
        """
        assert self.folds is not None
        if len(rows) < self.folds:
            raise ValueError(f"folds={self.folds}: must be at most the {len(rows)} labelled examples that are not for the test")
        if self.fold is None:
            return rows[:0], rows
        sizes = [len(rows) // self.folds + (number < len(rows) % self.folds) for number in range(self.folds)]
        fold = rows[_dealt(y[rows], None if groups is None else groups[rows], sizes, self.split_seed)[self.fold]]
        others = y[rows[~torch.isin(rows, fold)]]
        of = torch.arange(len(y)) if groups is None else groups
        only = of[fold[~torch.isin(y[fold], others)]]  # examples of a class that no other fold has, with their groups
        validation = fold[~torch.isin(of[fold], only)]
        return validation, rows[~torch.isin(rows, validation)]

    def _counts(self, y: Tensor) -> dict[str, int]:
        """Number of examples of each class. With many classes, only the first ten are separate."""
        counts = torch.bincount(y, minlength=len(self.class_names)).tolist()
        named = dict(zip(self.class_names, counts, strict=True))
        return named if len(named) <= 12 else {**dict(list(named.items())[:10]), f"{len(named) - 10} more": sum(counts[10:])}

    def warn_of_lookalikes(self) -> None:
        """Warn of classes whose names look the same to a reader."""
        if alike := lookalikes(self.class_names):
            shown = ", ".join(map(ascii, alike))
            warnings.warn(f"{shown} are {len(alike)} classes. If they are one, give them one name", stacklevel=2)

    def warn_of_copies(self, x: Inputs, split: Split) -> None:
        """Warn of held-out examples that are also trained on: exact copies, or images resized or recompressed.

        Only some thousands of streamed images are compared.
        """
        found: dict[str, list[str]] = {}
        for name, part in {"validation": split.validation, "test": split.test}.items():
            for kind, number, of in find_copies(x, split.unlabeled, x, part):
                found.setdefault(kind, []).append(f"{number} of {of} {name} examples")
        for kind, said in found.items():
            warnings.warn(
                f"{' and '.join(said)} {kind} examples to train on. If these are copies, the result is too good. Remove them, or give "
                "them one group",
                stacklevel=2,
            )

    def _warn_of_absent_classes(self, parts: Mapping[str, Tensor]) -> None:
        absent = {part: [name for c, name in enumerate(self.class_names) if not (y == c).any()] for part, y in parts.items()}
        if lacks := "; ".join(f"{part} of {', '.join(names)}" for part, names in absent.items() if names):
            warnings.warn(f"no labelled example is {lacks}. Label more, or choose another split_seed", stacklevel=2)


def refuse_labels_as_groups(label: str | None, group: str | None) -> None:
    """Refuse to group examples by their labels. A group is in one part, so a part would lack classes.

    Raises:
        ValueError: If both are the same column.
    """
    if group is not None and group == label:
        raise ValueError(f"data.group={group}: must not be data.label too, or all examples of a class would be in one part")


def _dealt(y: Tensor, groups: Tensor | None, sizes: Sequence[int], seed: int) -> list[Tensor]:
    """Positions of each part. No group is split."""
    return stratified_parts(y, sizes, seed=seed) if groups is None else grouped_parts(y, groups, sizes, seed=seed)


def says_unlabeled(name: str) -> bool:
    """Whether a class's name is unlabeled, in either spelling."""
    return name.lower() in ("unlabeled", "unlabelled")


def numbered(groups: Sequence[str]) -> Tensor:
    """Equal numbers for equal names, int64. Warns of groups whose names look the same to a reader."""
    numbers = {name: number for number, name in enumerate(sorted(set(groups)))}
    if alike := lookalikes([*numbers]):
        warnings.warn(f"{', '.join(map(ascii, alike))} are {len(alike)} groups. If they are one, give them one name", stacklevel=2)
    return torch.tensor([numbers[name] for name in groups], dtype=torch.int64)


def channel_moments(x: Inputs, pool: Tensor, *, seed: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over the pool, or over 10,000 of its examples.

    Args:
        x: Images (N, C, H, W). Bytes are scaled to [0, 1].
        pool: Rows of the pool.
        seed: Seed of the choice of examples in a larger pool.

    Returns:
        C numbers each. A constant channel has the standard deviation 1, by which a network can divide.
    """
    if len(pool) > MOST_FOR_MOMENTS:
        generator = torch.Generator().manual_seed(stable_seed("channel moments", seed))
        pool = pool[torch.randperm(len(pool), generator=generator)[:MOST_FOR_MOMENTS]]
    sums, squares, lows, highs = [], [], [], []
    # subtracted first, because squares of large values would lose the variance
    near = as_input(x[pool[:1]]).double().mean((0, 2, 3))[:, None]
    for rows in pool.split(min(100, max(1, 2**24 // math.prod(x.shape[1:])))):  # at most 128 MiB in float64
        pixels = as_input(x[rows]).double().transpose(0, 1).flatten(1) - near
        sums.append(pixels.mean(1) * len(rows))
        squares.append(pixels.square().mean(1) * len(rows))
        lows.append(pixels.amin(1))
        highs.append(pixels.amax(1))
    mean = torch.stack(sums).sum(0) / len(pool)
    variance = torch.stack(squares).sum(0) / len(pool) - mean.square()
    constant = torch.stack(lows).amin(0) == torch.stack(highs).amax(0)  # not variance == 0, which rounding misses
    return tuple((mean + near.squeeze(1)).tolist()), tuple(variance.sqrt().where(~constant, 1.0).tolist())


def _refuse_one_class(y: Tensor, unlabeled_as: Mapping[str, int], said: str) -> None:
    if len(found := y.unique()) < 2:
        hint = f". Without a label: {said}" if said else ""
        if unlabeled_as.get("-1"):
            hint = f". -1 means that there is no label, in {said}. If it is a class, number the classes from 0, or give them names"
        raise ValueError(f"labelled examples must be of at least two classes, got {len(y)} examples of {len(found)}{hint}")
