"""Virtual adversarial training."""

import inspect

import torch
from torch import Tensor, nn

from vat.directions import ACROSS_A_BOUNDARY, DIRECTIONS, Direction, gradient, hessian_product, random
from vat.functional import DIVERGENCES, L2, NORMS, Divergence, Norm, by_name, flat
from vat.precision import coarse, full_precision
from vat.regularizers.base import Regularizer, mean, not_negative
from vat.step import Forward, Key, Step

UNSET = {"num_power_iterations": 1, "xi": None}
"""Options of a direction's search, by the value at which the direction's own default holds."""


class VAT(Regularizer):
    """Local distributional smoothness: the mean of D[p(y|x) ‖ p(y|x + r)] at the r within ‖r‖ ≤ ε that changes the prediction most.

    Miyato et al., arXiv 1507.00677 and 1704.03976. Labels are not used. Neither r nor the target p(y|x) carries a gradient, unless asked
    to. Cost in forward passes F of the batch: 4 F and the direction's.

        vat = VAT(eps=2.0)
        loss = F.cross_entropy(model(x), y) + vat(model, x)

    Args:
        eps: radius ε, in the units of the tensor that is handed in; 0 gives a penalty of 0.
        direction: how r is found: a name in `vat.directions.DIRECTIONS`, or a function of that signature. If None, "random_margin"
            where the output decides something, otherwise "finite_difference".
        num_power_iterations: iterations of the direction's search, or steps of its ascent; a function's own default if 1.
        xi: length of the finite differences' probe, as a share of the examples' mean length; the direction's own choice if None.
        choose_sign: take the better of +r and -r, for 2 F more: an eigenvector has no sign.
        gradient_through_r: let the gradient flow through r's dependence on the parameters too.
        gradient_through_target: let it flow through the target p(y|x) too.
        norm: of r: "l2", "linf", or a `vat.functional.Norm`.
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
        num_power_iterations: int = 1,
        xi: float | None = None,
        choose_sign: bool = False,
        gradient_through_r: bool = False,
        gradient_through_target: bool = False,
        norm: str | Norm = "l2",
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
        if num_power_iterations < 1:
            raise ValueError(f"num_power_iterations must be >= 1, got {num_power_iterations}")
        if xi is not None and not 0 < xi < float("inf"):
            raise ValueError(f"xi must be a finite number > 0, got {xi}")
        self.norm = by_name("norm", NORMS, norm)
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
        taken = inspect.signature(self.direction).parameters
        for name, unset in UNSET.items():
            if name not in taken and (value := getattr(self, name)) != unset:
                chosen = getattr(self.direction, "__name__", self.direction)
                others = ", ".join(n for n, function in DIRECTIONS.items() if name in inspect.signature(function).parameters)
                raise ValueError(f"direction {chosen} takes no {name}, got {value}: leave it at {unset}, or choose one of {others}")
        self._takes_eps = "eps" in taken
        self._required = [name for name in UNSET if name in taken and taken[name].default is inspect.Parameter.empty]

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
            options = {name: value for name, unset in UNSET.items() if (value := getattr(self, name)) != unset or name in self._required}
            if self._takes_eps:
                options["eps"] = self.current_eps
            d = self.direction(step, self.divergence, self.norm, create_graph=self.gradient_through_r, **options)
            if self.choose_sign:
                d = d * self._better_sign(step, d)
        return self.current_eps * d

    def penalty(self, step: Step) -> Tensor:
        """Mean divergence of the perturbed from the clean prediction."""
        r = self.virtual_adversarial_perturbation(step)
        clean = step.clean.logits if self.gradient_through_target else step.target
        perturbed = step.network(step.inputs + r)
        value = self.divergence(clean, perturbed)
        if step.report is not None:
            step.report |= self._diagnose(step, clean.detach(), perturbed.detach(), value.detach(), r.detach())
        return mean(value)

    def _better_sign(self, step: Step, d: Tensor) -> Tensor:
        with torch.no_grad():
            plus, minus = (
                self.divergence(step.target, step.network(step.x + sign * self.current_eps * d, constant=True)) for sign in (1, -1)
            )
        return torch.where(plus >= minus, 1, -1).to(d.dtype).view(-1, *[1] * (d.dim() - 1))

    @torch.no_grad()
    def _diagnose(self, step: Step, clean: Tensor, perturbed: Tensor, value: Tensor, r: Tensor) -> dict[str, Tensor]:
        """Is it working? See `vat.evaluation.diagnosis`, which reads these. 7 F."""
        eps, divergence, norm = self.current_eps, self.divergence, self.norm

        def at(p: Tensor) -> Tensor:
            return mean(divergence(clean, step.network(step.x + p, constant=True)))

        found = {
            "lds": mean(value),
            "kl_at_zero": at(torch.zeros_like(step.x)),
            "kl_random": at(eps * norm.sample(step.normal("diagnosis")).to(step.x.dtype)),
        }
        if eps:  # from r one more step along the gradient, as long as ε
            d = r / eps
            further = norm.project(d + norm.dual(gradient(step, divergence, r), otherwise=d), 1.0)
            found["kl_ascent"] = at(eps * further)
            if isinstance(norm, L2) and not coarse(step.x, clean, step.module):  # there a finite difference is noise
                product = hessian_product(step, divergence, norm, d)
                found["curvature"] = mean(flat(d * product).sum(1))
                found["cosine"] = mean(flat(d * norm.dual(product, otherwise=d)).sum(1))
        before, after = divergence.decision(clean), divergence.decision(perturbed)
        if before is not None and after is not None:
            found["flip_rate"] = (before != after).float().mean()
            found["margin"] = mean(divergence.margin(clean))
        return {f"{self.name}/{name}": value for name, value in found.items()}


def local_distributional_smoothness(
    forward: Forward,
    x: Tensor,
    *,
    eps: float,
    direction: str | Direction = "finite_difference",
    num_power_iterations: int | None = None,
    norm: str | Norm = "l2",
    divergence: str | Divergence = "categorical",
    module: nn.Module | None = None,
    key: Key | None = None,
    start: int = 0,
    total: int | None = None,
) -> Tensor:
    """LDS as a measure: D[p(y|x) ‖ p(y|x + r)] at the r that is found, for each example; >= 0, small where the model is smooth.

    The papers monitor it with five power iterations; the sign of r is chosen as well here, since only half of all eigenvectors
    point to where the divergence rises most. The module's mode is the caller's: put it into `eval()` to measure a model. Autocast is
    off meanwhile, and so is cuDNN's TF32: finite differences are noise in them.

    Args:
        forward: x -> logits (N, …); a module or any function.
        x: inputs (N, …).
        eps: radius, in the units of x.
        direction: how r is found.
        num_power_iterations: iterations of that search; 5 where it iterates if None.
        norm: of r.
        divergence: between the predictions.
        module: the module behind a bare function.
        key: of the random direction the search starts from; a fresh one if None.
        start: place of the first row in the batch of all processes, from which its random direction follows.
        total: rows of that batch; N if None.

    Returns:
        (N,), in nats for the KL divergences.
    """
    direction = by_name("direction", DIRECTIONS, direction)
    iterates = "num_power_iterations" in inspect.signature(direction).parameters
    measure = VAT(
        eps,
        direction=direction,
        num_power_iterations=num_power_iterations if num_power_iterations is not None else 5 if iterates else 1,
        choose_sign=True,
        norm=norm,
        divergence=divergence,
    )
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.promote_types(x.dtype, torch.float32))
    with torch.inference_mode(False), full_precision(x.device):  # Lightning's validation and test allow no gradients otherwise
        step = Step(forward, x, module=module, key=key, start=start, total=total)
        r = measure.virtual_adversarial_perturbation(step)
        with torch.no_grad():
            return measure.divergence(step.target, step.network(step.x + r, constant=True))
