"""Search for the settings with the least validation error, with Optuna's TPE. Runs that are worse than the median of the others end early.

python scripts/search.py "vat.eps=tag(log,interval(0.1,10))" regularizer=vat,vat_entropy --trials 30

Write a search space as in a sweep: `a,b,c` or choice(…), range(…), interval(…). tag(log,…) makes an interval logarithmic, and
int(interval(…)) has only integers. Every other override applies to every run. Each trial is a separate `python src/train.py`, in a folder
that follows from its settings. The study is `study.db`, next to these folders. To resume a search, also after a kill, repeat the command.
It first repeats interrupted trials, and --trials counts all trials. The search does not use the test set. The command that it prints at
the end does.
"""

import argparse
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

import optuna
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from omegaconf import DictConfig
from optuna.trial import FrozenTrial, Trial, TrialState
from pytorch_lightning.utilities.exceptions import SIGTERMException
from rich.console import Console
from rich.table import Table
from sqlalchemy.exc import DatabaseError

from vat import files
from vat.lightning.history import HISTORY, read
from vat.runs import evidence, folders, resume, schema, sweeps, user_errors
from vat.runs.checkpoints import newest_whole

LOOK_EVERY = 0.5  # seconds
QUIET = {"test": "none", "figures": "null", "trainer.enable_progress_bar": "false"}
console = Console(highlight=False, markup=False)


class JobFailedError(RuntimeError):
    """Raised if a trial's run wrote no metrics."""


def main() -> None:
    """Search, then print the best trials."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="+", help="search space, and overrides of all runs")
    parser.add_argument("--trials", type=int, default=30, help="number of all trials, including those of earlier calls")
    parser.add_argument("--folder", type=Path, help="folder of the study and its runs; by default it follows from the overrides")
    arguments = parser.parse_intermixed_args()
    if arguments.trials < 1:
        parser.error(f"--trials must be >= 1, got {arguments.trials}")
    schema.register()
    signal.signal(signal.SIGTERM, _end)  # so that SIGTERM also ends the current run
    with user_errors.readable_errors():
        space, shared = parsed(arguments.overrides)
        folder = arguments.folder or Path("search") / sweeps.digest(arguments.overrides)
        folder.mkdir(parents=True, exist_ok=True)
        with files.open_lock(folder / ".lock") as lock:
            if not files.lock(lock):
                raise OSError(f"another search is running in {folder}: wait until it ends, or choose another --folder")
            study = opened(folder, arguments.overrides)
            search(study, space, shared, folder, arguments.trials)
    show(study, shared, folder)


def parsed(overrides: Sequence[str]) -> tuple[list[Override], list[str]]:
    """Split overrides into the search space and the overrides of all runs.

    Raises:
        ValueError: If the search space is empty or invalid, or a key occurs twice.
        HydraException: If a key does not exist, or cannot have the given value.
    """
    found = OverridesParser.create().parse_overrides(list(overrides))
    space = [override for override in found if override.is_sweep_override()]
    if not space:
        raise ValueError(f"{' '.join(overrides)} has nothing to search: give a key several values, as vat.eps=interval(0.1,10)")
    for override in space:
        _refuse_impossible(override)
    shared = [override.input_line or "" for override in found if not override.is_sweep_override()]
    given = {override.get_key_element() for override in found}
    if len(given) < len(found):
        raise ValueError(f"{' '.join(overrides)} has a key twice: give each key once")
    shared = [f"{key}={value}" for key, value in QUIET.items() if key not in given] + shared
    cfg = composed([*shared, *(f"{o.get_key_element()}={_first(o)}" for o in space)])
    if cfg.data.get("validation_share") == 0:
        raise ValueError("data.validation_share=0: a search chooses by validation; hold examples out for it")
    return space, shared


def composed(overrides: Sequence[str]) -> DictConfig:
    """Compose the configuration of a run."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", overrides=list(overrides))


def _refuse_impossible(override: Override) -> None:
    sweep = override.value()
    if not isinstance(sweep, IntervalSweep) or sweep.start is None or sweep.end is None:
        return
    if sweep.start >= sweep.end:
        raise ValueError(f"{override.input_line}: the end of the interval must be > its start")
    if "log" in sweep.tags and sweep.start <= 0:
        raise ValueError(f"{override.input_line}: the start of a logarithmic interval must be > 0, got {sweep.start}")


def opened(folder: Path, overrides: Sequence[str]) -> optuna.Study:
    """Open the study in `folder`, or create it. Interrupted trials, also those of a killed search, are first in the queue.

    Raises:
        ValueError: If the study has other settings, or the file is not a study.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    wanted = sorted(overrides)
    try:
        study = optuna.create_study(
            study_name="vat",
            storage=f"sqlite:///{folder / 'study.db'}",
            pruner=optuna.pruners.MedianPruner(n_startup_trials=5),
            load_if_exists=True,
        )
    except (DatabaseError, optuna.exceptions.StorageInternalError, RuntimeError) as error:
        raise ValueError(f"{folder / 'study.db'} is not a study that this version can read: choose another --folder") from error
    study.sampler = optuna.samplers.TPESampler(seed=len(study.trials))  # no fixed seed: a resumed search would repeat its proposals
    theirs = study.user_attrs.get("overrides", wanted)
    if theirs != wanted:
        raise ValueError(f"{folder} contains a study with other settings, {' '.join(theirs)}: choose another --folder")
    study.set_user_attr("overrides", wanted)
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
    trials = study.get_trials()
    for trial in trials:
        if interrupted(trial) and not any(chosen(later) == chosen(trial) for later in trials[trial.number + 1 :]):
            study.enqueue_trial(chosen(trial))
    return study


FAILED = "failed"
"""Attribute of a trial whose run failed. A failed trial without it was interrupted."""


def interrupted(trial: FrozenTrial) -> bool:
    """Whether a trial was interrupted after the choice of its settings."""
    return trial.state == TrialState.FAIL and FAILED not in trial.user_attrs and bool(chosen(trial))


def chosen(trial: FrozenTrial) -> dict[str, Any]:
    """Settings of a trial. They are also known for a waiting trial, and for one that was interrupted before it read them."""
    return trial.system_attrs.get("fixed_params") or trial.params


def num_ended(study: optuna.Study) -> int:
    """Number of trials that ended or whose run failed."""
    ended = study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))
    return len(ended) + sum(FAILED in trial.user_attrs for trial in study.get_trials(states=(TrialState.FAIL,)))


def search(study: optuna.Study, space: Sequence[Override], shared: Sequence[str], folder: Path, trials: int) -> None:
    """Run trials until `trials` of them have ended or failed."""
    os.environ[sweeps.NAME] = folder.name  # the W&B group

    def objective(trial: Trial) -> float:
        settings = [f"{override.get_key_element()}={suggested(trial, override)}" for override in space]
        try:
            error = run(trial, [*shared, *settings], folder / sweeps.digest([*shared, *settings]))
        except JobFailedError:
            trial.set_user_attr(FAILED, True)
            raise
        console.print(f"trial {trial.number}: validation error {100 * error:.2f} %  {' '.join(settings)}")
        return error

    logging.getLogger("sqlalchemy").setLevel(logging.ERROR)
    remaining = trials - num_ended(study)
    if remaining > 0:
        study.optimize(objective, n_trials=remaining, catch=(JobFailedError,))


def suggested(trial: Trial, override: Override) -> Any:
    """Suggest a value of an override."""
    key, sweep = override.get_key_element(), override.value()
    if isinstance(sweep, IntervalSweep):
        low, high = sweep.start, sweep.end
        assert low is not None  # in Hydra's grammar an interval has both ends
        assert high is not None
        if isinstance(low, int) and isinstance(high, int):
            return trial.suggest_int(key, low, high, log="log" in sweep.tags)
        return trial.suggest_float(key, float(low), float(high), log="log" in sweep.tags)
    return trial.suggest_categorical(key, list(override.sweep_string_iterator()))


def run(trial: Trial, overrides: Sequence[str], folder: Path) -> float:
    """Train with `src/train.py`, and watch the validation error.

    Returns:
        The final validation error.

    Raises:
        optuna.TrialPruned: If the run was stopped, because it was worse than the median of the others at the same step.
        JobFailedError: If the run wrote no metrics.
    """
    folder.mkdir(parents=True, exist_ok=True)
    reported = -1
    with (folder / "search.log").open("a") as log:
        _wait_for_an_orphan(folder)
        command = sweeps.command(overrides, folder, newest_whole(folder))
        done = folders.finished(folder) is not None
        if done:
            resume.refuse_other_job(composed(overrides), folder)
        # A new session, so that all ranks of the run can be stopped together.
        process = None if done else subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            while True:
                running = process is not None and process.poll() is None
                for record in read(folder / HISTORY):
                    if (step := int(record["step"])) > reported:
                        trial.report(record["val/error"], step)
                        reported = step
                        if running and trial.should_prune():
                            console.print(
                                f"trial {trial.number}: stopped at step {step}, validation error {100 * record['val/error']:.2f} %"
                            )
                            raise optuna.TrialPruned
                if not running:
                    break
                time.sleep(LOOK_EVERY)
        finally:
            if process is not None and process.poll() is None:
                _kill(process)
                process.wait()
    metrics = folders.finished(folder)
    if metrics is None:
        console.print(f"trial {trial.number}: failed, see {folder}/search.log", style="red")
        raise JobFailedError(str(folder))
    return 1 - metrics["val/accuracy"]


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a run with all its ranks. On Windows, which has no process groups, kill only the run."""
    if hasattr(os, "killpg"):
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()


def _wait_for_an_orphan(folder: Path) -> None:
    """Wait for a run that a killed search has left behind."""
    with files.open_lock(folder / ".lock") as lock:
        if not files.lock(lock):
            console.print(f"waiting for a run in {folder}")
            files.lock(lock, wait=True)


def _end(*_: Any) -> None:
    raise SIGTERMException


def show(study: optuna.Study, shared: Sequence[str], folder: Path) -> None:
    """Print the best trials, and the command that trains and tests the best one."""
    done = sorted(study.get_trials(states=(TrialState.COMPLETE,)), key=lambda trial: trial.value or 0.0)
    stopped = len(study.get_trials(states=(TrialState.PRUNED,)))
    failed = num_ended(study) - stopped - len(done)
    if not done:
        raise SystemExit(f"error: no trial finished ({failed} failed): see {folder}/*/search.log")
    keys = list(done[0].params)
    table = Table("trial", *keys, "validation error, %", title=f"{folder}: {len(done)} done, {stopped} stopped, {failed} failed")
    for trial in done[:10]:
        values = (f"{v:.4g}" if isinstance(v, float) else str(v) for v in trial.params.values())
        table.add_row(str(trial.number), *values, f"{100 * (trial.value or 0.0):.2f}")
    console.print(table)
    for sentence in evidence.words(evidence.groups(_trials(done, shared, folder))):
        console.print(sentence, style="yellow")
    wanted = [word for word in shared if word not in {f"{key}={value}" for key, value in QUIET.items()}]
    best = [f"{key}={value}" for key, value in done[0].params.items()]
    console.print("train and test the best:", " ".join(["python src/train.py", *wanted, *best]), soft_wrap=True)


def _trials(done: Sequence[FrozenTrial], shared: Sequence[str], folder: Path) -> Iterator[tuple[dict[str, str], dict[str, float] | None]]:
    """Settings and metrics of the finished trials."""
    for trial in done:
        words = [f"{key}={value}" for key, value in trial.params.items()]
        settings = {key: f"{value:.4g}" if isinstance(value, float) else str(value) for key, value in trial.params.items()}
        yield settings | {"trial": str(trial.number)}, folders.finished(folder / sweeps.digest([*shared, *words]))


def _first(override: Override) -> Any:
    """Some value of an override."""
    sweep = override.value()
    return sweep.start if isinstance(sweep, IntervalSweep) else next(iter(override.sweep_string_iterator()))


if __name__ == "__main__":
    main()
