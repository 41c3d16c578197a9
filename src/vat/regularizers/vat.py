"""Virtual adversarial training."""

from typing import Any

import torch
from torch import Tensor

from vat.calls import Perturbed
from vat.checks import first_time, warn_of_hidden_half, warn_of_misread_outputs, warn_of_passes_that_differ, warn_of_rounding
from vat.directions import (
    ACROSS_A_BOUNDARY,
    DIRECTIONS,
    Direction,
    exact,
    finite_difference,
    gradient,
    hessian_product,
    inside,
    options_of,
    random,
    refuse_wrong_derivative,
)
from vat.functional import DIVERGENCES, Divergence, by_name, flat
from vat.network import Forward, Modules
from vat.norms import L2, NORMS, Norm
from vat.precision import coarse, full_precision
from vat.regularizers.base import Regularizer, not_negative
from vat.step import PER, Key, Step


class VAT(Regularizer):
    """Local distributional smoothness: the mean of D[p(y|x) ‖ p(y|x + r)] at the r within ‖r‖ ≤ ε that changes the prediction most.

    Miyato et al., arXiv 1507.00677 and 1704.03976. Labels are not used. Neither r nor the target p(y|x) carries a gradient, unless asked
    to. Cost in forward passes F of the batch: 4 F and the direction's.

        >>> model, x, y = nn.Linear(4, 3), torch.randn(8, 4), torch.arange(8) % 3
        >>> vat = VAT(eps=2.0)
        >>> loss = F.cross_entropy(model(x), y) + vat(model, x)
        >>> loss.backward()

    Args:
        eps: radius ε, in the units of the tensor that is handed in; 0 gives a penalty of 0.
        direction: how r is found: a name in `vat.directions.DIRECTIONS`, or a function as described there. If None, "random_margin"
            where the output decides something, otherwise "finite_difference".
        num_power_iterations: iterations of the direction's search, or steps of its ascent; the direction's own choice if None.
        xi: length of the finite differences' probe, as a share of the examples' mean length; the direction's own choice if None.
        choose_sign: take the better of +r and -r, for 2 F more: an eigenvector has no sign.
        gradient_through_r: let the gradient flow through r's dependence on the parameters too.
        gradient_through_target: let it flow through the target p(y|x) too.
        norm: of r: "l2", "linf", or a `vat.norms.Norm`.
        per: what has a norm of its own: each "example", each "token" (a vector along the last dimension), or each "input" of several.
        divergence: "categorical" (softmax; a single logit is a Bernoulli), "bernoulli" (multi-label), "gaussian", or a
            `vat.functional.Divergence`.
        eps_start: radius at the start, from which it moves to `eps` linearly; `eps` from the start if None.
        eps_steps: optimizer steps over which it does. A loop of your own calls `on_optimizer_step_end` after each step.
        weight: factor of the penalty.
        ramp_up: optimizer steps over which the weight rises.
    """

    def __init__(
        self,
        eps: float,
        *,
        direction: str | Direction | None = None,
        num_power_iterations: int | None = None,
        xi: float | None = None,
        choose_sign: bool = False,
        gradient_through_r: bool = False,
        gradient_through_target: bool = False,
        norm: str | Norm = "l2",
        per: str = "example",
        divergence: str | Divergence = "categorical",
        eps_start: float | None = None,
        eps_steps: int = 0,
        weight: float = 1.0,
        ramp_up: int = 0,
    ):
        super().__init__(weight=weight, ramp_up=ramp_up)
        self.eps = not_negative("eps", eps)
        self.eps_start = self.eps if eps_start is None else not_negative("eps_start", eps_start)
        self.eps_steps = int(not_negative("eps_steps", eps_steps))
        if (eps_start is None) == bool(self.eps_steps):
            raise ValueError(f"eps_start={eps_start} and eps_steps={eps_steps} need each other: where ε starts, and when it is eps")
        if num_power_iterations is not None and num_power_iterations < 1:
            raise ValueError(f"num_power_iterations must be >= 1, got {num_power_iterations}")
        if xi is not None and not 0 < xi < float("inf"):
            raise ValueError(f"xi must be a finite number > 0, got {xi}")
        self.norm = by_name("norm", NORMS, norm)
        if per not in PER:
            raise ValueError(f"per={per!r} is not known: choose one of {', '.join(PER)}")
        self.per = per
        self.divergence = by_name("divergence", DIVERGENCES, divergence)
        self.choose_sign = choose_sign
        self.gradient_through_r = gradient_through_r
        self.gradient_through_target = gradient_through_target
        self.differentiates_clean_pass = gradient_through_r or gradient_through_target
        self.num_power_iterations = num_power_iterations
        self.xi = xi
        if direction is None:
            direction = "random_margin" if self.divergence.decides else "finite_difference"
        self.direction = by_name("direction", DIRECTIONS, direction)
        if self.direction in ACROSS_A_BOUNDARY and not self.divergence.decides:
            others = ", ".join(name for name, function in DIRECTIONS.items() if function not in ACROSS_A_BOUNDARY)
            raise ValueError(f"{type(self.divergence).__name__} outputs have no decision to change: choose one of the directions {others}")
        for name, value in self._options().items():
            if name not in options_of(self.direction):
                chosen = getattr(self.direction, "__name__", self.direction)
                others = ", ".join(known for known, function in DIRECTIONS.items() if name in options_of(function))
                raise ValueError(f"direction {chosen} takes no {name}, got {value}: leave it out, or choose one of {others}")

    def _options(self) -> dict[str, Any]:
        """The options of the direction's search that are set."""
        options: dict[str, Any] = {"num_power_iterations": self.num_power_iterations, "xi": self.xi}
        return {name: value for name, value in options.items() if value is not None}

    @property
    def current_eps(self) -> float:
        """The radius at this point of the run."""
        if self.num_updates >= self.eps_steps:
            return self.eps
        return self.eps_start + (self.eps - self.eps_start) * self.num_updates / self.eps_steps

    def virtual_adversarial_perturbation(self, step: Step) -> Tensor:
        """The perturbation r (N, …) of the step's inputs: ‖r‖ = ε, the current one, for each example.

        Raises:
            RuntimeError: under torch.inference_mode, where no gradient can be had.
        """
        if torch.is_inference_mode_enabled() and self.direction is not random:
            raise RuntimeError(
                "r is found by a gradient, and there is none under inference mode: give the Trainer inference_mode=False, or measure "
                "by local_distributional_smoothness"
            )
        with torch.set_grad_enabled(self.gradient_through_r):
            options = self._options()
            if "eps" in options_of(self.direction):
                options["eps"] = step.radius(self.current_eps)
            divergence, norm = step.divergence(self.divergence), step.norm(self.norm, self.per)
            d = self.direction(step, divergence, norm, create_graph=self.gradient_through_r, **options)
            if self.choose_sign:
                d = d * self._better_sign(step, d)
        return step.radius(self.current_eps) * d

    def penalty(self, step: Step) -> Tensor:
        """Mean divergence of the perturbed from the clean prediction."""
        r = self.virtual_adversarial_perturbation(step)
        warn_of_rounding(step, r)
        clean = step.clean.logits if self.gradient_through_target else step.target
        perturbed = step.network(step.inputs + r)
        value = step.divergence(self.divergence)(clean, perturbed)
        if step.report is not None:
            step.report |= self._diagnose(step, clean.detach(), perturbed.detach(), value.detach(), r.detach())
        return step.mean(value)

    def first_call(self, step: Step) -> None:
        """Look for what makes a wrong number: passes that differ without r, classes that lie elsewhere, a derivative or bits that lack.

        Raises:
            RuntimeError: If the direction needs a derivative that the network's backward pass does not have.
        """
        if first_time(step, "passes"):
            warn_of_passes_that_differ(step)
        if first_time(step, f"outputs, {self.divergence.decides}"):
            warn_of_misread_outputs(step, classes=self.divergence.decides)
        direction = inside(self.direction)
        through_r = self.gradient_through_r and direction is not random
        if (through_r or direction is exact) and first_time(step, f"derivative, {through_r}"):
            refuse_wrong_derivative(step, create_graph=through_r)
        if direction is finite_difference and not coarse(step.x, step.target, step.module) and first_time(step, "precision"):
            warn_of_hidden_half(step)

    def _better_sign(self, step: Step, d: Tensor) -> Tensor:
        divergence, eps = step.divergence(self.divergence), step.radius(self.current_eps)
        with torch.no_grad():
            plus, minus = (divergence(step.target, step.network(step.x + sign * eps * d, constant=True)) for sign in (1, -1))
        return step.for_rows(torch.where(plus >= minus, 1, -1).to(d.dtype))

    @torch.no_grad()
    def _diagnose(self, step: Step, clean: Tensor, perturbed: Tensor, value: Tensor, r: Tensor) -> dict[str, Tensor]:
        """Is it working? See `vat.evaluation.diagnosis`, which reads these. 7 F."""
        eps, divergence, norm = step.radius(self.current_eps), step.divergence(self.divergence), step.norm(self.norm, self.per)

        def at(p: Tensor) -> Tensor:
            return step.mean(divergence(clean, step.network(step.x + p, constant=True)))

        found = {
            "lds": step.mean(value),
            "kl_at_zero": at(torch.zeros_like(step.x)),
            "kl_random": at(eps * norm.sample(step.normal("diagnosis")).to(step.x.dtype)),
        }
        if self.current_eps:  # from r one more step along the gradient, as long as ε
            d = (r / eps).nan_to_num(nan=0.0)  # a scale may be 0
            further = norm.project(d + norm.dual(gradient(step, divergence, r), otherwise=d), 1.0)
            found["kl_ascent"] = at(eps * further)
            one_length = isinstance(self.norm, L2) and self.per == "example" and step.group is None
            if one_length and not coarse(step.x, clean, step.module):  # there a finite difference is noise
                product = hessian_product(step, divergence, norm, d)
                found["curvature"] = step.mean(flat(d * product).sum(1))
                found["cosine"] = step.mean(flat(d * norm.dual(product, otherwise=d)).sum(1))
        before, after = divergence.decision(clean), divergence.decision(perturbed)
        if before is not None and after is not None:
            found["flip_rate"] = _share(before != after, step.mask_of(clean))
            found["margin"] = step.mean(divergence.margin(clean))
        return {f"{self.name}/{name}": value for name, value in found.items()}


def _share(flips: Tensor, mask: Tensor | None) -> Tensor:
    """The share of decisions, of classes (N, …) or of each output (N, C, …), that flip among those that count."""
    if mask is None:
        return flips.float().mean()
    counted = (mask if flips.dim() == mask.dim() else mask[:, 0]).expand_as(flips)
    return (flips & counted).sum() / counted.sum().clamp(min=1)


def local_distributional_smoothness(
    forward: Forward,
    x: Any,
    *,
    eps: float,
    direction: str | Direction = "finite_difference",
    num_power_iterations: int | None = None,
    norm: str | Norm = "l2",
    per: str = "example",
    divergence: str | Divergence = "categorical",
    module: Modules | None = None,
    key: Key | None = None,
    **of_step: Any,
) -> Tensor:
    """LDS as a measure: D[p(y|x) ‖ p(y|x + r)] at the r that is found, for each example; >= 0, small where the model is smooth.

    The papers monitor it with five power iterations; the sign of r is chosen as well here, since only half of all eigenvectors
    point to where the divergence rises most. The module's mode is the caller's: put it into `eval()` to measure a model. Autocast is
    off meanwhile, and so is cuDNN's TF32: finite differences are noise in them.

        >>> local_distributional_smoothness(nn.Linear(4, 3), torch.randn(8, 4), eps=2.0).shape
        torch.Size([8])

    Args:
        forward: x -> logits (N, …); a module, a method of one, a `functools.partial` of these, or any function with its `module`.
        x: inputs (N, …).
        eps: radius, in the units of x.
        direction: how r is found.
        num_power_iterations: iterations of that search; 5 where it iterates if None.
        norm: of r.
        per: what has a norm of its own, as for `VAT`.
        divergence: between the predictions.
        module: the module that another function uses, a list of several, or `()` if there is none.
        key: of the random direction the search starts from; a fresh one if None.
        **of_step: what else a `Step` takes: `at`, `mask`, `output_mask`, `class_dim`, `group`, `scale`; of several processes `start`, the
            place of the first row in the batch of all of them, from which its random direction follows, and `total`, its rows.

    Returns:
        (N,), in nats for the KL divergences.
    """
    direction = by_name("direction", DIRECTIONS, direction)
    if num_power_iterations is None and "num_power_iterations" in options_of(direction):
        num_power_iterations = 5
    measure = VAT(
        eps,
        direction=direction,
        num_power_iterations=num_power_iterations,
        choose_sign=True,
        norm=norm,
        per=per,
        divergence=divergence,
    )
    device = x.device if isinstance(x, Tensor) else Perturbed(forward, x, of_step.get("at")).device
    if isinstance(x, Tensor) and x.is_floating_point() and torch.is_autocast_enabled(device.type):
        x = x.to(torch.promote_types(x.dtype, torch.float32))
    with torch.inference_mode(False), full_precision(device):  # Lightning's validation and test allow no gradients otherwise
        step = Step(forward, x, module=module, key=key, **of_step)
        measure.through_checkpoints(measure.first_call, step)
        r = measure.through_checkpoints(measure.virtual_adversarial_perturbation, step)
        with torch.no_grad():
            return step.divergence(measure.divergence)(step.target, step.network(step.x + r, constant=True))
