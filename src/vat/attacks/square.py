"""Random search that uses only logits."""

import torch
from torch import Tensor

from vat.attacks.base import Attack, at_least_one, each
from vat.attacks.losses import logit_difference
from vat.attacks.threat import Threat
from vat.functional import as_classes
from vat.network import Forward
from vat.norms import LInf


class Square(Attack):
    """Random search that uses only logits (Andriushchenko et al., arXiv 1912.00049): it changes random windows of the image.

    Inputs that are not images (N, C, H, W) count as one row of pixels. In L2 a window takes the length of another window, as in the paper.
    The pattern in the window is constant. The paper's pattern is a bump.

    Args:
        queries: Largest number of passes, >= 1.
        window: Share of the pixels in the first window, > 0 and <= 1. It decreases as in the paper.
    """

    white_box = False

    def __init__(self, *, queries: int = 1000, window: float = 0.8):
        self.queries = at_least_one("queries", queries)
        if not 0 < window <= 1:
            raise ValueError(f"window must be > 0 and <= 1, got {window}")
        self.window = window

    def __call__(self, network: Forward, x: Tensor, y: Tensor, threat: Threat, generator: torch.Generator) -> Tensor:
        found, rows = x.clone(), torch.arange(len(x), device=x.device)
        images = x if x.dim() == 4 else x.reshape(len(x), 1, 1, -1)
        stripes = self._signs((len(x), images.shape[1], 1, images.shape[3]), x, generator).expand_as(images)
        best = threat.nearest(x, x + threat.eps * threat.norm.dual(stripes.reshape(x.shape), x))
        lead = torch.full((len(x),), -torch.inf, dtype=torch.float64, device=x.device)
        candidate = best
        for query in range(self.queries):
            with torch.no_grad():
                ahead = logit_difference(as_classes(network(candidate)).double(), y[rows])
            better = ahead > lead
            best, lead = torch.where(each(better, best), candidate, best), torch.where(better, ahead, lead)
            misclassified = lead > 0
            found[rows[misclassified]] = best[misclassified]
            rows, best, lead = rows[~misclassified], best[~misclassified], lead[~misclassified]
            if not len(rows):
                break
            change = self._change_linf if isinstance(threat.norm, LInf) else self._change_l2
            size = self._size(query, *images.shape[2:])
            moved = change((best - x[rows]).reshape(len(rows), *images.shape[1:]), size, threat.eps, generator)
            candidate = threat.nearest(x[rows], x[rows] + moved.reshape(best.shape))
        return found

    def _size(self, query: int, height: int, width: int) -> tuple[int, int]:
        halvings = sum(query / self.queries * 10_000 > bound for bound in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000))
        area = self.window / 2**halvings * height * width
        rows = min(height, max(1, round(area**0.5)))
        return rows, min(width, max(1, round(area / rows)))

    def _change_linf(self, delta: Tensor, size: tuple[int, int], eps: float, generator: torch.Generator) -> Tensor:
        window = self._window(delta, size, generator)
        delta = delta.clone()
        delta[window] = eps * self._signs((len(delta), delta.shape[1], 1, 1), delta, generator).expand_as(delta[window])
        return delta

    def _change_l2(self, delta: Tensor, size: tuple[int, int], eps: float, generator: torch.Generator) -> Tensor:
        to, of = self._window(delta, size, generator), self._window(delta, size, generator)
        emptied = delta.clone()
        emptied[to] = emptied[of] = 0
        free = (eps**2 - emptied.square().sum((1, 2, 3), keepdim=True)).clamp(min=0) / delta.shape[1]  # for each channel
        old = delta[to] / delta[to].square().sum((2, 3), keepdim=True).sqrt().clamp(min=1e-12)
        pattern = old + self._signs((len(delta), delta.shape[1], 1, 1), delta, generator) / (size[0] * size[1]) ** 0.5
        emptied[to] = pattern / pattern.square().sum((2, 3), keepdim=True).sqrt().clamp(min=1e-12) * free.sqrt()
        return emptied

    def _window(self, delta: Tensor, size: tuple[int, int], generator: torch.Generator) -> tuple[slice, ...]:
        corner = [
            int(torch.randint(d - s + 1, (), generator=generator, device=delta.device)) for d, s in zip(delta.shape[2:], size, strict=True)
        ]
        return slice(None), slice(None), *(slice(c, c + s) for c, s in zip(corner, size, strict=True))

    def _signs(self, shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
        return torch.randint(2, shape, generator=generator, device=like.device).to(like.dtype) * 2 - 1
