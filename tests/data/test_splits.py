import hashlib
import os
import subprocess
import sys
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vat.data.splits
from vat.data.loader import indices
from vat.data.splits import Split, class_numbers, evenly, grouped_parts, labeled_subset, stratified_parts, with_every_class
from vat.seeds import stable_seed

SKEWED = torch.tensor([0] * 60 + [1] * 29 + [2] * 8 + [3] * 3)[torch.randperm(100, generator=torch.Generator().manual_seed(0))]


def counts(labels, num_classes=4):
    return torch.bincount(labels, minlength=num_classes).tolist()


def largest_remainder(class_counts, size):
    quotas = [Fraction(size * k, sum(class_counts)) for k in class_counts]
    seats = [int(q) for q in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda c: (seats[c] - quotas[c], c))
    for c in by_remainder[: size - sum(seats)]:
        seats[c] += 1
    return seats


@pytest.mark.parametrize("size", [1, 2, 7, 13, 50, 99, 100])
def test_a_part_has_the_proportions_of_the_largest_remainder(size):
    (part,) = stratified_parts(SKEWED, [size], seed=3)
    assert counts(SKEWED[part]) == largest_remainder([60, 29, 8, 3], size)


@pytest.mark.parametrize("sizes", [(100,), (1, 99), (33, 33, 34), (10, 20, 30), (1,) * 100])
def test_parts_are_disjoint_ascending_and_of_the_sizes_asked_for(sizes):
    parts = stratified_parts(SKEWED, sizes, seed=0)
    assert [len(part) for part in parts] == list(sizes)
    assert len(torch.cat(parts).unique()) == sum(sizes)
    assert all(part.dtype == torch.int64 and (part.diff() > 0).all() for part in parts)


def test_every_part_keeps_the_proportions_to_within_two_examples():
    # Each part differs from its quota by at most one. The rounding of earlier parts changes the quota a little more.
    sizes = (20, 30, 40)
    for seed in range(5):
        for size, part in zip(sizes, stratified_parts(SKEWED, sizes, seed=seed), strict=True):
            for c, k in enumerate(counts(SKEWED[part])):
                assert abs(k - size * [60, 29, 8, 3][c] / 100) < 2


def test_every_member_of_a_class_is_equally_likely_to_be_in_a_part():
    hits = torch.zeros(100)
    for seed in range(400):
        hits[stratified_parts(SKEWED, [50], seed=seed)[0]] += 1
    members = hits[SKEWED == 0]  # 30 of 60 each time: a binomial of mean 200 and standard deviation 10
    assert members.min() > 150
    assert members.max() < 250


@pytest.mark.parametrize("num_labeled", [4, 5, 7, 11, 12])
def test_a_balanced_subset_has_equal_classes_and_spreads_the_remainder(num_labeled):
    numbers = counts(SKEWED[labeled_subset(SKEWED, num_labeled, balanced=True, seed=1)])
    assert sum(numbers) == num_labeled
    assert sorted(numbers, reverse=True) == [num_labeled // 4 + (c < num_labeled % 4) for c in range(4)]


def test_the_remainder_goes_to_other_classes_under_other_seeds():
    labels = torch.arange(4).repeat(5)
    favoured = {counts(labels[labeled_subset(labels, 5, balanced=True, seed=seed)]).index(2) for seed in range(40)}
    assert favoured == {0, 1, 2, 3}


def test_an_unbalanced_subset_follows_the_frequencies_not_the_classes():
    mean = torch.tensor([counts(SKEWED[labeled_subset(SKEWED, 20, balanced=False, seed=seed)]) for seed in range(200)]).double().mean(0)
    expected = torch.tensor([12.0, 5.8, 1.6, 0.6], dtype=torch.double)
    torch.testing.assert_close(mean, expected, atol=0.6, rtol=0)  # standard error at most 0.14


@pytest.mark.parametrize("balanced", [True, False])
def test_a_smaller_subset_is_within_a_larger_one_of_the_same_seed(balanced):
    subsets = [set(labeled_subset(SKEWED, k, balanced=balanced, seed=2).tolist()) for k in (4, 6, 7, 10, 12)]
    assert all(small < large for small, large in pairwise(subsets))


def test_none_labels_everything():
    assert labeled_subset(SKEWED, None, balanced=True, seed=0).tolist() == list(range(100))


@pytest.mark.parametrize(
    "draw",
    [
        lambda seed: stratified_parts(SKEWED, [10], seed=seed)[0],
        lambda seed: labeled_subset(SKEWED, 8, balanced=True, seed=seed),
        lambda seed: labeled_subset(SKEWED, 8, balanced=False, seed=seed),
    ],
)
def test_the_seed_alone_decides_and_the_global_generator_is_untouched(draw):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = draw(5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(draw(5), first)
    assert not torch.equal(draw(6), first)


def test_another_process_draws_the_same():
    code = (
        "import torch; from vat.data.splits import *; from vat.data.loader import indices\n"
        "labels = torch.arange(300) % 7\n"
        "print(torch.cat(stratified_parts(labels, [50, 100], seed=1)).tolist(),"
        " labeled_subset(labels, 23, balanced=True, seed=1).tolist(),"
        " torch.cat(grouped_parts(labels, labels * labels + torch.arange(300) // 9, [60, 30, 210], seed=1)).tolist(),"
        " indices(50, 20, 8, seed=1, stream='labeled').tolist(), 'pytorch_lightning' in __import__('sys').modules)"
    )
    source = str(Path(vat.data.splits.__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": source, "PYTHONHASHSEED": "123"}
    output = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    labels = torch.arange(300) % 7
    here = (
        torch.cat(stratified_parts(labels, [50, 100], seed=1)).tolist(),
        labeled_subset(labels, 23, balanced=True, seed=1).tolist(),
        torch.cat(grouped_parts(labels, labels * labels + torch.arange(300) // 9, [60, 30, 210], seed=1)).tolist(),
        indices(50, 20, 8, seed=1, stream="labeled").tolist(),
        False,  # splits and loader are torch alone
    )
    assert output.stdout.split() == " ".join(map(str, here)).split()


# Groups


@st.composite
def grouped(draw):
    """Labels and groups of up to 60 examples, and possible sizes of two to four parts."""
    num_parts = draw(st.integers(2, 4))
    names = draw(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=num_parts, max_size=20, unique=True))
    rows = [(draw(st.integers(0, 3)), name) for name in names]
    rows += draw(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(names)), max_size=40))
    rows = draw(st.permutations(rows))
    cuts = draw(st.lists(st.integers(1, len(rows) - 1), min_size=num_parts - 1, max_size=num_parts - 1, unique=True))
    ends = [0, *sorted(cuts), len(rows)]
    labels, groups = zip(*rows, strict=True)
    return torch.tensor(labels), torch.tensor(groups), [end - start for start, end in pairwise(ends)]


@settings(max_examples=200)
@given(grouped(), st.integers(0, 2**32 - 1))
def test_parts_of_groups_are_disjoint_complete_filled_and_split_no_group(example, seed):
    labels, groups, sizes = example
    parts = grouped_parts(labels, groups, sizes, seed=seed)
    assert torch.cat(parts).sort().values.tolist() == list(range(len(labels)))
    assert all(len(part) > 0 and (part.diff() > 0).all() for part in parts)
    sides = [set(groups[part].tolist()) for part in parts]
    assert not any(one & other for i, one in enumerate(sides) for other in sides[:i])
    assert all(torch.equal(one, other) for one, other in zip(parts, grouped_parts(labels, groups, sizes, seed=seed), strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_groups_of_one_example_meet_sizes_and_proportions_to_within_two(seed):
    for size, part in zip((20, 10, 70), grouped_parts(SKEWED, torch.arange(100), [20, 10, 70], seed=seed), strict=True):
        assert abs(len(part) - size) <= 1
        for c, k in enumerate(counts(SKEWED[part])):
            assert abs(k - size * [60, 29, 8, 3][c] / 100) < 2


@pytest.mark.parametrize("seed", range(5))
def test_patients_of_unequal_size_meet_the_sizes_to_within_a_group(seed):
    generator = torch.Generator().manual_seed(seed)
    groups = torch.randint(40, (1000,), generator=generator) * torch.randint(1, 3, (1000,), generator=generator)
    labels = (groups % 3 == 0).long()
    largest = int(torch.unique(groups, return_counts=True)[1].max())
    for size, part in zip((200, 100, 700), grouped_parts(labels, groups, [200, 100, 700], seed=seed), strict=True):
        assert abs(len(part) - size) <= largest
        assert abs(labels[part].sum() - size * labels.sum() / 1000) <= largest


def test_a_group_larger_than_a_part_goes_where_there_is_room():
    groups = torch.tensor([0] * 60 + [1] * 5 + [2] * 5 + [3] * 30)
    parts = grouped_parts(torch.zeros(100).long(), groups, [5, 5, 90], seed=0)
    assert [len(part) for part in parts] == [5, 5, 90]


def test_no_part_stays_empty_when_groups_run_short():
    parts = grouped_parts(torch.zeros(30).long(), torch.arange(30) // 10, [2, 1, 27], seed=0)
    assert [len(part) for part in parts] == [10, 10, 10]


def test_equal_groups_change_sides_with_the_seed():
    drawn = {tuple(grouped_parts(SKEWED, torch.arange(100) // 5, [20, 10, 70], seed=seed)[0].tolist()) for seed in range(10)}
    assert len(drawn) > 5


@pytest.mark.parametrize(
    ("groups", "sizes", "message"),
    [
        (torch.arange(100) // 50, [20, 10, 70], "3 parts need at least as many groups, got 2"),
        (torch.arange(99), [50, 50], r"groups must be int64, one for each of 100 labels, got torch.int64 of shape \(99,\)"),
        (torch.arange(100.0), [50, 50], "groups must be int64.*got torch.float32"),
        (torch.arange(100), [50, 51], r"add up to the 100 examples, got \[50, 51\]"),
        (torch.arange(100), [100, 0], r"each of sizes must be >= 1.*got \[100, 0\]"),
        (torch.arange(100), [], r"got \[\]"),
    ],
)
def test_groups_that_cannot_be_dealt_are_refused(groups, sizes, message):
    with pytest.raises(ValueError, match=message):
        grouped_parts(SKEWED, groups, sizes, seed=0)


def test_stable_seed_separates_keys_that_read_alike():
    keys = [(1, 12), (11, 2), ("1", 12), ("a", "b"), ("ab",), ("a, b",), (1,), (1, 0)]
    assert len({stable_seed(*key) for key in keys}) == len(keys)
    assert stable_seed("labeled", 0) == 13944017222926342797  # a change here changes every published split and order


@pytest.mark.parametrize("grouped", [False, True])
def test_every_class_has_an_example_to_train_on(grouped):
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.cat([torch.randint(3, (40,), generator=generator), torch.tensor([3, 4, 4])])
        groups = torch.arange(43) // 2 if grouped else None
        deal = torch.randperm(43, generator=generator) if groups is None else torch.randperm(22, generator=generator)[torch.arange(43) // 2]
        parts = [torch.nonzero((deal >= low) & (deal < high)).flatten() for low, high in ((0, 4), (4, 12), (12, 43))]
        found = with_every_class(parts, labels, groups)
        assert torch.cat(found).sort().values.tolist() == list(range(43))
        assert labels[found[-1]].unique().tolist() == list(range(5))
        whole = set(labels[parts[-1]].tolist()) == set(range(5))
        assert all(map(torch.equal, found, parts)) == whole  # moved only if necessary
        if groups is None:
            assert list(map(len, found)) == list(map(len, parts))
        else:
            sides = [set(groups[part].tolist()) for part in found]
            assert not (sides[0] & sides[1] | sides[0] & sides[2] | sides[1] & sides[2])


def test_the_last_example_of_a_part_does_not_move():
    with pytest.raises(ValueError, match="3 labelled examples of 3 classes are too few for validation and training on each class"):
        with_every_class([torch.tensor([1]), torch.tensor([0, 2])], torch.arange(3), None)


def split(labeled=(1,), unlabeled=(0, 1, 2), validation=(3,), test=(4, 5)):
    return Split(*map(torch.tensor, (labeled, unlabeled, validation, test)))


def test_the_digest_is_sha256_of_named_little_endian_parts():
    sha = hashlib.sha256()
    for name, rows in (("labeled", [1]), ("unlabeled", [0, 1, 2]), ("validation", [3]), ("test", [4, 5])):
        sha.update(name.encode())
        for number in [len(rows), *rows]:
            sha.update(number.to_bytes(8, "little"))
    assert split().digest == sha.hexdigest()[:16]


def test_the_digest_tells_each_part_apart():
    variants = [
        split(),
        split(labeled=(2,)),
        split(unlabeled=(1, 0, 2)),
        split(validation=(5,), test=(4, 3)),
        split(validation=(3, 4), test=(5,)),
    ]
    assert len({variant.digest for variant in variants}) == len(variants)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"labeled": (7, 8)}, "all rows of labeled must be in unlabeled, got row 7 only in labeled"),
        ({"validation": (2, 3)}, "unlabeled and validation must be disjoint, got row 2 in both"),
        ({"test": (0, 4)}, "unlabeled and test must be disjoint, got row 0 in both"),
        ({"test": (3, 4)}, "validation and test must be disjoint, got row 3 in both"),
        ({"test": ()}, r"test must be a non-empty int64 vector, got torch.float32 of shape \(0,\)"),
        ({"validation": (3.0,)}, "validation must be a non-empty int64 vector, got torch.float32"),
        ({"validation": ((3,),)}, r"validation must be a non-empty int64 vector, got torch.int64 of shape \(1, 1\)"),
    ],
)
def test_an_inconsistent_split_is_refused(parts, message):
    with pytest.raises(ValueError, match=message):
        split(**parts)


@pytest.mark.parametrize(
    ("num_labeled", "balanced", "message"),
    [
        (0, True, "num_labeled must be from 1 to 100, the number of examples, or None for all, got 0"),
        (-5, False, "got -5"),
        (101, False, "num_labeled must be from 1 to 100, the number of examples, or None for all, got 101"),
        (3, True, "num_labeled must be at least 4, the number of classes, in a balanced split, got 3"),
        (16, True, "num_labeled=16 needs 4 examples of class 3, got 3"),
    ],
)
def test_a_number_of_labels_that_cannot_be_met_is_refused(num_labeled, balanced, message):
    with pytest.raises(ValueError, match=message):
        labeled_subset(SKEWED, num_labeled, balanced=balanced, seed=0)


def test_a_class_without_examples_is_named():
    with pytest.raises(ValueError, match="needs 1 examples of class 1, got 0"):
        labeled_subset(torch.tensor([0, 0, 2, 2]), 3, balanced=True, seed=0)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([50, 51], r"at most the 100 examples, got \[50, 51\] = 101"),
        ([50, 0], r"each of sizes must be >= 1.*got \[50, 0\]"),
        ([], r"each of sizes must be >= 1.*got \[\]"),
    ],
)
def test_sizes_that_cannot_be_met_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        stratified_parts(SKEWED, sizes, seed=0)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 1, -1]), "labels must be classes 0..C-1, got -1 in row 2"),
        (torch.tensor([0.0, 1.0]), "labels must be a non-empty int64 vector, got torch.float32"),
        (torch.zeros(2, 2, dtype=torch.int64), r"got torch.int64 of shape \(2, 2\)"),
        (torch.zeros(0, dtype=torch.int64), r"got torch.int64 of shape \(0,\)"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        stratified_parts(labels, [1], seed=0)
    with pytest.raises(ValueError, match=message):
        labeled_subset(labels, 1, balanced=False, seed=0)


def test_rows_are_taken_evenly():
    assert evenly(torch.arange(10, 20), 4).tolist() == [10, 12, 15, 17]
    assert evenly(torch.arange(3), 4).tolist() == [0, 1, 2]


def test_classes_are_chosen_by_name_and_by_number_where_no_name_is_a_number():
    assert class_numbers(["1", "2", "3"], [1, "2.0"], "x") == [0, 1]
    assert class_numbers(["cat", "2 years"], ["2 years", 0], "x") == [1, 0]
    for names, chosen in ((["1", "2", "3"], 0), (["1", "two"], 0), (["cat", "dog"], 2), (["cat", "dog"], "Cat")):
        with pytest.raises(ValueError, match=f"x: there is no class {chosen}. The classes are {', '.join(names)}"):
            class_numbers(names, [chosen], "x")
