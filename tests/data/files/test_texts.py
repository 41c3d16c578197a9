"""Text files: which are read, and which are refused with a one-line error."""

import gzip
import json
import lzma

import pytest

from vat.data.files import texts
from vat.data.files.texts import read_texts
from vat.data.files.words import FIRST_WORD, UNKNOWN_WORD, in_vocabulary, most_frequent, numbered_words, words_of

ROWS = [("A fine film", "good"), ("Dull", "bad"), ("So, so", "")]


def written(folder, name):
    path = folder / name
    objects = "".join(json.dumps({"review": text, "label": label or None}) + "\n" for text, label in ROWS)
    if name.endswith(".csv"):
        path.write_text("label,review\n" + "".join(f'{label},"{text}"\n' for text, label in ROWS))
    elif name.endswith(".jsonl"):
        path.write_text(objects + "\n")
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(objects.encode()))
    elif name.endswith(".xz"):
        path.write_bytes(lzma.compress(objects.encode()))
    else:
        pytest.importorskip("pyarrow")
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table({"label": [label or None for _, label in ROWS], "review": [text for text, _ in ROWS]})
        (path if name.endswith("folder") else folder).mkdir(exist_ok=True)
        pq.write_table(table, path / "part.parquet" if name.endswith("folder") else path)
    return path


@pytest.mark.parametrize("name", ["r.csv", "r.jsonl", "r.jsonl.gz", "r.jsonl.xz", "r.parquet", "folder"])
def test_the_same_rows_are_read_from_every_kind_of_file(tmp_path, name):
    table = read_texts(written(tmp_path, name), text="review", label="label")
    assert list(zip(table.texts, table.labels, strict=True)) == ROWS
    assert sum(table.unlabeled.values()) == 1
    assert table.groups is None
    assert len(set(table.places)) == 3
    grouped = read_texts(written(tmp_path, name), text="review", group="review")
    assert grouped.groups == [text for text, _ in ROWS]
    assert set(grouped.labels) == {""}


def test_plain_text_is_one_a_line(tmp_path):
    path = tmp_path / "r.txt"
    path.write_text("One\nTwo words\n", encoding="utf-8-sig")
    assert read_texts(path, text="review").texts == ["One", "Two words"]
    with pytest.raises(ValueError, match="must end in"):
        read_texts(path, text="review", label="label")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("r.csv", "label,review\n1,\n", "line 2 is blank"),
        ("r.csv", "label,review\n", "no texts"),
        ("r.csv", "label,review,review\n1,a,b\n", "two columns called 'review'"),
        ("r.csv", "label,text\n1,a\n", "no column 'review' but 'label', 'text'"),
        ("r.csv", b"label,review\n1,\xff\n", "UTF-8"),
        ("r.jsonl", '{"review": 3, "label": 1}\n', "line 1 is 3"),
        ("r.jsonl", '{"review": "  ", "label": 1}\n', "line 1 is blank"),
        ("r.jsonl", '{"text": "a", "label": 1}\n', "no 'review' but 'text', 'label'"),
        ("r.jsonl", '{"review": "a"}\n[1]\n', "line 2 must be an object"),
        ("r.jsonl", '{"review": "a"\n', "line 1 cannot be read as JSON"),
        ("r.jsonl", '{"review": "a"}\n{"review": "b", "label": 1, "label": 2}\n', "line 2 .* it has 'label' twice"),
        ("r.jsonl", '{"review": "b", " review": "c"}\n', "line 1 .* it has 'review' twice"),
        ("r.jsonl", "[" * 100_000 + "\n", "line 1 is nested too deeply"),
        ("r.jsonl", '{"review": "a", "label": ["b"]}\n', "one name or number"),
        ("r.jsonl", b'{"review": "\xff"}\n', "UTF-8"),
        ("r.jsonl.gz", b"no gzip", "cannot be read"),
        ("r.jsonl.gz", gzip.compress(b'{"review": "a"}\n', mtime=0)[:-4], "cannot be read"),
        ("r.jsonl.xz", b"no xz", "cannot be read"),
        ("r.xlsx", b"", "must end in"),
        ("r.parquet", b"PAR1", "cannot be used"),
    ],
)
def test_what_cannot_be_read_is_refused_in_a_line(tmp_path, name, content, told):
    path = tmp_path / name
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=told) as error:
        read_texts(path, text="review", label="label")
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_an_absent_file_or_field_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_texts(tmp_path / "r.csv", text="review")
    path = tmp_path / "r.jsonl"
    path.write_text('{"review": "a"}\n')
    with pytest.raises(ValueError, match="no 'patient' in any row"):
        read_texts(path, text="review", group="patient")
    path.write_text('{"review": "a", "patient": 1}\n{"review": "b"}\n')
    with pytest.raises(ValueError, match="line 2 is of no group"):
        read_texts(path, text="review", group="patient")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="without Parquet files"):
        read_texts(tmp_path / "empty", text="review")


def test_a_line_without_end_is_not_read_completely(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "LONGEST_LINE", 20)
    path = tmp_path / "r.txt"
    path.write_text("a" * 30)
    with pytest.raises(ValueError, match="a line of 20 characters or more"):
        read_texts(path, text="review")


def test_parquet_needs_pyarrow(tmp_path, monkeypatch):
    path = tmp_path / "r.parquet"
    path.touch()
    monkeypatch.setattr(texts.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install pyarrow"):
        read_texts(path, text="review")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't STOP — it’s <br />great!", ["don't", "stop", "it’s", "br", "great", "!"]),
        ("caf\u0065\u0301", ["caf\u00e9"]),
        (
            "\u092b\u093f\u0932\u094d\u092e \u0905\u091a\u094d\u091b\u0940",
            ["\u092b\u093f\u0932\u094d\u092e", "\u0905\u091a\u094d\u091b\u0940"],
        ),
        ("\u597d\u770b", ["\u597d", "\u770b"]),
        ("snake_case 42", ["snake", "case", "42"]),
        ("… -- ", []),
    ],
)
def test_words(text, words):
    assert words_of(text) == words


def test_a_vocabulary_is_the_most_frequent_words_of_the_rows_it_is_made_of():
    x, words, lengths = numbered_words(["b b a c c", "d d d d", "..."], max_length=4)
    assert lengths.tolist() == [5, 4, 1]
    vocabulary = most_frequent(x[[0, 2]], words, size=2)
    assert vocabulary == {"b": 2, "a": 1}, "the second c is cut off, and of two equal words the first in the alphabet is taken"
    b, a, unknown = FIRST_WORD, FIRST_WORD + 1, UNKNOWN_WORD
    assert in_vocabulary(x, words, vocabulary).tolist() == [[b, b, a, unknown], [unknown] * 4, [unknown, 0, 0, 0]]


def test_other_fields_of_json_lines_may_occur_twice_or_hold_objects(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"review": "a", "label": 1, "note": {"label": 5, "x": [{"review": "z"}]}, "day": 1, "day": 2}\n')
    table = read_texts(path, text="review", label="label")
    assert (table.texts, table.labels) == (["a"], ["1"])
