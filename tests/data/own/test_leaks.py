import math
import shlex
import warnings

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from vat.data.files.names import ignoring
from vat.data.own.arrays import Arrays
from vat.data.own.leaks import determining_the_class, is_total, numbers_the_rows

N = 60
GENERATOR = np.random.default_rng(0)
Y = np.arange(N) % 3
NOISE = GENERATOR.normal(size=N)


@pytest.mark.parametrize(
    ("values", "name", "expected"),
    [
        (np.arange(N), "a", True),
        (np.arange(N)[::-1], "a", True),
        (1000 + 7 * np.arange(N), "a", True),
        (0.1 * np.arange(N), "seconds", True),
        (np.cumsum(GENERATOR.integers(1, 9, N)), "a", True),  # after rows were removed
        (np.arange(N) % 20, "a", True),  # three files in sequence
        (np.arange(24 * 14) % 24, "hour", False),
        (GENERATOR.permutation(N), "a", True),
        (GENERATOR.permutation(N) * 5 + 3, "a", True),
        (GENERATOR.integers(10**6, size=N), "patient_id", True),
        (GENERATOR.integers(10**6, size=N), "patientId", True),
        (GENERATOR.integers(10**6, size=N), "Unnamed: 0", True),
        (GENERATOR.integers(10**6, size=N), "fluid", False),
        (NOISE, "id", False),  # no whole numbers
        (NOISE, "a", False),
        (np.sort(GENERATOR.integers(0, 30, N)), "age", False),  # rows sorted by a feature
        (GENERATOR.integers(0, 2, N), "a", False),
        (np.arange(N) % 2, "a", False),
        (np.zeros(N), "id", False),
        (np.arange(9), "a", False),  # nine rows can rise by chance
    ],
)
def test_a_feature_that_numbers_the_rows_is_found(values, name, expected):
    assert numbers_the_rows(values, name) is expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (Y, True),
        (2 - Y, True),
        (np.array([7.5, -1, 3])[Y], True),
        (Y * 4 + GENERATOR.integers(0, 3, N), True),  # several values for a class
        (Y + 0.9 * GENERATOR.random(N), True),  # a score that the class was computed from
        (np.where(np.arange(N) == 30, 5, Y), True),  # one more value
        (np.where(np.arange(N) == 30, 1, Y), False),  # row 30 has class 0
        (GENERATOR.integers(0, 3, N), False),
        (NOISE, False),
        (np.arange(N), False),
        (np.ones(N), False),
    ],
)
def test_a_feature_that_determines_the_class_is_found(values, expected):
    for order in (np.arange(N), GENERATOR.permutation(N)):
        assert determining_the_class(np.stack([NOISE, values], 1)[order], Y[order]) == [1] * expected


def test_a_feature_that_separates_few_labels_is_not_named():
    y = np.arange(40) % 2
    assert determining_the_class(np.stack([3 * y + GENERATOR.random(40)], 1), y) == []


def test_an_indicator_of_each_class_is_found():
    indicators = np.eye(3)[Y]
    assert determining_the_class(np.concatenate([NOISE[:, None], indicators], 1), Y) == [1, 2, 3]
    assert determining_the_class(np.concatenate([1 - 2 * indicators[:, :2], NOISE[:, None]], 1), Y) == [0, 1]
    assert determining_the_class(np.stack([NOISE, Y == 0], 1), Y) == []  # as feathers, which tell a bird but not the other classes
    assert determining_the_class(np.eye(3)[Y[:7]], Y[:7]) == []


def test_a_rare_class_counts_too():
    y = (np.arange(1000) % 100 == 0).astype(int)
    assert determining_the_class(np.stack([y, GENERATOR.normal(size=1000)], 1), y) == [0]


def test_copies_of_rows_and_rows_of_one_patient_count_once():
    assert determining_the_class(np.stack([NOISE, NOISE], 1).repeat(4, 0), Y.repeat(4)) == []
    patient = np.arange(N) // 10  # of each, ten rows with the same class and size
    size, y = GENERATOR.normal(size=6)[patient], patient % 2
    assert determining_the_class(np.stack([NOISE, size], 1), y, patient.tolist()) == []
    assert determining_the_class(np.stack([NOISE, -y], 1), y) == [1]
    assert determining_the_class(np.stack([NOISE, -y], 1), y, np.arange(N).tolist()) == [1]


@pytest.mark.parametrize("number", [1, 4])
def test_a_row_of_totals_is_found(number):
    x = GENERATOR.integers(0, 50, (N, number)) + GENERATOR.random((N, number)).round(2)
    constant = np.full((N + 1, 1), 3.5)
    for last, expected in ((x.sum(0), True), (x.mean(0).round(3), number > 1), (x[3], False), (np.zeros(number), False), (2 * x[0], False)):
        table = np.concatenate([x, last[None]])
        assert is_total(table) is expected
        assert is_total(np.concatenate([table, constant], 1)) is expected
    assert not is_total(np.concatenate([x[:5], x[:5].sum(0, keepdims=True)]))  # few rows
    assert not is_total(np.zeros((N, number)))


@pytest.mark.parametrize("label", ["", "ill", "Total"])
@pytest.mark.filterwarnings("ignore:no labelled example is")
def test_a_total_is_named_by_its_line(tmp_path, label):
    path = tmp_path / "a.csv"
    rows = (f"{NOISE[k] + 5:.3f},{['ill', 'well'][k % 2]}" for k in range(N))
    path.write_text("\n".join(["a,y", *rows, f"{sum(round(value + 5, 3) for value in NOISE):.3f},{label}"]))
    with pytest.warns(UserWarning, match=r"a\.csv: line 62 holds the sums or means of the rows above it\. If it is no example, remove it"):
        Arrays(train=str(path), batch_size_labeled=4, batch_size_unlabeled=8).setup()


@pytest.mark.parametrize("num_features", [1, 100])
def test_few_rows_fit_by_chance_and_are_not_named(num_features):
    found = 0
    for seed in range(200):
        generator = np.random.default_rng(seed)
        rows = int(generator.integers(4, 25))
        y = generator.permutation(np.arange(rows) % 2)
        found += bool(determining_the_class(generator.integers(0, 2, (rows, num_features)), y))
    assert found == 0


def test_a_copy_counts_if_it_fits_by_chance_in_less_than_a_thousandth():
    # Two of the C(n, n/2) labellings fit a feature of two values. The bound counts four: a class for each value.
    for n in range(4, 31, 2):
        y = np.arange(n) % 2
        assert bool(determining_the_class(y[:, None], y, list(range(n)))) == (4 / math.comb(n, n // 2) < 1e-3)


def read(path, **options):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        Arrays(train=str(path), batch_size_labeled=4, batch_size_unlabeled=8, **options).setup()
    return [str(warning.message) for warning in found if " seem" in str(warning.message)]


def test_the_start_names_the_columns_and_the_setting_that_leaves_them_out(tmp_path):
    path = tmp_path / "a.csv"
    rows = (f"{k},{NOISE[k]},{'xyz'[Y[k]]},{Y[k] * 2},{-Y[k]}" for k in range(N))
    path.write_text("\n".join(["Unnamed: 0,a,y,code,größe", *rows]))
    numbering, determining = read(path)
    assert numbering == (
        f"{path}: 'Unnamed: 0' seems to number the rows. A feature that does may predict the class in this file alone, for example if rows "
        """are sorted. If so, add "data.ignore=['Unnamed: 0']\""""
    )
    assert determining == (
        f"{path}: 'code', 'größe' seem to be the label in another form: the class of all 60 labelled rows follows from them. If so, "
        """add "data.ignore=['code','größe']\""""
    )
    assert read(path, ignore=["Unnamed: 0", "code", "größe"]) == []


def test_unlabelled_rows_do_not_hide_a_copy_of_the_label(tmp_path):
    path = tmp_path / "a.csv"
    rows = (f"{NOISE[k]},{'xyz'[Y[k]] if k < 40 else ''},{Y[k] if k < 40 else -1}" for k in range(N))
    path.write_text("\n".join(["a,y,copy", *rows]))
    assert [said.partition(": ")[2][:12] for said in read(path)] == ["'copy' seems"]


def test_arrays_have_no_names_so_their_columns_are_numbered(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.stack([NOISE, np.arange(N), Y], 1), y=Y)
    numbering, determining = read(tmp_path / "a.npz")
    assert "'x[:, 1]' seems to number the rows" in numbering
    assert "'x[:, 2]' seems to be the label" in determining
    assert numbering.endswith("If so, leave it out of x")


@pytest.mark.parametrize("names", [["id"], ["Unnamed: 0"], ["größe", "it's", "a,b", "c[0]"]])
def test_the_setting_can_be_typed_as_it_is_shown(names):
    (word,) = shlex.split(ignoring(names))
    assert OverridesParser.create().parse_override(word).value() == names
