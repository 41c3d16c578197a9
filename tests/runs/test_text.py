"""Class names, file names and checkpoints give a terminal no commands and a spreadsheet no formulas."""

import csv
import io
import warnings

import pytest
import torch
from rich.table import Table

from vat.runs import provenance, report, sweep_summary, user_errors
from vat.runs.text import brief, cell, visible, visible_warnings

ESCAPE = "\x1b[2J\x1b]0;title\x07"


def test_control_characters_are_spelled_out():
    assert visible(ESCAPE + "\r\n\x9b\u202e") == r"\x1b[2J\x1b]0;title\x07\r\n\x9b\u202e"
    assert visible("a\nb\tc", keep="\n") == "a\nb\\tc"
    assert visible("Äpfel – 日本 \udcff") == "Äpfel – 日本 \udcff"
    assert brief("\x1b" * 100) == r"\x1b" * 24 + r"\..."


@pytest.mark.parametrize("text", ["=1+1", "+1+1", "-1+cmd|' /C calc'!A0", "@SUM(A1)", " =1", "\t=1", "\r=1"])
def test_a_formula_is_no_formula_any_more(text):
    shown = cell(text)
    assert shown.lstrip()[0] not in "=+-@\t\r"
    assert shown.endswith(text.strip())


@pytest.mark.parametrize("text", ["cat", "-1", "+1.5", "-inf", "1e-3", "a=b", "photos/-1.png", "", "+", "-", " @ "])
def test_other_cells_are_as_they_are(text):
    assert cell(text) == text


def test_the_console_shows_what_a_terminal_would_obey():
    console = report.VisibleConsole(file=io.StringIO(), force_terminal=True, markup=False, highlight=False, width=100)
    table = Table("class", title=ESCAPE)
    table.add_row(ESCAPE)
    console.print(ESCAPE, style="yellow")
    console.print(table)
    said = console.file.getvalue()
    assert r"\x1b[2J" in said
    assert "\x1b[2J" not in said
    assert "\x1b]" not in said
    assert "\x07" not in said
    assert "\x1b[33m" in said  # its own


def test_the_console_writes_what_its_encoding_lacks_as_escapes():
    raw = io.BytesIO()
    console = report.VisibleConsole(file=io.TextIOWrapper(raw, "ascii"), markup=False)
    console.print("ε = 2.0 ± 0.1")
    console.file.flush()
    assert raw.getvalue() == rb"\u03b5 = 2.0 \xb1 0.1" + b"\n"


def test_warnings_and_errors_are_shown_so_too():
    with visible_warnings():
        shown = warnings.formatwarning(f"no image: {ESCAPE}", UserWarning, "a.py", 1)
    assert r"no image: \x1b[2J" in shown
    assert "\x1b" not in shown
    with pytest.raises(SystemExit) as ended, user_errors.readable_errors():
        raise ValueError(f"{ESCAPE}\nerror: another")
    assert str(ended.value.code) == r"error: \x1b[2J\x1b]0;title\x07\nerror: another"


def test_confusion_and_summary_hold_no_formula(tmp_path):
    names = ["=1+1", "-1", ESCAPE]
    report.confusion(torch.eye(3, dtype=torch.int64), names, tmp_path / "confusion.csv")
    shown = ["'=1+1", "-1", visible(ESCAPE)]
    with (tmp_path / "confusion.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["class", *shown]
    assert [row[0] for row in rows[1:]] == shown
    setting = sweep_summary.Setting({"model.init": "=1+1"}, 1, 1, [1.0], [], [], [1.0])
    sweep_summary._write_csv([setting], tmp_path / "summary.csv")
    with (tmp_path / "summary.csv").open(newline="") as file:
        assert list(csv.reader(file))[1][0] == "'=1+1"


def test_provenance_asks_git_without_its_environment(tmp_path, monkeypatch):
    """`GIT_CONFIG_…` may name a command that `git status` runs."""
    script = tmp_path / "monitor"
    script.write_text(f"#!/bin/sh\ntouch {tmp_path / 'called'}\n")
    script.chmod(0o755)
    for name, value in {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "core.fsmonitor",
        "GIT_CONFIG_VALUE_0": str(script),
        "GIT_DIR": str(tmp_path / "elsewhere"),
    }.items():
        monkeypatch.setenv(name, value)
    state = provenance._git_state()
    assert not (tmp_path / "called").exists()
    monkeypatch.undo()
    assert state == provenance._git_state()
