"""J d in one pass forward: dual numbers, with cheaper rules than torch's where its own waste work.

torch's rules for a convolution (pytorch/pytorch#69687) and for a linear layer also apply a derivative of the weights, which is zero, to the
input, and its rule for batch norm is a chain of operators over the whole activation.
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
    """J d (N, …) with J = ∂function/∂x at x, of which `d` has the shape; without a graph. 2 F, the function's own value among them.

    None where that cannot be had: an operator has no forward derivative, the result does not carry one, or x is empty, which
    kills the process in batch norm (torch 2.13).
    """
    if not x.numel():
        return None
    try:
        # Fused attention has no rule.
        with torch.no_grad(), forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH), _as_written(), _CheaperRules():
            return forward_ad.unpack_dual(function(forward_ad.make_dual(x, d.to(x)))).tangent
    except (NotImplementedError, RuntimeError):  # torch raises either where a rule is missing
        return None


def _as_written() -> AbstractContextManager[Any]:
    """Within it what torch.compile has compiled runs uncompiled: compiled code drops derivatives, or keeps those of what it wrote over."""
    if torch.compiler.is_compiling():  # a caller of this, which then is not compiled either
        raise RuntimeError("derivatives by dual numbers are not compiled")
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()  # whose import takes a second


class _CheaperRules(TorchFunctionMode):
    """Linear layers, convolution and batch norm of a dual number by the rules below."""

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
    """Its Jacobian is symmetric: the gradient to the input, a single operator, is the derivative as well."""
    statistics = (weight, running_mean, running_var)
    value, mean, inverse = torch.native_batch_norm(x, weight, bias, running_mean, running_var, training, momentum, eps)
    product = torch.ops.aten.native_batch_norm_backward(tangent, x, *statistics, mean, inverse, training, eps, [True, False, False])[0]
    return value, product


_RULES: dict[Any, Callable[..., tuple[Tensor, Tensor]]] = {
    **dict.fromkeys((F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), _linear),
    F.batch_norm: _batch_norm,
}
