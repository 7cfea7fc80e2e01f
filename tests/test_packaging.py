"""What is written down more than once agrees: versions, bounds, pins, result codes."""

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

pytestmark = pytest.mark.fast

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(path: Path) -> dict[str, str]:
    return {
        normal(m[1]): m[2]
        for m in re.finditer(r"^([A-Za-z0-9_.-]+)==([^\s;\\]+)", path.read_text(), re.MULTILINE)
    }


def test_one_version():
    version = PROJECT["version"]
    assert f"version: {version}" in (ROOT / "CITATION.cff").read_text()
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
    assert metadata.version("jaxsolve") == version
    import jaxsolve

    assert jaxsolve.__version__ == version


def test_every_requirement_has_a_lower_bound_and_no_upper_one():
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    for requirement in {r for group in groups for r in group}:
        assert re.fullmatch(r"[a-z0-9-]+(\[[a-z]+\])?>=[0-9.]+", requirement), requirement


def test_the_lowest_versions_are_those_of_pyproject():
    script = ROOT / "requirements" / "lowest.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout == (ROOT / "requirements" / "lowest.in").read_text()


@pytest.mark.parametrize("path", LOCKS, ids=lambda p: p.name)
def test_locks_pin_by_hash_and_name_no_index(path):
    text = path.read_text()
    blocks = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)[1:]
    assert blocks and all("==" in b.splitlines()[0] and "--hash=sha256:" in b for b in blocks)
    assert not re.search(r"https?:|file:/|--(extra-)?index|--find-links|--trusted-host", text)


@pytest.mark.parametrize("path", LOCKS, ids=lambda p: p.name)
def test_locks_hold_the_core_dependencies(path):
    held = pins(path)
    for requirement in PROJECT["dependencies"]:
        assert normal(requirement.split(">=")[0]) in held


def test_no_copyleft_outside_bench():
    """qpsolvers (LGPL) and its like may be compared with, never depended on."""
    copyleft = {"qpsolvers", "ecos", "quadprog", "cvxopt", "scs-gpl", "glpk"}
    assert not copyleft & set(pins(ROOT / "requirements" / "dev.txt"))


def test_the_package_is_typed():
    assert (ROOT / "jaxsolve" / "py.typed").exists()
