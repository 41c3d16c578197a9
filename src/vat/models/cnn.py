"""A small convolutional network for images from 8×8 to 32×32 pixels. It trains in seconds on a CPU."""

from collections.abc import Sequence

from torch import Tensor, nn

from vat.models.image_shape import image_channels


class CNN(nn.Module):
    """Stages of 3×3 convolution, batch norm, ReLU and 2×2 average pooling, then dropout and one linear layer.

    The linear layer sees the position of a feature, which tells a 6 from a 9. Therefore all images must have one size.

    Args:
        input_shape: Shape (channels, height, width) of one image. Height and width are at least 2 to the power of the number of stages.
        num_classes: Number of logits.
        channels: Channels of each stage, from the input to the output.
        dropout: Probability that an input of the linear layer is dropped in training mode.

    Raises:
        ValueError: If ``channels`` or ``dropout`` is out of range, or the images are too small for the poolings.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        *,
        channels: Sequence[int] = (32, 64),
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if not channels or min(channels) < 1:
            raise ValueError(f"channels must hold at least one number, each >= 1, got {tuple(channels)}")
        shrinkage = 2 ** len(channels)
        in_channels = image_channels(input_shape, smallest=shrinkage)
        height, width = input_shape[1:]

        layers: list[nn.Module] = []
        for out_channels in channels:
            layers += [
                nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(),
                # Not max pooling: without channels_last it takes a CPU several times longer than the average.
                nn.AvgPool2d(2),
            ]
            in_channels = out_channels
        pixels = (height // shrinkage) * (width // shrinkage)
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(dropout), nn.Linear(in_channels * pixels, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Map images of shape (N, *input_shape) to logits of shape (N, num_classes)."""
        return self.layers(x)
