"""Which runs may resume: a checkpoint and a folder are checked against the settings of the job."""

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
    """Refuse a folder in which a job of other settings, or on files that have changed since, was begun or came to its end.

    Raises:
        ValueError: says what differs and what to do.
    """
    begun = settings_in(folder)
    if begun is None:
        return
    written, environment = (folder / CONFIG).read_text(encoding="utf-8"), files.read_json(folder / ENVIRONMENT) or {}
    same = OmegaConf.to_yaml(cfg, resolve=True).startswith(written)  # or torn, by an earlier version
    # As it was composed: radii that are computed from the data are numbers in what was written.
    if not same and (environment.get("settings") or settings_digest(begun)) != settings_digest(cfg):
        raise ValueError(
            f"{folder} holds a job of other settings, see {folder / CONFIG}: leave hydra.sweep.subdir out, or let it tell the jobs apart; "
            "or delete the folder"
        )
    own = not cfg.data._target_.startswith("vat.data.sets.")  # published data are checked when they are read
    if finished(folder) is not None and own:
        data = make_data(cfg.data)
        data.setup()
        now = data_digest(data)
        if environment.get("data", now) != now:
            raise ValueError(f"{folder} holds the result of other data: the files have changed since; delete the folder to train anew")


@rank_zero_only
def prepare(cfg: DictConfig, folder: Path, start: Path | None, saved: dict[str, Any]) -> None:
    """Leave in the job's folder what belongs to the checkpoint that it resumes from, and nothing of later steps or of another run.

    Args:
        cfg: the job's settings.
        folder: of the job.
        start: the checkpoint; None for a job that begins.
        saved: what it holds.
    """
    last = folder / "checkpoints" / LAST
    if start is not None and start.resolve().parent == last.parent.resolve():
        if not rewind(folder, saved):
            keep_logged(folder)
        return
    begun = settings_in(folder)
    if begun is None or finished(folder) is not None or settings_digest(begun) != settings_digest(cfg):
        keep_logged(folder)
    (folder / LOGGED).unlink(missing_ok=True)  # of an attempt that was killed before its first checkpoint
    report.clear(folder)
    if start is None:
        last.with_name(BEST).unlink(missing_ok=True)
    else:  # its run continues here, and must not find another one's checkpoints
        last.with_name(PREVIOUS).unlink(missing_ok=True)
        with files.replacing(last) as part:
            shutil.copyfile(start, part)


@contextmanager
def restoring(checkpoint: Path | None) -> Iterator[None]:
    """Within it, what Lightning trips over when it restores a run from `checkpoint` is told in one line.

    Raises:
        ValueError: the checkpoint does not hold the state of such a run.
    """
    try:
        yield
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        if not any(f.filename.endswith("checkpoint_connector.py") and f.name.startswith(("restore", "resume", "_restore")) for f in frames):
            raise
        reason = brief(" ".join(str(error).split()))
        raise ValueError(f"{checkpoint} does not hold the state of such a run ({reason}): take another, or start anew") from error


def refuse_other_run(checkpoint: dict[str, Any], path: Path, network: nn.Module, record: dict[str, Any]) -> None:
    """Going on needs the same architecture, the same optimizer and schedule, which a checkpoint brings along, and the same split.

    Raises:
        ValueError: names the first difference.
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
            raise ValueError(f"{path} was trained with {part} {theirs} and cannot go on with {ours}: keep them, or start anew")
    for part, theirs in schedule.items():
        ours = _settings(record["config"][part])
        for key in sorted({*ours, *theirs}):
            if ours.get(key) != theirs.get(key):
                raise ValueError(
                    f"{path} was trained with {part}.{key}={theirs.get(key)}, here it is {ours.get(key)}: a run that goes on keeps its "
                    "rate and schedule, and with it its length; keep them, or start anew"
                )
    if "preparation" in trained and trained["preparation"] != record.get("preparation"):
        raise ValueError(f"{path} was trained on data prepared otherwise (features, their scale, or words): have the files changed since?")
    if split != record["split"]:
        raise ValueError(
            f"{path} was trained on another split ({split} there, {record['split']} here): keep seed and data settings to go on from it"
        )
    if trained.get("data", record["data"]) != record["data"]:
        raise ValueError(f"{path} was trained on other data: the files have changed since; put the old ones back, or start anew")
    theirs, ours = (_flattened(config) for config in (trained["config"], record["config"]))
    there, here = theirs.get("ema"), ours.get("ema")
    if there != here:
        raise ValueError(f"{path} was trained with ema={there}, here it is {here}: an average goes on as one; keep it, or start anew")
    if changed := [
        f"{brief(key)} {brief(theirs[key])} -> {brief(ours[key])}"
        for key in ours
        if theirs.get(key, ours[key]) != ours[key] and _matters(key)
    ]:
        warnings.warn(f"goes on with other settings than {path}: {', '.join(changed)}", stacklevel=2)


def _matters(key: str) -> bool:
    """Whether a setting takes part in the training; the regularizers have nodes of their own beside their list."""
    node, _, name = key.partition(".")
    if node == "trainer":
        return name in ("precision", "accumulate_grad_batches", "gradient_clip_val")
    return node not in (*BYSTANDERS, "test", "regularizers") and key not in ("data.data_dir", "data.num_workers")


def _flattened(node: Any, prefix: str = "") -> dict[str, Any]:
    """The values of a configuration by their keys, as `vat.eps`; those of a list by their numbers."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else None
    if items is None:
        return {prefix: node}
    return {key: value for name, child in items for key, value in _flattened(child, f"{prefix}.{name}".lstrip(".")).items()}


def _settings(node: Any) -> dict[str, str]:
    """The settings of a node, as text; none where there is no node."""
    return {str(key): str(value) for key, value in (node or {}).items()}


def _targets(nodes: Any) -> str:
    found = [node["_target_"].rsplit(".", 1)[-1] for node in (nodes if isinstance(nodes, list) else [nodes])]
    return " + ".join(found) or "none"
