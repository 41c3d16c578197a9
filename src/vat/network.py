"""The network as a function, whose passes leave it as it was and draw the same noise.

Passes leave the network as they found it by construction: they run on *copies* of its buffers, which its layers hold for as long as
a pass takes, so there is no hook to undo. Noise drawn inside the network (dropout) is the same in all passes of a step, because each
of them starts from the same key.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache, partial
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.utils.checkpoint import set_checkpoint_early_stop

from vat.layers import (
    Places,
    all_layers,
    copy_of,
    divides,
    has_no_hooks,
    hold,
    is_quantized,
    is_torchs,
    kept_values,
    places_of,
    put_back,
    size_of,
    unwrapped,
    weights_of,
)
from vat.random_state import random_state

Forward = Callable[[Tensor], Tensor]
Modules = nn.Module | Sequence[nn.Module]
NOT_ON_COPIES = (nn.DataParallel, torch.jit.ScriptModule)
EMBEDDINGS = (
    "A model with input embeddings takes ids first. Perturb their embeddings: vat(model, batch, at=model.get_input_embeddings(), "
    "mask=batch['attention_mask']), with the batch as the model takes it."
)
NO_GRADIENT = (
    "no gradient leads from the network's output to its input: is there a torch.no_grad, an inference mode, a detach, an argmax or a "
    "quantized operation in between?"
)
QUANTIZED = (
    "the network has quantized layers, through which no gradient leads to its input: regularize the network in floats, and quantize it "
    "after the training. The control works without: direction='random'"
)
_RECOMPUTE: WeakSet[nn.Module] = WeakSet()
"""Networks seen to be under `torch.utils.checkpoint`."""


class Network:
    """A differentiable function of the input, whose calls leave the module behind it as it was.

    Every call starts from the buffers (running statistics, a spectral norm's vectors) as they were when this object was made. What a
    call changes in the plain attributes of a layer is undone after it: what it assigns, adds to a list, dict or set, or changes in place
    in a tensor. Two things are out of reach: what is inside a container or another object, and what a layer under
    `torch.utils.checkpoint` computes again. Its batch norm moves once in each backward pass through it, as in every checkpointed network.

    Args:
        forward: x -> logits; a module, a method of one, a `functools.partial` of these, or any function whose `module` is given.
        module: the module that `forward` uses, of which the state is protected and weights can be constants; a list of several; or `()`
            if there is none. None if `forward` shows it.
        class_dim: dimension of the outputs with the classes, which becomes dimension 1; see `Step`.
        grouped: outputs may be fewer than inputs.

    Raises:
        TypeError: If `forward` is another function, and its module is not given.
    """

    def __init__(self, forward: Forward, module: Modules | None = None, *, class_dim: int | None = None, grouped: bool = False):
        modules = _modules(forward, module)
        if isinstance(forward, DistributedDataParallel):
            modules = [forward.module if part is forward else part for part in modules]
        for part in modules:
            if isinstance(part, NOT_ON_COPIES):
                raise TypeError(f"a {type(part).__name__} cannot run on copies of its state: hand in the module that it was made of")
        self.module = modules[0] if len(modules) == 1 else nn.ModuleList(modules) if modules else None
        self.forward = forward
        self._class_dim = class_dim
        self._classes_at = 1
        self._undecided: torch.Size | None = None
        self._grouped = grouped
        self._own = all_layers(modules)
        self._layers = all_layers([*modules, forward]) if isinstance(forward, nn.Module) else self._own
        self._wrappers = [layer for layer in self._layers if isinstance(layer, DistributedDataParallel)]
        self._fabric = [layer for layer in self._layers if type(layer).__name__ == "_FabricModule"]
        # FSDP2 puts weights of its own into its layers, and keeps for good what it finds there in its first pass.
        kinds = set(map(type, self._own))
        self._divided = any(map(divides, kinds))
        self._quantized = any(map(is_quantized, kinds))
        self._recomputes = bool(modules) and modules[0] in _RECOMPUTE
        self._unbuilt = any(map(is_lazy, weights_of(self._layers)))
        self._keepers = [layer for layer in self._layers if not (is_torchs(type(layer)) and has_no_hooks(layer))]
        self._draws_from_torch = isinstance(forward, nn.Module) and not self._keepers
        self._kept_values = kept_values(self._keepers)
        self._constants: list[tuple[Tensor, Places]] = []
        self._buffers = [(buffer.clone(), places) for buffer, places in places_of(layer._buffers for layer in self._layers)]

    def __call__(
        self,
        x: Tensor,
        *,
        seed: int,
        parameters: Mapping[str, Tensor] | None = None,
        constant: bool = False,
        track: bool = False,
    ) -> Tensor:
        """Logits of `x`.

        Args:
            x: inputs (N, …).
            seed: of the noise drawn inside the network.
            parameters: used in place of the module's own, by name in the `unwrapped` module.
            constant: take the parameters as constants, so that no backward pass can reach them (FSDP2 sees to its own).
            track: let this pass move the module's own buffers, as an ordinary call does.
        """
        if self.module is None and parameters is not None:
            raise ValueError("other weights need a module to be put into: name the one behind the function, module=model")
        x = x.clone()  # a first layer may normalise in place
        try:
            output = self.called(lambda: self.forward(x), device=x.device, seed=seed, parameters=parameters, constant=constant, track=track)
        except (TypeError, ValueError) as error:
            if self.forward is self.module and hasattr(self.module, "get_input_embeddings"):
                error.add_note(EMBEDDINGS)
            raise
        logits = self._logits(output)
        if not logits.dim() or (len(logits) != len(x) and not self._grouped):
            raise ValueError(
                f"the network returned an output of shape {tuple(logits.shape)} for inputs of shape {tuple(x.shape)}: the first dimension "
                "of both counts the examples; hand in a function that puts it there"
            )
        if x.requires_grad and self._quantized:
            raise RuntimeError(QUANTIZED)
        if x.requires_grad and not logits.requires_grad:
            raise RuntimeError(NO_GRADIENT)
        return logits

    def called(
        self,
        function: Callable[[], Any],
        *,
        device: torch.device,
        seed: int,
        parameters: Mapping[str, Tensor] | None = None,
        constant: bool = False,
        track: bool = False,
    ) -> Any:
        """What `function` returns, called as a pass on `device`: with copies of the module's state, and noise from `seed`."""
        trains = torch.is_grad_enabled() and not constant and parameters is None
        noise = random_state(seed, device, torch_alone=True) if self._draws_from_torch else random_state(seed, device)
        with self._on_copies(parameters, constant, track), self._unwrapped(trains, track), noise, _one_path(), self._whole(constant):
            return function()

    def _whole(self, constant: bool) -> AbstractContextManager[Any]:
        """Within it `torch.utils.checkpoint` computes all of a block again, and not only until it has as many tensors as it had.

        A pass with constant weights saves fewer than the block with its own. That is an error then. Otherwise one tensor would be taken for
        another of its shape, a weight for an activation perhaps.
        """
        return nullcontext() if not constant or self._recomputes else set_checkpoint_early_stop(False)

    def _logits(self, output: Any) -> Tensor:
        """The logits in an output, with the classes in dimension 1."""
        logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
        if not isinstance(logits, Tensor):
            raise TypeError(
                f"the network returned a {type(output).__name__} in place of logits: hand in a function that picks them, "
                "as vat(lambda x: model(x)[0], x, module=model) or RegularizerCallback(forward=lambda module, x: module(x)[0])"
            )
        class_dim = self._class_dim
        if class_dim is None and logits.dim() == 3:
            if _is_huggingfaces(type(output)):
                class_dim = -1  # of tokens (N, T, C)
            else:
                self._undecided = logits.shape
        if class_dim is not None and not -logits.dim() <= class_dim < logits.dim():
            raise ValueError(f"class_dim={class_dim} is no dimension of an output of shape {tuple(logits.shape)}")
        self._classes_at = 1 if class_dim is None else class_dim
        return self.with_classes_first(logits)

    def with_classes_first(self, outputs: Tensor) -> Tensor:
        """What is shaped like the network's outputs, with their classes in dimension 1."""
        return outputs if self._classes_at == 1 or outputs.dim() < 2 else outputs.movedim(self._classes_at, 1)

    def refuse_undecided(self) -> None:
        """Refuse an output (N, T, C) or (N, C, L) of which it is not said where the classes are: both are common.

        The number of dimensions decides, not their sizes: a batch of as many tokens as classes would otherwise stop a run in the middle.

        Raises:
            ValueError: If there was one.
        """
        if self._undecided is not None:
            raise ValueError(
                f"the network's output of shape {tuple(self._undecided)} has its classes in dimension 1 or in the last one: say "
                "class_dim=-1 if they are last, as of tokens (N, T, C), or class_dim=1 if not, as of a convolution (N, C, L)"
            )

    def keep_own_weights(self) -> None:
        """Take no weights as constants from now on, in other steps neither: the module computes activations again."""
        self._recomputes = True
        if self.module is not None:
            _RECOMPUTE.add(self._own[0])

    @contextmanager
    def _on_copies(self, parameters: Mapping[str, Tensor] | None, constant: bool, track: bool) -> Iterator[None]:
        """Within it layers hold other tensors in place of their own, as `__call__` says.

        `torch.func.functional_call` would look each up by its name, in every pass: 0.05 ms more for an MLP, whose pass takes 3.
        """
        others = [] if track else [(buffer.clone(), places) for buffer, places in self._buffers]
        if parameters is not None:
            others += self._by_name(parameters)
        elif constant and not (self._divided or self._recomputes):
            if self._unbuilt or not self._constants:
                self._constants = [(weight.detach(), places) for weight, places in places_of(layer._parameters for layer in self._own)]
            others += self._constants
        others = [(held, name, tensor) for tensor, places in others for held, name in places if name in held]
        own = [(held, name, held[name]) for held, name, _ in others]
        with nullcontext() if track else self._kept():
            try:
                hold(others)
                yield
            finally:
                hold(own)
        if track:
            self._kept_values = kept_values(self._keepers)

    def _by_name(self, parameters: Mapping[str, Tensor]) -> list[tuple[Tensor, Places]]:
        """Tensors for the module's own of these names, each with the places of that one."""
        assert self.module is not None
        inner = unwrapped(self.module)
        names = {id(own): name for name, own in (*inner.named_parameters(), *inner.named_buffers())}
        if unknown := parameters.keys() - names.values():
            raise ValueError(
                f"{type(self.module).__name__} has no weights by the names {', '.join(sorted(unknown))}: they are another module's"
            )
        places = places_of(held for layer in self._layers for held in (layer._parameters, layer._buffers))
        return [(parameters[names[id(own)]], where) for own, where in places if names.get(id(own)) in parameters]

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """Within it layers hold copies of the tensors and containers in their plain attributes; after it, all that they held before.

        A pass that builds layers or weights (lazy ones) is not undone: an attribute says that they are there.
        """
        before = [(held, held.copy()) for layer in self._keepers for held in (vars(layer), layer._buffers)]
        size = size_of(self._layers) if before else 0
        copies = [(copy_of(value), value, places) for value, places in self._kept_values]
        copies = [(copy, value, held, name) for copy, value, places in copies for held, name in places if held.get(name) is value]
        hold((held, name, copy) for copy, _, held, name in copies)
        try:
            yield
        finally:
            if self._unbuilt or (before and size_of(self._layers) != size):
                self._unbuilt = any(map(is_lazy, weights_of(self._layers)))
                hold((held, name, value) for copy, value, held, name in copies if held.get(name) is copy)
            else:
                for held, own in before:
                    put_back(held, own)

    @contextmanager
    def _unwrapped(self, trains: bool, track: bool) -> Iterator[None]:
        """Within it a pass that does not train goes past `DistributedDataParallel`, whose processes average only what they expect.

        A pass that trains goes through it. Buffers of the first process are not sent to the others unless `track`: the pass has copies,
        and is to leave the buffers alone. Fabric's wrapper does not look for its own `backward`, which no direction calls.
        """
        broadcasts = [wrapper.broadcast_buffers for wrapper in self._wrappers]
        for wrapper in self._wrappers:
            wrapper.broadcast_buffers &= track
            if not trains:
                vars(wrapper)["forward"] = wrapper.module
        for wrapper in self._fabric:
            vars(wrapper)["_register_backward_hook"] = _same
        try:
            yield
        finally:
            for wrapper, before in zip(self._wrappers, broadcasts, strict=True):
                wrapper.broadcast_buffers = before
                vars(wrapper).pop("forward", None)
            for wrapper in self._fabric:
                vars(wrapper).pop("_register_backward_hook", None)


def _modules(forward: Forward, module: Modules | None) -> list[nn.Module]:
    """The modules that a function uses: those that are named, or those that it shows."""
    if module is not None:
        modules = [module] if isinstance(module, nn.Module) else list(module)
        if not all(isinstance(part, nn.Module) for part in modules):
            raise TypeError(f"module must be an nn.Module, a list of several, or () if there is none, got {module!r}")
        return modules or _shown(forward)
    modules = _shown(forward)
    if not modules:
        name = getattr(forward, "__name__", type(forward).__name__)
        raise TypeError(
            f"the module that the function {name} uses is not known: name it, as vat(lambda x: model(x), x, module=model), several as "
            "module=[encoder, head], and none as module=()"
        )
    return modules


def _shown(forward: Forward) -> list[nn.Module]:
    """The module that a function is, or is a method of, also in a `functools.partial`; and those among its fixed arguments."""
    given: list[Any] = []
    while isinstance(forward, partial):
        given += (*forward.args, *forward.keywords.values())
        forward = forward.func
    owner = getattr(forward, "__self__", forward)
    return [part for part in (owner, *given) if isinstance(part, nn.Module)] if isinstance(owner, nn.Module) else []


def _same(value: Any) -> Any:
    return value


@lru_cache(maxsize=1024)
def _is_huggingfaces(kind: type) -> bool:
    return any(base.__name__ == "ModelOutput" for base in kind.__mro__)  # by name, for its import takes seconds


@contextmanager
def _one_path() -> Iterator[None]:
    """Within it every pass computes by the same rules, with and without a graph, on the weights that it is given.

    A transformer's fused path, taken without a graph, sets what a mask hides to zero; and `torch.nn.utils.parametrize.cached` would
    hand on what a parametrization made of other weights, or without their gradients.
    """
    fused, cached = torch.backends.mha.get_fastpath_enabled(), parametrize._cache_enabled
    torch.backends.mha.set_fastpath_enabled(False)
    parametrize._cache_enabled = 0
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        parametrize._cache_enabled = cached
