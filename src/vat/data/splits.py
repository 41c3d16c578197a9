"""Choice of labelled, unlabelled, validation and test examples: pure functions of the labels, the sizes and a seed."""

import hashlib
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from vat.data.files.names import is_number, name_of
from vat.seeds import stable_seed


def stratified_parts(labels: Tensor, sizes: Sequence[int], *, seed: int) -> list[Tensor]:
    """Choose disjoint parts of given sizes, each with the class proportions of all examples as far as integers allow.

    The parts are chosen one after the other from the remaining examples, by the largest remainder. So all sizes that fit are possible.
    Examples beyond `sum(sizes)` belong to no part.

    Args:
        labels: Classes 0..C-1 of shape (N,), int64.
        sizes: Number of examples in each part.
        seed: Seed of the choice. The global generator is not used.

    Returns:
        The row numbers of each part, ascending, int64 on the CPU.

    Raises:
        ValueError: If the labels are not classes, a size is below 1, or the sizes add up to more than N.
    """
    labels = _checked(labels)
    if not sizes or min(sizes) < 1:
        raise ValueError(f"each of sizes must be >= 1, got {list(sizes)}. Leave empty parts out.")
    if sum(sizes) > len(labels):
        raise ValueError(f"sizes must add up to at most the {len(labels)} examples, got {list(sizes)} = {sum(sizes)}")
    generator = torch.Generator().manual_seed(stable_seed("stratified_parts", seed))
    members = _shuffled_classes(labels, generator)
    parts = []
    for size in sizes:
        left = [len(rows) for rows in members]
        # Only integers, because rounding noise would decide ties between floating-point remainders.
        counts, remainders = zip(*(divmod(size * k, sum(left)) for k in left), strict=True)
        # sorted is stable: with equal remainders the lower class comes first, on every machine.
        favoured = sorted(range(len(left)), key=lambda c: -remainders[c])[: size - sum(counts)]
        counts = [k + (c in favoured) for c, k in enumerate(counts)]
        parts.append(torch.cat([rows[:k] for rows, k in zip(members, counts, strict=True)]).sort().values)
        members = [rows[k:] for rows, k in zip(members, counts, strict=True)]
    return parts


def grouped_parts(labels: Tensor, groups: Tensor, sizes: Sequence[int], *, seed: int) -> list[Tensor]:
    """Choose disjoint parts that together contain every example, and split no group.

    Groups are assigned from the largest to the smallest, those of equal size in random order. Each goes to the part that most lacks its
    examples. This choice least raises the squared distance of the parts from their sizes and from the overall class proportions. Sizes are
    approximate: with few or large groups they are wrong by up to one group.

    Args:
        labels: Classes 0..C-1 of shape (N,), int64.
        groups: Number of each example's group, any int64, shape (N,).
        sizes: Wanted number of examples in each part. The sum is N.
        seed: Seed of the choice. The global generator is not used.

    Returns:
        The row numbers of each part, ascending, int64 on the CPU. Each part has at least one group.

    Raises:
        ValueError: If the labels are not classes, the groups or sizes do not match them, or there are fewer groups than parts.
    """
    labels = _checked(labels)
    if groups.dtype != torch.int64 or groups.shape != labels.shape:
        raise ValueError(f"groups must be int64, one for each of {len(labels)} labels, got {groups.dtype} of shape {tuple(groups.shape)}")
    if not sizes or min(sizes) < 1 or sum(sizes) != len(labels):
        raise ValueError(f"each of sizes must be >= 1 and they must add up to the {len(labels)} examples, got {list(sizes)}")
    group = groups.cpu().unique(return_inverse=True)[1]  # 0..G-1
    num_groups = int(group.max()) + 1
    if num_groups < len(sizes):
        raise ValueError(f"{len(sizes)} parts need at least as many groups, got {num_groups}. Use smaller groups, or split without groups.")
    members: list[list[tuple[int, int]]] = [[] for _ in range(num_groups)]  # of each group: (class, examples)
    pairs, numbers = torch.stack([group, labels], dim=1).unique(dim=0, return_counts=True)
    for (g, c), k in zip(pairs.tolist(), numbers.tolist(), strict=True):
        members[g].append((c, k))
    generator = torch.Generator().manual_seed(stable_seed("grouped_parts", seed))
    order = torch.randperm(num_groups, generator=generator)
    order = order[torch.bincount(group)[order].argsort(descending=True, stable=True)]

    # N times the number of examples that a part still lacks, of each class and in total. Integers, because rounding would decide ties.
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
    """Change the parts so that the last part, for training, has an example of every class.

    For each class that it lacks, an example (or its group) moves there from the part with most examples of the class. Without groups, that
    part gets in exchange an example of the largest class of the last part.

    Args:
        parts: Row numbers of each part. Together they contain every example.
        labels: Classes 0..C-1 of shape (N,), int64.
        groups: Number of each example's group, int64 of shape (N,), or None without groups.

    Raises:
        ValueError: If another part would become empty.
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
                f"{len(classes)} labelled examples of {len({*classes})} classes are too few for validation and training on each class. "
                "Label more, or train without validation by data.validation_share=0."
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
    names: Sequence[str] | None = None,
) -> Tensor:
    """Choose the examples whose labels training may see.

    With the same seed a smaller subset is part of a larger one, so a curve over the number of labels is paired. With an imbalance, rounding
    may change one example of a class.

    Args:
        labels: Classes 0..C-1 of the candidates, shape (N,), int64.
        num_labeled: Number of examples to choose. None chooses all.
        balanced: Whether to choose the same number from each class. The remainder is one example each from randomly chosen classes. If
            False, the choice is uniform over the examples, and a class may get none.
        seed: Seed of the choice. The global generator is not used.
        imbalance: Ratio of the numbers of class 0 and the last class, >= 1. The numbers decrease by one factor from class to class (Cui et
            al., arXiv 1901.05555). 1 chooses the same number from each. Needs `balanced`.
        names: Names of the C classes in errors. None for their numbers.

    Returns:
        Row numbers into `labels`, ascending, int64 on the CPU.

    Raises:
        ValueError: If the labels are not classes, or there are too few examples. The error names a class with too few.
    """
    labels = _checked(labels)
    if not imbalance >= 1 or (imbalance > 1 and (num_labeled is None or not balanced)):
        raise ValueError(f"imbalance must be 1, or more with balanced=True and num_labeled set, got {imbalance}")
    if num_labeled is None:
        return torch.arange(len(labels))
    if not 1 <= num_labeled <= len(labels):
        raise ValueError(f"num_labeled must be from 1 to {len(labels)}, the number of examples, or None for all, got {num_labeled}")
    generator = torch.Generator().manual_seed(stable_seed("labeled_subset", seed))
    if not balanced:
        return torch.randperm(len(labels), generator=generator)[:num_labeled].sort().values
    num_classes = int(labels.max()) + 1
    if num_labeled < num_classes:
        raise ValueError(
            f"num_labeled must be at least {num_classes}, the number of classes, in a balanced split, got {num_labeled}. "
            "Raise num_labeled or set balanced=False."
        )
    counts = _class_counts(num_labeled, num_classes, imbalance, generator)
    called = range(num_classes) if names is None else names
    if min(counts) < 1:
        without = called[counts.index(min(counts))]
        raise ValueError(f"imbalance={imbalance:g} gives class {without} none of {num_labeled} labels. Raise num_labeled.")
    chosen = []
    for c, (rows, wanted) in enumerate(zip(_shuffled_classes(labels, generator), counts, strict=True)):
        if len(rows) < wanted:
            raise ValueError(
                f"num_labeled={num_labeled} needs {wanted} examples of class {called[c]}, got {len(rows)}. "
                "Lower num_labeled or set balanced=False."
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


def class_numbers(names: Sequence[str], chosen: Sequence[str | int], setting: str) -> list[int]:
    """The numbers 0..C-1 of the chosen classes.

    Args:
        names: Names of the C classes.
        chosen: Names, spelt as in a file (`vat.data.files.names.name_of`), or numbers from 0 if no class's name is a number.
        setting: Name of the setting in errors.

    Raises:
        ValueError: If there is no such class.
    """
    known = {name: c for c, name in enumerate(names)}
    if not any(map(is_number, names)):
        known = {str(c): c for c in range(len(names))} | known
    numbers = [known.get(name_of(name, setting)) for name in chosen]
    if None in numbers:
        raise ValueError(f"{setting}: there is no class {chosen[numbers.index(None)]}. The classes are {', '.join(names)}")
    return [number for number in numbers if number is not None]


def restricted(rows: Tensor, labels: Tensor, classes: Sequence[int], names: Sequence[str]) -> Tensor:
    """Keep the rows whose label is one of the classes.

    Args:
        rows: Row numbers of a part.
        labels: Labels of the complete set.
        classes: Numbers of the classes.
        names: Names of all classes, for errors.

    Raises:
        ValueError: If a class has no example among the rows.
    """
    found = labels[rows]
    for c in classes:
        if not (found == c).any():
            raise ValueError(f"each class must have an example in each part, got none of class {names[c]} in one of them")
    return rows[torch.isin(found, torch.tensor(list(classes), dtype=torch.int64))]


@dataclass(frozen=True, eq=False)  # eq compares tensors entry by entry; two splits are equal when their digests are
class Split:
    """Row numbers of each part of a data set, int64 on the CPU.

    Attributes:
        labeled: Examples whose labels training sees. They are also in `unlabeled`.
        unlabeled: The pool, whose inputs training sees.
        validation: Examples for model selection, possibly none. They do not overlap with the labelled examples.
        test: Examples only for the final number.

    Raises:
        ValueError: If a part other than `validation` is empty, a part is not an int64 vector, a labelled example is not in the pool, or
            the pool, validation and test parts overlap.
    """

    labeled: Tensor
    unlabeled: Tensor
    validation: Tensor
    test: Tensor

    def __post_init__(self) -> None:
        parts = {part.name: getattr(self, part.name) for part in fields(self)}
        for name, rows in parts.items():
            if rows.dtype != torch.int64 or rows.ndim != 1 or (len(rows) == 0 and name != "validation"):
                raise ValueError(f"{name} must be a non-empty int64 vector, got {rows.dtype} of shape {tuple(rows.shape)}")
        if not torch.isin(self.labeled, self.unlabeled).all():
            row = self.labeled[~torch.isin(self.labeled, self.unlabeled)][0]
            raise ValueError(f"all rows of labeled must be in unlabeled, got row {row} only in labeled")
        for one, other in (("unlabeled", "validation"), ("unlabeled", "test"), ("validation", "test")):
            if (shared := torch.isin(parts[one], parts[other])).any():
                raise ValueError(f"{one} and {other} must be disjoint, got row {parts[one][shared][0]} in both")

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
        raise ValueError(f"labels must be a non-empty int64 vector, got {labels.dtype} of shape {tuple(labels.shape)}")
    if labels.min() < 0:
        raise ValueError(f"labels must be classes 0..C-1, got {int(labels.min())} in row {int(labels.argmin())}")
    return labels.cpu()


def evenly(rows: Tensor, most: int) -> Tensor:
    """Choose at most `most` of the rows, evenly spread, because some sets are sorted by class."""
    return rows if len(rows) <= most else rows[torch.arange(most) * len(rows) // most]
