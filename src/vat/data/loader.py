"""Batches of a data set that lives as one tensor on the training device, or streams there; the order is a pure function of the step."""

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
    """Inputs of a whole data set which are read when they are asked for, and stand where else a resident tensor would.

    Attributes:
        shape: (N, ...), as of a tensor.
        dtype: Of what is handed out.
        device: Where it is handed out.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def device(self) -> torch.device: ...
    def __len__(self) -> int: ...

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        """Inputs (B, ...) of these rows, int64 of shape (B,)."""
        ...

    def to(self, device: torch.device, /) -> Self:
        """The same inputs, handed out elsewhere."""
        ...


Inputs = Tensor | Streamed


class Part(NamedTuple):
    """One rank's rows of the labelled or the unlabelled half of a global batch.

    Attributes:
        x: Inputs, augmented where the loader augments, shape (B, ...).
        y: Labels of shape (B,), or None in the unlabelled part.
        index: Row numbers in the data set, int64 of shape (B,).
        start: Position of this rank's first row in the global batch.
        total: Rows of the global batch.
        view: The same rows augmented once more and independently, where a second view is asked for.
    """

    x: Tensor
    y: Tensor | None
    index: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]  # hides tuple.index, which no one searches a batch with
    start: int
    total: int
    view: Tensor | None


class Batch(NamedTuple):
    """What one micro-step trains on.

    Attributes:
        micro_step: Batches handed out before this one since the run began; it keys the step's randomness.
        labeled: Inputs with labels.
        unlabeled: Inputs without, or None in supervised training.
    """

    micro_step: int
    labeled: Part
    unlabeled: Part | None


def indices(num_examples: int, batch_size: int, micro_step: int, *, seed: int, stream: str) -> Tensor:
    """Positions of one batch in an endless sequence of seeded permutations.

    The sequence is permutation 0 of 0..num_examples-1, then permutation 1, and so on; batch b takes its entries
    b·batch_size to (b+1)·batch_size. So each example comes once a permutation, a batch may be larger than the set, and
    any step can be had without those before it.

    Args:
        num_examples: Length of a permutation.
        batch_size: Entries of a batch.
        micro_step: Number of the batch, from 0.
        seed: Determines the permutations, with the stream's name.
        stream: Name of the sequence; two names give unrelated orders.

    Returns:
        int64 of shape (batch_size,) on the CPU.
    """
    position, end = micro_step * batch_size, (micro_step + 1) * batch_size
    pieces = []
    while position < end:
        epoch, offset = divmod(position, num_examples)
        pieces.append(_permutation(num_examples, seed, stream, epoch)[offset : offset + end - position])
        position += len(pieces[-1])
    return torch.cat(pieces)  # a copy also of a single piece: the cached permutation stays out of reach


@lru_cache(maxsize=4)  # two streams, each across the seam of two permutations; 8 MB each for a million examples
def _permutation(num_examples: int, seed: int, stream: str, epoch: int) -> Tensor:
    generator = torch.Generator().manual_seed(stable_seed("permutation", seed, stream, epoch))
    return torch.randperm(num_examples, generator=generator)


def share(total: int, part: int, parts: int) -> range:
    """The rows of `total` that fall to one of `parts`: contiguous, disjoint, complete, lengths unequal by one at most."""
    return range(part * total // parts, (part + 1) * total // parts)


class Translate:
    """Shift each image of a batch by its own whole number of pixels, up to a limit in both directions.

    What comes in from outside is 0: the mean grey of standardised images, black for pixels in [0, 1].

    Args:
        pixels: Largest shift along each axis, >= 1.
    """

    def __init__(self, pixels: int) -> None:
        if pixels < 1:
            raise ValueError(f"pixels must be >= 1, or the augmentation left out; got {pixels}")
        self.pixels = pixels

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Images of shape (B, C, H, W) to the same shape, uniform over the (2·pixels + 1)² shifts."""
        if x.ndim != 4:
            raise ValueError(f"Translate needs images of shape (B, C, H, W); got {tuple(x.shape)}")
        batch, channels, height, width = x.shape
        padded = F.pad(x, 4 * [self.pixels])
        dy, dx = torch.randint(2 * self.pixels + 1, (2, batch, 1, 1), generator=generator, device=x.device)
        # Each row of the result is a piece of a row of `padded`. Rows are copied whole: a third of the time of pixel by pixel.
        image = torch.arange(batch * channels, device=x.device).view(batch, channels, 1)
        row = image * padded.shape[2] + dy + torch.arange(height, device=x.device)
        pieces = padded.flatten().unfold(0, width, 1)  # a view of the piece from each pixel on
        return pieces.index_select(0, (row * padded.shape[3] + dx).flatten()).view(x.shape)


class Flip:
    """Mirror each image of a batch left to right with probability one half."""

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Images of shape (B, C, H, W) to the same shape."""
        if x.ndim != 4:
            raise ValueError(f"Flip needs images of shape (B, C, H, W); got {tuple(x.shape)}")
        mirrored = torch.randint(2, (len(x), 1, 1, 1), generator=generator, device=x.device).flatten()
        rows = torch.arange(len(x), device=x.device) + len(x) * mirrored
        return torch.cat([x, x.flip(3)]).index_select(0, rows)


class Chain:
    """One augmentation after the other, drawing in turn from the same generator."""

    def __init__(self, *augmentations: Augmentation) -> None:
        self.augmentations = augmentations

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """A batch to a batch of the same shape."""
        for augmentation in self.augmentations:
            x = augmentation(x, generator)
        return x


def as_input(x: Tensor) -> Tensor:
    """Bytes as float32 in [0, 1], so that images can stay resident at a quarter of the memory; anything else as it is."""
    return torch.div(x, 255) if x.dtype == torch.uint8 else x


class ResidentLoader:
    """Endless training batches from resident tensors; every rank takes its slice of the same global batches.

    The batch of a step follows from (seed, micro-step) alone, so 1, 2 or 4 processes train on the same global batches and
    a restored run goes on at the very next one. Iteration hands out `steps_per_epoch` batches from `micro_step` on, which
    `state_dict` keeps. (Stopping at multiples of `steps_per_epoch` instead would cut every second epoch short, and skip
    its validation, under Lightning's `limit_train_batches`; Lightning counts the batches of a resumed epoch itself.)
    Where inputs are streamed, the next batch is read while the present one is in use.

    Args:
        x: Inputs of the whole data set on the training device, shape (N, ...), or streamed there; uint8 comes out as float32 in [0, 1].
        y: Labels on the same device, shape (N,).
        labeled: Rows with labels, int64.
        unlabeled: Rows of the unlabelled pool, int64; None in supervised training.
        batch_size_labeled: Rows of the global labelled batch.
        batch_size_unlabeled: Rows of the global unlabelled batch; without effect where `unlabeled` is None.
        steps_per_epoch: Batches of one nominal epoch.
        seed: Determines order and augmentation.
        rank: This process, from 0.
        world_size: Number of processes.
        augment: Maps a batch as it is stored, bytes for images, and a generator on its device to a batch of the same shape.
        num_views: 2 also fills `Part.view`; without `augment` the views are equal.

    Raises:
        ValueError: If a size is too small, among them a batch with fewer rows than processes.
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
            raise ValueError(f"steps_per_epoch must be >= 1; got {steps_per_epoch}")
        if num_views not in (1, 2):
            raise ValueError(f"num_views must be 1 or 2; got {num_views}")
        self.x, self.y = x, y
        self.streams = {"labeled": (labeled.cpu(), batch_size_labeled)}
        if unlabeled is not None:
            self.streams["unlabeled"] = (unlabeled.cpu(), batch_size_unlabeled)
        for name, (_, batch_size) in self.streams.items():
            if batch_size < world_size:
                raise ValueError(f"batch_size_{name} must be at least the number of processes, {world_size}; got {batch_size}")
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
            self.micro_step += 1  # before the yield: a checkpoint written while the batch is in use counts it as done
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The number of batches handed out."""
        return {"micro_step": self.micro_step}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on behind the batches handed out; an iterator already made follows."""
        self.micro_step = state_dict["micro_step"]

    def batch(self, micro_step: int) -> Batch:
        """The rows of the batch at `micro_step` that fall to this rank, whatever was handed out before."""
        labeled = self._part("labeled", micro_step)
        labeled = labeled._replace(y=self.y[labeled.index])
        return Batch(micro_step, labeled, self._part("unlabeled", micro_step) if "unlabeled" in self.streams else None)

    def _read_ahead(self, thread: ThreadPoolExecutor, micro_step: int) -> Batch:
        """`batch(micro_step)`, which was begun in the step before unless a state was loaded since; begins the one after it."""
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
        # Each rank augments the whole global batch and keeps its slice: a row's draw then does not depend on the number of
        # processes, whatever the augmentation, for about a millisecond of work on data this small.
        wanted = here if self.augment is None else slice(None)
        # Streamed inputs take the rows on the CPU: to have them back from a GPU is to wait for the training step that runs there.
        x = self.x.index_select(0, index[wanted]) if isinstance(self.x, Tensor) else self.x[rows[wanted]]
        x = as_input(x) if self.augment is None else x  # otherwise behind the augmentation, which is cheaper on bytes
        first, *more = [self._view(x, here, stream, micro_step, view) for view in range(self.num_views)]
        return Part(first, None, index[here], mine.start, total, more[0] if more else None)

    def _view(self, x: Tensor, here: slice, stream: str, micro_step: int, view: int) -> Tensor:
        if self.augment is None:
            return x
        generator = torch.Generator(self.x.device)
        generator.manual_seed(stable_seed("augment", self.seed, micro_step, stream, view))
        return as_input(self.augment(x, generator)[here])


class EvalLoader:
    """(x, y) batches of some rows of resident tensors, in order; each row is evaluated by exactly one rank.

    Nothing is padded or repeated, so sums over ranks are exact. All ranks have the same number of batches, none of them
    empty, so a collective operation in a validation step cannot hang: the rows are cut into even global batches, each
    of which is cut into even slices.

    Args:
        x: Inputs of the whole data set on the device, shape (N, ...), or streamed there; uint8 comes out as float32 in [0, 1].
        y: Labels on the same device, shape (N,).
        rows: Rows to evaluate, int64.
        batch_size: Most rows of a global batch.
        rank: This process, from 0.
        world_size: Number of processes.

    Raises:
        ValueError: If a rank would be left without a row in some batch.
    """

    def __init__(self, x: Inputs, y: Tensor, rows: Tensor, *, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be >= 1; got {batch_size}")
        self.num_batches = -(-len(rows) // batch_size)
        if len(rows) // self.num_batches < world_size:
            raise ValueError(
                f"{len(rows)} rows in batches of {batch_size} leave some of {world_size} processes without a row; "
                "evaluate with fewer processes or a larger batch_size"
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
