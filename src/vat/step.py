"""What one training step offers a regularizer: the network as a function, the inputs, and randomness with a name."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from vat.network import Forward, Modules, Network
from vat.seeds import stable_seed


@dataclass(frozen=True)
class Key:
    """Names the random streams of one micro-step: the same key draws the same numbers, in any process and after any restart.

    Args:
        seed: of the run.
        micro_step: number of batches seen before this one.
        rank: of the process.
    """

    seed: int
    micro_step: int = 0
    rank: int = 0

    @classmethod
    def fresh(cls) -> "Key":
        """A key from torch's default CPU generator, for loops that keep no count of their own."""
        return cls(int(torch.randint(2**62, ()).item()))

    def shared(self, purpose: str) -> int:
        """Seed of a stream that all ranks share."""
        return stable_seed(self.seed, self.micro_step, purpose)

    def own(self, purpose: str) -> int:
        """Seed of a stream that belongs to this rank."""
        return stable_seed(self.seed, self.micro_step, purpose, self.rank)


@dataclass(frozen=True)
class CleanPass:
    """The unperturbed pass: `x` (N, …), of which gradients can be asked, and `logits` with their graph."""

    x: Tensor
    logits: Tensor


class Step:
    """One training step, as a regularizer sees it. The clean pass is valid for exactly these rows, in this batch.

    Args:
        forward: x -> logits; a module, a method of one, a `functools.partial` of these, or any function with its `module`.
        x: inputs (N, …), of a floating dtype.
        y: labels (N,), or None.
        module: the module that another function uses, a list of several, or `()` if there is none.
        key: of the step's randomness; a fresh one from torch's default generator if None.
        index: (N,) identity of the rows in the data set, for a regularizer that remembers.
        start: first of these rows in the global batch.
        total: rows of the global batch; random directions are drawn for all of them, so they do not depend on the number of
            processes. N if None.
        view: a second augmented view of the same rows (N, …), or None.
        live: the clean pass carries gradients to the parameters and its graph is kept, because more than one term uses it.
        track: the clean pass moves the running statistics of the network.
        report: where regularizers leave diagnostics; None if nobody wants them.

    Attributes:
        x: the inputs as constants.
        inputs: the same with the graph that led to them (an embedding, a part of the network before), for passes that train.
    """

    def __init__(
        self,
        forward: Forward,
        x: Tensor,
        y: Tensor | None = None,
        *,
        module: Modules | None = None,
        key: Key | None = None,
        index: Tensor | None = None,
        start: int = 0,
        total: int | None = None,
        view: Tensor | None = None,
        live: bool = False,
        track: bool = False,
        report: dict[str, Tensor] | None = None,
    ):
        if not isinstance(x, Tensor):
            raise TypeError(
                f"x must be a tensor, got a {type(x).__name__}: call it as vat(model, x), with a function of x alone for a model"
            )
        if x.is_inference() and not torch.is_inference_mode_enabled():
            x = x.clone()  # an ordinary tensor, of which gradients can be asked
        if not x.is_floating_point():
            raise TypeError(f"x must have a floating dtype to be perturbed, got {x.dtype}: pass images / 255, or embeddings")
        if x.is_nested or x.layout is not torch.strided or not x.dim():
            raise TypeError("x must be dense and of shape (N, …): make it so by x.to_dense(), padding or x[None]")
        self._network = Network(forward, module)
        self.x = x.detach()
        self.inputs = x
        self.y = y
        self.key = Key.fresh() if key is None else key
        self.index = index
        self.start = start
        self.total = len(x) if total is None else total
        self.view = view
        self.live = live
        self.track = track
        self.report = report

    @property
    def module(self) -> nn.Module | None:
        """The module whose parameters are trained, where there is one."""
        return self._network.module

    def network(
        self,
        x: Tensor,
        *,
        noise: str = "network",
        parameters: Mapping[str, Tensor] | None = None,
        constant: bool = False,
        track: bool = False,
    ) -> Tensor:
        """Logits of `x` (N, …): the network as it was at the start of the step.

        Args:
            x: inputs.
            noise: name of the stream for dropout and its like; passes of one name share their masks.
            parameters: used in place of the network's own, by name.
            constant: no gradient flows to the parameters.
            track: let this pass move the network's own buffers, as an ordinary call does.
        """
        return self._network(x, seed=self.key.own(noise), parameters=parameters, constant=constant, track=track)

    @cached_property
    def clean(self) -> CleanPass:
        """The clean pass with its graph: to the input, and to the parameters where the step is `live`."""
        with torch.enable_grad():
            x = self.inputs.view_as(self.x) if self.live and self.inputs.requires_grad else self.x.detach().requires_grad_()
            logits = self._network(x, seed=self.key.own("network"), constant=not self.live, track=self.track)
        return CleanPass(x, logits)

    @cached_property
    def target(self) -> Tensor:
        """The clean logits as a constant. A pass of its own, without a graph, where none of the clean pass is needed."""
        if self.live or "clean" in self.__dict__:
            return self.clean.logits.detach()
        with torch.no_grad():
            return self._network(self.x, seed=self.key.own("network"), constant=True)

    def uniform(self, purpose: str) -> Tensor:
        """A number from [0, 1) for each row, float32 (N,), which follows from the row's place in the global batch.

        Args:
            purpose: name of the stream.
        """
        generator = torch.Generator(self.x.device).manual_seed(self.key.shared(purpose))
        numbers = torch.rand(self.total, generator=generator, device=self.x.device)
        return numbers[self.start : self.start + len(self.x)]

    def normal(self, purpose: str, *, one_row: bool = False) -> Tensor:
        """Standard normal numbers shaped like x, in float32 or wider; each row's follow from its place in the global batch.

        Args:
            purpose: name of the stream.
            one_row: draw a single row (1, …), for all examples alike.
        """
        generator = torch.Generator(self.x.device).manual_seed(self.key.shared(purpose))
        dtype = torch.promote_types(self.x.dtype, torch.float32)
        shape = (1 if one_row else self.total, *self.x.shape[1:])
        noise = torch.randn(shape, generator=generator, device=self.x.device, dtype=dtype)
        return noise if one_row else noise[self.start : self.start + len(self.x)]
