"""Uses fuzzed checkpoints in each way the commands do, under an audit hook: `python tests/runs/audited.py FOLDER NUMBER SEED`.

Prints as JSON how many were used and how many refused, what was called, and by how much memory grew. A refusal is one line that names
the file, or a user's error; anything else is a fault.
"""

import contextlib
import copy
import importlib
import json
import random
import resource
import sys
import traceback
import warnings
from pathlib import Path

import torch
from lightning_utilities.core.rank_zero import rank_zero_only

from vat.data.files import download
from vat.data.own.arrays import Arrays
from vat.models import MLP
from vat.runs import exporting, predicting, records, resume, subject, user_errors
from vat.runs.checkpoints import bring_best, read_checkpoint
from vat.runs.renames import renamed
from vat.runs.saving import SaveBest

FORBIDDEN = (
    *("exec", "compile", "import", "marshal.loads", "pickle.find_class", "code.__new__", "ctypes.dlopen", "sys._getframe"),
    *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn", "os.kill"),
    *("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "os.truncate", "os.symlink", "os.link", "shutil.rmtree", "shutil.move"),
    *("socket.connect", "socket.getaddrinfo", "urllib.Request", "os.putenv"),
)
CANARY = "canary"


def good():
    """A checkpoint of a small network on features, as a run saves it."""
    config = {
        "seed": 0,
        "ema": None,
        "model": {"_target_": "vat.models.mlp.MLP", "hidden": [2], "batch_norm": False, "init": "default"},
        "data": {"_target_": "vat.data.own.arrays.Arrays", "train": "own.npz", "seed": 0, "num_labeled": None},
        "vat": {"_target_": "vat.regularizers.vat.VAT", "eps": 2.0},
        "regularizers": [{"_target_": "vat.regularizers.vat.VAT", "eps": 2.0}, {"_target_": "vat.Entropy", "weight": 0.5}],
        "optimizer": {"_target_": "torch.optim.adam.Adam", "_partial_": True, "lr": 0.1, "betas": [0.9, 0.999]},
        "scheduler": {"_target_": "torch.optim.lr_scheduler.CosineAnnealingLR", "_partial_": True, "T_max": 5},
        "trainer": {"_target_": "pytorch_lightning.trainer.trainer.Trainer", "max_steps": 5, "precision": None},
    }
    torch.manual_seed(0)
    network = MLP((3,), 2, hidden=[2], batch_norm=False)
    place = "/nowhere/checkpoints/best.ckpt"
    best = {"best_model_path": place, "best_model_score": torch.tensor(0.5), "best_k_models": {place: torch.tensor(0.5)}}
    return {
        "record": {
            "config": config,
            "class_names": ["0", "1"],
            "input_shape": [3],
            "mean": None,
            "std": None,
            "unit": "standard deviations of each feature",
            "bounds": None,
            "preparation": {"mean": [0.0, 0.1, 0.2], "std": [1.0, 1.0, 2.0], "columns": None},
            "split": "0a1b2c3d",
            "parts": {"labeled": 2, "unlabeled": 2, "validation": 1, "test": 1},
            "data": "3d2c1b0a",
        },
        "state_dict": {f"network.{name}": value for name, value in network.state_dict().items()},
        "callbacks": {"ModelCheckpoint{}": best | {"kth_value": torch.tensor(0.5), "kth_best_model_path": place, "dirpath": "/nowhere"}},
        "loops": {"fit_loop": {"state_dict": {"combined_loader": [{"micro_step": 3}]}}},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}],
        "lr_schedulers": [{"T_max": 5, "last_epoch": 3}],
        "global_step": 3,
    }


TARGETS = (
    *("os.system", "os.mkdir", "builtins.exec", "builtins.eval", "builtins.open", "builtins.__import__", "subprocess.run", "shutil.rmtree"),
    *(
        "torch.load",
        "torch.hub.load",
        "torch.nn.Sequential",
        "torch.nn.Identity",
        "torch.save",
        "torch.jit.load",
        "torch.package.PackageImporter",
    ),
    *("pytorch_lightning.strategies.Strategy.load_checkpoint", "pytorch_lightning.Trainer", "pytorch_lightning.loggers.CSVLogger"),
    *("hydra.utils.instantiate", "hydra.utils.call", "foreign_module.Net", "vat.runs.training.train", "vat.data.files.download.os.system"),
    *("vat.models.mlp.MLP.load_state_dict", "vat.runs.exporting.export", "vat.data.files.download._download", "vat.VAT", "vat.models.MLP"),
    *("vat.models.WideResNet", "vat.data.own.images.Images", "vat.data.sets.mnist.MNIST", "", ".", "MLP", "os"),
)
NAMES = ("_target_", "_args_", "_partial_", "_convert_", "_recursive_", "defaults", "hydra", "path", "hidden", "eps", "a", "data_dir", 3)


class Hostile:
    """Random values that an attacker may write."""

    def __init__(self, draw, folder):
        self.draw = draw
        command = f"touch {folder / CANARY}"
        unpickling = "data:;base64,gANjcG9zaXgKc3lzdGVtCnEAWAQAAAB0cnVlcQGFcQJScQMu"
        self.plain = (
            *(None, True, -1, 0, 2, 10**12, 2**2000, 1e308, float("nan"), float("inf"), "", "x", "\x1b[31m", "=1+1", "a\nb", "\ud800"),
            *(command, unpickling, str(folder / CANARY), "/", "/dev/zero", "${oc.env:HOME}", "${..}", "${oc.create:{_target_: os.mkdir}}"),
            *("${hydra:runtime.cwd}", "???", "@DEEP@", "@LIST@", "@DEEP TUPLES@"),
        )

    def value(self, depth=0):
        draw = self.draw
        match draw.choice(
            ("plain", "plain", "target", "target", "list", "dict", "tensor", "self", "large", "exploit") if depth < 3 else ("plain",)
        ):
            case "plain":
                return draw.choice(self.plain)
            case "target":
                words = {draw.choice(NAMES): self.value(depth + 1) for _ in range(draw.randrange(3))}
                return words | {"_target_": draw.choice(TARGETS)}
            case "list":
                return [self.value(depth + 1) for _ in range(draw.randrange(4))]
            case "dict":
                return {draw.choice(NAMES): self.value(depth + 1) for _ in range(draw.randrange(4))}
            case "tensor":
                return draw.choice((torch.zeros(2), torch.zeros(1).expand(7_000_000_000), torch.zeros(0), torch.tensor(float("nan"))))
            case "self":
                loop = draw.choice(({"_target_": "vat.models.MLP"}, {}))
                loop["hidden"] = draw.choice((loop, [loop]))
                return loop
            case "large":
                huge = [1] * 10
                for _ in range(20):
                    huge = [huge] * 10
                return draw.choice((huge, [10**9] * 5, [1] * 3000, {"_target_": "vat.models.WideResNet", "depth": 6 * 10**9 + 4}))
            case "exploit":
                load = {"_target_": "pytorch_lightning.strategies.Strategy.load_checkpoint", "_args_": [None, self.plain[17], False]}
                return {"_target_": "torch.nn.Sequential", "_args_": draw.choice(([load], [[load]]))}

    def spoil(self, saved):
        """Replace one to three values in a checkpoint."""
        for _ in range(self.draw.choice((1, 1, 1, 2, 3))):
            node = saved
            for key in ("record", "config"):
                inner = node.get(key)
                node = inner if isinstance(inner, dict) and inner and self.draw.random() < 0.8 else node
            while isinstance(node, dict | list) and node:
                keys = list(node) if isinstance(node, dict) else range(len(node))
                key = self.draw.choice(keys)
                if isinstance(node[key], dict | list) and node[key] and self.draw.random() < 0.7:
                    node = node[key]
                    continue
                kind = self.draw.random()
                if kind < 0.1:
                    del node[key]
                elif kind < 0.3 and isinstance(node, dict):
                    node[self.draw.choice(NAMES)] = self.value()
                else:
                    node[key] = self.value()
                break


def write(saved, path):
    """Write a checkpoint as torch does, and insert values that Python could not pickle because of its recursion limit."""
    torch.save(saved, path)
    marks = {b"@DEEP@": b"]" * 3000 + b"a" * 2999, b"@LIST@": b"]", b"@DEEP TUPLES@": b")" + b"\x85" * 150_000}
    data = path.read_bytes()
    if any(mark in data for mark in marks):
        import io
        import zipfile

        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}
        for name in [name for name in entries if name.endswith("data.pkl")]:
            for mark, opcodes in marks.items():
                entries[name] = entries[name].replace(b"X" + len(mark).to_bytes(4, "little") + mark, opcodes)
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in entries.items():
                archive.writestr(name, content)


def uses(path, folder, network, record, data):
    """The ways in which commands use a checkpoint, each separately."""
    saved = read_checkpoint(path)
    x = torch.zeros(2, 3)

    def predict():
        records.network_of(saved, path)
        predicting.prepared(x, saved["record"], Path("new.npz"))

    def export():
        records.network_of(saved, path)
        json.dumps(exporting.description(saved["record"]))
        exporting.examples(saved["record"])

    def exported():
        config = saved["record"].get("config")
        described = {"input_shape": [3], "class_names": ["0", "1"], "mean": None, "std": None}
        state = network.state_dict()
        with records._describing_its_weights(path):
            records.loaded_network(renamed(config.get("model") if isinstance(config, dict) else None), described, state)

    def evaluate():
        records.network_of(saved, path)
        subject.trained_data(saved, path)

    def evaluate_on_given_data():
        records.network_of(saved, path)
        subject.refuse_other_data(saved["record"], data, path)
        subject.refuse_other_preparation(saved["record"], data, path)
        subject.refuse_training_examples(saved, data, path)

    def direction():
        records.network_of(saved, path)
        records.regularizers_of(saved["record"]["config"])

    def resumed():
        resume.refuse_other_run(saved, path, network, record)
        bring_best(path, saved, folder / "checkpoints", needed=False)
        for state in (saved.get("callbacks") or {}).values():
            best = SaveBest(folder / "checkpoints")
            best.load_state_dict(state)
            assert all(place in ("", str(best.path)) for place in (best.best_model_path, *best.best_k_models, best.last_model_path))

    return (predict, export, exported, evaluate, evaluate_on_given_data, direction, resumed)


def main(folder, number, seed):
    warnings.simplefilter("ignore")
    rank_zero_only.rank = 0
    for name in ("pandas", "pyarrow.dataset", "pyarrow.parquet"):  # trusted, and otherwise imported by the first Parquet file or folder
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    download._only_reading.set(True)  # a record that names MNIST may have it downloaded into the user's own folder, which is no fault
    (folder / "checkpoints").mkdir()
    import numpy as np

    np.savez(folder / "own.npz", x=np.random.default_rng(0).normal(size=(40, 3)), y=np.arange(40) % 2)
    data = Arrays(train=str(folder / "own.npz"))
    data.setup()
    path = folder / "a.ckpt"
    write(good(), path)
    network = records.network_of(read_checkpoint(path), path)
    called, faults, used, refused = [], [], 0, 0
    watching = False

    def audit(event, arguments):
        nonlocal watching
        if not watching or event == "sys._getframe":
            return
        written = event == "open" and not (arguments[1] in (None, "r", "rb") and not (arguments[2] or 0) & 3)
        inside = str(arguments[0]).startswith(str(folder / "checkpoints")) if arguments else False
        literal = event == "compile" and arguments[1] == "<unknown>"  # ast.literal_eval of numpy, which runs nothing
        if (event in FORBIDDEN or written) and not inside and not literal:
            watching = False
            called.append(f"{event} {str(arguments)[:200]} {traceback.format_stack()[-6:-1]}")
            watching = True

    def use():
        """Use each way once."""
        nonlocal used, refused, watching
        watching = number_of > 20  # so that later uses import nothing
        try:
            try:
                ways = uses(path, folder, network, copy.deepcopy(good()["record"]), data)
            except user_errors.USER_ERRORS as error:
                refused += 1
                user_errors.readable(error).encode("utf-8", "backslashreplace")
                return
            for way in ways:
                try:
                    way()
                    used += 1
                except user_errors.USER_ERRORS as error:
                    refused += 1
                    if "\n" in user_errors.readable(error):
                        faults.append(f"{way.__name__}: {error}")
                except Exception:
                    faults.append(f"{way.__name__}: {traceback.format_exc()[-1500:]}")
        finally:
            watching = False

    sys.addaudithook(audit)
    hostile = Hostile(random.Random(seed), folder)
    before = 0
    for number_of in range(number):
        saved = good()
        if number_of > 20:
            hostile.spoil(saved)
        try:
            write(saved, path)
        except (RecursionError, UnicodeEncodeError):
            continue
        use()
        if number_of == 20:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
    canary = (folder / CANARY).exists()
    print(json.dumps({"used": used, "refused": refused, "called": called, "faults": faults, "grown": grown, "canary": canary}))


if __name__ == "__main__":
    import os

    os.chdir(sys.argv[1])
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
