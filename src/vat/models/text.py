"""Networks for texts. A text is a row of word numbers."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PADDING = 0


class NormalizedEmbedding(nn.Module):
    """An embedding of words. Each of its dimensions has mean 0 and variance 1 over the words, weighted by their counts.

    Miyato, Dai and Goodfellow, arXiv 1605.07725, equation 1. Without the normalisation, a network could learn larger embeddings, which
    make a perturbation of length ε harmless.

    Args:
        counts: Number of occurrences of each word.
        dim: Number of dimensions of an embedding.

    Raises:
        ValueError: If a count is negative, or all are 0.
    """

    share: Tensor

    def __init__(self, counts: Sequence[int], dim: int) -> None:
        super().__init__()
        if not counts or min(counts) < 0 or not sum(counts):
            raise ValueError("counts must hold the number of occurrences of each word, >= 0 and not all 0")
        self.weight = nn.Parameter(torch.randn(len(counts), dim))
        self.register_buffer("share", torch.tensor([count / sum(counts) for count in counts]))

    def forward(self, ids: Tensor) -> Tensor:
        """Map word numbers, integers (N, T), to embeddings (N, T, dim)."""
        mean = self.share @ self.weight
        variance = self.share @ (self.weight - mean).square()
        return (F.embedding(ids, self.weight) - mean) * (variance + 1e-6).rsqrt()


class TextNetwork(nn.Module):
    """Base class of these networks: a normalised embedding, whose output a regularizer perturbs, and a mask of the padding.

    Any network of integer inputs can define the same two members, and `vat.step.Step` reads them. `perturbed` is a layer that each pass
    calls once. `mask(x)` is 1 for inputs that count.

    Args:
        counts: Number of occurrences of each word, the padding (0) first.
        dim: Number of dimensions of an embedding.
        dropout: Probability that a word is dropped in training mode.
    """

    def __init__(self, counts: Sequence[int], dim: int, dropout: float) -> None:
        super().__init__()
        self.embedding = NormalizedEmbedding(counts, dim)
        self.word_dropout = nn.Dropout(dropout)  # of complete words: random numbers for each dimension would double the time

    @property
    def perturbed(self) -> nn.Module:
        """Layer whose output a regularizer perturbs."""
        return self.embedding

    def mask(self, ids: Tensor) -> Tensor:
        """Mask of the words without the padding, bool (N, T)."""
        return ids != PADDING

    def forward(self, ids: Tensor) -> Tensor:
        """Map word numbers, integers (N, T), to logits of shape (N, num_classes)."""
        return self.logits(self.embedding(ids), self.mask(ids))

    def logits(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map embeddings (N, T, dim) and the mask (N, T) to logits (N, num_classes)."""
        raise NotImplementedError


class TextMean(TextNetwork):
    """The mean of the embeddings of a text's words, then a hidden layer. It ignores the order of the words, and is fast on a CPU.

    Iyyer et al., *Deep Unordered Composition Rivals Syntactic Methods for Text Classification* (2015). The mean over T words is multiplied
    by √T, so that it has variance 1 for long texts too.

    Args:
        num_classes: Number of logits.
        counts: Number of occurrences of each word, the padding first. The data set gives them.
        dim: Number of dimensions of an embedding.
        hidden: Number of units of the hidden layer.
        dropout: Probability that a word, or a feature before the logits, is dropped in training mode.
    """

    def __init__(self, num_classes: int, counts: Sequence[int], *, dim: int = 64, hidden: int = 64, dropout: float = 0.5) -> None:
        super().__init__(counts, dim, dropout)
        self.head = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, num_classes))

    def logits(self, x: Tensor, mask: Tensor) -> Tensor:
        """See `TextNetwork`."""
        words = mask.to(x.dtype)
        weight = self.word_dropout(words) * words.sum(1, keepdim=True).clamp(min=1).rsqrt()
        return self.head(torch.bmm(weight.unsqueeze(1), x).squeeze(1))


class TextCNN(TextNetwork):
    """Convolutions over the words and the maximum of each over the text.

    Kim, arXiv 1408.5882. The logits of a text do not depend on the length of the padding.

    Args:
        num_classes: Number of logits.
        counts: Number of occurrences of each word, the padding first. The data set gives them.
        dim: Number of dimensions of an embedding.
        channels: Number of features for each width.
        widths: Width of each convolution in words, odd numbers >= 1.
        dropout: Probability that a word, or a feature before the logits, is dropped in training mode.

    Raises:
        ValueError: If a width is even or below 1.
    """

    def __init__(
        self,
        num_classes: int,
        counts: Sequence[int],
        *,
        dim: int = 64,
        channels: int = 64,
        widths: Sequence[int] = (1, 3, 5),
        dropout: float = 0.5,
    ) -> None:
        super().__init__(counts, dim, dropout)
        if not widths or any(width < 1 or width % 2 == 0 for width in widths):
            raise ValueError(f"widths must be odd numbers >= 1, got {list(widths)}")
        self.convolutions = nn.ModuleList(nn.Conv1d(dim, channels, width, padding=width // 2) for width in widths)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(channels * len(widths), num_classes)

    def logits(self, x: Tensor, mask: Tensor) -> Tensor:
        """See `TextNetwork`."""
        x = (x * self.word_dropout(mask.to(x.dtype)).unsqueeze(2)).transpose(1, 2)
        found = [convolution(x).masked_fill(~mask.unsqueeze(1), -torch.inf).amax(2) for convolution in self.convolutions]
        return self.head(self.dropout(F.relu(torch.cat(found, 1))))
