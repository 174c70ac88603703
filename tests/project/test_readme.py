"""Files, commands, flags and configs that README and docs name exist."""

import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
LAYOUT = README.split("## How it is laid out")[1].split("\n## ")[0]
COMMANDS = re.findall(r"^ +python -m (lm_jax\.\w+)(.*)", README, re.MULTILINE)


def test_the_layout_names_every_folder_and_top_level_file():
    for path in (ROOT / "lm_jax").iterdir():
        if path.is_dir() and path.name != "__pycache__":
            assert f"| `{path.name}/` |" in LAYOUT, path
        elif path.name != "__init__.py" and path.is_file():
            assert re.search(rf"(?<!\w){path.name}", LAYOUT), path


def test_the_layout_names_no_folder_and_no_file_that_is_gone():
    present = {path.name for path in ROOT.glob("[!.]*/**/*.py")}
    assert set(re.findall(r"\w+\.py\b", LAYOUT)) - present == set()
    for name in re.findall(r"^\| `(\w+)/`", LAYOUT, re.MULTILINE):
        assert (ROOT / "lm_jax" / name).is_dir(), name


def test_files_that_are_linked_or_launched_exist():
    named = re.findall(r"\]\((?!http)([^)#]+)\)", README) + re.findall(r"bash (\S+\.sh)", README)
    for name in {*named, *re.findall(r"--config=([^\s:]+)", README)}:
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_files_that_the_docs_name_exist(page):
    """A file of this repository is named by its whole path."""
    folders = "|".join(path.name for path in ROOT.glob("[a-z]*") if path.is_dir())
    text = page.read_text("utf-8")
    named = re.findall(rf"(?<![\w/-])((?:{folders})/[\w./-]+\.(?:py|sh|md|sbatch))\b", text)
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_configs_are_all_listed():
    for path in (ROOT / "configs").glob("*.py"):
        assert f"`{path.stem}`" in README, path.name


@pytest.mark.parametrize("module", sorted({module for module, _ in COMMANDS}))
def test_flags_of_the_examples_exist(module):
    done = subprocess.run(
        [sys.executable, "-m", module, "--helpfull"], capture_output=True, text=True, cwd=ROOT
    )
    for name, rest in COMMANDS:
        for flag in re.findall(r" --(\w+)", rest) if name == module else ():
            assert re.search(rf"--(\[no\])?{flag}\b", done.stdout), f"{module} --{flag}"


def test_extras_are_all_listed():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    for extra in config["options.extras_require"]:
        assert f"`{extra}`" in README, extra
