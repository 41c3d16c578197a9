import queue
from itertools import islice

import pytest
import torch

from vat.data.loader import EvalLoader, ResidentLoader, Translate, indices, share

X = torch.randn(30, 1, 6, 5, generator=torch.Generator().manual_seed(0))
Y = torch.arange(30) % 3
LABELED, UNLABELED = torch.tensor([3, 7, 8, 20, 21, 29]), torch.arange(2, 30)


def make(**options):
    settings = {"batch_size_labeled": 4, "batch_size_unlabeled": 10, "steps_per_epoch": 5, "seed": 0, "augment": None}
    settings |= options
    unlabeled = settings.pop("unlabeled", UNLABELED)
    return ResidentLoader(X, Y, LABELED, unlabeled, **settings)


def noise(x, generator):
    return x + torch.randn(x.shape, generator=generator)


def assert_same(one, other):
    assert one.micro_step == other.micro_step
    for part, reference in ((one.labeled, other.labeled), (one.unlabeled, other.unlabeled)):
        assert (part is None) == (reference is None)
        if part is not None:
            assert part[3:5] == reference[3:5]
            for tensor, expected in zip(part[:3] + part[5:], reference[:3] + reference[5:], strict=True):
                assert (tensor is None) == (expected is None)
                assert tensor is None or torch.equal(tensor, expected)


# The order


@pytest.mark.parametrize(("num_examples", "batch_size"), [(7, 3), (10, 5), (4, 11), (1, 1), (6, 6)])
def test_every_permutation_holds_each_example_once(num_examples, batch_size):
    sequence = torch.cat([indices(num_examples, batch_size, step, seed=0, stream="a") for step in range(50)])
    permutations = sequence[: len(sequence) // num_examples * num_examples].view(-1, num_examples)
    assert torch.equal(permutations.sort(dim=1).values, torch.arange(num_examples).expand_as(permutations))
    assert num_examples == 1 or len(permutations.unique(dim=0)) > 1


def test_a_batch_does_not_depend_on_the_batches_asked_for_before():
    forwards = [indices(9, 4, step, seed=0, stream="a") for step in range(40)]
    backwards = [indices(9, 4, step, seed=0, stream="a") for step in reversed(range(40))]
    assert all(map(torch.equal, forwards, reversed(backwards)))


def test_seed_and_stream_change_the_order_and_the_global_generator_does_not():
    first = indices(1000, 1000, 0, seed=0, stream="a")
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert torch.equal(indices(1000, 1000, 0, seed=0, stream="a"), first)
    assert torch.equal(torch.get_rng_state(), before)
    for other in (
        indices(1000, 1000, 0, seed=1, stream="a"),
        indices(1000, 1000, 0, seed=0, stream="b"),
        indices(1000, 1000, 1, seed=0, stream="a"),
    ):
        assert (other == first).sum() < 10  # unrelated permutations agree in one place on average


def test_writing_into_a_batch_leaves_later_ones_alone():
    batch = indices(8, 8, 0, seed=0, stream="written")
    expected = batch.clone()
    batch.zero_()
    assert torch.equal(indices(8, 8, 0, seed=0, stream="written"), expected)


def test_the_order_is_the_one_of_earlier_versions():
    assert indices(10, 10, 0, seed=0, stream="labeled").tolist() == [9, 7, 4, 2, 0, 6, 3, 5, 1, 8]


@pytest.mark.parametrize("total", [1, 4, 10, 11])
@pytest.mark.parametrize("parts", [1, 2, 3, 4, 7])
def test_shares_are_contiguous_complete_and_even(total, parts):
    ranges = [share(total, part, parts) for part in range(parts)]
    assert [row for rows in ranges for row in rows] == list(range(total))
    lengths = [len(rows) for rows in ranges]
    assert max(lengths) - min(lengths) <= 1


# Training batches


def test_a_batch_holds_the_rows_it_names():
    for batch in make():
        for part, rows, total in ((batch.labeled, LABELED, 4), (batch.unlabeled, UNLABELED, 10)):
            assert torch.isin(part.index, rows).all()
            assert torch.equal(part.x, X[part.index])
            assert (part.start, part.total, len(part.x), part.view) == (0, total, total, None)
        assert torch.equal(batch.labeled.y, Y[batch.labeled.index])
        assert batch.unlabeled.y is None


def test_both_streams_run_through_their_whole_part():
    batches = [make().batch(step) for step in range(14)]
    seen = torch.cat([batch.unlabeled.index for batch in batches])
    assert torch.bincount(seen, minlength=30).tolist() == [0, 0] + [5] * 28
    seen = torch.cat([batch.labeled.index for batch in batches[:3]])
    assert torch.bincount(seen, minlength=30)[LABELED].tolist() == [2] * 6


def test_supervised_training_has_no_unlabelled_part():
    batch = make(unlabeled=None, batch_size_unlabeled=0).batch(0)
    assert batch.unlabeled is None
    assert_same(batch, make().batch(0)._replace(unlabeled=None))


@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize("augment", [None, noise, Translate(2)])
def test_processes_share_the_global_batches_of_one(world_size, augment):
    options = {"augment": augment, "num_views": 2}
    for step in (0, 3, 17):
        whole = make(**options).batch(step)
        ranks = [make(rank=rank, world_size=world_size, **options).batch(step) for rank in range(world_size)]
        for name in ("labeled", "unlabeled"):
            parts, expected = [getattr(rank, name) for rank in ranks], getattr(whole, name)
            for field in ("x", "index", "view") + ("y",) * (name == "labeled"):
                joined = torch.cat([getattr(part, field) for part in parts])
                assert torch.equal(joined, getattr(expected, field))
            assert all(part.total == expected.total for part in parts)
            assert [part.start for part in parts] == [sum(len(before.x) for before in parts[:rank]) for rank in range(world_size)]


def test_augmentation_is_drawn_again_for_each_step_part_and_view():
    # Only the noise, in equal shapes. Draws with the same key would be equal.
    equal = {"augment": lambda x, generator: torch.randn(x.shape, generator=generator), "batch_size_unlabeled": 4}
    loader = make(num_views=2, **equal)
    draws = []
    for step in (0, 1):
        batch = loader.batch(step)
        draws += [batch.labeled.x, batch.labeled.view, batch.unlabeled.x, batch.unlabeled.view]
    draws.append(make(seed=1, **equal).batch(0).labeled.x)
    for i, one in enumerate(draws):
        assert all(not torch.equal(one, other) for other in draws[:i])
    assert torch.equal(loader.batch(0).labeled.x, draws[0])


def test_asking_for_a_second_view_leaves_the_first_as_it_was():
    one, two = make(augment=noise).batch(2), make(augment=noise, num_views=2).batch(2)
    assert_same(one, two._replace(labeled=two.labeled._replace(view=None), unlabeled=two.unlabeled._replace(view=None)))


def test_views_without_augmentation_are_equal():
    part = make(num_views=2).batch(0).labeled
    assert torch.equal(part.x, part.view)


def test_an_epoch_has_its_nominal_length_and_the_next_continues():
    loader = make()
    assert [[batch.micro_step for batch in loader] for _ in range(2)] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert len(loader) == 5


@pytest.mark.parametrize("stop", [1, 4, 5, 7, 10])
def test_a_restored_loader_continues_at_the_next_batch(stop):
    continuous = make(augment=noise)
    batches = [batch for _ in range(3) for batch in continuous]
    interrupted = make(augment=noise)
    for _ in islice((batch for _ in range(3) for batch in interrupted), stop):
        state = interrupted.state_dict()  # as a checkpoint does, with the batch in use
    assert state == {"micro_step": stop}
    restored = make(augment=noise)
    restored.load_state_dict(state)
    for batch, expected in zip(restored, batches[stop : stop + 5], strict=True):
        assert_same(batch, expected)


def test_an_iterator_made_before_the_state_is_loaded_follows_it():
    loader = make()
    iterator = iter(loader)
    assert next(iterator).micro_step == 0
    loader.load_state_dict({"micro_step": 12})
    assert next(iterator).micro_step == 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps_per_epoch": 0}, "steps_per_epoch must be >= 1, got 0"),
        ({"num_views": 3}, "num_views must be 1 or 2, got 3"),
        ({"batch_size_labeled": 0}, "batch_size_labeled must be at least 1, the number of processes, got 0"),
        ({"world_size": 5}, "batch_size_labeled must be at least 5, the number of processes, got 4"),
        ({"batch_size_unlabeled": 1, "world_size": 2}, "batch_size_unlabeled must be at least 2, .*, got 1"),
    ],
)
def test_a_loader_that_could_not_fill_a_batch_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


# Streamed inputs


class Recorded:
    """Inputs that are read on request, with a record of the requests."""

    def __init__(self):
        self.shape, self.dtype, self.device = tuple(X.shape), X.dtype, X.device
        self.asked = queue.Queue()

    def __len__(self):
        return len(X)

    def __getitem__(self, rows):
        self.asked.put(rows.tolist())
        if 29 in rows:
            raise ValueError("row 29 cannot be read")
        return X[rows]


def streamed(x, **options):
    settings = {"batch_size_labeled": 2, "batch_size_unlabeled": 5, "steps_per_epoch": 4, "seed": 0} | options
    return ResidentLoader(x, Y, LABELED[:5], torch.arange(29), **settings)


@pytest.mark.parametrize("augment", [None, noise])
def test_streamed_batches_are_the_resident_ones_also_from_another_step_on(augment):
    stream, resident = (streamed(x, augment=augment, num_views=2) for x in (Recorded(), X))
    for _ in range(2):
        for batch, expected in zip(stream, resident, strict=True):
            assert_same(batch, expected)
    stream.load_state_dict({"micro_step": 3})  # not the step that was read ahead
    assert_same(next(iter(stream)), resident.batch(3))


def test_the_next_batch_is_read_while_the_present_one_is_in_use():
    x = Recorded()
    batch = next(iter(streamed(x)))
    following = streamed(X).batch(1)
    asked = [x.asked.get(timeout=60) for _ in range(4)]
    assert asked == [part.index.tolist() for part in (batch.labeled, batch.unlabeled, following.labeled, following.unlabeled)]


def test_each_input_is_read_once_for_both_views():
    x = Recorded()
    streamed(x, num_views=2, augment=noise).batch(0)
    assert x.asked.qsize() == 2


def test_an_input_that_cannot_be_read_is_an_error_of_its_own_step():
    loader = ResidentLoader(Recorded(), Y, LABELED, None, batch_size_labeled=1, batch_size_unlabeled=1, steps_per_epoch=6, seed=0)
    order = LABELED[torch.cat([indices(6, 1, step, seed=0, stream="labeled") for step in range(6)])].tolist()
    batches = iter(loader)
    assert [next(batches).labeled.index.item() for _ in range(order.index(29))] == order[: order.index(29)]
    with pytest.raises(ValueError, match="row 29 cannot be read"):
        next(batches)


# Translation


@pytest.mark.parametrize("pixels", [1, 2, 7])
@pytest.mark.parametrize("shape", [(40, 3, 6, 5), (1, 1, 4, 4)])
def test_translate_moves_each_image_and_fills_with_zero(pixels, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    moved = Translate(pixels)(x, torch.Generator().manual_seed(2))
    limit = 2 * pixels + 1
    draws = torch.randint(limit, (2, len(x)), generator=torch.Generator().manual_seed(2))
    expected = torch.zeros_like(x)
    for i, (down, right) in enumerate((draws - pixels).T.tolist()):
        for row in range(shape[2]):
            for column in range(shape[3]):
                if 0 <= row + down < shape[2] and 0 <= column + right < shape[3]:
                    expected[i, :, row, column] = x[i, :, row + down, column + right]
    assert torch.equal(moved, expected)


def test_translate_draws_every_shift_alike():
    impulse = torch.zeros(5000, 1, 5, 5)
    impulse[:, :, 2, 2] = 1
    moved = Translate(2)(impulse, torch.Generator().manual_seed(0)).sum(0)[0]
    assert moved.sum() == 5000
    assert (moved - 200).abs().max() < 70  # binomial of mean 200, standard deviation 14


def test_translate_refuses_what_it_cannot_shift():
    with pytest.raises(ValueError, match="pixels must be >= 1, got 0"):
        Translate(0)
    with pytest.raises(ValueError, match=r"images of shape \(B, C, H, W\), got \(4, 9\)"):
        Translate(1)(torch.zeros(4, 9), torch.Generator())


# Evaluation


@pytest.mark.parametrize("num_rows", [7, 12, 29, 30])
@pytest.mark.parametrize("batch_size", [8, 12, 100])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_each_row_is_evaluated_once_in_equally_many_batches(num_rows, batch_size, world_size):
    rows = torch.randperm(30, generator=torch.Generator().manual_seed(0))[:num_rows]
    loaders = [EvalLoader(X, Y, rows, batch_size=batch_size, rank=rank, world_size=world_size) for rank in range(world_size)]
    ranks = [list(loader) for loader in loaders]
    assert {len(batches) for batches in ranks} == {len(loaders[0])} == {-(-num_rows // batch_size)}
    in_order = [batch for step in zip(*ranks, strict=True) for batch in step]
    assert torch.equal(torch.cat([x for x, _ in in_order]), X[rows])
    assert torch.equal(torch.cat([y for _, y in in_order]), Y[rows])
    assert all(len(x) > 0 for x, _ in in_order)
    assert all(sum(len(batch[0]) for batch in step) <= batch_size for step in zip(*ranks, strict=True))


def test_evaluation_is_the_same_each_time():
    loader = EvalLoader(X, Y, UNLABELED, batch_size=9)
    assert all(torch.equal(one[0], other[0]) for one, other in zip(loader, loader, strict=True))


def test_evaluation_without_a_row_for_every_process_is_refused():
    with pytest.raises(ValueError, match="28 rows in batches of 2 leave some of 4 processes without a row"):
        EvalLoader(X, Y, UNLABELED, batch_size=2, world_size=4)
    with pytest.raises(ValueError, match="6 rows in batches of 100 leave some of 7 processes without a row"):
        EvalLoader(X, Y, LABELED, batch_size=100, world_size=7)
    with pytest.raises(ValueError, match="batch_size must be >= 1, got 0"):
        EvalLoader(X, Y, UNLABELED, batch_size=0)
