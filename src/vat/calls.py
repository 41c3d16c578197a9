"""The call of a network on a batch, as a function of the perturbed tensors in it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vat.functional import flat
from vat.layers import weights_of

At = nn.Module | str | int | Sequence[nn.Module] | Sequence[str] | Sequence[int]


class Call:
    """The arguments of a network's call: `Call(x, edge_index, batch=graphs)`."""

    def __init__(self, *args: Any, **kwargs: Any):
        self.args = args
        self.kwargs = kwargs

    @classmethod
    def of(cls, batch: Any) -> "Call":
        """Make a call of a batch: a mapping has keyword arguments, a tuple or list positional ones, all else is the one argument."""
        if isinstance(batch, Call):
            return batch
        if isinstance(batch, Mapping):
            return cls(**batch)
        return cls(*batch) if isinstance(batch, tuple | list) else cls(batch)

    def place(self, values: Mapping[str | int, Any]) -> "Call":
        """Copy the call and its tensors, with other values for these argument names and numbers."""
        found = {name: values[name] if name in values else _cloned(value) for name, value in self.arguments.items()}
        return Call(*(found[number] for number in range(len(self.args))), **{name: found[name] for name in self.kwargs})

    @property
    def arguments(self) -> dict[str | int, Any]:
        """Each argument by its number or name."""
        return {**dict(enumerate(self.args)), **self.kwargs}

    def __getitem__(self, name: str | int) -> Any:
        if name not in self.arguments:
            raise KeyError(f"{name!r} is not an argument of the call: choose one of {[*self.arguments]}")
        return self.arguments[name]


def declared(module: nn.Module | None, ids: Tensor) -> tuple[nn.Module | None, Tensor | None]:
    """What a network of integer inputs declares: `perturbed`, the layer whose output can be perturbed, and `mask(ids)`.

    Args:
        module: Network.
        ids: Inputs (N, …) of an integer dtype, which cannot be perturbed.

    Returns:
        The layer and the mask, each None if the network does not have it.
    """
    layer = getattr(module, "perturbed", None)
    if not isinstance(layer, nn.Module):
        return None, None
    mask: Any = getattr(module, "mask", None)
    return layer, None if mask is None else mask(ids)


class Perturbed:
    """A network's call as a function of one tensor, which holds everything that is perturbed.

    Several tensors are joined into one of shape (N, D), so that one r covers them all.

    Args:
        forward: Function to call.
        batch: Tensor, tuple, mapping, or `Call`.
        at: What to perturb: a layer, whose output is replaced, or the name or number of an argument, or several of one kind. If None,
            all arguments, which must be tensors of a floating dtype.

    Raises:
        TypeError: If `at` is something else, or mixes both kinds.
        KeyError: If there is no such argument.
    """

    def __init__(self, forward: Callable[..., Any], batch: Any, at: At | None = None):
        self.forward = forward
        self.call = Call.of(batch)
        places = [*self.call.arguments] if at is None else [at] if isinstance(at, nn.Module | str | int) else [*at]
        self.layers = [place for place in places if isinstance(place, nn.Module)]
        self.names = [place for place in places if isinstance(place, str | int)]
        if not places or len(places) not in (len(self.layers), len(self.names)):
            raise TypeError(f"at must be a layer, or the name or number of an argument, or several of one kind, got {at!r}")
        known = [*self.call.arguments]
        if unknown := [name for name in self.names if name not in known]:
            raise KeyError(f"at={unknown[0]!r} is not an argument of the call: choose one of {known}, or pass a layer, as at=model.body")
        self.shapes: list[torch.Size] = []
        self.dtypes: list[torch.dtype] = []

    @property
    def device(self) -> torch.device:
        """Device of the call's first tensor."""
        tensors = (value for value in self.call.arguments.values() if isinstance(value, Tensor))
        return next((tensor.device for tensor in tensors), torch.device("cpu"))

    def inputs(self) -> Tensor:
        """Join the perturbed tensors into one. To get a layer's output, the network runs up to that layer."""
        tensors = self._outputs() if self.layers else [self.call[name] for name in self.names]
        for place, tensor in zip([*self.layers, *self.names], tensors, strict=True):
            if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
                what = tensor.dtype if isinstance(tensor, Tensor) else f"a {type(tensor).__name__}"
                kind = f"the output of at={type(place).__name__}" if isinstance(place, nn.Module) else f"the argument {place!r}"
                others = [name for name, value in self.call.arguments.items() if isinstance(value, Tensor) and value.is_floating_point()]
                argument = f"an argument, as vat(model, batch, at={others[0]!r}), or " if others else ""
                raise TypeError(
                    f"{kind} must be a tensor of a floating dtype, got {what}: name what can be perturbed: {argument}a layer's output, as "
                    "vat(model, batch, at=model.get_input_embeddings())"
                )
        self.shapes, self.dtypes = [tensor.shape for tensor in tensors], [tensor.dtype for tensor in tensors]
        if len({shape[0] for shape in self.shapes if shape}) != 1 or not all(self.shapes):
            shapes = [*map(tuple, self.shapes)]
            raise ValueError(f"the first dimension of all perturbed tensors must count the same examples, got shapes {shapes}")
        return self.joined(tensors) if len(tensors) > 1 else tensors[0]

    def joined(self, tensors: Sequence[Tensor]) -> Tensor:
        """Join tensors shaped like the perturbed ones into one (N, D)."""
        return torch.cat([flat(tensor.expand(shape)) for tensor, shape in zip(tensors, self.shapes, strict=True)], 1)

    def split(self, x: Tensor) -> list[Tensor]:
        """Split `x` into its parts, in their shapes."""
        if len(self.shapes) == 1:
            return [x]
        parts = x.split([shape[1:].numel() for shape in self.shapes], 1)
        # Copies, because the network may change one in place, and not views of x.
        return [
            part.reshape(len(x), *shape[1:]).to(dtype, copy=True)
            for part, shape, dtype in zip(parts, self.shapes, self.dtypes, strict=True)
        ]

    def _run(self, values: Mapping[str | int, Any]) -> Any:
        """Call the network with copies of the tensors, which it may change in place, and with these values instead of others."""
        call = self.call.place(values)
        return self.forward(*call.args, **call.kwargs)

    def __call__(self, x: Tensor) -> Any:
        """Compute the network's output with `x` instead of the perturbed tensors."""
        tensors = self.split(x)
        if not self.layers:
            return self._run(dict(zip(self.names, tensors, strict=True)))
        calls = [0] * len(self.layers)

        def put(number: int) -> Callable[..., Tensor]:
            def hook(layer: nn.Module, *_: Any) -> Tensor:
                if _in_checkpoint():
                    raise ValueError(
                        f"at={type(layer).__name__} is inside torch.utils.checkpoint, which would compute its output again without r: "
                        "pass a layer outside of it, or the name of an argument"
                    )
                calls[number] += 1
                return tensors[number]

            return hook

        handles = [layer.register_forward_hook(put(number)) for number, layer in enumerate(self.layers)]
        try:
            output = self._run({})
        finally:
            for handle in handles:
                handle.remove()
        for layer, number in zip(self.layers, calls, strict=True):
            if number != 1:
                raise ValueError(f"at={type(layer).__name__} must be called once in a pass, got {number} calls: {self._others()}")
        return output

    def _outputs(self) -> list[Any]:
        found: dict[int, Any] = {}

        def take(number: int) -> Callable[..., None]:
            def hook(_: nn.Module, __: Any, output: Any) -> None:
                found[number] = output
                if len(found) == len(self.layers):
                    raise _Found

            return hook

        handles = [layer.register_forward_hook(take(number)) for number, layer in enumerate(self.layers)]
        try:
            self._run({})
        except _Found:
            return [found[number] for number in range(len(self.layers))]
        finally:
            for handle in handles:
                handle.remove()
        missing = type(self.layers[next(n for n in range(len(self.layers)) if n not in found)]).__name__
        raise ValueError(f"at={missing} is not called in a pass of the network: {self._others()}")

    def _others(self) -> str:
        """Advice which layers to pass: those of the same kind with the same weights, as a T5's `encoder.embed_tokens`, or others."""
        calls: dict[nn.Module, list[bool]] = {}

        def count(layer: nn.Module, _: Any, output: Any) -> None:
            calls.setdefault(layer, []).append(isinstance(output, Tensor) and output.is_floating_point())

        handle = nn.modules.module.register_module_forward_hook(count)
        try:
            self._run({})
        finally:
            handle.remove()
        weights = {*map(id, weights_of(self.layers))}
        names = {layer: name for name, layer in [*calls][-1].named_modules()} if calls else {}  # the outermost module returns last
        others = [layer for layer, floats in calls.items() if floats == [True] and names.get(layer)]
        kinds = {*map(type, self.layers)}
        others = [one for one in others if type(one) in kinds and not weights.isdisjoint(map(id, weights_of([one])))] or others
        return "pass a layer that is called once" + (f", as {', '.join(names[layer] for layer in others[:3])}" if others else "")


def _cloned(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _in_checkpoint() -> bool:
    """Whether a forward pass is inside a block that is computed again in the backward pass. Torch has no public function for it."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)  # pyright: ignore[reportAttributeAccessIssue]
    pack, _ = hooks or (None, None)
    return "_checkpoint_hook" in getattr(pack, "__qualname__", "")


class _Found(Exception):  # noqa: N818  # not an error: it ends the call early
    pass
