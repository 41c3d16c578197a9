"""A refusal of Hydra is one line, with the closest valid name."""

import os
import re
import sys
from pathlib import Path

import pytest

import train
from vat.runs import user_errors

CONF = Path(__file__).parents[2] / "conf"


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["vat.esp=2"], "there is no setting vat.esp: did you mean vat.eps?"),
        (["trainer.max_step=3"], "there is no setting trainer.max_step: did you mean trainer.max_steps?"),
        (["modle=cnn"], "there is no setting modle: did you mean model?"),
        (["regularizer=none", "vat.eps=1"], "there is no setting vat"),
        (["model=resnt"], "model=resnt is no choice: did you mean model=resnet?"),
        (["optimizer=zzz"], "optimizer=zzz is no choice of adam, adam_linear, adamw_linear, sgd"),
        (["vat.eps=abc"], "vat.eps: Value 'abc' of type 'str' could not be converted to Float"),
        (["model=mlp", "model.hidden=5"], "model.hidden must be a list, such as model.hidden=[...]"),
        (["-m", "vat.esp=1,2"], "there is no setting vat.esp: did you mean vat.eps?"),
    ],
)
def test_the_only_line_names_what_is_unknown(typed, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", "--config-path", str(CONF), *typed, "hydra/job_logging=disabled"])
    with pytest.raises(SystemExit, match=f"^{re.escape(f'error: {said}')}$"):
        user_errors.run(train.main)
    assert "HYDRA_FULL_ERROR" not in os.environ


def test_other_errors_are_left_alone():
    assert user_errors.unknown_name(None) is None
    assert user_errors.unknown_name(ValueError("eps")) is None


def test_a_message_with_a_name_of_a_million_characters_is_short_and_keeps_its_remedy():
    said = user_errors.readable(ValueError(f"{'a' * 10**6} is no class: take another"))
    assert len(said) < 2100
    assert said.endswith("is no class: take another")
