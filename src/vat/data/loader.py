"""Batches of a data set that is one tensor on the training device, or is streamed there. The order is a pure function of the step."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from vat.seeds import stable_seed

Augmentation = Callable[[Tensor, torch.Generator], Tensor]


class Streamed(Protocol):
    """Inputs of a data set that are read when they are indexed. A replacement for a tensor of all inputs.

    Attributes:
        shape: Shape (N, ...) of all inputs.
        dtype: Type of the returned inputs.
        device: Device of the returned inputs.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def device(self) -> torch.device: ...
    def __len__(self) -> int: ...

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        """Inputs (B, ...) of the rows, which are int64 of shape (B,)."""
        ...

    def to(self, device: torch.device, /) -> Self:
        """The same inputs, returned on another device."""
        ...


Inputs = Tensor | Streamed


class Part(NamedTuple):
    """One rank's rows of the labelled or the unlabelled half of a global batch.

    Attributes:
        x: Inputs of shape (B, ...), after the augmentation.
        y: Labels of shape (B,), or None in the unlabelled part.
        index: Row numbers in the data set, int64 of shape (B,).
        start: Position of this rank's first row in the global batch.
        total: Rows of the global batch.
        view: The same rows with a second, independent augmentation, or None if `num_views` is 1.
    """

    x: Tensor
    y: Tensor | None
    index: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]  # hides tuple.index, which nobody uses on a batch
    start: int
    total: int
    view: Tensor | None


class Batch(NamedTuple):
    """Training data of one micro-step.

    Attributes:
        micro_step: Number of batches returned before this one since the run began. It keys the step's randomness.
        labeled: Inputs with labels.
        unlabeled: Inputs without labels, or None in supervised training.
    """

    micro_step: int
    labeled: Part
    unlabeled: Part | None


def indices(num_examples: int, batch_size: int, micro_step: int, *, seed: int, stream: str) -> Tensor:
    """Positions of one batch in an endless sequence of seeded permutations.

    The sequence is permutation 0 of 0..num_examples-1, then permutation 1, and so on. Batch b takes its entries b·batch_size to
    (b+1)·batch_size. Each permutation has every example once. A batch may be larger than the set. No step needs those before it.

    Args:
        num_examples: Length of a permutation.
        batch_size: Entries of a batch.
        micro_step: Number of the batch, from 0.
        seed: Seed of the permutations, together with `stream`.
        stream: Name of the sequence. Two names give unrelated orders.

    Returns:
        int64 of shape (batch_size,) on the CPU.
    """
    position, end = micro_step * batch_size, (micro_step + 1) * batch_size
    pieces = []
    while position < end:
        epoch, offset = divmod(position, num_examples)
        pieces.append(_permutation(num_examples, seed, stream, epoch)[offset : offset + end - position])
        position += len(pieces[-1])
    return torch.cat(pieces)  # a copy even of a single piece, so that no caller can change the cached permutation


@lru_cache(maxsize=4)  # two streams, and a batch may need two permutations of each; 8 MB each for a million examples
def _permutation(num_examples: int, seed: int, stream: str, epoch: int) -> Tensor:
    generator = torch.Generator().manual_seed(stable_seed("permutation", seed, stream, epoch))
    return torch.randperm(num_examples, generator=generator)


def share(total: int, part: int, parts: int) -> range:
    """The rows of one of `parts` of `total` rows. Parts are contiguous, disjoint and complete; their lengths differ by at most one."""
    return range(part * total // parts, (part + 1) * total // parts)


class Translate:
    """Shift each image of a batch by a random integer number of pixels along each axis.

    The uncovered pixels become 0: the mean grey of standardised images, black for pixels in [0, 1].

    Args:
        pixels: Largest shift along each axis, in both directions, >= 1.
    """

    def __init__(self, pixels: int) -> None:
        if pixels < 1:
            raise ValueError(f"pixels must be >= 1, got {pixels}. Leave the augmentation out to shift nothing.")
        self.pixels = pixels

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Images of shape (B, C, H, W) to the same shape, uniform over the (2·pixels + 1)² shifts."""
        if x.ndim != 4:
            raise ValueError(f"Translate needs images of shape (B, C, H, W), got {tuple(x.shape)}")
        batch, channels, height, width = x.shape
        padded = F.pad(x, 4 * [self.pixels])
        dy, dx = torch.randint(2 * self.pixels + 1, (2, batch, 1, 1), generator=generator, device=x.device)
        # Each row of the result is a piece of a row of `padded`. Copying complete rows takes a third of the time of single pixels.
        image = torch.arange(batch * channels, device=x.device).view(batch, channels, 1)
        row = image * padded.shape[2] + dy + torch.arange(height, device=x.device)
        pieces = padded.flatten().unfold(0, width, 1)  # a view: the piece that starts at each pixel
        return pieces.index_select(0, (row * padded.shape[3] + dx).flatten()).view(x.shape)


class Flip:
    """Mirror each image of a batch left to right with probability one half."""

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Images of shape (B, C, H, W) to the same shape."""
        if x.ndim != 4:
            raise ValueError(f"Flip needs images of shape (B, C, H, W), got {tuple(x.shape)}")
        mirrored = torch.randint(2, (len(x), 1, 1, 1), generator=generator, device=x.device).flatten()
        rows = torch.arange(len(x), device=x.device) + len(x) * mirrored
        return torch.cat([x, x.flip(3)]).index_select(0, rows)


class Chain:
    """Several augmentations, one after the other, with the same generator."""

    def __init__(self, *augmentations: Augmentation) -> None:
        self.augmentations = augmentations

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """A batch to a batch of the same shape."""
        for augmentation in self.augmentations:
            x = augmentation(x, generator)
        return x


def as_input(x: Tensor) -> Tensor:
    """Convert bytes to float32 in [0, 1]; return other types unchanged. Images kept as bytes need a quarter of the memory."""
    return torch.div(x, 255) if x.dtype == torch.uint8 else x


class ResidentLoader:
    """Endless training batches. Each rank takes its slice of the same global batches.

    The batch of a step depends only on (seed, micro-step). So 1, 2 or 4 processes train on the same global batches, and a resumed run
    continues with the next batch. An iterator returns `steps_per_epoch` batches, starting at `micro_step`, which `state_dict` keeps.
    Rejected: stopping at multiples of `steps_per_epoch`. With Lightning's `limit_train_batches` this would end every second epoch early and
    skip its validation. Lightning counts the batches of a resumed epoch itself. If inputs are streamed, the next batch is read during the
    current step.

    Args:
        x: Inputs of the complete data set on the training device, shape (N, ...), or streamed there. Batches of uint8 become float32 in
            [0, 1].
        y: Labels on the same device, shape (N,).
        labeled: Rows with labels, int64.
        unlabeled: Rows of the unlabelled pool, int64, or None in supervised training.
        batch_size_labeled: Rows of the global labelled batch.
        batch_size_unlabeled: Rows of the global unlabelled batch, without effect if `unlabeled` is None.
        steps_per_epoch: Batches of one nominal epoch.
        seed: Seed of the order and the augmentation.
        rank: Number of this process, from 0.
        world_size: Number of processes.
        augment: Function of a stored batch (bytes for images) and a generator on its device, which returns a batch of the same shape.
        num_views: Number of augmentations of each row, 1 or 2. With 2 `Part.view` is set; without `augment` the views are equal.

    Raises:
        ValueError: If a size is too small, or a batch has fewer rows than there are processes.
    """

    def __init__(
        self,
        x: Inputs,
        y: Tensor,
        labeled: Tensor,
        unlabeled: Tensor | None,
        *,
        batch_size_labeled: int,
        batch_size_unlabeled: int,
        steps_per_epoch: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        augment: Augmentation | None = None,
        num_views: int = 1,
    ) -> None:
        if steps_per_epoch < 1:
            raise ValueError(f"steps_per_epoch must be >= 1, got {steps_per_epoch}")
        if num_views not in (1, 2):
            raise ValueError(f"num_views must be 1 or 2, got {num_views}")
        self.x, self.y = x, y
        self.streams = {"labeled": (labeled.cpu(), batch_size_labeled)}
        if unlabeled is not None:
            self.streams["unlabeled"] = (unlabeled.cpu(), batch_size_unlabeled)
        for name, (_, batch_size) in self.streams.items():
            if batch_size < world_size:
                raise ValueError(f"batch_size_{name} must be at least {world_size}, the number of processes, got {batch_size}")
        self.steps_per_epoch = steps_per_epoch
        self.seed = seed
        self.rank, self.world_size = rank, world_size
        self.augment = augment
        self.num_views = num_views
        self.micro_step = 0
        self._thread = None if isinstance(x, Tensor) else ThreadPoolExecutor(1, "next-batch")
        self._next: tuple[int, Future[Batch]] | None = None

    def __len__(self) -> int:
        return self.steps_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self.steps_per_epoch):
            batch = self.batch(self.micro_step) if self._thread is None else self._read_ahead(self._thread, self.micro_step)
            self.micro_step += 1  # before the yield: a checkpoint written during the step counts the batch as done
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The number of batches returned so far."""
        return {"micro_step": self.micro_step}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue after the batches that were returned, also in an existing iterator."""
        self.micro_step = state_dict["micro_step"]

    def batch(self, micro_step: int) -> Batch:
        """The rows of this rank in the batch at `micro_step`. They do not depend on the batches returned before."""
        labeled = self._part("labeled", micro_step)
        labeled = labeled._replace(y=self.y[labeled.index])
        return Batch(micro_step, labeled, self._part("unlabeled", micro_step) if "unlabeled" in self.streams else None)

    def _read_ahead(self, thread: ThreadPoolExecutor, micro_step: int) -> Batch:
        """`batch(micro_step)`; start to read the next one. The previous step started to read this one, unless a state was loaded since."""
        expected, future = self._next or (None, None)
        if future is None or expected != micro_step:
            future = thread.submit(self.batch, micro_step)
        self._next = micro_step + 1, thread.submit(self.batch, micro_step + 1)
        return future.result()

    def _part(self, stream: str, micro_step: int) -> Part:
        rows, total = self.streams[stream]
        rows = rows[indices(len(rows), total, micro_step, seed=self.seed, stream=stream)]
        index = rows.to(self.x.device, non_blocking=True)
        mine = share(total, self.rank, self.world_size)
        here = slice(mine.start, mine.stop)
        # Each rank augments the complete global batch and keeps its slice. So a row's draw does not depend on the number of processes,
        # for any augmentation. On data this small this costs about a millisecond.
        wanted = here if self.augment is None else slice(None)
        # Streamed inputs get the rows on the CPU. Copying rows back from a GPU would wait for the training step that runs there.
        x = self.x.index_select(0, index[wanted]) if isinstance(self.x, Tensor) else self.x[rows[wanted]]
        x = as_input(x) if self.augment is None else x  # otherwise after the augmentation, which is cheaper on bytes
        first, *more = [self._view(x, here, stream, micro_step, view) for view in range(self.num_views)]
        return Part(first, None, index[here], mine.start, total, more[0] if more else None)

    def _view(self, x: Tensor, here: slice, stream: str, micro_step: int, view: int) -> Tensor:
        if self.augment is None:
            return x
        generator = torch.Generator(self.x.device)
        generator.manual_seed(stable_seed("augment", self.seed, micro_step, stream, view))
        return as_input(self.augment(x, generator)[here])


class EvalLoader:
    """(x, y) batches of some rows, in order. Exactly one rank evaluates each row.

    No row is padded or repeated, so sums over ranks are exact. Rows are split into global batches, and these into slices, of nearly equal
    sizes. All ranks have the same number of batches and no batch is empty, so a collective operation in a validation step cannot hang.

    Args:
        x: Inputs of the complete data set on the device, shape (N, ...), or streamed there. Batches of uint8 become float32 in [0, 1].
        y: Labels on the same device, shape (N,).
        rows: Rows to evaluate, int64.
        batch_size: Largest number of rows of a global batch.
        rank: Number of this process, from 0.
        world_size: Number of processes.

    Raises:
        ValueError: If a rank would have no row in some batch.
    """

    def __init__(self, x: Inputs, y: Tensor, rows: Tensor, *, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, got {batch_size}")
        self.num_batches = -(-len(rows) // batch_size)
        if len(rows) // self.num_batches < world_size:
            raise ValueError(
                f"{len(rows)} rows in batches of {batch_size} leave some of {world_size} processes without a row. "
                "Evaluate with fewer processes or a larger batch_size."
            )
        self.x, self.y, self.rows = x, y, rows.to(x.device)
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for number in range(self.num_batches):
            batch = share(len(self.rows), number, self.num_batches)
            mine = share(len(batch), self.rank, self.world_size)
            rows = self.rows[batch.start + mine.start : batch.start + mine.stop]
            yield as_input(self.x[rows]), self.y[rows]
