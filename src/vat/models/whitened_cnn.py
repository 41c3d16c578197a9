"""A small convolutional network for colour images that learns in minutes on a CPU.

Two ideas come from the public record runs on CIFAR-10: a fixed whitening first layer, and few wide blocks (K. Jordan, *94% on CIFAR-10 in
3.29 Seconds on a Single GPU*, arXiv 2404.00498). This is a different network, written from the description.
"""

from collections.abc import Sequence
from contextlib import suppress

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vat.models.image_shape import image_channels

PATCH = 2  # pixels, height and width of a whitened patch
EPS = 5e-4  # added to the variance of each direction of standardised pixels: a direction of less variance is noise
LOGIT_SCALE = 1 / 9  # keeps the first softmax soft, because the maximum over a map of unit variance is large


class PatchWhitening(nn.Module):
    """A fixed convolution that makes the values of each 2 × 2 patch uncorrelated and of variance 1.

    Each direction has two filters with opposite signs and learned biases. The filters are a buffer: training does not change them, and a
    checkpoint holds them. Before a call of `fit`, each filter copies one pixel of the patch or its negative.

    Args:
        channels: Number of channels of the images.
    """

    filters: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.size = channels * PATCH**2
        self.bias = nn.Parameter(torch.zeros(2 * self.size))
        self.register_buffer("filters", self._filters(torch.eye(self.size)))

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Compute the filters from images (N, channels, height, width), as this layer receives them."""
        height, width = x.shape[2] - PATCH + 1, x.shape[3] - PATCH + 1
        covariance = torch.zeros(self.size, self.size, dtype=torch.float64)
        for images in x.split(500):  # the patches of 500 images take 50 MB at 32 × 32 pixels
            patches = F.unfold(images.double(), PATCH).transpose(1, 2).reshape(-1, self.size)
            covariance += (patches.T @ patches).cpu()  # moments about 0: standardised images have mean 0
        variances, directions = torch.linalg.eigh(covariance / (len(x) * height * width))
        self.filters.copy_(self._filters((directions / (variances.clamp(min=0) + EPS).sqrt()).T))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels, height, width) to (N, 8 · channels, height, width)."""
        return F.conv2d(F.pad(x, (0, PATCH - 1, 0, PATCH - 1)), self.filters, self.bias)

    def _filters(self, rows: Tensor) -> Tensor:
        rows = rows.float().view(self.size, -1, PATCH, PATCH)
        return torch.cat([rows, -rows])


class WhitenedCNN(nn.Module):
    """Whitened 2 × 2 patches, then blocks of two 3 × 3 convolutions, then the maximum over the positions and a linear layer.

    Each block halves the height and the width after its first convolution. Call `whiten` on training images before training.

    Args:
        input_shape: Shape (channels, height, width) of one image. Height and width are at least 2 to the power of the number of blocks.
        num_classes: Number of logits.
        widths: Channels of each block, from the input to the output.
        mirror: Whether, in evaluation mode, the logits are the mean over the image and its mirror image. This doubles the cost of
            evaluation. Use it only if a mirror image has the same class.

    Raises:
        ValueError: If ``widths`` is out of range, or the images are too small for the blocks.
    """

    def __init__(
        self, input_shape: Sequence[int], num_classes: int, *, widths: Sequence[int] = (64, 256, 256), mirror: bool = False
    ) -> None:
        super().__init__()
        if not widths or min(widths) < 1:
            raise ValueError(f"widths must hold at least one number, each >= 1, got {tuple(widths)}")
        self.whitening = PatchWhitening(image_channels(input_shape, smallest=2 ** len(widths)))
        self.mirror = mirror
        channels = (2 * self.whitening.size, *widths)
        self.blocks = nn.Sequential(*(_block(i, o) for i, o in zip(channels, widths, strict=False)))
        self.head = nn.Linear(widths[-1], num_classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map images of shape (N, channels, height, width) to logits of shape (N, num_classes)."""
        logits = self._logits(x)
        return (logits + self._logits(x.flip(3))) / 2 if self.mirror and not self.training else logits

    def _logits(self, x: Tensor) -> Tensor:
        features = self.blocks(F.gelu(self.whitening(x)))
        return LOGIT_SCALE * self.head(features.amax((2, 3)))


class _ReachedError(Exception):
    """Ends a pass at the whitening layer."""


def whiten(network: nn.Module, x: Tensor) -> None:
    """Compute the whitening layers of a network from training images. A network without such layers does not change.

    Args:
        network: Any module. The images first pass the layers before the whitening, such as a standardisation.
        x: Images (N, channels, height, width) as the network receives them. Labels are not needed.
    """

    def fit(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, PatchWhitening)
        layer.fit(inputs[0])
        raise _ReachedError

    for layer in whitening_layers(network):
        hook = layer.register_forward_pre_hook(fit)
        try:
            with torch.no_grad(), suppress(_ReachedError):
                network(x)
        finally:
            hook.remove()


def whitening_layers(network: nn.Module) -> list[PatchWhitening]:
    """The layers of a network that `whiten` sets."""
    return [module for module in network.modules() if isinstance(module, PatchWhitening)]


def _block(in_channels: int, out_channels: int) -> nn.Sequential:
    block = nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(out_channels),
        nn.GELU(),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.GELU(),
    )
    for layer in block:
        if isinstance(layer, nn.Conv2d):  # at first, one output copies each input channel, the others are mixtures
            nn.init.dirac_(layer.weight.data[: layer.in_channels])
    return block
