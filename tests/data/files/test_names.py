import unicodedata
from decimal import Decimal

import numpy as np
import pytest

from vat.data.files.names import lookalikes, name_of, names_of
from vat.data.files.tables import read_table

NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
VALUES = {  # what the label of each of four rows is, as a column or array of some type
    "strings": (["cat", "", " dog ", "-1"], ["cat", "", "dog", ""], {"empty": 1, "-1": 1}),
    "bytes": ([b"cat", b"", b" dog ", b"-1"], ["cat", "", "dog", ""], {"empty": 1, "-1": 1}),
    "forms": ([NFC, NFD, "\t", "nan"], [NFC, NFC, "", ""], {"empty": 1, "NaN": 1}),
    "numeric strings": (["1.0", " 2", "-1.0", "10"], ["1", "2", "", "10"], {"-1": 1}),
    "NumPy's text": (["1.000000000000000000e+00", "0.000e+00", "-1.000e+00", "1.200e+01"], ["1", "0", "", "12"], {"-1": 1}),
    "numbers": ([1, -1, 0, 3], ["1", "", "0", "3"], {"-1": 1}),
    "floats": ([1.0, -1.0, np.nan, 3.0], ["1", "", "", "3"], {"-1": 1, "NaN": 1}),
}


@pytest.mark.parametrize("kind", ["npz", "csv", "parquet", "categories", "folder"])
@pytest.mark.parametrize("values", VALUES)
def test_a_label_is_read_alike_in_every_file(tmp_path, kind, values):
    given, expected, spellings = VALUES[values]
    x = np.array([[1.5, 2], [0.5, 7], [3, 4], [5, 5]])
    path = tmp_path / f"a.{'npz' if kind == 'npz' else 'csv' if kind == 'csv' else 'parquet'}"
    if kind == "npz":
        np.savez(path, x=x, y=np.array(given), g=np.array(given))
    elif kind == "csv":
        text = [value.decode() if isinstance(value, bytes) else value for value in given]
        path.write_text("a,y,b\n" + "".join(f'{row[0]},"{label}",{row[1]}\n' for row, label in zip(x, text, strict=True)))
    else:
        pd = pytest.importorskip("pandas")
        pytest.importorskip("pyarrow")
        frame = pd.DataFrame(x, columns=["a", "b"]).assign(y=pd.Categorical(given) if kind == "categories" else given)
        if kind == "folder":
            path.mkdir()
            (path / "_SUCCESS").touch()
            (path / "._part.crc").write_bytes(b"no Parquet")
            frame[:3].to_parquet(path / "part-00000.snappy.parquet", index=False)
            frame[3:].to_parquet(path / "part-00001.snappy.parquet", index=False)
        else:
            frame.to_parquet(path)
    table = read_table(path, label="y", group=None)
    assert (table.labels, dict(table.unlabeled)) == (expected, spellings)
    assert table.x.tolist() == x.tolist()


def test_what_has_no_value_is_no_name():
    pd = pytest.importorskip("pandas")
    for value in (None, float("nan"), pd.NA, pd.NaT, np.float32("nan"), np.bytes_(b" "), bytearray(b""), np.str_("-1"), np.int8(-1)):
        assert name_of(value, "y") == ""
    assert [name_of(value, "y") for value in (np.bytes_(b"a"), bytearray(b"b "), np.int64(3), 4.0, "01", "2.50", True)] == [
        *("a", "b", "3", "4", "01", "2.50", "True")
    ]
    assert names_of([b"a", None, "-1", -1.0], "y") == (["a", "", "", ""], {"NaN": 1, "-1": 2})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"\xff", r"y holds b'\\xff', which is not UTF-8"),
        ("p\ud800", r"y holds 'p\\ud800', which is not UTF-8. Save it as text"),
        (-2, "y must be >= 0, or -1 .* got -2"),
        ([1], "one name or number in each row"),
    ],
)
def test_what_is_no_name_is_refused(value, message):
    with pytest.raises(ValueError, match=message):
        name_of(value, "y")


def test_names_that_a_reader_takes_for_one_are_found():
    assert lookalikes(["cat", "dog", "Cat "]) == ["cat", "Cat "]
    assert lookalikes(["ﬁsh", "fish", "a  b"]) == ["ﬁsh", "fish"]
    assert lookalikes(["a", "b", "1", "10"]) == []


def test_a_parquet_folder_must_hold_parts_of_the_same_columns(tmp_path):
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    with pytest.raises(ValueError, match=r"is a folder without Parquet files\. Name a file\. data=images data\.dir="):
        read_table(tmp_path, label="y", group=None)
    frame = pd.DataFrame({"x": [1.5, 2.5], "z": [0, 5]})
    for label in "ab":  # a column that is in the folders' names
        (tmp_path / f"y={label}").mkdir()
        frame.to_parquet(tmp_path / f"y={label}" / "part.parquet")
    table = read_table(tmp_path, label="y", group=None)
    assert (table.labels, table.columns, table.x[:, 0].tolist()) == ([*"aabb"], ["x", "z"], [1.5, 2.5] * 2)
    frame.assign(new=1).to_parquet(tmp_path / "y=b" / "part.parquet")
    with pytest.raises(ValueError, match=r"y=b/part\.parquet must have the same columns as .*y=a/part\.parquet"):
        read_table(tmp_path, label="y", group=None)


def test_a_parquet_file_of_another_form_is_refused_by_name(tmp_path):
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = pd.DataFrame({"x": [1.5, 2.5], "y": ["a", "b"], "id": ["p", "q"]})
    for changed, options, message in (
        (frame, {}, r"column 'id' is not numeric \(.*string\)\. Encode it as numbers, or remove it by data\.ignore=\[id\]"),
        (frame.assign(x=[1.5, None]), {"ignore": ["id"]}, "column 'x' has missing values, the first in row 1. Fill them"),
        (frame.assign(x=pd.array([None, 2], dtype="Int64")), {"ignore": ["id"]}, "has missing values, the first in row 0"),
        (frame[:0], {"ignore": ["id"]}, "it has no rows"),
        (frame, {"label": "kind"}, r"it has no column 'kind' but 'x', 'y', 'id'; data\.label= names it"),
        (frame.assign(y=[[1], [2]]), {"ignore": ["id"]}, "y must hold one name or number in each row"),
    ):
        changed.to_parquet(tmp_path / "a.parquet")
        with pytest.raises(ValueError, match=rf"a\.parquet cannot be used: .*{message}"):
            read_table(tmp_path / "a.parquet", **({"label": "y", "group": None} | options))
    frame.assign(x=[Decimal("1.5"), Decimal("2.25")]).to_parquet(tmp_path / "a.parquet")
    assert read_table(tmp_path / "a.parquet", label="y", group=None, ignore=["id"]).x.tolist() == [[1.5], [2.25]]
    frame.to_parquet(tmp_path / "a.parquet")
    assert read_table(tmp_path / "a.parquet", label="y", group=None, ignore=["id"]).columns == ["x"]
    np.savez(tmp_path / "a.npz", x=np.ones((2, 2)), y=[0, 1])
    with pytest.raises(ValueError, match=r"data\.ignore=\['id'\] is for columns of a CSV or Parquet file"):
        read_table(tmp_path / "a.npz", label="y", group=None, ignore=["id"])


def test_a_name_is_one_line_without_invisible_edges():
    for value in ("\ufeffill", "ill\u200b", "\u00a0ill\t", " ill\u2060 "):
        assert name_of(value, "y") == "ill"
    assert name_of("very\nill", "y") == name_of("very\x1b\r\nill", "y") == "very ill"
    assert names_of(["\u22121", "\u22121.0", "2"], "y") == (["", "", "2"], {"-1": 2})
    assert name_of("2024-01-02", "y") == "2024-01-02"


def test_names_that_look_alike_are_found():
    for names in (["1", "01"], ["00", "0"], ["ill", "il\u200bl"], ["a  b", "a b"], ["Tea", "tea"]):
        assert lookalikes([*names, "other"]) == names
    assert lookalikes(["10", "100", "1", "x0", "0x"]) == []


@pytest.mark.parametrize("labels", [["0.5", "1.5"], ["1e0", "2e0"]])
def test_a_measured_label_is_refused_in_every_file(tmp_path, labels):
    from PIL import Image

    from vat.data.files.texts import read_texts
    from vat.data.own.images import find_images

    (tmp_path / "a.csv").write_text("a,y\n" + "".join(f"{i},{labels[i % 2]}\n" for i in range(6)))
    (tmp_path / "t.csv").write_text("text,y\n" + "".join(f"word {i},{labels[i % 2]}\n" for i in range(6)))
    (tmp_path / "photos").mkdir()
    for i in range(4):
        Image.new("RGB", (4, 4)).save(tmp_path / "photos" / f"{i}.png")
    (tmp_path / "photos" / "labels.csv").write_text("file,y\n" + "".join(f"{i}.png,{labels[i % 2]}\n" for i in range(4)))
    for read in (
        lambda: read_table(tmp_path / "a.csv", label="y", group=None),
        lambda: read_texts(tmp_path / "t.csv", text="text", label="y"),
        lambda: find_images(tmp_path / "photos"),
    ):
        with pytest.raises(ValueError, match=rf"y must hold whole numbers or names as classes, not measurements, got {labels[0]}"):
            read()
