"""Many short steps: nothing grows."""

import gc
import os
import threading
from pathlib import Path

import pytest
import pytorch_lightning as pl


def resident():
    """KiB of memory that this process holds."""
    gc.collect()
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1])


class Watch(pl.Callback):
    """Measures from the second tenth of a run, when everything has happened once."""

    def __init__(self, every):
        self.every, self.found = every, []

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step % self.every == 0:
            self.found.append((resident(), len(os.listdir("/proc/self/fd")), threading.active_count()))


@pytest.mark.parametrize("steps", [300, pytest.param(10_000, marks=pytest.mark.long)])
def test_nothing_grows(job, monkeypatch, record_property, steps):
    from vat.runs import training

    watch = Watch(steps // 10)
    made = training.callbacks
    monkeypatch.setattr(training, "callbacks", lambda *given: [watch, *made(*given)])
    job(
        f"trainer.max_steps={steps}",
        f"data.steps_per_epoch={steps // 20}",  # with a validation and a checkpoint each
        "trainer.log_every_n_steps=10",
        "logger=csv",
        "data.translate=1",
        "data.batch_size_labeled=4",
        "data.batch_size_unlabeled=4",
        "model.channels=[4]",
        "regularizers=[${vat},{_target_:vat.MeanTeacher,weight:3.0}]",
        "ema=0.9",
        "test=none",
    )
    memory, handles, threads = zip(*watch.found[1:], strict=True)
    record_property("steps on end", steps)
    record_property("KiB that memory grew by in the last nine tenths of them", memory[-1] - memory[0])
    assert len(memory) == 9
    assert max(handles) <= handles[0] + 1  # the one it is counted with
    assert max(threads) == threads[0]
    assert memory[-1] - memory[0] < 8 << 10  # 1 KiB a step in the long form; a graph or a batch that is kept, in the short one
