"""What every data set shares: checks, the move to the training device, the loaders."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from vat.data.loader import Chain, EvalLoader, Flip, Inputs, ResidentLoader, Translate
from vat.data.splits import Split, labeled_subset, restricted

EVALUATION_BATCH_SIZE = 1000  # without a graph this fits wherever a training batch does; no result depends on it
ROWS_WITH_GRAPH = 32  # of them, where a search for r keeps one: no more than a training step has


class ResidentDataModule(pl.LightningDataModule, ABC):
    """A data set held as one tensor on the training device, or one whose inputs are streamed there (`vat.data.loader.Streamed`).

    A subclass states the `unit` and writes `load`, which also sets `class_names`. Training batches are `vat.data.loader.Batch`, evaluation
    batches (x, y).

    Args:
        num_labeled: Labelled examples; None labels all that can be. Where that is the whole pool there is no unlabelled batch
            (supervised training, with a regularizer on the labelled inputs).
        batch_size_labeled: Rows of the labelled batch over all processes.
        batch_size_unlabeled: Rows of the unlabelled batch over all processes.
        steps_per_epoch: Batches of a nominal epoch, which sets how often validation runs.
        balanced: Label the same number of examples in each class.
        seed: Determines which examples are labelled, the order of the batches and the augmentation.
        translate: Shift training images by up to this many pixels, filled with 0 (`vat.data.loader.Translate`).
        flip: Mirror half of the training images left to right (`vat.data.loader.Flip`).
        labeled_classes: The classes that have labels; None for all. Only their examples are labelled, and make up the validation and
            test parts. Classes keep their numbers, so the network has an output for those without labels too.
        unlabeled_classes: The classes of the unlabelled pool; None for all. The labelled examples stay in it, whatever their class. With
            `labeled_classes` this makes the class mismatch of Oliver et al. (arXiv 1804.09170, section 4.4).
        imbalance: How many times as many labelled examples class 0 has as the last class (`vat.data.splits.labeled_subset`).

    Attributes:
        unit: What a perturbation of length 1 is in this data; ε is measured in it.
        lds_eps: Radius at which LDS is monitored where nobody says otherwise.
        mean, std: Of each channel of the inputs over the published training set, for a network's first layer; None where inputs are
            meant to be used as they are.
        bounds: Least and greatest value that an input can have; None where any value is one.
        preparation: After `setup`, plain values that say how the file's values became inputs: `mean` and `std` of the standardisation,
            for one value of each input or for all, and `columns`, the names of the features in their order; None where they are inputs.
        summary: After `setup`: what was found, in a sentence; empty for published data.
        num_views: A training module that compares two augmentations of a row sets it to 2 before training starts.
        x, y, split: After `setup`: inputs (N, ...), labels (N,) int64 and the rows of each part. Inputs of uint8 are handed out as
            float32 in [0, 1]. The label −1 marks an example without one, which only the unlabelled pool may hold.
        supervised: After `setup`: there is no unlabelled batch.
        class_names, num_classes, input_shape: After `setup`: names of the classes 0..C-1, C, and the shape of one input.

    Raises:
        ValueError: In `setup`, if the data or the split cannot be trained on.
    """

    class_names: list[str]
    unit: str
    lds_eps: float
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    bounds: tuple[float, float] | None = None
    preparation: dict[str, Any] | None = None
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
        labeled_classes: Sequence[int] | None = None,
        unlabeled_classes: Sequence[int] | None = None,
        imbalance: float = 1.0,
    ) -> None:
        super().__init__()
        for name, classes in {"labeled_classes": labeled_classes, "unlabeled_classes": unlabeled_classes}.items():
            if classes is not None and not classes:
                raise ValueError(f"{name} must name a class, or be null for all; got []")
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
        """Inputs (N, ...) as the network receives them or uint8, labels (N,) int64, and the parts; called once."""

    @property
    def supervised(self) -> bool:
        """See the class."""
        return len(self.split.unlabeled) == len(self.split.labeled)

    @property
    def holds_words(self) -> bool:
        """After `setup`: inputs are numbers of words or tokens, which mean nothing as numbers."""
        return not self.x.dtype.is_floating_point and self.x.dtype != torch.uint8

    def divide(self, y: Tensor, *, pool: Tensor, validation: Tensor, test: Tensor, extra: Tensor | None = None) -> Split:
        """Label some of the pool, as the settings say.

        Args:
            y: Labels of the whole set.
            pool: Rows for training.
            validation: Rows for model selection.
            test: Rows for the final number.
            extra: More rows for training, none of which is ever labelled.

        Raises:
            ValueError: If the settings cannot be met.
        """
        candidates, validation, test = (restricted(rows, y, self.labeled_classes) for rows in (pool, validation, test))
        labels, numbers = y[candidates], None
        if self.labeled_classes is not None:  # a balanced subset takes 0..C-1 for classes that all have examples
            numbers, labels = labels.unique(return_inverse=True)
        chosen = labeled_subset(labels, self.num_labeled, balanced=self.balanced, seed=self.seed, imbalance=self.imbalance, numbers=numbers)
        labeled = candidates[chosen]
        unlabeled = restricted(pool if extra is None else torch.cat([pool, extra]), y, self.unlabeled_classes)
        if self.unlabeled_classes is not None:
            unlabeled = torch.cat([unlabeled, labeled]).unique()  # ascending
        return Split(labeled, unlabeled, validation, test)

    def setup(self, stage: str | None = None) -> None:
        """Load and check the data, the first time round: Lightning calls this for each stage."""
        if self._loaded:
            return
        self.x, self.y, self.split = self.load()
        self.num_classes = len(self.class_names)
        self.input_shape = tuple(self.x.shape[1:])
        self._check()
        self._loaded = True

    def train_dataloader(self) -> ResidentLoader:
        """Labelled and unlabelled rows of each step together; a loader that is made anew during training continues the order."""
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
        if isinstance(self.trainer, pl.Trainer):  # one that resumes loads the same number
            loader.micro_step = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
        return loader

    def val_dataloader(self) -> EvalLoader | list[EvalLoader]:
        """The validation part in order; an empty list if there is none."""
        return self._evaluation(self.split.validation) if len(self.split.validation) else []

    def test_dataloader(self) -> EvalLoader:
        """The test part in order."""
        return self._evaluation(self.split.test)

    def training_inputs(self) -> Iterator[Tensor]:
        """All inputs of the pool, without augmentation, the same on every rank: for statistics over the training set."""
        loader = EvalLoader(*self._resident(), self.split.unlabeled, batch_size=EVALUATION_BATCH_SIZE)
        return (x for x, _ in loader)

    def _evaluation(self, rows: Tensor) -> EvalLoader:
        return EvalLoader(*self._resident(), rows, batch_size=EVALUATION_BATCH_SIZE, **self._process())

    def _resident(self) -> tuple[Inputs, Tensor]:
        """Inputs and labels where training takes place; they move there once and stay, but for streamed inputs."""
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
            raise ValueError(f"translate and flip are for images; the inputs of {name} have the shape {self.input_shape}")
        if self.translate and not all(self.translate < side for side in self.input_shape[1:]):
            raise ValueError(f"translate={self.translate} may shift all of an image of {self.input_shape} out of sight: lower it")
        if self.y.dtype != torch.int64 or self.y.shape != self.x.shape[:1]:
            raise ValueError(
                f"{name}: labels must be int64, one for each of the {len(self.x)} inputs; got {self.y.dtype} of shape {tuple(self.y.shape)}"
            )
        known = torch.cat([self.split.labeled, self.split.validation, self.split.test]).to(self.y.device)
        lowest = torch.full_like(self.y, -1)
        lowest[known] = 0
        outside = torch.nonzero((self.y < lowest) | (self.y >= self.num_classes))
        if len(outside):
            row = int(outside[0])
            raise ValueError(
                f"{name}: labels must lie in 0..{self.num_classes - 1}; got {int(self.y[row])} in row {row}. "
                "Name every class in class_names and number them from 0; -1, for no label, is possible in the pool alone."
            )
        if not isinstance(self.x, Tensor) or not self.x.is_floating_point():
            return
        broken = torch.nonzero(~torch.isfinite(self.x).flatten(1).all(dim=1))
        if len(broken):
            raise ValueError(
                f"{name}: inputs must be finite; row {int(broken[0])} is the first of {len(broken)} "
                "with NaN or infinity. Repair or remove them."
            )
