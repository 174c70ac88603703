"""Is the house in order? Size, direction of imports, names, docstrings, weight of an install."""

import ast
import configparser
import functools
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "lm_jax").rglob("*.py"))

# What a module or package of lm_jax may import from lm_jax, itself aside. Those not named are the
# commands and what they share; none of these may import them.
MAY_IMPORT = {
    "errors": "",
    "versions": "",
    "mesh_check": "errors",
    "config_check": "errors mesh_check",
    "config_values": "errors",
    "config": "errors config_check config_values runtime",
    "cli": "errors config runtime",
    "sharding": "errors config mesh_check",
    "quantized": "errors matmul",
    "matmul": "",
    "parallel": "sharding quantized",
    "products": "sharding matmul quantized parallel",
    "models": "errors config sharding matmul quantized parallel products",
    "objectives": "errors config sharding matmul parallel models",
    "adafactor": "",
    "optimizers": "errors config sharding adafactor",
    "train_step": "errors config sharding models objectives optimizers",
    "xla_options": "",
    "ahead_of_time": "errors config mesh_check sharding data train_step xla_options",
    "out_of_memory": "errors config sharding models train_step ahead_of_time",
    "plan": "errors config config_check mesh_check metrics summary chart report_style sharding "
    "models objectives train_step ahead_of_time out_of_memory",
    "progress": "",
    "data": "errors config config_check progress",
    "manifest": "errors",
    "restore": "errors manifest",
    "checkpoint": "errors config sharding manifest restore",
    "convert": "errors versions config config_check config_values sharding models checkpoint "
    "data sampling",
    "metrics": "errors config progress",
    "chart": "",
    "report_style": "",
    "report": "errors config metrics chart report_style",
    "sampling": "errors config sharding models",
    "scoring": "errors config sharding models sampling progress data",
    "baselines": "errors config data models progress",
    "runtime": "errors versions",
    "hosts": "errors runtime sharding",
    "watchdog": "errors config hosts",
    "doctor": "errors cli config metrics runtime versions",
}
NEVER = {"tensorflow", "torch", "transformers", "pickle", "cloudpickle", "dill", "joblib", "pandas",
         "sklearn", "matplotlib", "nltk", "clu"}  # fmt: skip
# Inside a function, where it is installed: to compare with.
BESIDE = {"lm_jax.convert.certificate": {"torch", "transformers"}}
DRAWERS = {"utils", "util", "common", "base", "core", "helpers", "misc"}
WITHOUT_JAX = ("errors", "versions", "config", "config_check", "mesh_check", "config_values", "cli",
               "prepare",
               "report", "chart", "doctor", "metrics", "data", "data.sources", "data.clean",
               "data.tokenizer", "data.tokenizer_training", "data.hf_tokenizer", "data.store",
               "data.writer", "data.examples", "data.views", "data.inspect", "plan",
               "plan.chips", "plan.terms")  # fmt: skip


def name_of(path):
    """lm_jax/data/store.py -> lm_jax.data.store."""
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
    """lm_jax.models.attention -> models."""
    return module.split(".")[1]


def named(paths):
    return [pytest.param(path, id=str(path.relative_to(ROOT))) for path in paths]


@pytest.mark.parametrize("path", named(FILES))
def test_a_file_is_at_most_400_lines(path):
    assert len(path.read_text("utf-8").splitlines()) <= 400


@pytest.mark.parametrize("path", named(FILES))
def test_imports_go_one_way(path):
    if (module := name_of(path)) == "lm_jax" or part(module) not in MAY_IMPORT:
        return
    if module.endswith(".__main__"):  # a command
        return
    allowed = {part(module), *MAY_IMPORT[part(module)].split()}
    upstream = {name for name in inside(path) if part(name) not in allowed}
    assert not upstream, f"{module} may import {sorted(allowed)} of lm_jax"


def test_imports_have_no_circle():
    waiting = {module: inside(path, lazy=False) for module, path in MODULES.items()}
    while free := [module for module, needs in waiting.items() if not needs & waiting.keys()]:
        for module in free:
            del waiting[module]
    assert not waiting


def test_the_rules_name_modules_that_exist():
    present = {part(module) for module in MODULES if module != "lm_jax"}
    assert MAY_IMPORT.keys() <= present
    assert all(set(allowed.split()) <= present for allowed in MAY_IMPORT.values())


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


@pytest.mark.parametrize("path", named(FILES))
def test_file_and_public_names_say_what_they_are(path):
    assert ast.get_docstring(tree(path)), "the first line says which question the file answers"
    for node in tree(path).body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_"):
            continue
        assert ast.get_docstring(node), f"{node.name} (line {node.lineno}): no docstring"
        for method in node.body if isinstance(node, ast.ClassDef) else ():
            # A method of a line or two that implements a known interface says it in its name.
            if isinstance(method, ast.FunctionDef) and method.name[0] != "_":
                known = ast.get_docstring(method) or method.end_lineno - method.lineno <= 4
                assert known, f"{node.name}.{method.name} (line {method.lineno}): no docstring"


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
    names = [f"lm_jax.{name}" for name in WITHOUT_JAX if f"lm_jax.{name}" in MODULES]
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
