"""Checks whether a run may resume: its checkpoint and its folder must fit the settings of the job."""

import json
import shutil
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from torch import nn

from vat import files
from vat.lightning.csv_logger import LOGGED
from vat.lightning.history import rewind
from vat.runs import report
from vat.runs.checkpoints import BEST, LAST, PREVIOUS
from vat.runs.data_node import make_data
from vat.runs.folders import BYSTANDERS, CONFIG, ENVIRONMENT, finished, keep_logged, settings_digest, settings_in
from vat.runs.records import _describing_its_weights, _network_state, data_digest
from vat.runs.text import brief


def refuse_other_job(cfg: DictConfig, folder: Path) -> None:
    """Refuse a folder whose job has other settings, or was trained on files that have changed.

    Raises:
        ValueError: If the folder has such a job. Says what differs and what to do.
    """
    begun = settings_in(folder)
    if begun is None:
        return
    written, environment = (folder / CONFIG).read_text(encoding="utf-8"), files.read_json(folder / ENVIRONMENT) or {}
    same = OmegaConf.to_yaml(cfg, resolve=True).startswith(written)  # or incomplete, written by an earlier version
    # The composed settings are compared, because radii that were computed from the data are numbers in the written ones.
    if not same and (environment.get("settings") or settings_digest(begun)) != settings_digest(cfg):
        raise ValueError(
            f"{folder} holds a job of other settings, see {folder / CONFIG}. Remove hydra.sweep.subdir or make it different for each job, "
            "or delete the folder"
        )
    own = not cfg.data._target_.startswith("vat.data.sets.")  # published data are checked when they are read
    if finished(folder) is not None and own:
        data = make_data(cfg.data)
        data.setup()
        now = data_digest(data)
        if environment.get("data", now) != now:
            raise ValueError(f"{folder} holds the result of other data: the files have changed since. Delete the folder to train again")


@rank_zero_only
def prepare(cfg: DictConfig, folder: Path, start: Path | None, saved: dict[str, Any]) -> None:
    """Remove everything of later steps and of other runs from the job's folder. Keep what belongs to the checkpoint to resume from.

    Args:
        cfg: Settings of the job.
        folder: Folder of the job.
        start: Checkpoint to resume from. None for a new job.
        saved: Content of the checkpoint.
    """
    last = folder / "checkpoints" / LAST
    if start is not None and start.resolve().parent == last.parent.resolve():
        if not rewind(folder, saved):
            keep_logged(folder)
        return
    begun = settings_in(folder)
    if begun is None or finished(folder) is not None or settings_digest(begun) != settings_digest(cfg):
        keep_logged(folder)
    (folder / LOGGED).unlink(missing_ok=True)  # of an attempt that ended before its first checkpoint
    report.clear(folder)
    if start is None:
        last.with_name(BEST).unlink(missing_ok=True)
    else:  # the run continues here, and must not find another run's checkpoints
        last.with_name(PREVIOUS).unlink(missing_ok=True)
        with files.replacing(last) as part:
            shutil.copyfile(start, part)


@contextmanager
def restoring(checkpoint: Path | None) -> Iterator[None]:
    """Within this context, turn an error of Lightning while it restores `checkpoint` into one line.

    Raises:
        ValueError: If the checkpoint does not hold the state of such a run.
    """
    try:
        yield
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        if not any(f.filename.endswith("checkpoint_connector.py") and f.name.startswith(("restore", "resume", "_restore")) for f in frames):
            raise
        reason = brief(" ".join(str(error).split()))
        raise ValueError(f"{checkpoint} does not hold the state of such a run ({reason}). Use another, or start a new run") from error


def refuse_other_run(checkpoint: dict[str, Any], path: Path, network: nn.Module, record: dict[str, Any]) -> None:
    """Refuse a checkpoint of another architecture, optimizer, schedule or split. A checkpoint restores optimizer and schedule.

    Raises:
        ValueError: If one differs. Names the first difference.
    """
    with _describing_its_weights(path):
        saved, trained = _network_state(checkpoint), checkpoint["record"]
        shapes = {name: tuple(t.shape) for name, t in saved.items()}
        parts = {part: _targets(trained["config"][part]) for part in ("regularizers", "optimizer")}
        schedule = {part: _settings(trained["config"][part]) for part in ("optimizer", "scheduler")}
        model, split = json.dumps(trained["config"]["model"]), trained["split"]
    present = network.state_dict()
    for name in sorted(present.keys() | saved.keys()):
        ours = tuple(present[name].shape) if name in present else "absent"
        theirs = shapes.get(name, "absent")
        if ours != theirs:
            raise ValueError(
                f"{path} holds another architecture: {brief(name)} is {theirs} there and {ours} here. It was trained with model={model}"
            )
    if other := [name for name, t in saved.items() if t.is_floating_point() != present[name].is_floating_point()]:
        raise ValueError(f"{path} holds another architecture: {brief(other[0])} is {saved[other[0]].dtype} there")
    for part, theirs in parts.items():
        ours = _targets(record["config"][part])
        if theirs != ours:
            raise ValueError(f"{path} was trained with {part} {theirs} and cannot resume with {ours}. Keep them, or start a new run")
    for part, theirs in schedule.items():
        ours = _settings(record["config"][part])
        for key in sorted({*ours, *theirs}):
            if ours.get(key) != theirs.get(key):
                raise ValueError(
                    f"{path} was trained with {part}.{key}={theirs.get(key)}, here it is {ours.get(key)}. A resumed run has the same "
                    "learning rate, schedule and length. Keep them, or start a new run"
                )
    if "preparation" in trained and trained["preparation"] != record.get("preparation"):
        raise ValueError(
            f"{path} was trained on data prepared differently (features, their scale, or words). Have the files changed since?"
        )
    if split != record["split"]:
        raise ValueError(
            f"{path} was trained on another split ({split} there, {record['split']} here). Keep seed and data settings to resume from it"
        )
    if trained.get("data", record["data"]) != record["data"]:
        raise ValueError(f"{path} was trained on other data: the files have changed since. Put the old ones back, or start a new run")
    theirs, ours = (_flattened(config) for config in (trained["config"], record["config"]))
    there, here = theirs.get("ema"), ours.get("ema")
    if there != here:
        raise ValueError(
            f"{path} was trained with ema={there}, here it is {here}. A resumed run continues its average. Keep ema, or start a new run"
        )
    if changed := [
        f"{brief(key)} {brief(theirs[key])} -> {brief(ours[key])}"
        for key in ours
        if theirs.get(key, ours[key]) != ours[key] and _matters(key)
    ]:
        warnings.warn(f"the run resumes with other settings than {path}: {', '.join(changed)}", stacklevel=2)


def _matters(key: str) -> bool:
    """Whether a setting affects the training. The list of regularizers is left out, because each also has a node."""
    node, _, name = key.partition(".")
    if node == "trainer":
        return name in ("precision", "accumulate_grad_batches", "gradient_clip_val")
    return node not in (*BYSTANDERS, "test", "regularizers") and key not in ("data.data_dir", "data.num_workers")


def _flattened(node: Any, prefix: str = "") -> dict[str, Any]:
    """The values of a configuration by their keys, such as `vat.eps`. In a list, the key is the position."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else None
    if items is None:
        return {prefix: node}
    return {key: value for name, child in items for key, value in _flattened(child, f"{prefix}.{name}".lstrip(".")).items()}


def _settings(node: Any) -> dict[str, str]:
    """The settings of a node as text. Empty without a node."""
    return {str(key): str(value) for key, value in (node or {}).items()}


def _targets(nodes: Any) -> str:
    found = [node["_target_"].rsplit(".", 1)[-1] for node in (nodes if isinstance(nodes, list) else [nodes])]
    return " + ".join(found) or "none"
