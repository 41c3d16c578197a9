"""Checkpoint files: written whole, and read without harm whoever wrote them."""

import errno
import io
import json
import os
import pickle
import resource
import zipfile
from pathlib import Path

import pytest
import torch

from vat.runs import checkpoints, records, resume
from vat.runs.checkpoints import WholeCheckpoints, newest_whole, read_checkpoint

STATE = {
    "record": {"config": {"model": {"_target_": "vat.models.CNN"}}, "class_names": ["0", "1"]},
    "state_dict": {"network.weight": torch.arange(6.0).view(2, 3), "network.bias": torch.zeros(2, dtype=torch.bfloat16)},
    "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999)}]}],
    "global_step": 3,
}


# With a network as small as can be, for it is made again and again.
USABLE = {
    "record": {
        "config": {
            "model": {"_target_": "vat.models.mlp.MLP", "hidden": [2], "batch_norm": False},
            "data": {"_target_": "vat.data.sets.digits.Digits"},
            "regularizers": [{"_target_": "vat.regularizers.vat.VAT", "eps": 2.0}],
            "optimizer": {"_target_": "torch.optim.adam.Adam", "_partial_": True},
            "scheduler": {"_target_": "torch.optim.lr_scheduler.CosineAnnealingLR", "T_max": 5},
        },
        "input_shape": [3],
        "class_names": ["0", "1"],
        "mean": [0.0, 0.5, 0.0],
        "std": [1.0, 1.0, 2.0],
        "unit": "pixels",
        "split": "0a1b2c3d",
        "data": "3d2c1b0a",
    },
    "state_dict": {
        "network.0.mean": torch.tensor([0.0, 0.5, 0.0]),
        "network.0.std": torch.tensor([1.0, 1.0, 2.0]),
        "network.1.layers.1.weight": torch.arange(6.0).view(2, 3),
        "network.1.layers.1.bias": torch.zeros(2),
        "network.1.layers.3.weight": torch.ones(2, 2),
        "network.1.layers.3.bias": torch.zeros(2),
    },
    "global_step": 3,
}


def saved(state):
    packed = io.BytesIO()
    torch.save(state, packed)
    return packed.getvalue()


# Reading


def test_a_checkpoint_is_read_as_it_was_saved(tmp_path):
    WholeCheckpoints().save_checkpoint(STATE, tmp_path / "new" / "last.ckpt")
    found = read_checkpoint(tmp_path / "new" / "last.ckpt")
    assert found["record"] == STATE["record"]
    assert torch.equal(found["state_dict"]["network.weight"], STATE["state_dict"]["network.weight"])


@pytest.mark.parametrize("state", [STATE, STATE | {"state_dict": {}}], ids=["tensors", "no tensors"])
def test_a_spoilt_checkpoint_is_read_or_refused(fuzz, tmp_path, state):
    fuzz(read_checkpoint, saved(state), tmp_path / "a.ckpt", "checkpoint")


def repacked(entries, compression=zipfile.ZIP_STORED):
    """A zip with right sums, as one would make it who means harm."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return packed.getvalue()


def unpacked(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_spoilt_pickle_in_a_sound_zip_is_used_or_refused(fuzz, tmp_path):
    """As evaluate, export, predict and a resumed run use it: the network is made, the data set looked up, the settings compared."""
    entries = unpacked(saved(USABLE))
    (name,) = (name for name in entries if name.endswith("data.pkl"))
    whole, pickled = tmp_path / "whole.ckpt", tmp_path / "a.ckpt"

    def use(path):
        whole.write_bytes(repacked(entries | {name: path.read_bytes()}))
        try:
            checkpoint = read_checkpoint(whole)
            network = records.network_of(checkpoint, whole)
            records.data_of(checkpoint, whole)
            resume.refuse_other_run(checkpoint, whole, network, USABLE["record"])
        except ValueError as error:
            raise ValueError(str(error).replace(str(whole), str(path))) from error

    fuzz(use, entries[name], pickled, "checkpoint, sound but for its pickle")


def test_each_bit_of_a_tensor_is_watched_over(tmp_path):
    good = bytearray(saved(STATE))
    place = bytes(good).index(torch.arange(6.0).numpy().tobytes())
    good[place + 5] ^= 1
    (tmp_path / "a.ckpt").write_bytes(good)
    with pytest.raises(ValueError, match=r"a\.ckpt cannot be read"):
        read_checkpoint(tmp_path / "a.ckpt")


def test_a_bomb_is_not_inflated(tmp_path):
    entries = unpacked(saved(STATE))
    folder = next(iter(entries)).split("/")[0]
    bomb = repacked(entries | {f"{folder}/data/0": bytes(100 << 20)}, zipfile.ZIP_DEFLATED)
    assert len(bomb) < 1 << 20
    (tmp_path / "a.ckpt").write_bytes(bomb)
    del bomb
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"a\.ckpt cannot be read"):
        read_checkpoint(tmp_path / "a.ckpt")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10


class Command:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.system, (f"touch {self.folder / 'executed'}",)


@pytest.mark.parametrize("old", [False, True], ids=["zip", "before torch 1.6"])
def test_nothing_is_executed(tmp_path, old):
    torch.save(STATE | {"record": Command(tmp_path)}, tmp_path / "a.ckpt", _use_new_zipfile_serialization=not old)
    with pytest.raises(ValueError, match=r"a\.ckpt cannot be read"):
        read_checkpoint(tmp_path / "a.ckpt")
    (tmp_path / "b.ckpt").write_bytes(pickle.dumps(Command(tmp_path)))
    with pytest.raises(ValueError, match=r"b\.ckpt cannot be read"):
        read_checkpoint(tmp_path / "b.ckpt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "state",
    [
        [],
        {},
        {"record": {}},
        {"record": [], "state_dict": {}},
        {"record": {}, "state_dict": []},
        {"record": {}, "state_dict": {1: 2}},
        {"record": {}, "state_dict": {}},
    ],
)
def test_what_is_no_checkpoint_of_this_project_is_refused(tmp_path, state):
    torch.save(state, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"a\.ckpt is no checkpoint of this project"):
        read_checkpoint(tmp_path / "a.ckpt")


def test_a_record_that_does_not_describe_the_weights_is_refused(tmp_path):
    for record in ({}, {"config": 3}, {"config": {"model": []}}, {"config": {"model": {"_target_": "vat.models.MLP"}}}):
        torch.save(STATE | {"record": record}, tmp_path / "a.ckpt")
        with pytest.raises(ValueError, match=r"a\.ckpt is no checkpoint of this project"):
            records.load_network(tmp_path / "a.ckpt")


def test_a_network_beyond_memory_is_refused_before_it_is_made(tmp_path):
    model = USABLE["record"]["config"]["model"] | {"hidden": [200_000_000]}
    config = USABLE["record"]["config"] | {"model": model}
    torch.save(USABLE | {"record": USABLE["record"] | {"config": config}}, tmp_path / "a.ckpt")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"a\.ckpt is no checkpoint of this project: .* does not describe its weights .*size mismatch"):
        records.load_network(tmp_path / "a.ckpt")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10


@pytest.mark.parametrize("number", [300, pytest.param(10_000, marks=pytest.mark.long)])
def test_nothing_is_called_for_a_fuzzed_checkpoint(shell, tmp_path, number, record_property):
    """In every way that a command uses one: no code run or imported, no process, nothing written outside the run, in bounded memory."""
    (tmp_path / "run").mkdir()
    done = shell(Path(__file__).parent / "audited.py", str(tmp_path / "run"), str(number), "0")
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["called"] == []
    assert found["faults"] == []
    assert not found["canary"]
    assert found["grown"] < 256  # MiB
    assert found["used"] > number
    assert found["refused"] > number / 2
    record_property("fuzzed checkpoints, used in seven ways under an audit hook", number)


@pytest.mark.parametrize(
    "grown",
    [
        {"state_dict": {"network.weight": torch.zeros(1).expand(7_000_000_000)}},  # 28 GB in a file of 2 KB
        {"optimizer_states": [torch.zeros(1).expand(7_000_000_000)]},
        {"state_dict": {f"network.{i}": torch.zeros(1000).expand(1000, 1000) for i in range(100)}},
        {"record": {"config": {"model": torch.zeros(2)}}},
        {"callbacks": 3},
        {"callbacks": {"ModelCheckpoint": [1]}},
    ],
)
def test_what_grows_when_it_is_used_is_refused(tmp_path, grown):
    torch.save(STATE | grown, tmp_path / "a.ckpt")
    assert (tmp_path / "a.ckpt").stat().st_size < 1 << 20
    with pytest.raises(ValueError, match=r"a\.ckpt (cannot be read|is no checkpoint)"):
        read_checkpoint(tmp_path / "a.ckpt")


def loop():
    node = {"_target_": "vat.models.MLP"}
    node["hidden"] = [node]
    return node


def billions():
    node = [1] * 10
    for _ in range(30):
        node = [node] * 10
    return node


@pytest.mark.parametrize("node", [loop(), billions()], ids=["in itself", "ten to the thirtieth"])
def test_values_that_contain_one_another_are_refused(tmp_path, node):
    torch.save(STATE | {"record": {"config": {"model": node}}}, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"a\.ckpt cannot be read"):
        read_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.parametrize(
    "named",
    [
        b"cbuiltins\nbytearray\nK\x05\x85R",  # of 28 GB, torch's own list would allow
        b"ctorch\nFloatTensor\nK\x05\x85R",
        b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n)R",
        b"cposix\nsystem\nX\x04\0\0\0true\x85R",
    ],
)
def test_a_pickle_names_tensors_and_dictionaries_alone(tmp_path, named):
    entries = unpacked(saved(STATE | {"record": {"config": "@"}}))
    (name,) = (name for name in entries if name.endswith("data.pkl"))
    (tmp_path / "a.ckpt").write_bytes(repacked(entries | {name: entries[name].replace(b"X\x01\0\0\0@", named)}))
    with pytest.raises(ValueError, match=r"a\.ckpt cannot be read") as error:
        read_checkpoint(tmp_path / "a.ckpt")
    assert "it names" in str(error.value.__cause__)


def test_a_second_pickle_under_another_spelling_is_refused(tmp_path):
    entries = unpacked(saved(STATE))
    (name,) = (name for name in entries if name.endswith("data.pkl"))
    for other in (name.upper(), f"x/{name}"):
        (tmp_path / "a.ckpt").write_bytes(repacked({other: entries[name]} | entries))
        with pytest.raises(ValueError, match=r"a\.ckpt cannot be read"):
            read_checkpoint(tmp_path / "a.ckpt")


def test_a_run_that_resumes_restores_no_path(job, tmp_path):
    """Lightning deletes what the best checkpoint was once there is a better one: here a folder that a stranger named."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "kept").touch()
    first = job("model=mlp", "trainer.max_steps=10", "optimizer.lr=0")
    state = torch.load(first.checkpoint, weights_only=True)
    (name,) = state["callbacks"]
    worst = {"best_model_score": torch.tensor(-1.0), "kth_value": torch.tensor(-1.0), "best_k_models": {str(victim): torch.tensor(-1.0)}}
    paths = dict.fromkeys(("best_model_path", "kth_best_model_path", "last_model_path"), str(victim))
    for folder in (tmp_path / "second", first.folder):
        state["callbacks"][name] |= worst | paths | {"dirpath": str(folder / "checkpoints")}
        torch.save(state, tmp_path / "evil.ckpt")
        run = job("model=mlp", "trainer.max_steps=10", "optimizer.lr=0", f"ckpt_path={tmp_path / 'evil.ckpt'}", name=folder.name)
        assert run.metrics["val/accuracy"] >= 0
        assert (victim / "kept").exists()
        best = checkpoints.SaveBest(folder / "checkpoints")
        best.load_state_dict(state["callbacks"][name])
        assert {best.best_model_path, best.kth_best_model_path, *best.best_k_models} <= {"", str(best.path)}
        assert best.last_model_path == ""


def test_a_state_that_cannot_be_restored_ends_in_one_line(job, tmp_path):
    first = job("model=mlp", "trainer.max_steps=10")
    for key, value in {"lr_schedulers": 3, "optimizer_states": [{}], "loops": {}, "loops ": None}.items():
        state = torch.load(first.checkpoint, weights_only=True)
        state[key.strip()] = value
        if value is None:
            del state["optimizer_states"]
        torch.save(state, tmp_path / "odd.ckpt")
        with pytest.raises(ValueError, match=r"odd\.ckpt does not hold the state of such a run"):
            job("model=mlp", "trainer.max_steps=20", "scheduler.T_max=10", f"ckpt_path={tmp_path / 'odd.ckpt'}", name="second")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"class_names": ["0", "0"]}, "class_names is"),
        ({"class_names": ["0", "\ud800"]}, "class_names is"),
        ({"std": [1.0, 0.0, 1.0]}, "std is"),
        ({"preparation": {"mean": [0.0] * 3, "std": [1.0, -1.0, 1.0]}}, "std is"),
    ],
)
def test_a_record_that_no_run_writes_is_refused(tmp_path, changed, said):
    torch.save(USABLE, tmp_path / "a.ckpt")
    records.load_network(tmp_path / "a.ckpt")
    torch.save(USABLE | {"record": USABLE["record"] | changed}, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=said):
        records.load_network(tmp_path / "a.ckpt")


def test_weights_that_are_not_real_are_refused(tmp_path):
    weights = USABLE["state_dict"] | {"network.1.layers.3.bias": torch.zeros(2, dtype=torch.complex64)}
    torch.save(USABLE | {"state_dict": weights}, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"1\.layers\.3\.bias is torch\.complex64"):
        records.load_network(tmp_path / "a.ckpt")


def test_inputs_that_the_network_cannot_take_are_refused_before_it_is_used(tmp_path):
    """A network that pools has the same weights for every size."""
    from vat.models import WideResNet

    model = {"_target_": "vat.models.resnet.WideResNet", "depth": 10, "width": 1}
    weights = {f"network.{name}": value for name, value in WideResNet((3, 32, 32), 2, depth=10, width=1).state_dict().items()}
    for shape, fits in {(3, 32, 32): True, (3, 16, 48): True, (4, 32, 32): False, (3, 32): False}.items():
        config = USABLE["record"]["config"] | {"model": model}
        record = USABLE["record"] | {"config": config, "input_shape": list(shape), "mean": None, "std": None}
        torch.save(USABLE | {"record": record, "state_dict": weights}, tmp_path / "a.ckpt")
        if fits:
            records.load_network(tmp_path / "a.ckpt")
        else:
            with pytest.raises(ValueError, match="its record does not describe its weights"):
                records.load_network(tmp_path / "a.ckpt")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    weights = USABLE["state_dict"] | {"network.1.layers.3.bias": torch.tensor([0.0, value])}
    torch.save(USABLE | {"state_dict": weights}, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"a\.ckpt: 1\.layers\.3\.bias is not finite"):
        records.load_network(tmp_path / "a.ckpt")


# Writing


def test_the_last_but_one_is_kept(tmp_path):
    path = tmp_path / "checkpoints" / "last.ckpt"
    for step in range(3):
        WholeCheckpoints().save_checkpoint(STATE | {"global_step": step}, path)
    assert {path.name: read_checkpoint(path)["global_step"] for path in path.parent.iterdir()} == {"last.ckpt": 2, "previous.ckpt": 1}
    assert newest_whole(tmp_path) == path
    path.unlink()  # as between the two renamings
    assert newest_whole(tmp_path) == path.with_name("previous.ckpt")
    path.with_name("previous.ckpt").write_bytes(b"")
    with pytest.warns(UserWarning, match="going back further"):
        assert newest_whole(tmp_path) is None


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_checkpoint_that_cannot_be_written_leaves_the_ones_before_it(tmp_path, monkeypatch, fault):
    path = tmp_path / "checkpoints" / "last.ckpt"
    for step in range(2):
        WholeCheckpoints().save_checkpoint(STATE | {"global_step": step}, path)

    def fails(_):
        raise OSError(fault, os.strerror(fault))

    monkeypatch.setattr(checkpoints.os, "fsync", fails)
    with pytest.raises(OSError, match=rf"last\.ckpt cannot be written \({os.strerror(fault)}\): make room .* ckpt_path=last then goes on"):
        WholeCheckpoints().save_checkpoint(STATE | {"global_step": 2}, path)
    assert {path.name: read_checkpoint(path)["global_step"] for path in path.parent.iterdir()} == {"last.ckpt": 1, "previous.ckpt": 0}
