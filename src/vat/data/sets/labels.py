"""The check that all readers of labels share."""

import torch
from torch import Tensor


def checked_labels(labels: Tensor, num_images: int, num_classes: int, name: str) -> Tensor:
    """Return the labels as int64, after a check.

    Raises:
        ValueError: If there is not one label for each image, or one is not in 0..num_classes-1. The error names the file.
    """
    if len(labels) != num_images:
        raise ValueError(f"{name} must hold one label for each of {num_images} images, got {len(labels)}")
    if len(outside := torch.nonzero((labels < 0) | (labels >= num_classes))):
        row = int(outside[0])
        raise ValueError(f"{name} must hold labels in 0..{num_classes - 1}, got {int(labels[row])} in row {row}")
    return labels.long()
