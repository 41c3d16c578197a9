"""Settings of the test process, and fixtures that run short jobs in it."""

import os

# Before torch is imported: see src/train.py.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"

import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fuzzing import fuzz  # noqa: F401  # a fixture
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
for name in ("FORCE_COLOR", "COLUMNS", "LINES"):  # tests measure the tables; a console reads these when it is created
    os.environ.pop(name, None)
# The same examples on every machine, and no time limit that a busy machine could exceed.
settings.register_profile("steady", derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
settings.load_profile("steady")

ROOT = Path(__file__).parents[1]
QUICK = (
    "trainer.max_steps=5",
    "data.steps_per_epoch=5",
    "logger=none",
    "figures=null",
    "trainer.enable_progress_bar=false",
)
NOISE = (
    "ignore:.*LeafSpec.*:",
    "ignore:.*treespec.*:",
    "ignore:.*does not have many workers.*:",
    "ignore:.*log_every_n_steps.*:",
    "ignore:.*in eval mode.*:",
    "ignore:.*exists and is not empty.*:",
    "ignore:.*The dirpath has changed.*:",
    "ignore:.*could not find the monitored key.*:",
    "ignore:.*trainer already configured with model summary callbacks.*:",
    "ignore:.*not have a `[a-z]+_dataloader`.*:",
    "ignore:.*created with WeightAveraging.*:",
)


def pytest_configure(config):
    for line in NOISE:
        config.addinivalue_line("filterwarnings", line)


def pytest_terminal_summary(terminalreporter, config):
    """Print what the long tests counted (`record_property`) as the table of docs/tests.md. The seconds are without setup."""
    if config.option.markexpr != "long":
        return
    table = {}
    for report in terminalreporter.getreports("passed"):
        for what in dict(report.user_properties):
            number = sum(n for name, n in report.user_properties if name == what)
            before = table.get(what, (0, 0.0))
            table[what] = (before[0] + number, before[1] + report.duration)
    terminalreporter.section("counts")
    terminalreporter.write_line("| what | number | seconds |\n| --- | --- | --- |")
    for what, (number, seconds) in sorted(table.items()):
        terminalreporter.write_line(f"| {what} | {number:,} | {seconds:,.0f} |")


@pytest.fixture(scope="session")
def compose():
    """Function from overrides to the configuration that the command line would pass to `train`."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    import train  # noqa: F401  # registers the schemas

    def composed(*overrides):
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            return hydra_compose("train", overrides=list(overrides))

    return composed


@pytest.fixture
def job(compose, tmp_path, monkeypatch):
    """Function from overrides to a run of five steps in this process: its metrics, its folder, its last checkpoint."""
    from vat.runs import folders, report, training

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report.console, "quiet", True)

    def run(*overrides, name="job"):
        folder = tmp_path / name
        cfg = compose(*QUICK, *overrides)
        metrics = training.train(cfg, folder, folders.find_checkpoint(cfg))
        return SimpleNamespace(metrics=metrics, folder=folder, checkpoint=folder / "checkpoints" / "last.ckpt")

    return run


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Function from an entry and its arguments to what the command line does with them, in this process and a new folder."""
    from vat.runs import report

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report.console, "quiet", True)

    def run(entry, *arguments):
        argv = [f"{entry.__name__}.py", "--config-path", str(ROOT / "conf"), *arguments]
        monkeypatch.setattr(sys, "argv", [*argv, "hydra/job_logging=disabled", "hydra/hydra_logging=disabled"])
        entry.main()

    return run


@pytest.fixture
def main(command):
    """`command` for `train`, with a short run."""
    import train

    def run(*arguments):
        flags = [a for a in arguments if a.startswith("-")]
        command(train, *flags, *QUICK, *(a for a in arguments if a not in flags))

    return run


@pytest.fixture
def shell(tmp_path):
    """Function from a Python script and its arguments to the finished process. It ran in another folder, without terminal, key or home."""

    def run(script, *arguments, **environment):
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "PL_", "HYDRA_"))}
        home = tmp_path / "home"
        home.mkdir(exist_ok=True)
        local = {"HOME": str(home), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src"), "no_proxy": "127.0.0.1"}
        process = subprocess.Popen(
            [sys.executable, str(script), *arguments],
            cwd=tmp_path,
            env=inherited | local | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            stdout, stderr = process.communicate(timeout=600)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # kills the other ranks, too
            raise
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    return run


def equal_states(one, other):
    """Names of the entries in which two state dicts differ in any bit."""
    assert one.keys() == other.keys()
    return [name for name, value in one.items() if isinstance(value, torch.Tensor) and not torch.equal(value, other[name])]


@pytest.fixture
def differences():
    """Function from two state dicts to the names of the tensors that differ in any bit."""
    return equal_states
