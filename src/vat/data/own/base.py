"""What a user's own data sets share: parts cut from the labelled examples, and a pool with all that have no label."""

import math
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vat.data.datamodule import ResidentDataModule
from vat.data.loader import Inputs, as_input
from vat.data.neighbours import neighbours
from vat.data.splits import Split, grouped_parts, stratified_parts
from vat.seeds import stable_seed

MOST_FOR_MOMENTS = 10_000  # images: mean and standard deviation of their pixels are then known to far below a grey level


class OwnData(ResidentDataModule):
    """Examples of which some have labels and the others the label −1.

    The test and validation parts are cut from the labelled examples, stratified and fixed: `seed` does not move them. The pool is the
    rest, with all examples that have no label.

    Where examples come in groups (the images of one patient), no group has examples in two parts. What has no label and belongs to a
    group of the validation or test part is in no part at all.

    Args:
        validation_share: Share of the labelled examples for validation.
        test_share: Share of the labelled examples for the test; without effect where the test examples are given.
        split_seed: Determines the validation and test parts.
        num_labeled: Labels that training sees; None for all in the pool.
        options: As in `ResidentDataModule`. Examples without a label are of no class, so `unlabeled_classes` leaves them out.

    Raises:
        ValueError: If a share is out of range; in `setup`, if the data cannot be read, split or trained on.
    """

    def __init__(
        self,
        *,
        validation_share: float = 0.1,
        test_share: float = 0.2,
        split_seed: int = 0,
        num_labeled: int | None = None,
        batch_size_labeled: int = 32,
        batch_size_unlabeled: int = 128,
        steps_per_epoch: int = 100,
        **options: Any,
    ) -> None:
        super().__init__(
            num_labeled=num_labeled,
            batch_size_labeled=batch_size_labeled,
            batch_size_unlabeled=batch_size_unlabeled,
            steps_per_epoch=steps_per_epoch,
            **options,
        )
        if not (validation_share > 0 and test_share > 0 and validation_share + test_share < 1):
            raise ValueError(
                "validation_share and test_share must be > 0 and leave something to train on; "
                f"got validation_share={validation_share}, test_share={test_share}"
            )
        self.validation_share, self.test_share = validation_share, test_share
        self.split_seed = split_seed

    @cached_property
    def lds_eps(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]  # a number that takes a look at the data
        """The default radius for these data (`vat.data.neighbours`); 1 if all inputs are equal."""
        found = neighbours(self.x, self.y, labeled=self.split.labeled, pool=self.split.unlabeled)
        return 1.0 if math.isnan(found.nearest) else found.default_eps

    @property
    def files(self) -> Sequence[Path]:
        """Files that hold all of the inputs; none where they are too many to read for a comparison."""
        return ()

    def cut(self, y: Tensor, *, groups: Tensor | None = None, num_test: int = 0) -> Split:
        """The parts.

        Args:
            y: Labels of all examples, −1 where there is none, shape (N,).
            groups: Number of each example's group, int64 of shape (N,); None where every example stands for itself.
            num_test: The last so many examples are the test part; 0 cuts it from the labelled ones.

        Raises:
            ValueError: If there are too few labelled examples or groups, or one class alone.
        """
        train, test = torch.arange(len(y)).split([len(y) - num_test, num_test])
        known = y[train] >= 0
        labeled, unlabeled = train[known], train[~known]
        if len(y[labeled].unique()) < 2:
            raise ValueError(
                f"{len(labeled)} labelled examples are of {len(y[labeled].unique())} classes: a classifier needs examples of two at least"
            )
        shares = (self.validation_share,) if num_test else (self.test_share, self.validation_share)
        sizes = [max(1, round(share * len(labeled))) for share in shares]
        if sum(sizes) >= len(labeled):
            raise ValueError(f"{len(labeled)} labelled examples are too few to train on and to hold out {' + '.join(map(str, sizes))}")
        sizes.append(len(labeled) - sum(sizes))
        if groups is None:
            parts = stratified_parts(y[labeled], sizes, seed=self.split_seed)
        else:
            parts = grouped_parts(y[labeled], groups[labeled], sizes, seed=self.split_seed)
        *held_out, pool = (labeled[part] for part in parts)
        if not num_test:
            test, *held_out = held_out
        (validation,) = held_out
        if groups is not None:
            unlabeled = unlabeled[~torch.isin(groups[unlabeled], groups[torch.cat([validation, test])])]
        self._warn_of_absent_classes({"left to train on": y[pool], "in the validation part": y[validation], "in the test part": y[test]})
        if self.unlabeled_classes is not None and len(unlabeled):
            warnings.warn(
                f"unlabeled_classes leaves out the {len(unlabeled)} examples without a label, which are of no class", stacklevel=2
            )
        return self.divide(y, pool=pool, validation=validation, test=test, extra=unlabeled)

    def warn_of_copies(self, x: Inputs, split: Split) -> None:
        """Warn where examples held out are the same, to the bit, as some that training sees. Streamed inputs are not looked through."""
        if not isinstance(x, Tensor):
            return
        rows = x.cpu().numpy()
        seen = {hash(rows[i].tobytes()) for i in split.unlabeled.tolist()}
        parts = {"validation": split.validation, "test": split.test}
        copies = {name: sum(hash(rows[i].tobytes()) in seen for i in part.tolist()) for name, part in parts.items()}
        if said := " and ".join(f"{number} of {len(parts[name])} {name} examples" for name, number in copies.items() if number):
            warnings.warn(
                f"{said} have the values of examples to train on: where these are copies, which flatter the result, give them one group",
                stacklevel=2,
            )

    def _warn_of_absent_classes(self, parts: Mapping[str, Tensor]) -> None:
        absent = {part: [name for c, name in enumerate(self.class_names) if not (y == c).any()] for part, y in parts.items()}
        if lacks := "; ".join(f"{part} of {', '.join(names)}" for part, names in absent.items() if names):
            warnings.warn(f"no labelled example is {lacks}: label more, or choose another split_seed", stacklevel=2)


def says_unlabeled(name: str) -> bool:
    """Whether a class's name says that its examples have none, in either spelling."""
    return name.lower() in ("unlabeled", "unlabelled")


def numbered(groups: Sequence[str]) -> Tensor:
    """Equal numbers for equal names, int64."""
    numbers = {name: number for number, name in enumerate(sorted(set(groups)))}
    return torch.tensor([numbers[name] for name in groups], dtype=torch.int64)


def channel_moments(x: Inputs, pool: Tensor, *, seed: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over the pool, or over 10,000 of its examples.

    Args:
        x: Images (N, C, H, W); bytes count as in [0, 1].
        pool: Rows of the pool.
        seed: Chooses the examples of a larger pool.

    Returns:
        C numbers each; a constant channel has the standard deviation 1, by which a network can divide.
    """
    if len(pool) > MOST_FOR_MOMENTS:
        generator = torch.Generator().manual_seed(stable_seed("channel moments", seed))
        pool = pool[torch.randperm(len(pool), generator=generator)[:MOST_FOR_MOMENTS]]
    sums, squares, lows, highs = [], [], [], []
    near = as_input(x[pool[:1]]).double().mean((0, 2, 3))[:, None]  # or squares of far values would lose the variance
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
