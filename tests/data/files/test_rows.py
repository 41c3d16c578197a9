import gzip
import unicodedata

import numpy as np
import pytest

from vat.data.files.tables import read_table
from vat.data.files.texts import read_texts

HEADER = "y,visits,score,owner"
ROWS = [f"{['healthy', 'ill'][k % 2]},{k * k % 7},{k * 0.5},p{k // 2}" for k in range(8)]
NFD = unicodedata.normalize("NFD", "café")


def read(tmp_path, text, **options):
    path = tmp_path / "a.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_table(path, **({"label": "y", "group": "owner"} | options))


def lines(*rows, end="\n"):
    return "".join(f"{row}{end}" for row in rows)


@pytest.mark.parametrize(
    "text",
    [
        lines(HEADER, *ROWS),
        lines(HEADER, *(f"{row}," for row in ROWS)),
        lines(HEADER, *(f"{row},, " for row in ROWS)),
        lines(f"{HEADER},", *ROWS),
        lines(f"{HEADER},", *(f"{row}," for row in ROWS)),
        lines(f"{HEADER},,", *ROWS[:4], *(f"{row},,," for row in ROWS[4:])),
        lines("sep=,", HEADER, *ROWS),
        lines(HEADER, *ROWS, end="\r\n"),
        lines(HEADER, *ROWS, end="\r"),
        lines("", HEADER, "", *ROWS, ""),
        "\ufeff" + lines(HEADER, *ROWS).rstrip(),
        lines(HEADER.replace(",", ", "), *(row.replace(",", ", ") for row in ROWS)),
        lines(*(",".join(f'"{field}"' for field in row.split(",")) for row in (HEADER, *ROWS))),
    ],
)
def test_a_field_belongs_to_the_column_above_it(tmp_path, text):
    table = read(tmp_path, text)
    assert table.labels == ["healthy", "ill"] * 4
    assert table.groups == [f"p{k // 2}" for k in range(8)]
    assert table.columns == ["visits", "score"]
    np.testing.assert_array_equal(table.x, [[k * k % 7, k * 0.5] for k in range(8)])
    in_file = [k for k, row in enumerate(text.splitlines(), start=1) if row.replace('"', "").startswith(("healthy", "ill"))]
    assert [table.place(row) for row in range(8)] == [f"line {k}" for k in in_file]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (lines(HEADER, *ROWS, "ill,1,2,p9,more"), "line 10 has 5 fields, the header has 4. Give each column a name and each row a field"),
        (lines(HEADER, *ROWS, "ill,1,2"), "line 10 has 3 fields, the header has 4"),
        (lines("score,owner,y", "1,a,ill", "2,b"), "line 3 has 2 fields, the header has 3"),  # not a row without a label
        (lines(HEADER, *(f"{k},{row}" for k, row in enumerate(ROWS))), "line 2 has 5 fields, the header has 4"),  # as R writes it
        (lines(f",{HEADER}", *(f"{k},{row}" for k, row in enumerate(ROWS))), "it has a column without a name"),  # as pandas does
        (lines(HEADER, *ROWS[:3], "# a note", *ROWS[3:]), "line 5 has 1 fields, the header has 4. .*remove comments"),
        (lines("# a note, and more", HEADER, *ROWS), "line 1 starts with '#'. Remove comments"),
        (lines(f"# {HEADER}", *ROWS), "line 1 starts with '#'"),
        (
            lines(HEADER, *ROWS).replace(",", " "),
            "line 1 names one column, .* The first line must name the columns, with commas",
        ),
        ("sep=;\n" + lines(HEADER, *ROWS).replace(",", ";"), "its fields are separated by ';'"),
        (lines("0.5,1,7.5,a", *ROWS), "line 1 holds values, 0.5, 1, 7.5 …. The first line must name the columns"),
        (lines(HEADER, '"ill,1,2,p9', "ill,1,2,p9"), "line 2 is no CSV: unexpected end of data"),
        (lines(HEADER, "ill,1_000,2,p9"), r"column 'visits' is not numeric \('1_000' in line 2\)\. .*data\.ignore=\[visits\]"),
        (lines(HEADER, *ROWS).encode("utf-16"), "Save it as UTF-8"),
        (lines(f"{NFD},café,y,owner", "1,2,a,b"), "it has two columns called 'café'"),
        (lines("x,owner", "1,a"), r"it has no column 'y' but 'x', 'owner'; data\.label= names it"),
        (lines("x,y", "1,a"), r"it has no column 'owner' but 'x', 'y'; data\.group= names it"),
    ],
)
def test_what_could_shift_columns_or_has_no_header_is_refused_by_its_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=rf"a\.csv cannot be used: .*{message}"):
        read(tmp_path, text)


def test_inputs_alone_need_names_too_or_their_first_row_would_be_lost(tmp_path):
    values = lines("0.5,1,7.5", "0.5,2,7.5")
    with pytest.raises(ValueError, match="line 1 holds values"):
        read(tmp_path, values, label=None, group=None)
    table = read(tmp_path, "0,1,2\n" + values, label=None, group=None)
    assert table.x.tolist() == [[0.5, 1, 7.5], [0.5, 2, 7.5]]


def test_columns_that_are_to_be_ignored_are_no_features(tmp_path):
    text = lines("patient_id,y,x", "p1,a,2", "p2,b,5")
    with pytest.raises(ValueError, match=r"column 'patient_id' is not numeric .*data\.ignore=\[patient_id\]"):
        read(tmp_path, text, group=None)
    table = read(tmp_path, text, group=None, ignore=["patient_id"])
    assert (table.columns, table.x.tolist()) == (["x"], [[2], [5]])
    with pytest.raises(ValueError, match=r"it has no column 'id' but .*; data\.ignore= names it"):
        read(tmp_path, text, group=None, ignore=["id"])


def test_features_of_truth_and_of_several_lines(tmp_path):
    table = read(tmp_path, 'y,"a\nb",c\nill,True,2\n"sick\nbad",FALSE,3\n', group=None)
    assert (table.columns, table.x.tolist(), table.labels) == (["a b", "c"], [[1, 2], [0, 3]], ["ill", "sick bad"])
    assert [table.place(row) for row in (0, 1)] == ["line 3", "line 4"]


@pytest.mark.parametrize("written", ["", "NA", "nan", "NULL", "n/a", "None", "<NA>"])
def test_a_feature_that_is_not_known_is_refused_by_its_line(tmp_path, written):
    with pytest.raises(ValueError, match=r"column 'x' has missing values, the first in line 3. Fill them"):
        read(tmp_path, f"y,x\na,1\nb,{written}\n", group=None)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (gzip.compress(lines(HEADER, *ROWS).encode(), mtime=0), "compressed by gzip. Unpack it"),
        (b"PK\x03\x04\x14\x00\x06\x00\x08\x00\x00\x00!\x00\xff\xee", "a zip archive or a workbook of Excel"),
        (lines(HEADER, *ROWS).encode("utf-16"), "text in UTF-16. Save it as UTF-8"),
    ],
)
def test_a_file_of_another_kind_is_called_what_it_is(tmp_path, content, kind):
    with pytest.raises(ValueError, match=rf"a\.csv cannot be used: it is {kind}"):
        read(tmp_path, content)
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.jsonl cannot be used: it is {kind}"):
        read_texts(tmp_path / "a.jsonl", text="text")


def test_a_table_without_features_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"it has no feature: 'a', 'y' are named by data\.label, data\.group or data\.ignore"):
        read(tmp_path, "a,y\n1,b\n", group=None, ignore=["a"])


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_nul_characters_are_refused(tmp_path, encoding):
    (tmp_path / "a.csv").write_bytes(lines(HEADER, *ROWS).encode(encoding))
    with pytest.raises(ValueError, match=r"it holds NUL characters, as UTF-16 does. Save it as UTF-8"):
        read_table(tmp_path / "a.csv", label="y", group=None)
