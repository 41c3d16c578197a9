"""Random perturbations as a control: smoothness along random directions."""

from vat.functional import Divergence
from vat.norms import Norm
from vat.regularizers.vat import VAT


class RandomPerturbation(VAT):
    """Random perturbation training (RPT in Miyato et al.): VAT with a random r of length ε. Cost: 4 F.

        >>> _ = torch.manual_seed(0)
        >>> model, x = nn.Linear(100, 3), torch.randn(8, 100)
        >>> bool(RandomPerturbation(eps=1.0)(model, x) < VAT(eps=1.0)(model, x))
        True

    Args:
        eps: Radius ε of the perturbation, in the units of `x`.
        norm: Norm of r, as for `VAT`.
        per: Unit of the norm, as for `VAT`.
        divergence: Divergence of the predictions, as for `VAT`.
        weight: Factor of the penalty.
        ramp_up: Number of optimizer steps over which the weight rises.
    """

    def __init__(
        self,
        eps: float,
        *,
        norm: str | Norm = "l2",
        per: str = "example",
        divergence: str | Divergence = "categorical",
        weight: float = 1.0,
        ramp_up: int = 0,
    ):
        super().__init__(eps, direction="random", norm=norm, per=per, divergence=divergence, weight=weight, ramp_up=ramp_up)
