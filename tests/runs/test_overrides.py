import subprocess
import sys

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from vat.runs import user_errors
from vat.runs.overrides import refuse_unreadable

NAMES = [
    "~/x",
    "a=b",
    "a#b",
    "a&b",
    "a!b",
    "a'b",
    "a;b",
    "a(1)",
    "a[1]",
    "[a]",
    "{a}",
    'a"b',
    "ä",
    "a`b",
    "a<b",
    "a^b",
    "${b",
    "a\\!'b",
    "a, ~b",
]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_to_be_typed_in_a_shell_is_read_as_the_name(name):
    with pytest.raises(ValueError, match="need quotes within quotes") as said:
        refuse_unreadable(["data=arrays", f"data.train={name}.npz"])
    typed = str(said.value).split(" Type ")[1]
    word = subprocess.run(["bash", "-c", f"printf %s {typed}"], capture_output=True, text=True, check=True).stdout
    value = OverridesParser.create().parse_override(word).value()
    assert getattr(value, "text", value) == f"{name}.npz"


@pytest.mark.parametrize(
    ("typed", "expected"), [("[größe]", ["größe"]), ("[größe, a b,c!]", ["größe", "a b", "c!"]), ("['a b' ,größe]", ["a b", "größe"])]
)
def test_names_in_a_list_are_quoted_one_by_one(typed, expected):
    with pytest.raises(ValueError, match="need quotes within quotes") as said:
        refuse_unreadable([f"data.ignore={typed}"])
    shown = str(said.value).split(" Type ")[1]
    word = subprocess.run(["bash", "-c", f"printf %s {shown}"], capture_output=True, text=True, check=True).stdout
    assert OverridesParser.create().parse_override(word).value() == expected


def test_a_command_says_so_before_hydra_speaks(monkeypatch):
    started = []
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "--config-name", "other", "seed=0,1", "data.train=~/x.npz"])
    with pytest.raises(SystemExit, match=r"^error: data\.train=~/x\.npz: characters such as .* Type \"data\.train='~/x\.npz'\"$"):
        user_errors.run(lambda: started.append(1))
    monkeypatch.setattr(sys, "argv", ["train.py", "seed=1", "ill"])
    with pytest.raises(SystemExit, match=r"^error: a setting must be key=value, got ill$"):
        user_errors.run(lambda: started.append(1))
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "seed=0,1", "data.train='~/x.npz'", "~scheduler", "+a.b=[1,2]"])
    user_errors.run(lambda: started.append(1))
    assert started == [1]


def test_a_setting_of_a_group_without_a_choice_is_refused():
    from vat.runs.overrides import refuse_settings_without_choice

    with pytest.raises(ValueError, match=r"data\.test=new\.csv: there is no data to set it in"):
        refuse_settings_without_choice(["ckpt_path=x", "data.test=new.csv"], ["data"])
    refuse_settings_without_choice(["data=arrays", "data.test=new.csv"], ["data"])
    refuse_settings_without_choice(["ckpt_path=data.ckpt"], ["data"])
