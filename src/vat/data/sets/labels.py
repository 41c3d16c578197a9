"""The check that all readers of labels share."""

import torch
from torch import Tensor


def checked_labels(labels: Tensor, num_images: int, num_classes: int, name: str) -> Tensor:
    """Labels as int64, one for each image and each in 0..num_classes-1.

    Raises:
        ValueError: Otherwise, naming the file.
    """
    if len(labels) != num_images:
        raise ValueError(f"{name} holds {len(labels)} labels for {num_images} images")
    if len(outside := torch.nonzero((labels < 0) | (labels >= num_classes))):
        row = int(outside[0])
        raise ValueError(f"{name} should hold labels in 0..{num_classes - 1}; number {row} is {int(labels[row])}")
    return labels.long()
