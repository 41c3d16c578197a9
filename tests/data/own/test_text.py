"""A user's texts: splits, vocabulary, groups, refused input."""

import csv
import warnings

import pytest
import torch

from vat.data.files.words import FIRST_WORD, UNKNOWN_WORD, words_of
from vat.data.own.text import Texts, encode

GOOD, BAD, REST = (
    ["great", "fine", "lovely"],
    ["dull", "awful", "poor"],
    ["the", "film", "was", "a", "story", "of", "people", "in", "a", "city"],
)


def texts(number, *, seed=0, word=None):
    """Texts of `number` examples with their labels. Each has a unique word, `word` with its number if given."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for i in range(number):
        words = [REST[k] for k in torch.randint(len(REST), (5,), generator=generator)]
        words += [(GOOD if i % 2 else BAD)[int(torch.randint(3, (1,), generator=generator))], f"{word or 'only'}{i}"]
        rows.append((" ".join(words), "good" if i % 2 else "bad"))
    return rows


@pytest.fixture
def files(tmp_path):
    """Rows -> a CSV file of them, with a label for the first ones."""

    def write(name, rows, labeled=None, group=None):
        path = tmp_path / name
        with path.open("w", newline="") as file:
            out = csv.writer(file)
            out.writerow(["review", "sentiment", "writer"])
            for i, (text, label) in enumerate(rows):
                out.writerow([text, label if labeled is None or i < labeled else "", "" if group is None else group(i)])
        return str(path)

    return write


def made(train, **options):
    options = {"text": "review", "label": "sentiment", "max_length": 20} | options
    data = Texts(train=train, **options)
    data.setup()
    return data


def test_parts_follow_from_the_seed(files):
    train = files("train.csv", texts(100), labeled=40)
    one, same, other = made(train), made(train), made(train, seed=1)
    assert one.split.sizes == {"labeled": 28, "unlabeled": 88, "validation": 4, "test": 8}
    assert one.split.digest == same.split.digest != other.split.digest
    assert torch.equal(one.x, same.x)
    assert one.class_names == ["bad", "good"]
    assert (one.y[40:] == -1).all()
    assert one.x.dtype == torch.int32
    batches = [next(iter(data.train_dataloader())) for data in (one, same)]
    assert torch.equal(batches[0].unlabeled.x, batches[1].unlabeled.x)


def test_the_vocabulary_is_of_the_training_texts_alone(files):
    train, more, test = (
        files("train.csv", texts(60, word="train"), labeled=40),
        files("more.csv", texts(20, seed=1, word="more")),
        files("test.csv", texts(20, seed=2, word="test")),
    )
    data = made(train, unlabeled=more, test=test)
    rows = [*texts(60, word="train"), *texts(20, seed=1, word="more"), *texts(20, seed=2, word="test")]
    seen = {word for row in data.split.unlabeled.tolist() for word in words_of(rows[row][0])}
    held_out = {word for row in (*data.split.validation.tolist(), *data.split.test.tolist()) for word in words_of(rows[row][0])}
    vocabulary = data.preparation["vocabulary"]
    assert set(vocabulary) == seen
    assert held_out - seen, "the validation and test texts have words that no training text has"
    assert data.split.test.tolist() == [*range(80, 100)]
    assert (data.y[60:80] == -1).all(), "labels of the second file are not read"
    for row in (*data.split.unlabeled.tolist(), *data.split.test.tolist()):
        expected = [vocabulary.index(word) + FIRST_WORD if word in seen else UNKNOWN_WORD for word in words_of(rows[row][0])]
        assert data.x[row].tolist() == expected + [0] * (data.x.shape[1] - len(expected))
    counts = torch.bincount(data.x[data.split.unlabeled].flatten(), minlength=len(vocabulary) + FIRST_WORD)
    assert data.preparation["counts"] == [0, *counts[1:].tolist()]
    frequent = counts[FIRST_WORD:].tolist()
    assert frequent == sorted(frequent, reverse=True)


def test_texts_are_cut_and_never_longer_than_the_longest_for_training(files):
    train = files("train.csv", texts(60), labeled=40)
    assert made(train).x.shape == (60, 7)
    data = made(train, max_length=3, vocabulary_size=4)
    assert data.x.shape == (60, 3)
    assert len(data.preparation["vocabulary"]) == 4
    assert data.preparation["vocabulary_size"] == len(data.preparation["counts"]) == 6
    assert "100 % of the texts are cut after 3 words" in data.summary


def test_what_is_encoded_later_is_what_was_trained_on(files):
    rows = texts(60)
    data = made(files("train.csv", rows, labeled=40), vocabulary_size=12)
    assert torch.equal(encode([text for text, _ in rows], data.preparation), data.x)


def test_a_given_vocabulary_replaces_the_own_one(files):
    trained = made(files("train.csv", texts(60), labeled=40), vocabulary_size=8)
    other = texts(60, seed=3, word="other")
    data = Texts(train=files("other.csv", other, labeled=40), text="review", label="sentiment", max_length=20)
    data.given = trained.preparation
    data.setup()
    assert data.preparation == trained.preparation
    assert torch.equal(data.x, encode([text for text, _ in other], trained.preparation))


def test_no_group_is_in_two_parts(files):
    data = made(files("train.csv", texts(100), labeled=60, group=lambda i: f"writer {i // 4}"), group="writer")
    parts = [{row // 4 for row in part.tolist()} for part in (data.split.unlabeled, data.split.validation, data.split.test)]
    assert all(parts)
    assert not parts[0] & (parts[1] | parts[2])
    assert not parts[1] & parts[2]
    test = files("test.csv", texts(8, seed=1), group=lambda i: f"writer {i}")
    with pytest.raises(ValueError, match="both have texts of writer writer 0"):
        made(files("train.csv", texts(100), group=lambda i: f"writer {i // 4}"), group="writer", test=test)


@pytest.mark.filterwarnings("ignore:validation_share=0")
def test_copies_among_the_test_texts_are_reported(files):
    rows = texts(60)
    test = files("test.csv", rows[:20])
    with pytest.warns(UserWarning, match="20 of 20 test examples"):
        made(files("train.csv", rows), test=test, validation_share=0.0)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"text": "txt"}, "no column 'txt'"),
        ({"label": "stars"}, "no column 'stars'"),
        ({"max_length": 0}, "max_length must be >= 1"),
        ({"vocabulary_size": 0}, "vocabulary_size must be >= 1"),
        ({"flip": True}, "for images"),
        ({"tokenizer": "nowhere"}, "no tokenizer.json"),
    ],
)
def test_wrong_options_are_refused(files, options, told):
    with pytest.raises(ValueError, match=told) as error:
        made(files("train.csv", texts(60), labeled=40), **options)
    assert "\n" not in str(error.value)


def test_wrong_test_files_are_refused(files):
    train = files("train.csv", texts(60), labeled=40)
    with pytest.raises(ValueError, match=r"is data\.train too"):
        made(train, test=train)
    with pytest.raises(ValueError, match=r"is data\.train too"):
        made(train, unlabeled=train)
    with pytest.raises(ValueError, match="line 12 is not"):
        made(train, test=files("test.csv", texts(20, seed=1), labeled=10))
    with pytest.raises(ValueError, match=r"line 2 has the label 'ugly'. The classes are bad, good"):
        made(train, test=files("test.csv", [("a text", "ugly")]))


def test_no_warning_without_a_reason(files):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made(files("train.csv", texts(100), labeled=60))
