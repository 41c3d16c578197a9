"""The check of the input shape that all convolutional networks share."""

from collections.abc import Sequence


def image_channels(input_shape: Sequence[int], *, smallest: int) -> int:
    """Return the channels of an image of shape (channels, height, width).

    Args:
        input_shape: Shape of one example, without the batch.
        smallest: Least height and width in pixels, so that at least one pixel remains after the poolings.

    Raises:
        ValueError: If the shape is not the shape of an image, or the image is too small.
    """
    shape = tuple(input_shape)
    if len(shape) != 3 or min(shape) < 1 or min(shape[1:]) < smallest:
        raise ValueError(
            f"input_shape must be (channels, height, width) with height and width >= {smallest}, got {shape}: "
            "resize the images, or use model=mlp, which takes any shape"
        )
    return shape[0]
