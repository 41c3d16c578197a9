"""The network as a function. Its passes do not change the network and draw the same noise.

By construction, a pass leaves nothing to repair: during a pass the layers hold *copies* of their buffers. Noise drawn inside the network
(dropout) is the same in all passes of a step, because each pass starts from the same key.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
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
    modules_of,
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
    "The first input of a model with input embeddings is ids. Perturb their embeddings: vat(model, batch, "
    "at=model.get_input_embeddings(), mask=batch['attention_mask']), with the batch that the model takes."
)
NO_GRADIENT = (
    "the network's output has no gradient with respect to its input: look for torch.no_grad, inference mode, detach, argmax or a "
    "quantized operation in the network"
)
QUANTIZED = (
    "the network has quantized layers, so there is no gradient with respect to its input: train the network in floats with the "
    "regularizer and quantize it afterwards. Only the control needs no gradient: direction='random'"
)
_RECOMPUTE: WeakSet[nn.Module] = WeakSet()
"""Networks that were found to use `torch.utils.checkpoint`."""


class Network:
    """A differentiable function of the input. A call does not change the module behind it.

    Every call starts from the buffers (running statistics, a spectral norm's vectors) as they were when this object was made. Afterwards
    it restores the plain attributes of the layers: assignments, additions to a list, dict, set or deque, and changes in place in a tensor.
    Three things are not protected: objects inside a container or another object, a parameter that a layer changes in `forward`, and what
    a layer under `torch.utils.checkpoint` computes again. Its batch norm statistics are updated once in each backward pass through it, as
    in every checkpointed network.

    Args:
        forward: Function x -> logits: a module, a method of one, a `functools.partial` of these, or any function with its `module`.
        module: Module that `forward` uses, a list of several, or `()` if there is none; its state is protected, and its weights can be
            constants. None if `forward` is a module or belongs to one.
        class_dim: Dimension of the outputs with the classes, which becomes dimension 1; see `Step`.
        grouped: Whether there may be fewer outputs than inputs.

    Raises:
        TypeError: If `forward` is another function and its module is not given.
    """

    def __init__(self, forward: Forward, module: Modules | None = None, *, class_dim: int | None = None, grouped: bool = False):
        modules = modules_of(forward, module)
        if isinstance(forward, DistributedDataParallel):
            modules = [forward.module if part is forward else part for part in modules]
        for part in modules:
            if isinstance(part, NOT_ON_COPIES):
                raise TypeError(f"a {type(part).__name__} cannot run on copies of its state: pass the module that it was made from")
        self.module = modules[0] if len(modules) == 1 else nn.ModuleList(modules) if modules else None
        self.forward = forward
        self._class_dim = class_dim
        self._classes_at = 1
        self._undecided: torch.Size | None = None
        self._decodes = False
        self._grouped = grouped
        self._own = all_layers(modules)
        whole = isinstance(forward, nn.Module) and forward not in modules  # a wrapper of the modules
        self._layers = all_layers([*modules, forward]) if whole else self._own
        self._wrappers = [layer for layer in self._layers if isinstance(layer, DistributedDataParallel)]
        self._fabric = [layer for layer in self._layers if type(layer).__name__ == "_FabricModule"]
        # FSDP2 puts its own weights into the layers, and keeps forever what it finds there in its first pass.
        kinds = set(map(type, self._own))
        self._divided = any(map(divides, kinds))
        self._quantized = any(map(is_quantized, kinds))
        self._recomputes = bool(modules) and modules[0] in _RECOMPUTE
        self._unbuilt = any(map(is_lazy, weights_of(self._layers)))
        hooked = not all(map(has_no_hooks, self._layers))  # a hook may change any layer, as a counter in the whole network
        self._keepers = [layer for layer in self._layers if hooked or not is_torchs(type(layer))]
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
            x: Inputs (N, …).
            seed: Seed of the noise drawn inside the network.
            parameters: Tensors used instead of the module's, by name in the `unwrapped` module.
            constant: Whether the parameters are constants, which get no gradients (FSDP2 handles its own weights).
            track: Whether this pass updates the module's buffers, as an ordinary call does.
        """
        if self.module is None and parameters is not None:
            raise ValueError("parameters need a module, and the function has none: pass module=model, the module that it uses")
        differentiable = x.requires_grad and torch.is_grad_enabled()
        x = x.clone()  # the first layer may change its input in place
        try:
            output = self.called(lambda: self.forward(x), device=x.device, seed=seed, parameters=parameters, constant=constant, track=track)
        except (TypeError, ValueError) as error:
            if self.forward is self.module and hasattr(self.module, "get_input_embeddings"):
                error.add_note(EMBEDDINGS)
            raise
        logits = self._logits(output)
        if not logits.dim() or (len(logits) != len(x) and not self._grouped):
            shape = tuple(logits.movedim(1, self._classes_at).shape if logits.dim() > 1 else logits.shape)
            raise ValueError(
                f"the first dimension of inputs and outputs must count the examples, got {tuple(x.shape)} and {shape}: pass a function "
                "that returns outputs (N, …), or group=… if several rows share an output, as the nodes of a graph do"
            )
        if differentiable and self._quantized:
            raise RuntimeError(QUANTIZED)
        if differentiable and not logits.requires_grad:
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
        """Call `function` as a pass on `device`, with copies of the module's state and noise from `seed`; return its result."""
        trains = torch.is_grad_enabled() and not constant and parameters is None
        noise = random_state(seed, device, torch_alone=True) if self._draws_from_torch else random_state(seed, device)
        with self._on_copies(parameters, constant, track), self._unwrapped(trains, track), noise, _one_path(), self._whole(constant):
            return function()

    def _whole(self, constant: bool) -> AbstractContextManager[Any]:
        """Context in which `torch.utils.checkpoint` computes all of a block again and does not stop at the number of tensors it saved.

        A pass with constant weights saves fewer tensors than the block has with variable weights. Without an early stop, torch raises an
        error. With it, one tensor could replace another of the same shape, for example a weight an activation.
        """
        return nullcontext() if not constant or self._recomputes else set_checkpoint_early_stop(False)

    def _logits(self, output: Any) -> Tensor:
        """Logits in an output, with the classes in dimension 1."""
        logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
        if not isinstance(logits, Tensor):
            values = output.items() if isinstance(output, Mapping) else ()
            place = next((name for name, value in values if isinstance(value, Tensor) and value.dim()), 0)
            raise TypeError(
                f"the network must return logits, got a {type(output).__name__}: pass a function that selects them, as vat(lambda x: "
                f"model(x)[{place!r}], x, module=model) or RegularizerCallback(forward=lambda module, x: module(x)[{place!r}])"
            )
        class_dim = self._class_dim
        self._decodes = logits.dim() > 2 and isinstance(output, Mapping) and "encoder_last_hidden_state" in output
        if class_dim is None and logits.dim() == 3:
            if _is_huggingfaces(type(output)):
                class_dim = -1  # of tokens (N, T, C)
            else:
                self._undecided = logits.shape
        if class_dim is not None and not -logits.dim() <= class_dim < logits.dim():
            raise ValueError(f"class_dim={class_dim} is not a dimension of the output, of shape {tuple(logits.shape)}")
        self._classes_at = 1 if class_dim is None else class_dim
        return self.with_classes_first(logits)

    def with_classes_first(self, outputs: Tensor) -> Tensor:
        """Move the class dimension of a tensor shaped like the network's outputs to dimension 1."""
        return outputs if self._classes_at == 1 or outputs.dim() < 2 else outputs.movedim(self._classes_at, 1)

    def refuse_undecided(self) -> None:
        """Refuse an output of three dimensions without a `class_dim`: (N, T, C) and (N, C, L) are both common.

        The number of dimensions decides, not their sizes. Otherwise a batch with as many tokens as classes would stop a run halfway.

        Raises:
            ValueError: If the network returned such an output.
        """
        if self._undecided is not None:
            raise ValueError(
                f"the classes of the network's output, of shape {tuple(self._undecided)}, are in dimension 1 or the last: pass "
                "class_dim=-1 if they are last, as in (N, T, C) of tokens, or class_dim=1 if not, as in (N, C, L) of a convolution"
            )

    def refuse_decoder(self) -> None:
        """Refuse the outputs of a decoder, whose positions are not those of the encoder's inputs, even if there are as many.

        Raises:
            ValueError: If the network returned such an output.
        """
        if self._decodes:
            raise ValueError(
                "the outputs are a decoder's, and a mask of the inputs says nothing about their positions: pass output_mask=…, too, as "
                "output_mask=labels != -100"
            )

    def keep_own_weights(self) -> None:
        """Take no weights as constants from now on, also in other steps: the module computes activations again."""
        self._recomputes = True
        if self.module is not None:
            _RECOMPUTE.add(self._own[0])

    @contextmanager
    def _on_copies(self, parameters: Mapping[str, Tensor] | None, constant: bool, track: bool) -> Iterator[None]:
        """Context in which layers hold other tensors, as `__call__` describes.

        `torch.func.functional_call` would look up each tensor by name in every pass: 0.05 ms more for an MLP, whose pass takes 3 ms.
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
        """Tensors that replace the module's, each with the places of the replaced one."""
        assert self.module is not None
        inner = unwrapped(self.module)
        names = {id(own): name for name, own in (*inner.named_parameters(), *inner.named_buffers())}
        if unknown := parameters.keys() - names.values():
            raise ValueError(
                f"parameters={', '.join(sorted(unknown))} are not in {type(self.module).__name__}: pass the module that has them"
            )
        places = places_of(held for layer in self._layers for held in (layer._parameters, layer._buffers))
        return [(parameters[names[id(own)]], where) for own, where in places if names.get(id(own)) in parameters]

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """Context in which layers hold copies of the tensors and containers in their plain attributes, which it restores afterwards.

        If the pass creates layers or weights (lazy initialisation), only the copies are undone: an attribute may record the creation.
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
        """Context in which a pass that does not train skips `DistributedDataParallel`, whose processes average only what they expect.

        A pass that trains uses it. The first process sends its buffers to the others only if `track`: other passes have copies and must
        not change the buffers. Fabric's wrapper does not check for its own `backward`, which no direction calls.
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


def _same(value: Any) -> Any:
    return value


@lru_cache(maxsize=1024)
def _is_huggingfaces(kind: type) -> bool:
    return any(base.__name__ == "ModelOutput" for base in kind.__mro__)  # by name: importing the class takes seconds


@contextmanager
def _one_path() -> Iterator[None]:
    """Context in which a pass computes the same with and without a graph, and from the weights that it gets.

    Without a graph, a transformer would take its fused path, which sets masked positions to zero. `torch.nn.utils.parametrize.cached`
    would return values computed from other weights, or without their gradients.
    """
    fused, cached = torch.backends.mha.get_fastpath_enabled(), parametrize._cache_enabled
    torch.backends.mha.set_fastpath_enabled(False)
    parametrize._cache_enabled = 0
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        parametrize._cache_enabled = cached
