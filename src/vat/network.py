"""The network as a function, whose passes leave it as it was and draw the same noise.

Passes leave the network as they found it by construction: they run on *copies* of its buffers, which its layers hold for as long as
a pass takes, so there is no hook to undo. Noise drawn inside the network (dropout) is the same in all passes of a step, because each
of them starts from the same key.
"""

import dis
import inspect
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from functools import lru_cache, partial
from types import CodeType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

Forward = Callable[[Tensor], Tensor]
Held = dict[str, Any]
"""Tensors that a layer holds, its parameters or its buffers, by their names in it."""
Places = list[tuple[Held, str]]
NO_HOLDERS = (nn.Module, type, ModuleType, *weakref.ProxyTypes)
NOT_ON_COPIES = (nn.DataParallel, torch.jit.ScriptModule)
OF_EVERY_MODULE = vars(nn.Module()).keys()
STATE = (Tensor, bool, int, float, complex, str, tuple, list, dict, set, type(None))
"""Types of what a layer may keep in a plain attribute as its state; objects of others are taken for parts of it, and left alone."""


@contextmanager
def random_state(seed: int, device: torch.device) -> Iterator[None]:
    """Within it, torch's default generators (the CPU's and `device`'s) start from `seed`; after it they are as before."""
    if device.type == "cpu":
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            yield
        return
    module = torch.get_device_module(device)
    current = module.device(device) if hasattr(module, "device") else nullcontext()  # MPS has one device only
    with torch.random.fork_rng(devices=[device], device_type=device.type), current:
        torch.default_generator.manual_seed(seed)
        module.manual_seed(seed)
        yield


class Network:
    """A differentiable function of the input, whose calls leave the module behind it as it was.

    Every call starts from the buffers (running statistics, a spectral norm's vectors) as they were when this object was made. What a
    layer under `torch.utils.checkpoint` computes again in the backward pass is out of its reach: batch norm in there moves then. So is
    a tensor in a plain attribute that a layer changes in place: make it a buffer.

    Args:
        forward: x -> logits; a module, or any function.
        module: the module behind a bare function, of which the state is to be protected and weights can be constants. The function itself
            if it is a module, and the module of which it is a method or a `functools.partial`. Of modules that are not named, but that a
            function is seen to use, the state is protected, more than is used perhaps: to name the one is cheaper.
    """

    def __init__(self, forward: Forward, module: nn.Module | None = None):
        module = _behind(forward) if module is None else module
        self._wrapper = forward if isinstance(forward, DistributedDataParallel) else None
        if self._wrapper is not None:
            forward = module = self._wrapper.module
        if isinstance(module, NOT_ON_COPIES):
            raise TypeError(f"a {type(module).__name__} cannot run on copies of its state: hand in the module that it was made of")
        self.module = module
        self._forward = forward
        self._roots = [part for part in (module, forward) if isinstance(part, nn.Module)] or _used_by(forward)
        self._layers = list(dict.fromkeys(layer for root in self._roots for layer in root.modules()))
        # FSDP2 puts weights of its own into its layers, and keeps for good what it finds there in its first pass.
        self._own = [] if module is None or is_divided(module) else self._layers
        self._keepers = [layer for layer in self._layers if not _forgets(layer)]
        self._parts = _parts(self._roots) if self._keepers else []
        self._buffers = [(buffer.clone(), places) for buffer, places in _places(layer._buffers for layer in self._layers)]

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
        with self._on_copies(parameters, constant, track), random_state(seed, x.device), _one_path():
            trains = torch.is_grad_enabled() and not constant and parameters is None
            logits = _synchronised(self._wrapper, x, track) if self._wrapper is not None and trains else self._forward(x)
        if not isinstance(logits, Tensor):
            raise TypeError(
                f"the network returned a {type(logits).__name__} in place of logits: hand in a function that picks them, "
                "as vat(lambda x: model(x)[0], x, module=model) or RegularizerCallback(forward=lambda module, x: module(x)[0])"
            )
        if not logits.dim() or len(logits) != len(x):
            raise ValueError(
                f"the network returned an output of shape {tuple(logits.shape)} for inputs of shape {tuple(x.shape)}: the first dimension "
                "of both counts the examples; hand in a function that puts it there"
            )
        if x.requires_grad and not logits.requires_grad:
            raise RuntimeError(
                "no gradient leads from the network's output to its input: is there a torch.no_grad, an inference mode, a detach, an "
                "argmax or a quantized layer in between?"
            )
        return logits

    @contextmanager
    def _on_copies(self, parameters: Mapping[str, Tensor] | None, constant: bool, track: bool) -> Iterator[None]:
        """Within it layers hold other tensors in place of their own, as `__call__` says.

        `torch.func.functional_call` would look each up by its name, in every pass: 0.05 ms more for an MLP, whose pass takes 3.
        """
        others = [] if track else [(buffer.clone(), places) for buffer, places in self._buffers]
        if parameters is not None:
            others += self._by_name(parameters)
        elif constant:
            others += [(weight.detach(), places) for weight, places in _places(layer._parameters for layer in self._own)]
        others = [(held, name, tensor) for tensor, places in others for held, name in places if name in held]
        own = [(held, name, held[name]) for held, name, _ in others]
        with nullcontext() if track else self._kept():
            try:
                _hold(others)
                yield
            finally:
                _hold(own)

    def _by_name(self, parameters: Mapping[str, Tensor]) -> list[tuple[Tensor, Places]]:
        """Tensors for the module's own of these names, each with the places of that one."""
        assert self.module is not None
        inner = unwrapped(self.module)
        names = {id(own): name for name, own in (*inner.named_parameters(), *inner.named_buffers())}
        if unknown := parameters.keys() - names.values():
            raise ValueError(
                f"{type(self.module).__name__} has no weights by the names {', '.join(sorted(unknown))}: they are another module's"
            )
        places = _places(held for layer in self._layers for held in (layer._parameters, layer._buffers))
        return [(parameters[names[id(own)]], where) for own, where in places if names.get(id(own)) in parameters]

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """After it layers have their buffers, and in plain attributes their state (a hidden one, losses, a length seen), from before."""
        before = [_Kept(layer) for layer in self._keepers]
        try:
            yield
        finally:
            # With other parts than before the pass has built a layer, and what says so must stay.
            if before and _parts(self._roots) == self._parts:
                for kept in before:
                    kept.put_back()


def _places(tensors: Iterable[Held]) -> list[tuple[Tensor, Places]]:
    """Each tensor that layers hold, with its places: tied weights have several."""
    places: dict[int, tuple[Tensor, Places]] = {}
    for held in tensors:
        for name, tensor in held.items():
            if not (tensor is None or is_lazy(tensor)):
                places.setdefault(id(tensor), (tensor, []))[1].append((held, name))
    return list(places.values())


def _hold(tensors: Iterable[tuple[Held, str, Tensor | None]]) -> None:
    for held, name, tensor in tensors:
        held[name] = tensor


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside what `DistributedDataParallel` and `torch.compile` put around it: its weights have the same names in both."""
    while True:
        inner = module.module if isinstance(module, DistributedDataParallel) else module._modules.get("_orig_mod")
        if inner is None:
            return module
        module = inner


def _synchronised(wrapper: DistributedDataParallel, x: Tensor, track: bool) -> Any:
    """The wrapper's output: a pass that trains goes through it, for its processes average only what it was told to expect.

    Buffers of the first process are not sent to the others unless `track`: the pass has copies, and is to leave the buffers alone.
    """
    before = wrapper.broadcast_buffers
    wrapper.broadcast_buffers = before and track
    try:
        return wrapper(x)
    finally:
        wrapper.broadcast_buffers = before


def _behind(forward: Forward) -> nn.Module | None:
    """The module that a function is: itself, one of its methods, a `functools.partial` of either."""
    while isinstance(forward, partial):
        forward = forward.func
    owner = getattr(forward, "__self__", forward)
    return owner if isinstance(owner, nn.Module) else None


def _used_by(function: Forward) -> list[nn.Module]:
    """The modules that a function is seen to use: among its defaults, what it closes over and its globals, or in an attribute of these."""
    seen: list[Any] = []
    while isinstance(function, partial):
        seen += (*function.args, *function.keywords.values())
        function = function.func
    seen.append(getattr(function, "__self__", function))
    if inspect.isfunction(function):
        seen += (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
        seen += (function.__globals__[name] for name in _globals(function.__code__) if name in function.__globals__)
        for cell in function.__closure__ or ():
            with suppress(ValueError):  # an empty one
                seen.append(cell.cell_contents)
    things = (thing for thing in seen if not issubclass(type(thing), NO_HOLDERS))
    inside = (held for thing in things for held in getattr(thing, "__dict__", {}).values())
    # One that cannot run on copies is called as it is; a weak reference only looks like a module.
    modules = (part for part in (*seen, *inside) if issubclass(type(part), nn.Module) and not isinstance(part, NOT_ON_COPIES))
    return list(dict.fromkeys(modules))


@lru_cache(maxsize=256)
def _globals(code: CodeType) -> frozenset[str]:
    """The names of the globals that a function reads."""
    return frozenset(done.argval for done in dis.get_instructions(code) if done.opname == "LOAD_GLOBAL")


def _forgets(part: nn.Module) -> bool:
    """Whether a pass surely leaves nothing in its plain attributes: torch's own layers do not, unless a hook does it for them."""
    if isinstance(part, torch.jit.ScriptModule):  # keeps nothing that Python sees
        return True
    return type(part).__module__.startswith("torch.nn.modules.") and not (part._forward_pre_hooks or part._forward_hooks)


def _parts(roots: Iterable[nn.Module]) -> list[tuple[nn.Module, list[str]]]:
    """The layers of networks, each with the names of its parameters that are there."""
    layers = (layer for root in roots for layer in root.modules())
    return [(layer, [name for name, p in layer._parameters.items() if not (p is None or is_lazy(p))]) for layer in layers]


class _Kept:
    """What a layer keeps at a time, apart from the values of its buffers."""

    def __init__(self, layer: nn.Module):
        self.layer = layer
        self.buffers = layer._buffers.copy()
        self.attributes = {name: vars(layer)[name] for name in vars(layer).keys() - OF_EVERY_MODULE}
        # Thousands of entries are a table, a vocabulary perhaps, and no state.
        held = [held for held in self.attributes.values() if type(held) in (list, dict, set) and len(held) < 1000]
        self.contents = [(some, some.copy()) for some in held]

    def put_back(self) -> None:
        buffers, now = self.layer._buffers, vars(self.layer)
        for name in buffers.keys() - self.buffers.keys():
            del buffers[name]
        buffers |= {name: None for name, buffer in self.buffers.items() if buffer is None}
        for name in now.keys() - OF_EVERY_MODULE - self.attributes.keys():
            if isinstance(now[name], STATE):
                del now[name]
        now |= {name: old for name, old in self.attributes.items() if isinstance(old, STATE) and isinstance(now.get(name), STATE)}
        for held, contents in self.contents:
            held.clear()
            held.extend(contents) if isinstance(held, list) else held.update(contents)


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


def is_divided(module: nn.Module | None) -> bool:
    """Whether FSDP2 has divided its weights, or those of a part, among the processes, which must then call it together."""
    kinds = set() if module is None else set(map(type, module.modules()))
    return any(base.__name__ == "FSDPModule" for kind in kinds for base in kind.__mro__)  # by name, for its import takes a second
