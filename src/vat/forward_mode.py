"""J d in one forward pass with dual numbers. Some rules replace torch's, because torch's cost more.

Torch's rules for a convolution (pytorch/pytorch#69687) and a linear layer also compute the term of the derivative of the weights, which is
zero. Torch's rule for batch norm is a chain of operators over the complete activation.
"""

import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode


def jacobian_vector_product(function: Callable[[Tensor], Tensor], x: Tensor, d: Tensor) -> Tensor | None:
    """J d (N, …) with J = ∂function/∂x at x, without a graph. `d` has the shape of `x`. Cost 2 F, including the function's value.

    The result is None if an operator has no forward derivative, or the function's result has none. It is also None if `x` is empty,
    because batch norm of an empty dual number kills the process (torch 2.13).
    """
    if not x.numel():
        return None
    try:
        # The math backend, because fused attention has no forward derivative.
        with torch.no_grad(), forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH), _as_written(), _CheaperRules():
            return forward_ad.unpack_dual(function(forward_ad.make_dual(x, d.to(x)))).tangent
    except (NotImplementedError, RuntimeError):  # torch raises one or the other if a rule is missing
        return None


def _as_written() -> AbstractContextManager[Any]:
    """Run compiled code uncompiled within the block. Compiled code drops derivatives, or keeps those of overwritten tensors."""
    if torch.compiler.is_compiling():  # a caller of this, which then is not compiled either
        raise RuntimeError("derivatives by dual numbers are not compiled")
    # Without torch._dynamo nothing is compiled, and its import would take a second.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


class _CheaperRules(TorchFunctionMode):
    """Apply the rules below to linear layers, convolution, batch norm and LSTM of a dual number."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.lstm and _is_dual(args[0]):
            return _lstm(*args)
        rule = _RULES.get(func)
        if rule is None or not args or any(map(_is_dual, (*args[1:], *kwargs.values()))) or not _is_dual(args[0]):
            return func(*args, **kwargs)
        return forward_ad.make_dual(*rule(func, *forward_ad.unpack_dual(args[0]), *args[1:], **kwargs))


def _is_dual(value: Any) -> bool:
    return isinstance(value, Tensor) and forward_ad.unpack_dual(value).tangent is not None


def _linear(
    func: Any, x: Tensor, tangent: Tensor, weight: Tensor, bias: Tensor | None = None, *options: Any, **named: Any
) -> tuple[Tensor, Tensor]:
    return func(x, weight, bias, *options, **named), func(tangent, weight, None, *options, **named)


def _batch_norm(
    func: Any,
    x: Tensor,
    tangent: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """Rule of batch norm. Its Jacobian is symmetric, so the operator for the gradient also gives the forward derivative."""
    statistics = (weight, running_mean, running_var)
    value, mean, inverse = torch.native_batch_norm(x, weight, bias, running_mean, running_var, training, momentum, eps)
    product = torch.ops.aten.native_batch_norm_backward(tangent, x, *statistics, mean, inverse, training, eps, [True, False, False])[0]
    return value, product


def _lstm(*arguments: Any) -> Any:
    """Of an unpacked batch x: oneDNN's has no rule, so its J d came by a second derivative at four times the time."""
    x, hx, weights, has_biases, num_layers, dropout, train, bidirectional, *layout = arguments
    sides, tensors = (2 if bidirectional else 1), (4 if has_biases else 2)
    packed = isinstance(hx, Tensor)
    if packed or len(weights) != num_layers * sides * tensors or (num_layers > 1 and dropout and train) or any(map(_is_dual, hx)):
        return torch.lstm(*arguments)
    (batch_first,) = layout
    value, tangent = forward_ad.unpack_dual(x)
    assert tangent is not None
    both = torch.stack([value, tangent])
    both = both.permute(2, 0, 1, 3) if batch_first else both.transpose(0, 1)  # (T, 2, N, D)
    last = []
    for layer in range(num_layers):
        outputs = []
        for number in range(layer * sides, (layer + 1) * sides):
            w_ih, w_hh, *biases = weights[number * tensors : (number + 1) * tensors]
            through_input = F.linear(both, w_ih)
            if biases:
                through_input[:, 0] += biases[0] + biases[1]
            h, c = (torch.stack([state[number], torch.zeros_like(state[number])]) for state in hx)
            order, steps = (-1 if number % sides else 1), []
            for gates in through_input.unbind()[::order]:
                h, c = _lstm_cell(torch.addmm(gates.flatten(0, 1), h.flatten(0, 1), w_hh.t()).view_as(gates), c)
                steps.append(h)
            last.append((h, c))
            outputs.append(torch.stack(steps[::order]))
        both = torch.cat(outputs, -1)
    results = [both.transpose(0, 1), *(torch.stack(states, 1) for states in zip(*last, strict=True))]
    output, h_n, c_n = (forward_ad.make_dual(*pair) for pair in results)
    return output.transpose(0, 1) if batch_first else output, h_n, c_n


def _lstm_cell(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """H and c, each with its tangent (2, N, H), from the gates (2, N, 4 H) and the c before."""
    gate, d_gate = gates
    c, dc = c
    size = c.shape[1]
    opened, g = gate.sigmoid(), gate[:, 2 * size : 3 * size].tanh()
    i, f, _, o = opened.chunk(4, 1)
    di, df, dg, do = (d_gate * (opened - opened.square())).chunk(4, 1)
    dg = d_gate[:, 2 * size : 3 * size] * (1 - g.square())
    dc = f * dc + df * c + i * dg + di * g
    c = f * c + i * g
    t = c.tanh()
    return torch.stack([o * t, do * t + o * (1 - t.square()) * dc]), torch.stack([c, dc])


_RULES: dict[Any, Callable[..., tuple[Tensor, Tensor]]] = {
    **dict.fromkeys((F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), _linear),
    F.batch_norm: _batch_norm,
}
