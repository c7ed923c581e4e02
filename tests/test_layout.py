"""The shape of the source: sizes, mirrored tests, docstrings, words that must not occur, and what the wheel carries."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.project import PACKAGES, every_text_file, module_name, sources, suite, tree
from tests.support import ROOT

MAX_FILE = 600
MAX_FUNCTION = 60
"""Lines, docstring and blank lines included."""

UNMIRRORED: dict[str, str] = {
    "admission.protocol": "values without behaviour",
    "coordinator.refusal": "one exception type",
    "evidence.errors": "one exception type",
    "lab.control": "tests/e2e drives it through ./mesh",
    "lab.docker_host": "tests/compose drives it through ./mesh compose",
    "lab.host": "tests/e2e drives it through ./mesh",
    "lab.nat": "tests/lab/test_network.py sends packets through it",
    "lab.platform": "tests/e2e and tests/compose call through it",
    "meshctl.__main__": "tests/meshctl/test_cli.py drives it",
    "topology.expressions": "tests/topology/test_cluster.py gives it whole files",
    "topology.hcl": "tests/topology/test_cluster.py gives it whole files",
    "topology.model": "values; tests/topology/test_cluster.py",
    "topology.problems": "values; tests/topology/test_checks.py",
    "workloads.api": "tests/workloads drives the programs over HTTP",
    "workloads.emoji": "tests/workloads/test_web.py asks it over HTTP",
    "workloads.program": "tests/workloads drives the programs over HTTP",
    "workloads.webdemo": "tests/workloads drives the programs over HTTP",
    "workloads.worker": "tests/workloads drives the programs over HTTP",
    "xds.spec": "values without behaviour",
}
"""Modules without a test module of their own, and why."""


def _functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_files_are_short() -> None:
    """No Python file has more than 600 lines."""
    lengths = {path: len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in (*sources(), *suite())}
    assert {str(path): length for path, length in lengths.items() if length > MAX_FILE} == {}


def test_functions_are_short() -> None:
    """No function, tests included, has more than 60 lines."""
    long = [
        f"{path}:{function.lineno} {function.name} ({length} lines)"
        for path in (*sources(), *suite())
        for function in _functions(path)
        if (length := (function.end_lineno or function.lineno) - function.lineno + 1) > MAX_FUNCTION
    ]
    assert not long, "\n".join(long)


def test_each_module_has_its_test_module() -> None:
    """`<package>/<module>.py` has `tests/<package>/test_<module>.py`; exceptions are listed with a reason."""
    missing = []
    for path in sources():
        if path.name == "__init__.py" or module_name(path) in UNMIRRORED:
            continue
        mirror = Path("tests", *path.parts[:-1], f"test_{path.stem.strip('_')}.py")
        if not (ROOT / mirror).exists():
            missing.append(f"{path}: no {mirror}")
    assert not missing, "\n".join(missing)


def test_unmirrored_modules_exist() -> None:
    """The list of exceptions names modules that exist and have no mirror."""
    modules = {module_name(path): path for path in sources()}
    assert [name for name in UNMIRRORED if name not in modules] == []


def _documented_methods(path: Path) -> set[str]:
    return {
        method.name
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ClassDef)
        for method in node.body
        if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(method)
    }


def _public(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, ast.AST]]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield f"{prefix}{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from _public(node.body, f"{prefix}{node.name}.")


def test_public_names_have_docstrings() -> None:
    """Each module, public class, function and method says what it is for; a protocol's method once per module."""
    missing = []
    for path in sources():
        said = _documented_methods(path)
        if path.name != "__init__.py" and ast.get_docstring(tree(path)) is None:
            missing.append(f"{path}: module")
        for name, node in _public(tree(path).body, ""):
            assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            said_elsewhere = "." in name and node.name in said
            if ast.get_docstring(node) is None and not said_elsewhere:
                missing.append(f"{path}:{node.lineno} {name}")
    assert not missing, "\n".join(missing)


def test_tests_say_what_they_show() -> None:
    """Each test function has a docstring: one sentence of specification."""
    missing = [
        f"{path}:{function.lineno} {function.name}"
        for path in suite()
        for function in _functions(path)
        if function.name.startswith("test_") and ast.get_docstring(function) is None
    ]
    assert not missing, "\n".join(missing)


def test_tasks_have_owners() -> None:
    """Tasks are started by runtime.tasks alone; a bare create_task has no owner and may be collected while it runs."""
    banned = {"create_task", "ensure_future", "run_coroutine_threadsafe"}
    found = [
        f"{path}:{node.lineno} {node.func.attr}"
        for path in sources()
        if module_name(path) != "runtime.tasks"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in banned
    ]
    assert not found, "\n".join(found)


def test_nothing_runs_at_import() -> None:
    """A module's top level defines; it reads no environment and calls nothing for its effect."""
    running = [
        f"{path}:{node.lineno}"
        for path in sources()
        # Which class a message becomes is decided while its module loads: see the docstring there.
        if module_name(path) != "xds.protos"
        for node in tree(path).body
        if isinstance(node, ast.For | ast.AsyncFor | ast.While | ast.With)
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call))
    ]
    assert not running, "\n".join(running)


def test_the_project_stands_alone() -> None:
    """No file names a place outside the checkout where it happened to be written."""
    # Put together here, so that this file does not find itself.
    places = re.compile("/wo" + "rk/|shared/" + r"(design|seeds|hooks)|/tmp/" + "team")
    found = [
        f"{path}:{number}"
        for path, text in every_text_file()
        for number, line in enumerate(text.splitlines(), 1)
        if places.search(line)
    ]
    assert not found, "\n".join(found)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, built offline from a copy of the checkout."""
    if int(importlib.metadata.version("setuptools").split(".")[0]) < 77:
        pytest.skip("setuptools 77 or newer is not installed: ./mesh makes an environment that has it")
    place = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, place)
    for package in (*PACKAGES, "tests", "tools"):
        shutil.copytree(ROOT / package, place / package, ignore=shutil.ignore_patterns("__pycache__"))
    argv = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-w", "out"]
    result = subprocess.run(argv, cwd=place, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return next((place / "out").glob("cvm_mesh-*.whl"))


def test_wheel_carries_every_package(wheel: Path) -> None:
    """Every module, type marker and shell script of the packages is in the wheel, and nothing else of the checkout."""
    names = set(zipfile.ZipFile(wheel).namelist())
    files = [
        path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.suffix in {".py", ".sh", ".typed"}
    ]
    assert {str(path.relative_to(ROOT)) for path in files} - names == set()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == set(PACKAGES)


def test_wheel_carries_the_wrapper_script(wheel: Path) -> None:
    """`exec.sh`, which app containers start through, is in the wheel."""
    assert [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith("/exec.sh")] != []
