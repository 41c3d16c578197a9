import math
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from torch import nn

from vat.data.datamodule import ResidentDataModule
from vat.data.loader import Translate
from vat.data.sets.digits import Digits
from vat.data.sets.synthetic import Circles, Moons, circles, embedding, moons
from vat.data.splits import Split, labeled_subset

# A small set, to be damaged


class Small(ResidentDataModule):
    unit = "one"

    def __init__(self, x=None, y=None, *, num_labeled=8, **options):
        options = {"batch_size_labeled": 4, "batch_size_unlabeled": 6, "steps_per_epoch": 5} | options
        super().__init__(num_labeled=num_labeled, **options)
        self.examples = torch.arange(60.0).view(30, 2) if x is None else x, torch.arange(30) % 2 if y is None else y
        self.loads = 0

    def load(self):
        self.loads += 1
        self.class_names = ["even", "odd"]
        x, y = self.examples
        pool = torch.arange(20)
        labeled = labeled_subset(torch.arange(20) % 2, self.num_labeled, balanced=self.balanced, seed=self.seed)
        return x, y, Split(labeled, pool, torch.arange(20, 24), torch.arange(24, 30))


def test_setup_loads_once_and_describes_the_data():
    data = Small()
    for stage in ("fit", "validate", "test"):
        data.setup(stage)
    assert data.loads == 1
    assert (data.num_classes, data.input_shape, data.class_names) == (2, (2,), ["even", "odd"])


def test_loaders_hand_out_their_parts():
    data = Small(translate=0)
    data.setup()
    batch = next(iter(data.train_dataloader()))
    assert torch.isin(batch.labeled.index, data.split.labeled).all()
    assert torch.isin(batch.unlabeled.index, data.split.unlabeled).all()
    for loader, rows in ((data.val_dataloader(), data.split.validation), (data.test_dataloader(), data.split.test)):
        ((x, y),) = list(loader)
        assert torch.equal(x, data.x[rows])
        assert torch.equal(y, data.y[rows])


def test_without_a_number_of_labels_training_is_supervised():
    data = Small(num_labeled=None)
    data.setup()
    assert next(iter(data.train_dataloader())).unlabeled is None
    assert data.split.labeled.tolist() == list(range(20))


def test_a_pool_of_more_than_what_has_labels_is_trained_on_though_all_are_asked_for():
    class Mismatched(Small):
        def load(self):
            x, _, split = super().load()
            self.class_names, y = ["zero", "one", "two"], torch.arange(30) % 3
            return x, y, self.divide(y, pool=split.unlabeled, validation=split.validation, test=split.test)

    data = Mismatched(num_labeled=None, labeled_classes=["zero", "one"], unlabeled_classes=["two"])
    data.setup()
    assert data.split.labeled.tolist() == [row for row in range(20) if row % 3 < 2]
    seen = torch.cat([batch.unlabeled.index for batch in data.train_dataloader()])
    assert set(seen.tolist()) == set(range(20))


@pytest.mark.parametrize("option", [{"translate": 1}, {"flip": True}])
def test_an_augmentation_of_images_is_refused_for_features(option):
    with pytest.raises(ValueError, match=r"translate and flip are only for images, got inputs of shape \(2,\) from Small"):
        Small(**option).setup()


def test_settings_reach_the_training_loader():
    data = Small(x=torch.randn(30, 1, 4, 4), translate=2, seed=7)
    data.num_views = 2
    data.setup()
    loader = data.train_dataloader()
    assert isinstance(loader.augment, Translate)
    assert (loader.augment.pixels, loader.seed, len(loader)) == (2, 7, 5)
    batch = loader.batch(0)
    assert (batch.labeled.total, batch.unlabeled.total) == (4, 6)
    assert batch.labeled.view is not None


def test_each_process_takes_its_own_rows_on_its_own_device():
    ranks = []
    for rank in range(2):
        data = Small()
        data.setup()
        strategy = SimpleNamespace(root_device=torch.device("meta"))
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2, strategy=strategy)
        for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
            assert (loader.rank, loader.world_size) == (rank, 2)
            assert loader.x.device.type == loader.y.device.type == "meta"
            assert loader.x is data.x  # moved once, held once
        ranks.append(data)


def spoilt(shape=(30, 2), *cells):
    x = torch.zeros(shape)
    for cell, value in cells:
        x[cell] = value
    return x


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            Small(spoilt((30, 2), ((9, 1), math.nan), ((17, 0), math.inf))),
            "Small: inputs must be finite, got NaN or infinity in row 9 .affected rows: 2.",
        ),
        (Small(spoilt((30, 1, 2, 2), ((29, 0, 1, 1), -math.inf))), "in row 29 .affected rows: 1."),
        (Small(y=torch.arange(30) % 3), r"Small: labels must be in 0\.\.1, got 2 in row 2"),
        (Small(y=torch.arange(30) % 2 - 1), r"Small: labels must be in 0\.\.1, got -1 in row 0"),
        (Small(y=torch.zeros(29).long()), r"one for each of the 30 inputs, got torch.int64 of shape \(29,\)"),
        (Small(y=torch.zeros(30)), r"labels must be int64.*got torch.float32 of shape \(30,\)"),
        (Small(num_labeled=21), "num_labeled must be from 1 to 20, the number of examples"),
        (Small(num_labeled=1), "num_labeled must be at least 2, the number of classes"),
    ],
)
def test_data_that_cannot_be_trained_on_is_refused_in_setup(data, message):
    with pytest.raises(ValueError, match=message):
        data.setup("fit")
    with pytest.raises(ValueError, match=message):  # and again: a failed setup does not count as one
        data.setup("fit")


def test_examples_without_a_label_are_possible_in_the_pool_alone():
    data = Small(num_labeled=8)
    data.setup()
    for rows in (data.split.labeled, data.split.validation, data.split.test):
        y = torch.arange(30) % 2
        y[rows[-1]] = -1
        with pytest.raises(ValueError, match=rf"labels must be in 0\.\.1, got -1 in row {rows[-1]}\. .*Only the pool may hold -1"):
            Small(y=y).setup()
    y = torch.arange(30) % 2
    y[:20][~torch.isin(torch.arange(20), data.split.labeled)] = -1
    Small(y=y).setup()
    y[0] = -2
    with pytest.raises(ValueError, match="got -2 in row 0"):
        Small(y=y).setup()


def test_a_negative_translation_is_refused():
    with pytest.raises(ValueError, match="pixels must be >= 1, got -1"):
        Small(translate=-1)


def test_a_translation_out_of_sight_is_refused():
    Small(x=torch.randn(30, 1, 4, 5), translate=3).setup()
    with pytest.raises(ValueError, match=r"translate must be less than both sides of an image of \(1, 4, 5\), got 4"):
        Small(x=torch.randn(30, 1, 4, 5), translate=4).setup()


# Under Lightning


class Recorder(pl.LightningModule):
    """Keeps every batch. Its only weight depends on all of them and on their order."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)
        self.seen, self.validations = [], []

    def training_step(self, batch, batch_idx):
        self.seen.append((batch.micro_step, batch.labeled.index.tolist(), batch.unlabeled.index.tolist()))
        return nn.functional.cross_entropy(self.layer(batch.labeled.x / 60), batch.labeled.y)

    def validation_step(self, batch, batch_idx):
        self.validations.append(len(self.seen))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def trainer(folder, **options):
    settings = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "max_epochs": 2,
    }
    return pl.Trainer(default_root_dir=folder, **(settings | options))


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_resumed_at_any_step_sees_the_batches_that_were_to_come(tmp_path, accumulate):
    every = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole = Recorder()
    trainer(tmp_path, accumulate_grad_batches=accumulate, callbacks=[every]).fit(whole, datamodule=Small())
    # With accumulation over two, an epoch of five batches makes three optimizer steps: after 2, 4 and 5.
    steps = [epoch * 5 + k for epoch in range(2) for k in ((1, 2, 3, 4, 5) if accumulate == 1 else (2, 4, 5))]
    assert [seen[0] for seen in whole.seen] == list(range(10))
    assert whole.validations == [5, 10]
    for optimizer_steps, micro_steps in enumerate(steps, start=1):
        resumed = Recorder()
        trainer(tmp_path, accumulate_grad_batches=accumulate, enable_checkpointing=False).fit(
            resumed, datamodule=Small(), ckpt_path=tmp_path / f"step={optimizer_steps}.ckpt"
        )
        assert resumed.seen == whole.seen[micro_steps:]
        assert torch.equal(resumed.layer.weight, whole.layer.weight)


def test_epochs_cut_short_by_the_trainer_are_all_equally_long(tmp_path):
    model = Recorder()
    trainer(tmp_path, limit_train_batches=3, enable_checkpointing=False).fit(model, datamodule=Small())
    assert [seen[0] for seen in model.seen] == list(range(6))
    assert model.validations == [3, 6]


# Digits


def test_digits_parts_are_stratified_and_fixed():
    data, other = Digits(), Digits(seed=1)
    data.setup()
    other.setup()
    parts = {"labeled": 50, "unlabeled": 1000, "validation": 200, "test": 597}
    assert {name: len(getattr(data.split, name)) for name in parts} == parts
    frequencies = torch.bincount(data.y) / 1797
    for name in ("unlabeled", "validation", "test"):
        rows = getattr(data.split, name)
        assert torch.equal(rows, getattr(other.split, name))
        torch.testing.assert_close(torch.bincount(data.y[rows]), (len(rows) * frequencies).round().long(), atol=1, rtol=0)
    assert torch.bincount(data.y[data.split.labeled]).tolist() == [5] * 10
    assert not torch.equal(data.split.labeled, other.split.labeled)


def test_digits_split_is_the_one_of_earlier_versions():
    data = Digits(num_labeled=50, seed=0)
    data.setup()
    assert data.split.digest == "c7c514079c99cebe"  # results are compared under this name, so it must never change


def test_digits_are_the_images_standardised_over_the_pool():
    data = Digits()
    data.setup()
    images, labels = load_digits(return_X_y=True)
    pool = images[data.split.unlabeled.numpy()]
    expected = torch.from_numpy((images - pool.mean()) / pool.std()).float().view(-1, 1, 8, 8)
    torch.testing.assert_close(data.x, expected)
    assert data.y.tolist() == labels.tolist()
    inputs = data.x[data.split.unlabeled].double()
    assert abs(inputs.mean()) < 1e-6
    assert abs(inputs.std(correction=0) - 1) < 1e-6
    assert (data.x.dtype, data.input_shape, data.num_classes) == (torch.float32, (1, 8, 8), 10)
    assert data.class_names == list("0123456789")
    assert 5.9 < pool.std() < 6.1  # as `unit` says


# Moons and circles


def in_degrees(z):
    return torch.atan2(z[:, 1], z[:, 0]).rad2deg()


def test_moons_without_noise_are_three_quarter_circles():
    z, labels = moons(2000, torch.Generator().manual_seed(0), noise=0.0)
    assert labels.tolist() == [0] * 2000 + [1] * 2000
    left, right = z[:2000] - torch.tensor([-0.5, 0.25]), z[2000:] - torch.tensor([0.5, -0.25])
    torch.testing.assert_close(torch.cat([left, right]).norm(dim=1), torch.ones(4000))
    # The right moon's range does not include atan2's jump at ±180°. The left moon's does, so it is taken over 0°..360°.
    for angles, first in ((in_degrees(left) % 360, 90), (in_degrees(right), -90)):
        assert first <= angles.min() < first + 2
        assert first + 268 < angles.max() <= first + 270
        assert abs(angles.mean() - (first + 135)) < 6  # uniform: standard error 1.7°


def test_circles_without_noise_have_their_radii():
    z, labels = circles(2000, torch.Generator().manual_seed(0), noise=0.0)
    assert labels.tolist() == [0] * 2000 + [1] * 2000
    torch.testing.assert_close(z.norm(dim=1), torch.tensor([0.25, 1.0]).repeat_interleave(2000))
    for angles in in_degrees(z).split(2000):
        assert angles.min() < -178
        assert angles.max() > 178
        assert abs(angles.mean()) < 8  # uniform: standard error 2.3°


@pytest.mark.parametrize(("points", "standard_deviation"), [(moons, 0.1), (circles, 0.05)])
def test_noise_is_isotropic_of_the_published_size(points, standard_deviation):
    noisy, clean = (points(5000, torch.Generator().manual_seed(0), **option)[0] for option in ({}, {"noise": 0.0}))
    noise = noisy - clean
    torch.testing.assert_close(noise.std(dim=0), torch.full((2,), standard_deviation), rtol=0.03, atol=0)
    assert abs(torch.corrcoef(noise.T)[0, 1]) < 0.04


def test_embedding_has_orthonormal_rows():
    basis = embedding(torch.Generator().manual_seed(0))
    assert basis.shape == (2, 100)
    torch.testing.assert_close(basis @ basis.T, torch.eye(2))
    assert embedding(torch.Generator().manual_seed(0), dimensions=5).shape == (2, 5)


@pytest.mark.parametrize(("kind", "points"), [(Moons, moons), (Circles, circles)])
def test_planar_sets_have_the_published_numbers(kind, points):
    data = kind(seed=3)
    data.setup()
    assert data.x.shape == (1216, 100)
    assert torch.equal(data.x, data.z @ data.embedding)
    torch.testing.assert_close(torch.pdist(data.x[:50]), torch.pdist(data.z[:50]))
    for rows, each in ((data.split.unlabeled, 8), (data.split.validation, 100), (data.split.test, 500)):
        assert torch.bincount(data.y[rows]).tolist() == [each, each]
    assert torch.equal(data.split.labeled, data.split.unlabeled)
    batch = next(iter(data.train_dataloader()))
    assert batch.unlabeled is None
    assert sorted(batch.labeled.index.tolist()) == list(range(16))
    # Points of this kind: closer to the kind's own curves than six standard deviations of the noise
    curve, labels = points(5000, torch.Generator().manual_seed(0), noise=0.0)
    for label in (0, 1):
        assert torch.cdist(data.z[data.y == label], curve[labels == label]).min(dim=1).values.max() < 0.6


@pytest.mark.parametrize("kind", [Moons, Circles])
def test_the_seed_draws_points_and_plane_afresh(kind):
    first, again, other = (kind(seed=seed) for seed in (0, 0, 1))
    torch.manual_seed(5)
    for data in (first, again, other):
        data.setup()
    assert torch.equal(first.x, again.x)
    assert not torch.isclose(first.z, other.z).any(dim=1).all()
    assert not torch.allclose(first.embedding, other.embedding)


def test_a_planar_set_can_be_partly_labelled():
    data = Moons(num_labeled=4)
    data.setup()
    assert torch.bincount(data.y[data.split.labeled]).tolist() == [2, 2]
    batch = next(iter(data.train_dataloader()))
    assert sorted(batch.unlabeled.index.tolist()) == list(range(16))
