"""One training step as a regularizer sees it: the network as a function, the inputs, and named random streams."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
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
from vat.functional import Categorical, Divergence, flat
from vat.layers import unwrapped
from vat.network import Forward, Modules, Network
from vat.norms import Norm
from vat.seeds import stable_seed


@dataclass(frozen=True)
class Key:
    """Names the random streams of one micro-step. The same key draws the same numbers in any process and after any restart.

    Args:
        seed: Seed of the run.
        micro_step: Number of batches before this one.
        rank: Rank of the process.
    """

    seed: int
    micro_step: int = 0
    rank: int = 0

    @classmethod
    def fresh(cls) -> "Key":
        """Draw a key from torch's default CPU generator, for loops that do not count their steps."""
        return cls(int(torch.randint(2**62, ()).item()))

    def shared(self, purpose: str) -> int:
        """Seed of a stream that all ranks share."""
        return stable_seed(self.seed, self.micro_step, purpose)

    def own(self, purpose: str) -> int:
        """Seed of a stream that belongs to this rank."""
        return stable_seed(self.seed, self.micro_step, purpose, self.rank)


@dataclass(frozen=True)
class CleanPass:
    """The unperturbed pass: `x` (N, …), which can require gradients, and `logits` with their graph."""

    x: Tensor
    logits: Tensor


class Step:
    """One training step, as a regularizer sees it. The clean pass is valid only for exactly these rows, in this batch.

    Args:
        forward: Function x -> logits: a module, a method of one, a `functools.partial` of these, or any function with its `module`. If the
            output has `logits`, as that of Hugging Face's models, they are used.
        x: Inputs (N, …), of a floating dtype. A tuple, a mapping or a `vat.calls.Call` holds the arguments of the call.
        y: Labels (N,), or None.
        module: Module that another function uses, a list of several, or `()` if there is none.
        at: What to perturb instead of x: a layer's output (pass the layer), or an argument (pass its name or number), or several of one
            kind. If None and x are integers: the layer that the network names as `perturbed`, with the mask from its `mask(x)`.
        mask: 1 where x counts, 0 on padding. It has x's first dimensions, as (N, T), or as many dimensions as x. On padding r is 0 and
            outputs do not count.
        output_mask: Mask of the outputs, if it does not follow from `mask`: (N, …) without their classes, or shaped like them.
        class_dim: Dimension of the outputs with the classes. If None, it is 1 in (N, C) and (N, C, H, W), and the last in (N, T, C) of
            Hugging Face's models. Any other output of three dimensions needs it.
        group: Group (N,) of each example, numbered from 0; for example, the graph of each node. Norms are per group, outputs may be.
        scale: Factor of the radius: a number, (N,), or more of x's first dimensions; for several inputs a list, one for each.
        key: Key of the step's randomness; a new one from torch's default generator if None.
        index: Identity (N,) of the rows in the data set, for a regularizer that stores values by row.
        start: Position of the first of these rows in the global batch.
        total: Rows of the global batch; N if None. Random directions are drawn for all, so they do not depend on the number of processes.
        view: Second augmented view of the same rows (N, …), or None.
        live: Whether the clean pass carries gradients to the parameters and keeps its graph, because more than one term uses it.
        track: Whether the clean pass updates the running statistics of the network.
        report: Dictionary into which regularizers write diagnostics; None if they are not needed.

    Attributes:
        x: The inputs as constants.
        inputs: The inputs with the graph that led to them (an embedding, or an earlier part of the network), for passes that train.
        mask: 1 where x counts, shaped like x; None if x counts everywhere.
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
            view = view if at is None else None  # an integer view cannot replace the layer's output
        if at is not None or not isinstance(x, Tensor):
            x = self._taken(Perturbed(forward, x, at))
        _refuse_unfit(x)
        if x.is_inference() and not torch.is_inference_mode_enabled():
            x = x.clone()  # an inference tensor cannot require gradients
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
        """Make the network a function of what is perturbed in a call, and return that as one tensor."""
        x = self._network.called(call.inputs, device=call.device, seed=self.key.own("network")) if call.layers else call.inputs()
        self._network.forward = self._call = call
        return x

    def _shaped(self, scale: float | Tensor | Sequence[float | Tensor]) -> Tensor:
        if isinstance(scale, Sequence):
            if self._call is None or len(scale) != len(self._call.shapes):
                raise ValueError(f"scale must have an entry for each input, got {len(scale)}: or pass a number or a tensor (N, …)")
            parts = [torch.as_tensor(one, dtype=self.x.dtype, device=self.x.device) for one in scale]
            shapes = self._call.shapes
            return self._call.joined(
                [one.view(*one.shape, *[1] * (len(shape) - one.dim())) for one, shape in zip(parts, shapes, strict=True)]
            )
        factor = torch.as_tensor(scale, dtype=self.x.dtype, device=self.x.device)
        return factor.view(*factor.shape, *[1] * (self.x.dim() - factor.dim()))

    # ------------------------------------------------------------------------------------------------ masks, norms and radius

    def norm(self, norm: Norm, per: str = "example") -> Norm:
        """Norm of r in this step, over what counts: of each example (or group), or of each "token" or "input".

        Raises:
            ValueError: If `per` is not known or does not fit the inputs.
        """
        if per not in PER:
            raise ValueError(f"per={per!r} is not known: choose one of {', '.join(PER)}")
        if per == "input" and self._call is None:
            raise ValueError("per='input' needs several inputs, as vat(model, (image, table))")
        if per == "token" and self.x.dim() < 3:
            raise ValueError(f"per='token' needs inputs (N, T, D), got x of shape {tuple(self.x.shape)}")
        if per != "example" and (self.group is not None or (per == "input" and self.mask is not None)):
            raise ValueError(f"per={per!r} does not take a {'mask' if self.group is None else 'group'}: use per='example'")
        if per == "input" and self._call is not None and len(self._call.shapes) > 1:
            return NormOfInputs(norm, self._call.shapes)
        if self.mask is None and self.group is None and per == "example":
            return norm
        rows = per_token(self.x.shape) if per == "token" else None if self.group is None else per_group(self.group)
        return NormOfStep(norm, self.x.shape, self._mask, rows)

    def divergence(self, divergence: Divergence) -> Divergence:
        """Divergence over the outputs that count in this step."""
        if self._positions is None and (self.class_dim is not None or not divergence.averages_positions):
            return divergence  # a sum over all entries, wherever the classes are
        return DivergenceOfStep(divergence, partial(self.mask_of, of_decisions=isinstance(divergence, Categorical)))

    def radius(self, eps: float) -> float | Tensor:
        """ε in this step: `eps`, or a tensor that broadcasts to x if `scale` is given."""
        return eps if self._scale is None else eps * self._scale

    def mask_of(self, logits: Tensor, *, of_decisions: bool = False) -> Tensor | None:
        """Boolean mask of the outputs (N, C, …) that count: (N, 1, …) or shaped like them; None if all count.

        Args:
            logits: Outputs.
            of_decisions: Whether the C outputs are the classes of one softmax, so that they count together: (N, 1, …).

        Raises:
            ValueError: If it is not known which dimension has the classes, or which outputs of a decoder count. If the mask leaves out
                single classes of a softmax.
        """
        self._network.refuse_undecided()
        mask = self._positions
        if mask is not None and not self._names_outputs:
            self._network.refuse_decoder()
        elif mask is not None and mask.dim() == logits.dim():
            mask = self._network.with_classes_first(mask)
        found = None if mask is None else mask_of_outputs(mask, logits, named=self._names_outputs)
        if found is None or not of_decisions or found.dim() < 2 or found.shape[1] == 1:
            return found
        if (found != found[:, :1]).any():
            raise ValueError(
                "output_mask leaves out single classes of a softmax, whose probabilities would still count. Select the others, as "
                "vat(lambda x: model(x)[:, classes], x, module=model). If they differ between examples, set their logits to -inf in the "
                "network, with direction='margin'"
            )
        return found[:, :1]

    def mean(self, value: Tensor) -> Tensor:
        """Mean of a value (N,) over the examples in which something counts; 0, with a gradient of 0, if there are none.

        Raises:
            ValueError: If the value is a single number.
        """
        if not value.dim():
            raise ValueError(
                "a divergence must return a value for each example, of shape (N,), got a single number: the regularizer takes the mean"
            )
        counted = self.counted
        if counted is None or len(counted) != len(value):
            return value.sum() / max(1, len(value))
        return torch.where(counted, value, 0).sum() / counted.sum().clamp(min=1)

    @property
    def counted(self) -> Tensor | None:
        """Whether something counts in each example, boolean (N,) or (outputs,); None if all count."""
        mask = self._positions if self._names_outputs else self._mask
        return None if mask is None else flat(mask.bool()).any(1)

    def mean_over_positions(self, value: Tensor, logits: Tensor) -> Tensor:
        """Mean (N,) of a value (N, …) over the positions that count. It has the shape of the softmax `logits` without their classes."""
        mask = self.mask_of(logits, of_decisions=True)
        if value.dim() == 1:
            return value
        if mask is None:
            return value.flatten(1).mean(1)
        return kept(value, mask[:, 0]).flatten(1).mean(1) * share_of_positions(mask, value.dtype)

    def for_rows(self, value: Tensor) -> Tensor:
        """Expand a value for each example (N,) or group to a value for each example that broadcasts to x."""
        if self.group is not None and len(value) != len(self.x):
            value = value[self.group]
        return value.view(-1, *[1] * (self.x.dim() - 1))

    # ------------------------------------------------------------------------------------------------------------ passes

    @property
    def module(self) -> nn.Module | None:
        """The module whose parameters are trained, if any."""
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
            x: Inputs.
            noise: Name of the stream for dropout and similar noise; passes with the same name share their masks.
            parameters: Tensors by name, used instead of the network's.
            constant: Whether to block gradients to the parameters.
            track: Whether this pass updates the network's buffers, as an ordinary call does.
        """
        if parameters is not None and x is self.x and self._call is not None and self._call.layers:  # new weights, new outputs
            x = self._network.called(self._call.inputs, device=x.device, seed=self.key.own(noise), parameters=parameters)
        return self._network(x, seed=self.key.own(noise), parameters=parameters, constant=constant, track=track)

    def keep_own_weights(self) -> None:
        """Take no weights as constants from now on: in a backward pass `torch.utils.checkpoint` computes with the module's weights."""
        self._network.keep_own_weights()
        if not self.live:
            self.__dict__.pop("clean", None)  # it was computed with constants

    @cached_property
    def clean(self) -> CleanPass:
        """The clean pass with its graph: to the input, and if the step is `live` also to the parameters."""
        with torch.enable_grad():
            x = self.inputs.view_as(self.x) if self.live and self.inputs.requires_grad else self.x.detach().requires_grad_()
            logits = self._network(x, seed=self.key.own("network"), constant=not self.live, track=self.track)
        return CleanPass(x, logits)

    @cached_property
    def target(self) -> Tensor:
        """The clean logits as a constant. If the step is not live and has no clean pass yet, a pass without a graph computes them."""
        if self.live or "clean" in self.__dict__:
            return self.clean.logits.detach()
        with torch.no_grad():
            return self._network(self.x, seed=self.key.own("network"), constant=True)

    def uniform(self, purpose: str, rows: int | None = None) -> Tensor:
        """Draw a number from [0, 1) for each row, float32 (N,). It depends only on the row's place in the global batch.

        Args:
            purpose: Name of the stream.
            rows: Number of groups, if there is an output for each.
        """
        generator = torch.Generator(self.x.device).manual_seed(self.key.shared(purpose))
        if rows is not None and rows != len(self.x):
            return torch.rand(rows, generator=generator, device=self.x.device)
        numbers = torch.rand(self.total, generator=generator, device=self.x.device)
        return numbers[self.start : self.start + len(self.x)]

    def normal(self, purpose: str, *, one_row: bool = False) -> Tensor:
        """Draw standard normal numbers shaped like x, in float32 or wider. A row's depend only on its place in the global batch.

        Args:
            purpose: Name of the stream.
            one_row: Whether to draw a single row (1, …) for all examples.
        """
        generator = torch.Generator(self.x.device).manual_seed(self.key.shared(purpose))
        dtype = torch.promote_types(self.x.dtype, torch.float32)
        if self.mask is not None and not one_row:
            return self._normal_where_counted(purpose, generator, dtype)
        shape = (1 if one_row else self.total, *self.x.shape[1:])
        noise = torch.randn(shape, generator=generator, device=self.x.device, dtype=dtype)
        return noise if one_row else noise[self.start : self.start + len(self.x)]

    def _normal_where_counted(self, purpose: str, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """Draw for a masked x: each row has a stream for the entries that count, so the numbers do not depend on the padding."""
        assert self.mask is not None
        seed, rows = self.key.shared(purpose), []
        for number, count in enumerate(flat(self.mask).sum(1).tolist()):
            generator.manual_seed(stable_seed(seed, self.start + number))
            rows.append(torch.randn(count, generator=generator, dtype=dtype, device=self.x.device))
        noise = torch.zeros(self.x.shape, dtype=dtype, device=self.x.device)
        return noise.masked_scatter_(self.mask, torch.cat(rows)) if rows else noise


PER = ("example", "token", "input")


def _refuse_unfit(x: Any) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, got a {type(x).__name__}: call vat(model, x) with a function of x only as the model")
    if not x.is_floating_point():
        raise TypeError(
            f"x must have a floating dtype, got {x.dtype}. For images pass images / 255, for complex numbers torch.view_as_real(x), for "
            "ids call vat(model, ids, at=model.get_input_embeddings())"
        )
    if x.is_nested or x.layout is not torch.strided or not x.dim():
        raise TypeError("x must be dense and of shape (N, …): use x.to_dense(), padding or x[None]")
