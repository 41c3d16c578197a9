import warnings

import numpy as np
import pytest
from PIL import Image

from vat.data.own.images import Images, find_images


@pytest.fixture
def folder(tmp_path):
    """Twelve pictures in one folder, two of them in a subfolder."""
    for k in range(12):
        path = tmp_path / "photos" / ("more" if k > 9 else "") / f"{k:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(k).integers(256, size=(8, 8, 3), dtype=np.uint8)).save(path)
    return tmp_path / "photos"


NAMES = [f"{k:02}.png" for k in range(10)] + ["more/10.png", "more/11.png"]
CLASSES = ["cat", "dog"] * 4 + ["", "-1"]
ROWS = list(zip(NAMES, CLASSES, strict=False))  # the last two files are in no row
WAYS = {
    "two columns": ("file,label", lambda name, label: f"{name},{label}"),
    "the other way round": ("kind,name", lambda name, label: f"{label},{name}"),
    "without a suffix": ("id,breed", lambda name, label: f"{name[:2]},{label}"),
    "more columns": ("n,file,Label,weight", lambda name, label: f"1,./{name},{label},2.5"),
    "Windows": ("file,label", lambda name, label: rf".\{name.replace('/', chr(92))},{label}"),
    "a comma at the end": ("file,label", lambda name, label: f"{name},{label},"),
}


@pytest.mark.filterwarnings("ignore:no labelled example is")
@pytest.mark.parametrize("way", WAYS)
def test_a_table_next_to_the_images_names_their_classes(folder, way):
    header, row = WAYS[way]
    (folder / "labels.csv").write_text("\n".join([header, *(row(*pair) for pair in ROWS)]))
    names, files = find_images(folder)
    assert names == ["cat", "dog"]
    expected = {name: label for name, label in ROWS if label in ("cat", "dog")}
    assert {file.within: names[file.label] for file in files if file.label >= 0} == expected
    assert [file.within for file in files if file.label < 0] == NAMES[8:]
    assert [file.label for file in files] == [0] * 4 + [1] * 4 + [-1] * 4
    data = Images(dir=str(folder), size=8)
    data.setup()
    assert data.summary.startswith(
        "12 examples: 8 labelled (cat: 4, dog: 4), 4 without a label: 4 × not in labels.csv, or without a class there"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\n00.png,a\n99.png,b\n", r"labels\.csv cannot be used: line 3 names '99\.png', which is no image of the folder"),
        ("file,label\n00.png,a\n01.png,b\n00.png,b\n", "line 2 gives 00.png the class 'a', line 4 'b'"),
        ("file,label\nx,a\ny,b\n", r"no column of file, label names images of the folder, such as '00\.png'"),
        ("file,kind,weight\n00.png,a,1\n", "it is not clear which of kind, weight holds the classes. Call that column label"),
        ("00.png,a\n01.png,b\n02.png,a\n", r"line 1 names '00\.png', an image\. The first line must name the columns"),
        ("file\n00.png\n", "it must have two named columns"),
        ("file,label\n00.png,a\n01.png,a\n", "must hold at least 2 classes, got 1"),
        ("file,label\n00.png,a\n01.png,-3\n", "line 3, column 'label', must be >= 0, or -1 if it is not known"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_by_its_line(folder, text, message):
    (folder / "labels.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        find_images(folder)


def test_images_in_one_folder_need_a_table_and_folders_of_classes_none(folder):
    with pytest.raises(ValueError, match=r"00\.png is in no class. .*or name the class of each file in .*labels\.csv"):
        find_images(folder)
    for k in range(10):
        (folder / f"{k:02}.png").rename(folder / "more" / f"{k:02}.png")
    (folder / "other").mkdir()
    (folder / "more" / "11.png").rename(folder / "other" / "11.png")
    (folder / "labels.csv").write_text("file,label\n")
    with pytest.warns(UserWarning, match=r"labels\.csv is not used: the folders next to it are the classes"):
        assert find_images(folder)[0] == ["more", "other"]


@pytest.fixture
def shards(folder):
    """Twelve pictures in three folders, and the class of each, which is not its folder."""
    for name in ("a", "b", "c"):
        (folder / name).mkdir()
    classes = {f"{'abc'[k % 3]}/{k:02}.png": ["cat", "dog"][k % 2] for k in range(12)}
    for name in classes:
        (folder / ("more" if name[2:4] in ("10", "11") else "") / name[2:]).rename(folder / name)
    (folder / "more").rmdir()
    return folder, classes


@pytest.mark.parametrize("separator", ["/", "\\"])
def test_a_table_that_names_other_classes_than_the_folders_is_right(shards, separator):
    folder, classes = shards
    rows = (f"{name.replace('/', separator)},{label}" for name, label in classes.items())
    (folder / "labels.csv").write_text("\n".join(["file,label", *rows]))
    with pytest.warns(UserWarning, match=r"the classes are those in .*labels\.csv, not the folders next to it: a/00.png is of class 'cat'"):
        names, files = find_images(folder)
    assert {file.within: names[file.label] for file in files} == classes


def test_a_table_that_names_the_folders_as_classes_changes_nothing(shards):
    folder, classes = shards
    expected = find_images(folder)
    (folder / "labels.csv").write_text("\n".join(["file,label", *(f"{name},{name[0]}" for name in classes)]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find_images(folder) == expected


@pytest.mark.parametrize("header", ["label,id", "label,photo", "kind,id"])
def test_classes_that_are_also_names_of_images_are_classes(tmp_path, header):
    for k in range(12):
        Image.fromarray(np.random.default_rng(k).integers(256, size=(8, 8, 3), dtype=np.uint8)).save(tmp_path / f"{k}.png")
    (tmp_path / "labels.csv").write_text("\n".join([header, *(f"{k % 3},{k}" for k in range(12))]))
    names, files = find_images(tmp_path)
    assert {file.within: names[file.label] for file in files} == {f"{k}.png": str(k % 3) for k in range(12)}
