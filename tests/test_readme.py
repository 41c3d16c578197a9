"""Every command in the README, and in the pages whose tables it summarises, works."""

import argparse
import re
import shlex
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
import running_scripts
from hydra import compose, initialize_config_dir

import evaluate
import train  # noqa: F401  # makes the schemas known

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
RESULTS = (ROOT / "docs" / "results.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", README + RESULTS, re.DOTALL)
COMMANDS = [line.split("  #")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip()]


def test_the_readme_shows_commands():
    assert len(COMMANDS) > 8


@pytest.mark.parametrize("command", [c for c in COMMANDS if "src/train.py" in c])
def test_a_training_command_composes(command):
    words = shlex.split(command)
    assert words[:2] == ["python", "src/train.py"]
    overrides = [word for word in words[2:] if "=" in word]
    if "-m" in words:  # a sweep: its first job
        overrides = [re.sub(r",.*", "", word) for word in overrides]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", overrides=overrides)
    assert cfg.model._target_
    for override in overrides:
        key, value = override.split("=", 1)
        if "." in key:
            node = cfg
            for part in key.split("."):
                node = node[part]
            assert str(node).replace(" ", "") == value.replace("null", "None")


@pytest.mark.parametrize("command", [c for c in COMMANDS if re.search(r"src/(evaluate|export|predict)\.py", c)])
def test_a_command_on_a_checkpoint_composes(command):
    words = shlex.split(command)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose(Path(words[1]).stem, overrides=[re.sub("…", "2026", word) for word in words[2:]])
    assert cfg.ckpt_path.endswith("last.ckpt")
    if "report" in cfg:
        assert cfg.report in evaluate.REPORTS


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make ")])
def test_a_make_command_has_its_rule(command):
    made = subprocess.run(["make", "--dry-run", *command.split()[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr


@pytest.mark.parametrize("command", [c for c in COMMANDS if "scripts/" in c])
def test_a_script_takes_the_arguments_the_readme_gives_it(command, monkeypatch):
    class ParsedError(Exception):
        pass

    def then_stop(parse):
        def stopping(self):
            parse(self)
            raise ParsedError

        return stopping

    for name in ("parse_args", "parse_intermixed_args"):
        monkeypatch.setattr(argparse.ArgumentParser, name, then_stop(getattr(argparse.ArgumentParser, name)))
    _, script, *arguments = shlex.split(command)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(ParsedError):  # otherwise the parser would end the process
        running_scripts.load(Path(script).stem).main()


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 180


def sections(page: Path) -> set[str]:
    """Anchors of a page's headings on which GitHub and the site's builder agree."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), flags=re.M)
    forge = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    return forge & {slugify(heading) for heading in headings}


def slugify(heading: str) -> str:
    """Make an anchor as Python-Markdown does."""
    ascii_only = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", ascii_only).strip().lower())


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_links_of_a_page_resolve(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)):
        if re.match(r"https?:|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert not anchor or anchor in sections(linked), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_path_named_on_a_page_exists(page):
    named = set(re.findall(r"`((?:src|examples|conf|scripts|docs|tests)/[\w./]*)`", page.read_text()))
    gone = {"scripts/mixtures.py"}  # from an earlier commit, as the pages explain
    assert not [path for path in named - gone if "my_" not in path and not (ROOT / path).exists()]


def test_every_picture_of_the_docs_is_shown_on_a_page():
    shown = {Path(name).name for page in PAGES for name in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text())}
    assert {path.name for path in (ROOT / "docs").iterdir() if path.suffix in (".png", ".gif")} <= shown
