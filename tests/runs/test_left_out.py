"""The sentence on a class that is left out, on real short runs: VAT with far too large a radius makes one, and a useful radius does not."""

import csv
import random

import pytest

GOOD = ("wonderful", "great", "superb", "lovely", "moving", "brilliant", "fine", "warm")
BAD = ("awful", "dull", "boring", "bad", "weak", "tedious", "poor", "cold")
OTHERS = ["the", "film", "was", "a", "story", "of", "people", "with", "scenes", "and", "music", "that", "i", "saw", "last", "week"]


@pytest.fixture
def reviews(tmp_path):
    draw, path = random.Random(0), tmp_path / "reviews.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for row in range(400):
            of_class = GOOD if row % 2 else BAD
            words = draw.choices(OTHERS, k=15) + draw.choices(of_class, k=2) + draw.choices(GOOD + BAD, k=1)
            writer.writerow([" ".join(draw.sample(words, len(words))), ("good" if row % 2 else "bad") if row < 60 else ""])
    return ("data=text", f"data.train={path}", "model=text_mean", "trainer.max_steps=100", "data.steps_per_epoch=100")


@pytest.mark.parametrize(("eps", "said"), [(0.5, False), (16.0, True)])
def test_a_class_that_vat_drops_is_named(job, reviews, eps, said):
    run = job(*reviews, "regularizer=vat", f"vat.eps={eps}", name=str(eps))
    page = (run.folder / "index.html").read_text()
    assert ("almost never predicted" in page) == said
    assert (run.metrics["pool/smallest_share"] < 0.1) == said
    if not said:
        assert run.metrics["test/accuracy"] > 0.6
