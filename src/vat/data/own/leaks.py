"""Finds features that give the class away: numbers of the rows, and copies or codes of the label."""

import itertools
import math
import re
from collections import Counter
from collections.abc import Collection, Hashable, Sequence

import numpy as np

LEAST_ROWS = 10  # fewer rows may rise by chance: ten do in one of 1.8 million orders
SAME_STEP = 0.8  # share of the steps from row to row that are the same
OTHER_STEPS = 5  # most steps that are not: where files in sequence restart. Hours of a day restart more often
CHANCE = 1e-3  # probability below which a column of a table determines the label by chance
MOST_CODES = 3  # values of a code for each class. With more, a feature that differs between patients would seem to be a code
ROUNDED = 1e-3  # standard deviations by which a sum or mean may be rounded
LEAST_SCORES = 50  # labelled rows for a score. Of fewer, a good feature may separate the classes
FIRST_LOOK = 1000  # labelled rows that are looked at first, because a table may have many columns
ID = {"id", "ids", "uid", "idx", "rowid", "unnamed"}  # words in names of columns that identify a row. pandas reads "Unnamed: 0"


def numbers_the_rows(values: np.ndarray, name: str = "") -> bool:
    """Whether a feature identifies the rows, or is their time: such as 0, 1, 2, … in any order, or an increasing number in each row.

    Args:
        values: The feature in the order of the rows, (N,).
        name: Its name.
    """
    if len(values) < LEAST_ROWS:
        return False
    values = values.astype(np.float64)
    low, high = values.min(), values.max()
    if low == high:
        return False
    steps = np.diff(values)
    if (steps > 0).all() or (steps < 0).all():
        return True
    whole = bool(np.all(values == np.floor(values)))
    if whole and ID & {word.lower() for word in re.findall("[A-Z]?[a-z]+|[A-Z]+", name)}:
        return True
    usual = np.median(steps)
    if usual != 0 and np.sum(steps != usual) <= min(OTHER_STEPS, (1 - SAME_STEP) * len(steps)):
        return True
    step, rest = divmod(high - low, len(values) - 1)
    return whole and not rest and np.array_equal(np.sort(values), low + step * np.arange(len(values)))


def is_total(x: np.ndarray) -> bool:
    """Whether the last row has the sums of the rows above it, or their means.

    Args:
        x: Features, (N, D).
    """
    if len(x) <= LEAST_ROWS:
        return False
    above, last = x[:-1].astype(np.float64), x[-1].astype(np.float64)
    varies = above.min(0) < above.max(0)
    above, last = above[:, varies], last[varies]
    sums, means, scale = above.sum(0), above.mean(0), ROUNDED * above.std(0)
    is_sum = np.abs(last - sums) <= scale
    return bool((is_sum.all() and (np.abs(last) > np.abs(above).max(0)).any()) or (len(last) > 1 and (np.abs(last - means) <= scale).all()))


def determining_the_class(x: np.ndarray, y: np.ndarray, groups: Sequence[Hashable] | None = None) -> list[int]:
    """The features of which one alone determines the class: each of its values occurs in one class only.

    A feature counts if it has few values, as a copy or a code of the label. It counts, too, if each class has an interval of its values
    and 50 rows or more are labelled. Features of two values count if there is one for each class. None counts if the labels could fit by
    chance, as those of few rows can. Equal rows and those of one group are not independent.

    Args:
        x: Features of labelled rows, (N, D).
        y: Their classes, (N,).
        groups: Their groups.
    """
    found, indicators = [], {}
    independent = {*zip((hash(row.tobytes()) for row in x) if groups is None else groups, y.tolist(), strict=True)}
    sizes = Counter(c for _, c in independent).values()
    some = np.linspace(0, len(y) - 1, min(len(y), FIRST_LOOK)).astype(int)
    limit = math.log(CHANCE / x.shape[1])
    for k in range(x.shape[1]):
        if _classes_of_values(x[some, k], y[some]) is None or (classes := _classes_of_values(x[:, k], y)) is None:
            if len(sizes) > 2 and (only := _class_that_is_indicated(x[:, k], y)) is not None:
                indicators.setdefault(only, []).append(k)
            continue
        if len(classes) <= MOST_CODES * len(sizes) and len(classes) * math.log(len(sizes)) - _log_orders(sizes) < limit:
            found.append(k)
        elif sum(sizes) >= LEAST_SCORES and np.count_nonzero(np.diff(classes)) == len(sizes) - 1:
            borders = math.log(math.comb(len(classes) - 1, len(sizes) - 1)) + math.lgamma(len(sizes) + 1)
            if borders - _log_orders(Counter(classes.tolist()).values()) < limit:
                found.append(k)
    if len(indicators) >= len(sizes) - 1 and len(sizes) * math.log(len(sizes)) - _log_orders(sizes) < limit:
        found += itertools.chain(*indicators.values())
    return sorted(found)


def _class_that_is_indicated(values: np.ndarray, y: np.ndarray) -> int | None:
    """The class of which a feature of two values has one value, and all other classes the other. None without such a class."""
    one = values == values[0]
    if one.all() or (values[~one] != values[~one][0]).any():
        return None
    for of in (one, ~one):
        if (y[of] == y[of][0]).all() and (y[~of] != y[of][0]).all():
            return int(y[of][0])
    return None


def _classes_of_values(values: np.ndarray, y: np.ndarray) -> np.ndarray | None:
    """The class of each value, in the order of the values. None if a value has two classes."""
    order = np.lexsort((y, values))
    values, y = values[order], y[order]
    new = np.append(True, values[1:] != values[:-1])
    return None if np.any((y[1:] != y[:-1]) & ~new[1:]) else y[new]


def _log_orders(sizes: Collection[int]) -> float:
    """Logarithm of the number of orders of labels, of which each class has some."""
    return math.lgamma(sum(sizes) + 1) - sum(math.lgamma(size + 1) for size in sizes)
