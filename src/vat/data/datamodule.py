"""Common part of every data set: checks, the move to the training device, the loaders."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from vat.data.loader import Chain, EvalLoader, Flip, Inputs, ResidentLoader, Translate
from vat.data.splits import Split, class_numbers, labeled_subset, restricted

EVALUATION_BATCH_SIZE = 1000  # without a graph this needs no more memory than a training batch; no result depends on it
ROWS_WITH_GRAPH = 32  # rows at a time if a search for r keeps a graph: no more than in a training step


class ResidentDataModule(pl.LightningDataModule, ABC):
    """A data set kept as one tensor on the training device, or with inputs streamed there (`vat.data.loader.Streamed`).

    A subclass defines `unit`, and `load`, which also sets `class_names`. Training batches are `vat.data.loader.Batch`, evaluation batches
    are (x, y).

    Args:
        num_labeled: Number of labelled examples. None labels all that have a label. If that is the complete pool, there is no unlabelled
            batch: training is supervised, with a regularizer on the labelled inputs.
        batch_size_labeled: Rows of the labelled batch over all processes.
        batch_size_unlabeled: Rows of the unlabelled batch over all processes.
        steps_per_epoch: Batches of a nominal epoch, which sets how often validation runs.
        balanced: Whether to label the same number of examples in each class.
        seed: Seed of the choice of labelled examples, the order of the batches and the augmentation.
        translate: Largest shift of a training image in pixels, filled with 0 (`vat.data.loader.Translate`).
        flip: Whether to mirror half of the training images left to right (`vat.data.loader.Flip`).
        labeled_classes: Names of the classes that have labels (`vat.data.splits.class_numbers`), None for all. Only their examples are
            labelled and used for validation and test. The network also has outputs for classes without labels.
        unlabeled_classes: Names of the classes of the unlabelled pool, None for all. The pool also includes all labelled examples. With
            `labeled_classes` this gives the class mismatch of Oliver et al. (arXiv 1804.09170, section 4.4).
        imbalance: Ratio of the labelled examples of class 0 to those of the last class (`vat.data.splits.labeled_subset`).

    Attributes:
        unit: Meaning of a perturbation of length 1 in this data, the unit of ε.
        lds_eps: Default radius for monitoring LDS.
        mean, std: Mean and standard deviation of each channel over the published training set, for the first layer of a network. None if
            inputs are not to be standardised there.
        bounds: Least and greatest possible value of an input, None if any value is possible.
        preparation: Plain values that tell how the file's values become inputs, None if they are the inputs. `mean` and `std` are those
            of the standardisation, for each value of an input or for all. `columns` has the names of the features in order. Set by
            `setup`.
        given: A checkpoint's `preparation`, which replaces that of these data. None for none. Set it before `setup`.
        summary: Description of the data in one sentence, empty for published data. Set by `setup`.
        num_views: Number of augmentations of each row. A training module that compares two sets it to 2 before training starts.
        x, y, split: Inputs (N, ...), labels (N,) int64 and the rows of each part. Inputs of uint8 become float32 in [0, 1] in a batch. The
            label −1 means none, which is allowed only in the unlabelled pool. Set by `setup`.
        supervised: Whether there is no unlabelled batch. Set by `setup`.
        class_names, num_classes, input_shape: Names of the classes 0..C-1, C, and the shape of one input. Set by `setup`.

    Raises:
        ValueError: If training on the data or the split is impossible, in `setup`.
    """

    class_names: list[str]
    unit: str
    lds_eps: float
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    bounds: tuple[float, float] | None = None
    preparation: dict[str, Any] | None = None
    given: dict[str, Any] | None = None
    summary: str = ""

    def __init__(
        self,
        *,
        num_labeled: int | None = None,
        batch_size_labeled: int = 32,
        batch_size_unlabeled: int = 128,
        steps_per_epoch: int = 100,
        balanced: bool = True,
        seed: int = 0,
        translate: int = 0,
        flip: bool = False,
        labeled_classes: Sequence[str | int] | None = None,
        unlabeled_classes: Sequence[str | int] | None = None,
        imbalance: float = 1.0,
    ) -> None:
        super().__init__()
        for name, classes, least in (("labeled_classes", labeled_classes, 2), ("unlabeled_classes", unlabeled_classes, 1)):
            if classes is not None and (isinstance(classes, str) or len({*map(str, classes)}) < least):
                raise ValueError(f"{name}={classes}: must be a list of at least {least} class{'es' * (least > 1)}, or null for all")
        self.num_labeled = num_labeled
        self.batch_size_labeled = batch_size_labeled
        self.batch_size_unlabeled = batch_size_unlabeled
        self.steps_per_epoch = steps_per_epoch
        self.balanced = balanced
        self.seed = seed
        self.translate = translate
        shift, mirror = Translate(translate) if translate else None, Flip() if flip else None
        self.augment = Chain(shift, mirror) if shift and mirror else shift or mirror
        self.labeled_classes = labeled_classes
        self.unlabeled_classes = unlabeled_classes
        self.imbalance = imbalance
        self.num_views = 1
        self._loaded = False

    @abstractmethod
    def load(self) -> tuple[Inputs, Tensor, Split]:
        """Inputs (N, ...) as the network receives them or uint8, labels (N,) int64, and the split. `setup` calls it once."""

    @property
    def supervised(self) -> bool:
        """See the class."""
        return len(self.split.unlabeled) == len(self.split.labeled)

    @property
    def holds_words(self) -> bool:
        """Whether inputs are indices of words or tokens, so that arithmetic on them has no meaning. Needs `setup`."""
        return not self.x.dtype.is_floating_point and self.x.dtype != torch.uint8

    def divide(self, y: Tensor, *, pool: Tensor, validation: Tensor, test: Tensor, extra: Tensor | None = None) -> Split:
        """Choose the labelled examples of the pool by the settings, and return the split.

        Args:
            y: Labels of the complete set.
            pool: Rows for training.
            validation: Rows for model selection.
            test: Rows for the final number.
            extra: More rows for training, which are never labelled.

        Raises:
            ValueError: If no split has these settings.
        """
        names, unlabeled = self.class_names, pool if extra is None else torch.cat([pool, extra])
        labels = y[pool]
        if self.labeled_classes is not None:
            numbers = class_numbers(names, self.labeled_classes, "labeled_classes")
            pool, validation, test = (restricted(rows, y, numbers, names) for rows in (pool, validation, test))
            found, labels = y[pool].unique(return_inverse=True)  # a balanced subset needs examples of every class 0..C-1
            names = [names[c] for c in found.tolist()]
        chosen = labeled_subset(labels, self.num_labeled, balanced=self.balanced, seed=self.seed, imbalance=self.imbalance, names=names)
        labeled = pool[chosen]
        if self.unlabeled_classes is not None:
            numbers = class_numbers(self.class_names, self.unlabeled_classes, "unlabeled_classes")
            unlabeled = torch.cat([restricted(unlabeled, y, numbers, self.class_names), labeled]).unique()  # ascending
        return Split(labeled, unlabeled, validation, test)

    def setup(self, stage: str | None = None) -> None:
        """Load and check the data at the first call. Lightning calls this for each stage."""
        if self._loaded:
            return
        self.x, self.y, self.split = self.load()
        self.num_classes = len(self.class_names)
        self.input_shape = tuple(self.x.shape[1:])
        self._check()
        self._loaded = True

    def train_dataloader(self) -> ResidentLoader:
        """Batches of labelled and unlabelled rows. A loader made during training continues the order."""
        loader = ResidentLoader(
            *self._resident(),
            self.split.labeled,
            None if self.supervised else self.split.unlabeled,
            batch_size_labeled=self.batch_size_labeled,
            batch_size_unlabeled=self.batch_size_unlabeled,
            steps_per_epoch=self.steps_per_epoch,
            seed=self.seed,
            augment=self.augment,
            num_views=self.num_views,
            **self._process(),
        )
        if isinstance(self.trainer, pl.Trainer):  # a resumed run loads the same number
            loader.micro_step = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
        return loader

    def val_dataloader(self) -> EvalLoader | list[EvalLoader]:
        """The validation part in order; an empty list if there is none."""
        return self._evaluation(self.split.validation) if len(self.split.validation) else []

    def test_dataloader(self) -> EvalLoader:
        """The test part in order."""
        return self._evaluation(self.split.test)

    def training_inputs(self) -> Iterator[Tensor]:
        """All inputs of the pool, without augmentation, on every rank: for statistics over the training set."""
        loader = EvalLoader(*self._resident(), self.split.unlabeled, batch_size=EVALUATION_BATCH_SIZE)
        return (x for x, _ in loader)

    def _evaluation(self, rows: Tensor) -> EvalLoader:
        return EvalLoader(*self._resident(), rows, batch_size=EVALUATION_BATCH_SIZE, **self._process())

    def _resident(self) -> tuple[Inputs, Tensor]:
        """Inputs and labels on the training device. They move there once, except streamed inputs."""
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        self.x, self.y = self.x.to(device), self.y.to(device)
        return self.x, self.y

    def _process(self) -> dict[str, int]:
        if not self.trainer:
            return {}
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}

    def _check(self) -> None:
        name = type(self).__name__
        if self.augment is not None and len(self.input_shape) != 3:
            raise ValueError(f"translate and flip are only for images, got inputs of shape {self.input_shape} from {name}")
        if self.translate and not all(self.translate < side for side in self.input_shape[1:]):
            raise ValueError(f"translate must be less than both sides of an image of {self.input_shape}, got {self.translate}")
        if self.y.dtype != torch.int64 or self.y.shape != self.x.shape[:1]:
            raise ValueError(
                f"{name}: labels must be int64, one for each of the {len(self.x)} inputs, got {self.y.dtype} of shape {tuple(self.y.shape)}"
            )
        known = torch.cat([self.split.labeled, self.split.validation, self.split.test]).to(self.y.device)
        lowest = torch.full_like(self.y, -1)
        lowest[known] = 0
        outside = torch.nonzero((self.y < lowest) | (self.y >= self.num_classes))
        if len(outside):
            row = int(outside[0])
            raise ValueError(
                f"{name}: labels must be in 0..{self.num_classes - 1}, got {int(self.y[row])} in row {row}. "
                "Name every class in class_names and number the classes from 0. Only the pool may hold -1, which means no label."
            )
        if not isinstance(self.x, Tensor) or not self.x.is_floating_point():
            return
        broken = torch.nonzero(~torch.isfinite(self.x).flatten(1).all(dim=1))
        if len(broken):
            raise ValueError(
                f"{name}: inputs must be finite, got NaN or infinity in row {int(broken[0])} (affected rows: {len(broken)}). "
                "Repair or remove these rows."
            )
