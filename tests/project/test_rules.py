"""The rules of the layout: sizes, direction of imports, names, docstrings, weight of an install."""

import ast
import configparser
import functools
import importlib
import importlib.metadata
import inspect
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "lm_jax").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

# What a folder may import of lm_jax, itself, errors and progress aside. Imports inside functions
# count as well. A file of a folder may be named: "run.chart".
MAY_IMPORT = {
    "errors": "",
    "progress": "",
    "config": "",
    "devices": "config",
    "data": "config",
    "models": "config devices",
    "run": "config devices data",
    "tasks": "config devices data models",
    "inference": "config devices data models run tasks",
    "evaluation": "config devices data models run tasks inference",
    "convert": "config devices data models run tasks inference",
    "training": "config devices data models run tasks inference evaluation",
    "plan": "config devices data.views.fit models tasks training run.chart run.report_style",
}
# The commands, and the faces of the package, may import all of these; nothing imports a command.
COMMANDS = {"train", "evaluate", "generate", "prepare", "doctor"}
FACES = {"api", "cli"}
NEVER = {"tensorflow", "torch", "transformers", "pickle", "cloudpickle", "dill", "joblib", "pandas",
         "sklearn", "matplotlib", "nltk", "clu"}  # fmt: skip
# Inside a function, where it is installed: to compare with.
BESIDE = {"lm_jax.convert.certificate": {"torch", "transformers"},
          "lm_jax.convert.same_tokenizer": {"transformers"}}  # fmt: skip
DRAWERS = {"utils", "util", "common", "base", "core", "helpers", "misc"}
# Whole folders, and files of others, that import no jax.
WITHOUT_JAX = ("errors", "progress", "cli", "prepare", "doctor", "config", "data",
               "devices.runtime", "devices.versions", "devices.chips", "devices.checks",
               "devices.resolve", "run.chart", "run.report", "run.report_style", "run.metrics",
               "run.rundir", "plan.terms", "plan.request")  # fmt: skip


def name_of(path):
    """lm_jax/data/tokens/store.py -> lm_jax.data.tokens.store."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


@functools.cache
def tree(path):
    return ast.parse(path.read_text("utf-8"))


def imports(path, lazy=True):
    """Full names of all that a file imports; without `lazy`, not inside functions."""
    for node in ast.walk(tree(path)) if lazy else tree(path).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else node.module


def inside(path, lazy=True):
    """The modules of lm_jax that a file imports."""
    return {name for name in imports(path, lazy) if name in MODULES} - {"lm_jax"}


def part(module):
    """lm_jax.models.attention.attention -> models."""
    return module.split(".")[1]


def named(paths):
    return [pytest.param(path, id=str(path.relative_to(ROOT))) for path in paths]


@pytest.mark.parametrize("path", named(FILES + TESTS))
def test_a_file_is_at_most_400_lines_and_a_function_60(path):
    assert len(path.read_text("utf-8").splitlines()) <= 400
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef):
            lines = node.end_lineno - node.lineno + 1
            assert lines <= 60, f"{node.name} (line {node.lineno}): {lines} lines"


@pytest.mark.parametrize("path", named(TESTS))
def test_no_file_of_tests_imports_another(path):
    """Helpers of several are in tests/support, or beside them under names of their own."""
    assert not [name for name in imports(path) if name.startswith("test_")]


@pytest.mark.parametrize("path", named(FILES))
def test_imports_go_one_way(path):
    module = name_of(path)
    if module == "lm_jax" or part(module) in COMMANDS | FACES:
        return
    allowed = {part(module), "errors", "progress", *MAY_IMPORT[part(module)].split()}
    if module.endswith(".__main__"):  # a command in a package
        allowed |= FACES
    for name in inside(path):
        below = name.removeprefix("lm_jax.")
        assert part(name) in allowed or below in allowed, f"{module} may import {sorted(allowed)}"


def test_imports_have_no_circle():
    waiting = {module: inside(path, lazy=True) - {module} for module, path in MODULES.items()}
    while free := [module for module, needs in waiting.items() if not needs & waiting.keys()]:
        for module in free:
            del waiting[module]
    assert not waiting


def test_the_rules_name_every_folder_and_nothing_else():
    present = {part(module) for module in MODULES if module != "lm_jax"}
    assert present == MAY_IMPORT.keys() | COMMANDS | FACES
    for allowed in MAY_IMPORT.values():
        assert {name.split(".")[0] for name in allowed.split()} <= present


@pytest.mark.parametrize("path", named(FILES))
def test_nothing_unsafe_or_heavy_is_imported(path):
    never = NEVER - BESIDE.get(name_of(path), set())
    assert not {name.split(".")[0] for name in imports(path)} & never
    assert not {name.split(".")[0] for name in imports(path, lazy=False)} & NEVER
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert isinstance(node.value, ast.Constant)
            assert node.value.value is False


@pytest.mark.parametrize("path", named(FILES))
def test_there_are_no_drawers(path):
    assert not {path.stem, path.parent.name} & DRAWERS


RIDDLE = re.compile(r"(What|Of|How|Which|Where|Who)\b")


@pytest.mark.parametrize("path", named(FILES))
def test_docstrings_can_be_read_alone(path):
    """A noun phrase or an imperative: no question, and nothing that needs the name above it."""
    for node in ast.walk(tree(path)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            first = (ast.get_docstring(node) or "").split("\n\n")[0].replace("\n", " ")
            name = getattr(node, "name", "the file")
            assert not RIDDLE.match(first), f"{name}: {first}"
            assert "?" not in first.split(". ")[0].replace("mean 'x'?", ""), f"{name}: {first}"


@pytest.mark.parametrize("path", named(FILES))
def test_file_and_public_names_say_what_they_are(path):
    assert ast.get_docstring(tree(path)), "the first line says what the file is for"
    for node in tree(path).body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_"):
            continue
        assert ast.get_docstring(node), f"{node.name} (line {node.lineno}): no docstring"
        for method in node.body if isinstance(node, ast.ClassDef) else ():
            # A method of a line or two that implements a known interface says it in its name.
            if isinstance(method, ast.FunctionDef) and method.name[0] != "_":
                known = ast.get_docstring(method) or method.end_lineno - method.lineno <= 4
                assert known, f"{node.name}.{method.name} (line {method.lineno}): no docstring"


PUBLIC = ("lm_jax", "lm_jax.config", "lm_jax.models", "lm_jax.convert", "lm_jax.data.views")


def public_functions(face):
    """(name, function) of what a public module exports, and of the methods of its classes."""
    module = importlib.import_module(face)
    for name in getattr(module, "__all__", ()):
        value = getattr(module, name)
        for label, function in vars(value).items() if inspect.isclass(value) else [("", value)]:
            function = getattr(function, "__func__", function)
            public = label[:1] != "_" or label in ("__init__", "__call__")
            if public and inspect.isfunction(function) and "lm_jax" in function.__module__:
                yield f"{face}.{name}.{label}".rstrip("."), function


def says_nothing(hint):
    """Whether `Any` is in a type hint, outside of JSON objects and of numpy's own types."""
    origin = typing.get_origin(hint)
    if hint == dict[str, typing.Any] or str(getattr(origin, "__module__", "")).startswith("numpy"):
        return False
    return hint is typing.Any or any(says_nothing(part) for part in typing.get_args(hint))


@pytest.mark.parametrize("face", PUBLIC)
def test_public_signatures_are_typed(face):
    """`Any` says nothing to a reader; a JSON object is dict[str, Any]."""
    for name, function in public_functions(face):
        given = dict(function.__annotations__)
        untyped = inspect.signature(function).parameters.keys() - given.keys() - {"self", "cls"}
        assert not untyped, name
        for argument, hint in given.items():
            assert not says_nothing(hint), f"{name}: {argument} is {hint}"


def python(*arguments):
    """What a new interpreter prints, its errors included."""
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    return done.stdout + done.stderr


def test_importing_lm_jax_imports_no_jax():
    code = "import lm_jax, sys; print({'jax', 'flax', 'numpy', 'absl'} & set(sys.modules))"
    assert python("-c", code).strip() == "set()"


def test_modules_that_need_no_jax_import_none():
    free = tuple(f"lm_jax.{name}" for name in WITHOUT_JAX)
    names = [m for m in MODULES if m in free or m.startswith(tuple(f"{name}." for name in free))]
    assert set(free) <= set(names)
    code = (
        "import importlib, sys\n"
        f"for name in {names}:\n"
        "    importlib.import_module(name)\n"
        "    assert not {'jax', 'tensorflow', 'torch'} & set(sys.modules), name\n"
        "print('fine')"
    )
    assert python("-c", code).strip().splitlines()[-1] == "fine"


def entry_points():
    return [
        module
        for module, path in MODULES.items()
        if 'if __name__ == "__main__":' in path.read_text("utf-8")
    ]


@pytest.mark.parametrize("module", entry_points())
def test_help_of_a_command_imports_no_jax(module):
    out = python("-X", "importtime", "-m", module, "--help")
    imported = {line.split("|")[-1].strip() for line in out.splitlines() if "import time" in line}
    assert module.split(".")[0] in imported
    assert not imported & {"jax", "flax", "tensorflow", "tensorflow_datasets", "orbax"}
    assert "flags:" in out


def test_the_core_installs_at_most_60_packages():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    waiting = [
        Requirement(line) for line in config["options"]["install_requires"].split("\n") if line
    ]
    seen, packages = set(), set()
    while waiting:
        wanted = waiting.pop()
        for extra in ("", *wanted.extras):
            if (key := (wanted.name.lower().replace("_", "-"), extra)) in seen:
                continue
            seen.add(key)
            if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
                continue
            packages.add(key[0])
            for line in importlib.metadata.requires(wanted.name) or []:
                needed = Requirement(line)
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    needed.marker = None
                    waiting.append(needed)
    assert len(packages) <= 60, " ".join(sorted(packages))
    assert not packages & {"tensorflow", "torch", "libtpu", "pandas", "matplotlib"}


def test_lower_bounds_only():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    for line in config["options"]["install_requires"].split("\n"):
        if line:
            assert {s.operator for s in Requirement(line).specifier} == {">="}, line
