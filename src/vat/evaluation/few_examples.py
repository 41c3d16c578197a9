"""What an accuracy of few examples is worth: its interval, and predictions that leave a class out."""

import math
from collections.abc import Sequence

from torch import Tensor

FEW = 300
"""Below so many examples an accuracy is shown with its count and interval, which is then wider than ± 3 points at 95 % accuracy."""
TOO_FEW = 50
"""Below so many, an accuracy does not tell settings apart."""
RARE = 1e-3
"""Probability below which a count is no accident."""


def wilson(right: float, number: int, *, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's 95 % interval of a probability, of which `right` in `number` independent trials were counted.

    Wilson, J. Amer. Statist. Assoc. 22 (1927). Unlike p ± z √(p (1 − p) / n) it has a width also where all or none are right.

    Raises:
        ValueError: If `number` is not positive, or `right` is not between 0 and `number`.
    """
    if not (number > 0 and 0 <= right <= number):
        raise ValueError(f"there must be 0 <= right <= number and number > 0, got right={right}, number={number}")
    p, shrink = right / number, 1 + z * z / number
    centre = (p + z * z / (2 * number)) / shrink
    half = z * math.sqrt(p * (1 - p) / number + z * z / (4 * number * number)) / shrink
    return (0.0 if right == 0 else centre - half), (1.0 if right == number else centre + half)


def interval(right: float, number: int) -> str:
    """`53 to 98 %`."""
    low, high = wilson(right, number)
    return f"{100 * low:.0f} to {100 * high:.0f} %"


def counted(accuracy: float, number: int | None) -> str:
    """`7 of 8; 95 % interval 53 to 98 %`, if the examples are few; nothing if they are many, or if nobody counted them."""
    if not number or number >= FEW:
        return ""
    right = round(accuracy * number)
    return f"{right} of {number}; 95 % interval {interval(right, number)}"


def warning_of_few(number: int) -> str | None:
    """What a validation part of `number` examples means for the choices that are made by it; None if it is large enough."""
    if not 0 < number < TOO_FEW:
        return None
    right = round(0.9 * number)
    return (
        f"validation has {number} examples: one of them is {100 / number:.1f} points of accuracy, and {right} of {number} right would mean "
        f"{interval(right, number)}. Do not choose settings by it: label more, raise data.validation_share, or add data.folds=5, which "
        "validates on every labelled example that is not for the test, at the cost of 5 more runs"
    )


def left_out(predicted: Tensor, labels: Tensor, class_names: Sequence[str], *, where: str) -> list[str]:
    """A sentence if predictions leave a class out, or their proportions are far from the labels'; none otherwise.

    A class is left out if it has less than a tenth of its share. Proportions are far from the labels' if a class has less than 0.4 times
    or more than 2.5 times its share. Both must be no accident: the binomial probability of such a count is below 1 in 1,000.

    A class without labels is not judged.

    Args:
        predicted: How often each class was predicted, (C,).
        labels: Of how many labelled examples each class is, (C,); what the predictions are compared with.
        class_names: Names of the classes.
        where: Of what examples the predictions are, as "validation".
    """
    number, shares = int(predicted.sum()), (labels.double() / labels.sum()).tolist()
    never, odd = [], []
    for name, count, share in zip(class_names, predicted.tolist(), shares, strict=True):
        expected, said = share * number, f"{name} {100 * count / max(number, 1):.1f} % (labels {100 * share:.1f} %)"
        if count < 0.1 * expected and binomial_tail(count, number, share) < RARE:
            never.append(said)
        elif share and (count < 0.4 * expected or count > 2.5 * expected) and binomial_tail(count, number, share) < RARE:
            odd.append(said)
    found = []
    if never:
        found.append(
            f"{where}: almost never predicted: {_first(never)}. Two classes may have merged, as happens under VAT if eps is too "
            "large or labels are few. Try regularizer=vat_class_balance, a smaller eps, or regularizer=none"
        )
    if odd:
        found.append(
            f"{where}: predictions are far from the labels' proportions: {_first(odd)}. Look at the confusion matrix before you use the "
            "network, unless the classes are not as frequent in these data as in the labels"
        )
    return found


def binomial_tail(count: int, number: int, share: float) -> float:
    """Probability of `count` or fewer of `number`, or of `count` or more if that is above the mean, each with probability `share`."""
    if not 0 < share < 1:
        return 1.0 if count == share * number else 0.0
    counts = range(count + 1) if count <= share * number else range(count, number + 1)
    whole, yes, no = math.lgamma(number + 1), math.log(share), math.log1p(-share)
    logs = (whole - math.lgamma(k + 1) - math.lgamma(number - k + 1) + k * yes + (number - k) * no for k in counts)
    return min(1.0, math.fsum(map(math.exp, logs)))


def _first(said: Sequence[str], most: int = 5) -> str:
    more = f" and {len(said) - most} more" if len(said) > most else ""
    return ", ".join(said[:most]) + more
