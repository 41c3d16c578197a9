"""What one training step offers a regularizer: the network as a function, the inputs, and randomness with a name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from vat.calls import At, Perturbed, declared
from vat.counting import (
    DivergenceOfStep,
    NormOfInputs,
    NormOfStep,
    kept,
    mask_of_inputs,
    mask_of_outputs,
    per_group,
    per_token,
    positions_of_inputs,
    refuse_weights,
    share_of_positions,
)
from vat.functional import Divergence
from vat.layers import unwrapped
from vat.network import Forward, Modules, Network
from vat.norms import Norm
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
        forward: x -> logits; a module, a method of one, a `functools.partial` of these, or any function with its `module`. An output
            with `logits`, as Hugging Face's models give, stands for these.
        x: inputs (N, …), of a floating dtype. A tuple or a mapping is the arguments of the call, as is a `vat.calls.Call`.
        y: labels (N,), or None.
        module: the module that another function uses, a list of several, or `()` if there is none.
        at: what is perturbed instead of x: a layer, of which the output is, or the name or number of an argument, or several. If None and x
            are integers, the layer that the network names as `perturbed`, and the mask that its `mask(x)` gives.
        mask: 1 where x counts, 0 on padding: x's first dimensions, as (N, T), or as many as x has. r is 0 on padding, and outputs with
            those positions are left out.
        output_mask: the same for the outputs, if it does not follow from `mask`: (N, …) without their classes, or shaped like them.
        class_dim: dimension of the outputs with the classes. If None, it is 1 in (N, C) and (N, C, H, W), and the last in (N, T, C) of
            Hugging Face's models. Any other output of three dimensions needs it.
        group: the group (N,) of each example, numbered from 0, as the graph of each node. Norms are per group, outputs may be.
        scale: factor of the radius: a number, or (N,), or more of x's dimensions; of several inputs a list, one for each.
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
        mask: 1 where x counts, shaped like x; None if it does everywhere.
    """

    def __init__(
        self,
        forward: Forward,
        x: Any,
        y: Tensor | None = None,
        *,
        module: Modules | None = None,
        at: At | None = None,
        mask: Tensor | None = None,
        output_mask: Tensor | None = None,
        class_dim: int | None = None,
        group: Tensor | None = None,
        scale: float | Tensor | Sequence[float | Tensor] | None = None,
        key: Key | None = None,
        index: Tensor | None = None,
        start: int = 0,
        total: int | None = None,
        view: Tensor | None = None,
        live: bool = False,
        track: bool = False,
        report: dict[str, Tensor] | None = None,
    ):
        self.key = Key.fresh() if key is None else key
        self.class_dim = class_dim
        self._network = Network(forward, module, class_dim=class_dim, grouped=group is not None)
        self._call: Perturbed | None = None
        if at is None and isinstance(x, Tensor) and not x.is_floating_point() and isinstance(self._network.module, nn.Module):
            at, own_mask = declared(unwrapped(self._network.module), x)
            mask = own_mask if mask is None else mask
            view = view if at is None else None  # integers, which cannot replace the layer's output
        if at is not None or not isinstance(x, Tensor):
            x = self._taken(Perturbed(forward, x, at))
        _refuse_unfit(x)
        if x.is_inference() and not torch.is_inference_mode_enabled():
            x = x.clone()  # an ordinary tensor, of which gradients can be asked
        self.x = x.detach()
        self.inputs = x
        self.y = y
        self._mask = None if mask is None else mask_of_inputs(mask, x)
        self.mask = None if self._mask is None else self._mask.expand(x.shape)
        refuse_weights(mask, output_mask)
        self._positions = output_mask if output_mask is not None or mask is None else positions_of_inputs(mask, x)
        self._names_outputs = output_mask is not None
        self.group = group
        self._scale = None if scale is None else self._shaped(scale)
        self.index = index
        self.start = start
        self.total = len(x) if total is None else total
        self.view = view
        self.live = live
        self.track = track
        self.report = report

    def _taken(self, call: Perturbed) -> Tensor:
        """The inputs of a call of several arguments, which the network is from now on a function of."""
        x = self._network.called(call.inputs, device=call.device, seed=self.key.own("network")) if call.layers else call.inputs()
        self._network.forward = self._call = call
        return x

    def _shaped(self, scale: float | Tensor | Sequence[float | Tensor]) -> Tensor:
        if isinstance(scale, Sequence):
            if self._call is None or len(scale) != len(self._call.shapes):
                raise ValueError(f"scale has {len(scale)} entries: give one for each input, a number, or a tensor (N, …)")
            parts = [torch.as_tensor(one, dtype=self.x.dtype, device=self.x.device) for one in scale]
            shapes = self._call.shapes
            return self._call.joined(
                [one.view(*one.shape, *[1] * (len(shape) - one.dim())) for one, shape in zip(parts, shapes, strict=True)]
            )
        factor = torch.as_tensor(scale, dtype=self.x.dtype, device=self.x.device)
        return factor.view(*factor.shape, *[1] * (self.x.dim() - factor.dim()))

    # ---------------------------------------------------------------------------------------------- what counts, and how far

    def norm(self, norm: Norm, per: str = "example") -> Norm:
        """A norm of r in this step: over what counts, of each example (or group), or of each "token" or "input".

        Raises:
            ValueError: If there is another `per`, or none such in the inputs.
        """
        if per not in PER:
            raise ValueError(f"per={per!r} is not known: choose one of {', '.join(PER)}")
        if per == "input" and self._call is None:
            raise ValueError("per='input' needs several inputs, as vat(model, (image, table))")
        if per == "token" and self.x.dim() < 3:
            raise ValueError(f"per='token' needs inputs (N, T, D), got x of shape {tuple(self.x.shape)}")
        if per == "input" and self._call is not None:
            return NormOfInputs(norm, self._call.shapes)
        if self.mask is None and self.group is None and per == "example":
            return norm
        rows = per_token(self.x.shape) if per == "token" else None if self.group is None else per_group(self.group)
        return NormOfStep(norm, self.x.shape, self._mask, rows)

    def divergence(self, divergence: Divergence) -> Divergence:
        """A divergence of the outputs that count in this step."""
        if self._positions is None and (self.class_dim is not None or not divergence.averages_positions):
            return divergence  # a sum over all entries, wherever the classes are
        return DivergenceOfStep(divergence, self.mask_of)

    def radius(self, eps: float) -> float | Tensor:
        """ε in this step: `eps`, or a tensor that broadcasts to x if it is not everywhere the same."""
        return eps if self._scale is None else eps * self._scale

    def mask_of(self, logits: Tensor) -> Tensor | None:
        """1 where outputs (N, C, …) count, bool, (N, 1, …) or shaped like them; None if they all do.

        Raises:
            ValueError: If it is not known which dimension has the classes.
        """
        self._network.refuse_undecided()
        mask = self._positions
        if mask is not None and self._names_outputs and mask.dim() == logits.dim():
            mask = self._network.with_classes_first(mask)
        return None if mask is None else mask_of_outputs(mask, logits, named=self._names_outputs)

    def mean(self, value: Tensor) -> Tensor:
        """Mean of a value for each example (N,) over those of which something counts; 0, with a gradient of 0, if there are none.

        Raises:
            ValueError: If it is a single number.
        """
        if not value.dim():
            raise ValueError(
                "a divergence gives a value for each example, of shape (N,), got a single number: leave the mean to the regularizer"
            )
        mask = self._positions if self._names_outputs else self._mask
        if mask is None or len(mask) != len(value):
            return value.sum() / max(1, len(value))
        counted = mask.bool().flatten(1).any(1) if mask.dim() > 1 else mask.bool()
        return torch.where(counted, value, 0).sum() / counted.sum().clamp(min=1)

    def mean_over_positions(self, value: Tensor) -> Tensor:
        """Mean (N,) of a value for each example or position (N, …), shaped like an output without its classes, over those that count."""
        if value.dim() == 1:
            return value
        mask = self.mask_of(value[:, None])
        if mask is None:
            return value.flatten(1).mean(1)
        return kept(value, mask[:, 0]).flatten(1).mean(1) * share_of_positions(mask, value.dtype)

    def for_rows(self, value: Tensor) -> Tensor:
        """A value for each output (N,) or group, as one for each example, which broadcasts to x."""
        if self.group is not None and len(value) != len(self.x):
            value = value[self.group]
        return value.view(-1, *[1] * (self.x.dim() - 1))

    # ------------------------------------------------------------------------------------------------------------ passes

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
        if parameters is not None and x is self.x and self._call is not None and self._call.layers:  # of which they are other outputs
            x = self._network.called(self._call.inputs, device=x.device, seed=self.key.own(noise), parameters=parameters)
        return self._network(x, seed=self.key.own(noise), parameters=parameters, constant=constant, track=track)

    def keep_own_weights(self) -> None:
        """From now on no pass takes the weights as constants: `torch.utils.checkpoint` computes with the module's own in a backward pass.

        A clean pass without them is forgotten.
        """
        self._network.keep_own_weights()
        if not self.live:
            self.__dict__.pop("clean", None)

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

    def uniform(self, purpose: str, rows: int | None = None) -> Tensor:
        """A number from [0, 1) for each row, float32 (N,), which follows from the row's place in the global batch.

        Args:
            purpose: name of the stream.
            rows: number of groups, if the outputs are theirs.
        """
        generator = torch.Generator(self.x.device).manual_seed(self.key.shared(purpose))
        if rows is not None and rows != len(self.x):
            return torch.rand(rows, generator=generator, device=self.x.device)
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
        if self.mask is not None and not one_row:
            return self._normal_where_counted(purpose, generator, dtype)
        shape = (1 if one_row else self.total, *self.x.shape[1:])
        noise = torch.randn(shape, generator=generator, device=self.x.device, dtype=dtype)
        return noise if one_row else noise[self.start : self.start + len(self.x)]

    def _normal_where_counted(self, purpose: str, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """The same for a masked x: each row has a stream for what counts in it, so that they do not depend on the padding."""
        assert self.mask is not None
        seed, rows = self.key.shared(purpose), []
        for number, count in enumerate(self.mask.flatten(1).sum(1).tolist()):
            generator.manual_seed(stable_seed(seed, self.start + number))
            rows.append(torch.randn(count, generator=generator, dtype=dtype, device=self.x.device))
        noise = torch.zeros(self.x.shape, dtype=dtype, device=self.x.device)
        return noise.masked_scatter_(self.mask, torch.cat(rows)) if rows else noise


PER = ("example", "token", "input")


def _refuse_unfit(x: Any) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, got a {type(x).__name__}: call it as vat(model, x), with a function of x alone for a model")
    if not x.is_floating_point():
        raise TypeError(
            f"x must have a floating dtype to be perturbed, got {x.dtype}: pass images / 255, of complex numbers torch.view_as_real(x), or "
            "for ids vat(model, ids, at=model.get_input_embeddings())"
        )
    if x.is_nested or x.layout is not torch.strided or not x.dim():
        raise TypeError("x must be dense and of shape (N, …): make it so by x.to_dense(), padding or x[None]")
