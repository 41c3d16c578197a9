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
    # Without torch._dynamo nothing is compiled, and its import would take a second.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


class _CheaperRules(TorchFunctionMode):
    """Apply the rules below to linear layers, convolution and batch norm of a dual number."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
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


_RULES: dict[Any, Callable[..., tuple[Tensor, Tensor]]] = {
    **dict.fromkeys((F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), _linear),
    F.batch_norm: _batch_norm,
}
