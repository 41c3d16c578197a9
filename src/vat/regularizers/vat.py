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

    Miyato et al., arXiv 1507.00677 and 1704.03976. VAT does not use labels. By default neither r nor the target p(y|x) carries a gradient.
    Cost in forward passes F of the batch: 4 F plus the direction's.

    For outputs with positions (tags, nodes), `direction="finite_difference"` had a lower mean error than the default in both cases tried
    (n = 5): 12.0 against 25.9 % in examples/graph_nodes.py, 0.7 against 4.6 % in examples/sequence_tagging.py.

        >>> model, x, y = nn.Linear(4, 3), torch.randn(8, 4), torch.arange(8) % 3
        >>> vat = VAT(eps=2.0)
        >>> loss = F.cross_entropy(model(x), y) + vat(model, x)
        >>> loss.backward()

    Args:
        eps: Radius ε, in the units of the perturbed tensor, >= 0. At 0 the penalty is 0.
        direction: Method that finds r: a name in `vat.directions.DIRECTIONS`, or a function as described there. If None, "random_margin"
            for outputs with decisions, otherwise "finite_difference".
        num_power_iterations: Iterations of the direction's search, or steps of its ascent; the direction's default if None.
        xi: Length of the finite differences' probe, as a share of the examples' mean length; the direction's default if None.
        choose_sign: Whether to take the better of +r and -r, for 2 F more: an eigenvector has no sign.
        gradient_through_r: Whether the gradient also flows through r, which depends on the parameters.
        gradient_through_target: Whether the gradient also flows through the target p(y|x).
        norm: Norm of r: "l2", "linf", or a `vat.norms.Norm`.
        per: Unit whose r has norm ε: each "example", each "token" (a vector along the last dimension), or each "input" of several.
        divergence: "categorical" (softmax; a single logit is a Bernoulli), "bernoulli" (multi-label), "gaussian", or a
            `vat.functional.Divergence`.
        eps_start: Radius at the start, which moves linearly to `eps`; `eps` from the start if None.
        eps_steps: Optimizer steps of this move. Your own loop must call `on_optimizer_step_end` after each step.
        weight: Factor of the penalty.
        ramp_up: Optimizer steps over which the weight rises.
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
            raise ValueError(f"eps_start={eps_start} and eps_steps={eps_steps} go together: give the first radius and the steps to eps")
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
        chosen = getattr(self.direction, "__name__", self.direction)
        if self.direction in ACROSS_A_BOUNDARY and not self.divergence.decides:
            others = ", ".join(name for name, function in DIRECTIONS.items() if function not in ACROSS_A_BOUNDARY)
            wrong = type(self.divergence).__name__
            raise ValueError(f"direction={chosen} needs outputs with decisions, got divergence {wrong}: choose one of {others}")
        for name, value in self._options().items():
            if name not in options_of(self.direction):
                others = ", ".join(known for known, function in DIRECTIONS.items() if name in options_of(function))
                raise ValueError(f"direction={chosen} takes no {name}, got {value}: leave {name} out, or choose one of {others}")

    def _options(self) -> dict[str, Any]:
        """Options of the direction's search that the user set."""
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
            RuntimeError: If torch.inference_mode is on, which has no gradients.
        """
        if torch.is_inference_mode_enabled() and self.direction is not random:
            raise RuntimeError(
                "r needs a gradient, and inference mode has none: pass inference_mode=False to the Trainer, or measure with "
                "local_distributional_smoothness"
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
        """Mean divergence between the clean and the perturbed prediction."""
        r = self.virtual_adversarial_perturbation(step)
        warn_of_rounding(step, r)
        clean = step.clean.logits if self.gradient_through_target else step.target
        perturbed = step.network(step.inputs + r)
        value = step.divergence(self.divergence)(clean, perturbed)
        if step.report is not None:
            step.report |= self._diagnose(step, clean.detach(), perturbed.detach(), value.detach(), r.detach())
        return step.mean(value)

    def first_call(self, step: Step) -> None:
        """Look for causes of a wrong number: passes that differ without r, misread outputs, a wrong derivative, too little precision.

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
        """Compute the values that `vat.evaluation.diagnosis` interprets. 7 F."""
        eps, divergence, norm = step.radius(self.current_eps), step.divergence(self.divergence), step.norm(self.norm, self.per)

        def at(p: Tensor) -> Tensor:
            return step.mean(divergence(clean, step.network(step.x + p, constant=True)))

        found = {
            "lds": step.mean(value),
            "kl_at_zero": at(torch.zeros_like(step.x)),
            "kl_random": at(eps * norm.sample(step.normal("diagnosis")).to(step.x.dtype)),
        }
        if self.current_eps:  # one more step of length ε from r along the gradient
            d = (r / eps).nan_to_num(nan=0.0)  # a scale may be 0
            further = norm.project(d + norm.dual(gradient(step, divergence, r), otherwise=d), 1.0)
            found["kl_ascent"] = at(eps * further)
            one_length = isinstance(self.norm, L2) and self.per == "example" and step.group is None
            if one_length and not coarse(step.x, clean, step.module):  # in coarse precision, finite differences are noise
                product = hessian_product(step, divergence, norm, d)
                found["curvature"] = step.mean(flat(d * product).sum(1))
                found["cosine"] = step.mean(flat(d * norm.dual(product, otherwise=d)).sum(1))
        before, after = divergence.decision(clean), divergence.decision(perturbed)
        if before is not None and after is not None:
            found["flip_rate"] = _share(before != after, step.mask_of(clean))
            found["margin"] = step.mean(divergence.margin(clean))
        return {f"{self.name}/{name}": value for name, value in found.items()}


def _share(flips: Tensor, mask: Tensor | None) -> Tensor:
    """Share of the decisions that flip, of positions (N, …) or of each output (N, C, …), among those that count."""
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
    """LDS as a measure: D[p(y|x) ‖ p(y|x + r)] at the r that the search finds, for each example; >= 0, small if the model is smooth.

    The papers monitor it with five power iterations. Here the sign of r is chosen too, because only half of all eigenvectors point to
    where the divergence rises most. To measure a model, put it into `eval()` mode first. Autocast and cuDNN's TF32 are off during the
    measure: finite differences are noise in them.

        >>> local_distributional_smoothness(nn.Linear(4, 3), torch.randn(8, 4), eps=2.0).shape
        torch.Size([8])

    Args:
        forward: Function x -> logits (N, …): a module, a method of one, a `functools.partial` of these, or any function with its `module`.
        x: Inputs (N, …).
        eps: Radius, in the units of x.
        direction: Method that finds r.
        num_power_iterations: Iterations of the search; if None, 5 for a search that iterates.
        norm: Norm of r.
        per: Unit whose r has norm ε, as for `VAT`.
        divergence: Divergence between the predictions.
        module: Module that another function uses, a list of several, or `()` if there is none.
        key: Key of the random direction from which the search starts; a new one if None.
        **of_step: Further arguments of `Step`: `at`, `mask`, `output_mask`, `class_dim`, `group`, `scale`. With several processes also
            `start`, the position of the first row in the global batch, and `total`, the rows of that batch: random directions follow them.

    Returns:
        Divergence of each example (N,), in nats for the KL divergences.
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
    with torch.inference_mode(False), full_precision(device):  # Lightning validates and tests in inference mode
        step = Step(forward, x, module=module, key=key, **of_step)
        measure.through_checkpoints(measure.first_call, step)
        r = measure.through_checkpoints(measure.virtual_adversarial_perturbation, step)
        with torch.no_grad():
            return step.divergence(measure.divergence)(step.target, step.network(step.x + r, constant=True))
