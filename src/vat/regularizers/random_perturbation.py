"""The control: smoothness along random directions."""

from vat.functional import Divergence
from vat.norms import Norm
from vat.regularizers.vat import VAT


class RandomPerturbation(VAT):
    """Random perturbation training (RPT in Miyato et al.): VAT with a random r of length ε. 4 F.

        >>> _ = torch.manual_seed(0)
        >>> model, x = nn.Linear(100, 3), torch.randn(8, 100)
        >>> bool(RandomPerturbation(eps=1.0)(model, x) < VAT(eps=1.0)(model, x))
        True

    Args:
        eps: radius ε, in the units of the tensor that is handed in.
        norm: of r, as for `VAT`.
        per: as for `VAT`.
        divergence: as for `VAT`.
        weight: factor of the penalty.
        ramp_up: optimizer steps over which the weight rises.
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
