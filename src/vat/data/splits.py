"""Which examples are labelled, unlabelled, held out: pure functions of the labels, the numbers wanted and a seed."""

import hashlib
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from vat.seeds import stable_seed


def stratified_parts(labels: Tensor, sizes: Sequence[int], *, seed: int) -> list[Tensor]:
    """Disjoint parts of the given sizes, each with the class proportions of the whole as far as integers allow.

    The parts are dealt one after the other, each by the largest remainder from what is left, so all sizes that fit can be
    met. Examples beyond `sum(sizes)` belong to no part.

    Args:
        labels: Classes 0..C-1 of shape (N,), int64.
        sizes: Examples in each part.
        seed: Determines the parts, with the labels and sizes; the global generator is neither read nor moved.

    Returns:
        For each size the ascending row numbers, int64 on the CPU.

    Raises:
        ValueError: If the labels are not classes, a size is below 1, or the sizes add up to more than N.
    """
    labels = _checked(labels)
    if not sizes or min(sizes) < 1:
        raise ValueError(f"sizes must be >= 1 each, or the part left out; got {list(sizes)}")
    if sum(sizes) > len(labels):
        raise ValueError(f"sizes must add up to at most the {len(labels)} examples; got {list(sizes)} = {sum(sizes)}")
    generator = torch.Generator().manual_seed(stable_seed("stratified_parts", seed))
    members = _shuffled_classes(labels, generator)
    parts = []
    for size in sizes:
        left = [len(rows) for rows in members]
        # Whole numbers throughout: a floating-point remainder would break ties by rounding noise.
        counts, remainders = zip(*(divmod(size * k, sum(left)) for k in left), strict=True)
        # sorted is stable: of equal remainders the lower class goes first, everywhere.
        favoured = sorted(range(len(left)), key=lambda c: -remainders[c])[: size - sum(counts)]
        counts = [k + (c in favoured) for c, k in enumerate(counts)]
        parts.append(torch.cat([rows[:k] for rows, k in zip(members, counts, strict=True)]).sort().values)
        members = [rows[k:] for rows, k in zip(members, counts, strict=True)]
    return parts


def grouped_parts(labels: Tensor, groups: Tensor, sizes: Sequence[int], *, seed: int) -> list[Tensor]:
    """Disjoint parts that together hold every example, and split no group.

    Groups are dealt from the largest to the smallest, equal ones in random order, each to the part that most lacks what it holds. That is
    the choice which least raises the squared distance of the parts from their sizes and from the class proportions of the whole. Sizes
    are met as nearly as that allows: few or large groups leave them off by as much as a group.

    Args:
        labels: Classes 0..C-1 of shape (N,), int64.
        groups: Number of each example's group, any int64, shape (N,).
        sizes: Examples wanted in each part; they add up to N.
        seed: Determines the parts, with the other arguments; the global generator is neither read nor moved.

    Returns:
        For each size the ascending row numbers, int64 on the CPU, at least one group in each.

    Raises:
        ValueError: If the labels are not classes, the groups or sizes do not fit them, or there are fewer groups than parts.
    """
    labels = _checked(labels)
    if groups.dtype != torch.int64 or groups.shape != labels.shape:
        raise ValueError(f"groups must be int64, one for each of {len(labels)} labels; got {groups.dtype} of shape {tuple(groups.shape)}")
    if not sizes or min(sizes) < 1 or sum(sizes) != len(labels):
        raise ValueError(f"sizes must be >= 1 each and add up to the {len(labels)} examples; got {list(sizes)}")
    group = groups.cpu().unique(return_inverse=True)[1]  # 0..G-1
    num_groups = int(group.max()) + 1
    if num_groups < len(sizes):
        raise ValueError(f"{len(sizes)} parts need at least as many groups; got {num_groups}. Form smaller groups or split without them.")
    members: list[list[tuple[int, int]]] = [[] for _ in range(num_groups)]  # of each group: (class, examples)
    pairs, numbers = torch.stack([group, labels], dim=1).unique(dim=0, return_counts=True)
    for (g, c), k in zip(pairs.tolist(), numbers.tolist(), strict=True):
        members[g].append((c, k))
    generator = torch.Generator().manual_seed(stable_seed("grouped_parts", seed))
    order = torch.randperm(num_groups, generator=generator)
    order = order[torch.bincount(group)[order].argsort(descending=True, stable=True)]

    # N times what a part still lacks, of each class and in all: whole numbers, in which no rounding breaks a tie.
    lack = [[size * k for k in torch.bincount(labels).tolist()] for size in sizes]
    lack_in_all = [size * len(labels) for size in sizes]
    part_of = torch.empty(num_groups, dtype=torch.int64)
    without = list(range(len(sizes)))
    for dealt, g in enumerate(order.tolist()):
        must = without if num_groups - dealt == len(without) else range(len(sizes))
        part = max(must, key=lambda p: sum(k * (lack[p][c] + lack_in_all[p]) for c, k in members[g]))
        for c, k in members[g]:
            lack[part][c] -= k * len(labels)
            lack_in_all[part] -= k * len(labels)
        part_of[g] = part
        without = [p for p in without if p != part]
    return [torch.nonzero(part_of[group] == p).flatten() for p in range(len(sizes))]


def with_every_class(parts: Sequence[Tensor], labels: Tensor, groups: Tensor | None) -> list[Tensor]:
    """The parts, so that the last, to train on, has an example of every class.

    For a class that it lacks, an example (or group) moves there from the part that has most examples of it. In exchange, if there are no
    groups, that part gets an example of the class that most are left of.

    Args:
        parts: Row numbers of each part; together they hold every example.
        labels: Classes 0..C-1 of shape (N,), int64.
        groups: Number of each example's group, int64 of shape (N,); None if there are none.

    Raises:
        ValueError: If nothing would be left of another part.
    """
    *held_out, pool = (part.tolist() for part in parts)
    classes, of = labels.tolist(), None if groups is None else groups.tolist()
    for c in sorted({*classes} - {classes[row] for row in pool}):
        part = max(held_out, key=lambda rows: sum(classes[row] == c for row in rows))
        first = next(row for row in part if classes[row] == c)
        moved = [row for row in part if row == first or (of is not None and of[row] == of[first])]
        counts = Counter(classes[row] for row in pool)
        given = [next(row for row in pool if classes[row] == most) for most, number in counts.most_common(1) if number > 1 and of is None]
        if len(moved) == len(part) and not given:
            raise ValueError(
                f"{len(classes)} labelled examples of {len({*classes})} classes are too few to hold some out and to train on each class: "
                "label more, or train without validation by data.validation_share=0"
            )
        part[:] = sorted({*part} - {*moved} | {*given})
        pool = sorted({*pool} - {*given} | {*moved})
    return [torch.tensor(part, dtype=torch.int64) for part in (*held_out, pool)]


def labeled_subset(
    labels: Tensor,
    num_labeled: int | None,
    *,
    balanced: bool,
    seed: int,
    imbalance: float = 1.0,
    numbers: Sequence[int] | Tensor | None = None,
) -> Tensor:
    """Rows of the examples whose labels training may see.

    With one seed the smaller of two subsets lies within the larger, so that a curve over the number of labels is paired (under an
    imbalance but for an example of a class, by rounding).

    Args:
        labels: Classes 0..C-1 of the candidates, shape (N,), int64.
        num_labeled: How many to choose; None takes all.
        balanced: The same number from each class, the remainder from randomly chosen classes one each; otherwise
            uniform over the examples, and a class may go without.
        seed: Determines the subset, with the other arguments; the global generator is neither read nor moved.
        imbalance: How many times as many examples class 0 has as the last class, where the numbers fall by one factor from class to
            class (Cui et al., arXiv 1901.05555); 1 for the same number from each. Needs `balanced`.
        numbers: What an error calls the classes, where `labels` count within some of them; shape (C,).

    Returns:
        Ascending row numbers into `labels`, int64 on the CPU.

    Raises:
        ValueError: If the labels are not classes, or the number cannot be met; a class with too few examples is named.
    """
    labels = _checked(labels)
    if not imbalance >= 1 or (imbalance > 1 and (num_labeled is None or not balanced)):
        raise ValueError(f"imbalance must be 1, or above it with balanced=True and a number of labels; got {imbalance}")
    if num_labeled is None:
        return torch.arange(len(labels))
    if not 1 <= num_labeled <= len(labels):
        raise ValueError(f"num_labeled must be between 1 and the {len(labels)} examples, or None for all; got {num_labeled}")
    generator = torch.Generator().manual_seed(stable_seed("labeled_subset", seed))
    if not balanced:
        return torch.randperm(len(labels), generator=generator)[:num_labeled].sort().values
    num_classes = int(labels.max()) + 1
    if num_labeled < num_classes:
        raise ValueError(
            f"num_labeled must be at least the {num_classes} classes in a balanced split; got {num_labeled}. "
            "Ask for more labels or set balanced=False."
        )
    counts = _class_counts(num_labeled, num_classes, imbalance, generator)
    called = range(num_classes) if numbers is None else [int(number) for number in numbers]
    if min(counts) < 1:
        without = called[counts.index(min(counts))]
        raise ValueError(f"imbalance={imbalance:g} leaves class {without} without one of {num_labeled} labels; ask for more labels")
    chosen = []
    for c, (rows, wanted) in enumerate(zip(_shuffled_classes(labels, generator), counts, strict=True)):
        if len(rows) < wanted:
            raise ValueError(
                f"num_labeled={num_labeled} asks for {wanted} examples of class {called[c]}, which has {len(rows)}. "
                "Ask for fewer labels or set balanced=False."
            )
        chosen.append(rows[:wanted])
    return torch.cat(chosen).sort().values


def _class_counts(total: int, num_classes: int, imbalance: float, generator: torch.Generator) -> list[int]:
    if imbalance == 1:
        each, remainder = divmod(total, num_classes)
        favoured = torch.randperm(num_classes, generator=generator)[:remainder].tolist()
        return [each + (c in favoured) for c in range(num_classes)]
    shares = [imbalance ** (-c / max(num_classes - 1, 1)) for c in range(num_classes)]
    quotas = [total * share / sum(shares) for share in shares]
    counts = [int(quota) for quota in quotas]
    favoured = sorted(range(num_classes), key=lambda c: counts[c] - quotas[c])[: total - sum(counts)]  # the largest remainders
    return [count + (c in favoured) for c, count in enumerate(counts)]


def restricted(rows: Tensor, labels: Tensor, classes: Sequence[int] | None) -> Tensor:
    """Those of the rows whose label is one of the classes; None keeps all.

    Raises:
        ValueError: If a class has no example among the rows.
    """
    if classes is None:
        return rows
    found = labels[rows]
    for c in classes:
        if not (found == c).any():
            raise ValueError(f"class {c} has no example to restrict a part to; got classes {list(classes)}")
    return rows[torch.isin(found, torch.tensor(list(classes), dtype=torch.int64))]


@dataclass(frozen=True, eq=False)  # eq compares tensors entry by entry; two splits are equal when their digests are
class Split:
    """Row numbers of each part of a data set, int64 on the CPU.

    Attributes:
        labeled: Examples whose labels training sees; they stay in `unlabeled`.
        unlabeled: The pool whose inputs training sees.
        validation: Examples for model selection, possibly none. Their labels are not among the labelled ones.
        test: Examples for the final number alone.

    Raises:
        ValueError: If a part other than `validation` is empty, one is no int64 vector, a labelled example is missing from the pool, or the
            pool, validation and test parts overlap.
    """

    labeled: Tensor
    unlabeled: Tensor
    validation: Tensor
    test: Tensor

    def __post_init__(self) -> None:
        parts = {part.name: getattr(self, part.name) for part in fields(self)}
        for name, rows in parts.items():
            if rows.dtype != torch.int64 or rows.ndim != 1 or (len(rows) == 0 and name != "validation"):
                raise ValueError(f"{name} must be a non-empty int64 vector; got {rows.dtype} of shape {tuple(rows.shape)}")
        if not torch.isin(self.labeled, self.unlabeled).all():
            row = self.labeled[~torch.isin(self.labeled, self.unlabeled)][0]
            raise ValueError(f"labeled must lie within unlabeled; row {row} does not")
        for one, other in (("unlabeled", "validation"), ("unlabeled", "test"), ("validation", "test")):
            if (shared := torch.isin(parts[one], parts[other])).any():
                raise ValueError(f"{one} and {other} must be disjoint; both hold row {parts[one][shared][0]}")

    @property
    def sizes(self) -> dict[str, int]:
        """Examples in each part, by its name."""
        return {part.name: len(getattr(self, part.name)) for part in fields(self)}

    @property
    def digest(self) -> str:
        """16 hex digits of the SHA-256 over each part's name, length and rows as little-endian int64, in field order."""
        sha = hashlib.sha256()
        for part in fields(self):
            rows = getattr(self, part.name).tolist()
            sha.update(part.name.encode() + struct.pack(f"<{1 + len(rows)}q", len(rows), *rows))
        return sha.hexdigest()[:16]


def _shuffled_classes(labels: Tensor, generator: torch.Generator) -> list[Tensor]:
    """Rows of each class 0..C-1 in random order."""
    classes = [torch.nonzero(labels == c).flatten() for c in range(int(labels.max()) + 1)]
    return [rows[torch.randperm(len(rows), generator=generator)] for rows in classes]


def _checked(labels: Tensor) -> Tensor:
    if labels.dtype != torch.int64 or labels.ndim != 1 or len(labels) == 0:
        raise ValueError(f"labels must be a non-empty int64 vector; got {labels.dtype} of shape {tuple(labels.shape)}")
    if labels.min() < 0:
        raise ValueError(f"labels must be classes 0..C-1; got {int(labels.min())} in row {int(labels.argmin())}")
    return labels.cpu()


def evenly(rows: Tensor, most: int) -> Tensor:
    """At most so many of the rows, evenly spread: some sets are sorted by class."""
    return rows if len(rows) <= most else rows[torch.arange(most) * len(rows) // most]
