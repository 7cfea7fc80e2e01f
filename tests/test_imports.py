"""Imports point one way, extras stay out of `import jaxsolve`, and loops stay in their file."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.fast

PACKAGE = Path(__file__).parents[1] / "jaxsolve"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Each room may import itself and the rooms before it; rooms of one rank do not know each other.
RANK = {
    "core": 0,
    "smooth": 1,
    "convex": 2,
    "nonlinear": 3,
    "bilevel": 4,
    "transport": 4,
    "flow": 4,
    "physics": 4,
    "layers": 5,
    "experiments": 6,
    "cli": 7,
}
CORE_ALONE = {"interop", "distributed"}
# Public names and tools over all rooms: nothing inside the package may import them.
FACADES = {"__init__", "linear", "penalties", "sets", "testing"}
EXTRAS = (
    "jaxopt sklearn matplotlib typer rich mlxtend flax orbax cvxpy clarabel ot pytest hypothesis"
).split()


def name(path: Path) -> str:
    return str(path.relative_to(PACKAGE.parent))


def room(path: Path) -> str:
    """The first part of a module's path below the package: a folder, or a file beside them."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported(path: Path) -> set[str]:
    """All modules that a file imports, wherever in it, relative ones spelt out."""
    package = list(path.relative_to(PACKAGE.parent).with_suffix("").parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            found |= {stem} | {f"{stem}.{alias.name}" for alias in node.names}
    return found


def rooms_imported(path: Path) -> set[str]:
    """The rooms that a file imports from; the package itself counts as `__init__`."""
    found = set()
    rooms = {room(p) for p in MODULES} - {"__init__"}
    for module in imported(path):
        parts = module.split(".")
        if parts[0] == "jaxsolve" and len(parts) > 1:
            found.add(parts[1] if parts[1] in rooms else "__init__")
    return found - {room(path)}


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_imports_point_one_way(path):
    here = room(path)
    if here in FACADES:
        return
    assert here in RANK or here in CORE_ALONE, f"{here} has no place in the order of imports"
    for other in rooms_imported(path):
        if here in CORE_ALONE:
            allowed = other == "core"
        elif here in ("experiments", "cli"):
            allowed = other in CORE_ALONE | FACADES or RANK[other] < RANK[here]
        else:
            allowed = other in RANK and RANK[other] < RANK[here]
        assert allowed, f"{name(path)} imports jaxsolve.{other}"


def test_the_order_is_read_from_relative_and_absolute_imports(tmp_path, monkeypatch):
    """The test above would see each way of writing an import."""
    package = tmp_path / "jaxsolve"
    for folder in ("core", "smooth"):
        (package / folder).mkdir(parents=True)
        (package / folder / "__init__.py").touch()
    path = package / "core" / "file.py"
    monkeypatch.setitem(globals(), "PACKAGE", package)
    monkeypatch.setitem(globals(), "MODULES", [*package.rglob("*.py"), path])
    for line in (
        "from ..smooth import x",
        "from .. import smooth",
        "from ..smooth.file import x",
        "import jaxsolve.smooth.file",
        "from jaxsolve import smooth",
        "def f():\n    from jaxsolve.smooth import x",
    ):
        path.write_text(line)
        assert rooms_imported(path) == {"smooth"}, line
    path.write_text("from .solve import x\nimport jax")
    assert rooms_imported(path) == set()
    path.write_text("from .. import Minimise\nfrom jaxsolve import solve")
    assert rooms_imported(path) == {"__init__"}


def test_importing_the_package_imports_no_extra():
    code = f"import sys, jaxsolve; print([m for m in {EXTRAS} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_the_package_starts_no_backend_and_changes_no_setting():
    code = """
import jax
before = dict(jax.config.values)
import jaxsolve
from jax._src import xla_bridge
changed = [k for k, v in jax.config.values.items() if before.get(k, v) != v]
print(changed, xla_bridge.backends_are_initialized())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] False"


def attributes(path: Path) -> set[str]:
    """Dotted names (`jax.lax.while_loop`) that a file uses, and the modules it imports."""
    found = imported(path)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            found.add(ast.unparse(node))
    return found


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_no_experimental_jax_and_no_global_setting(path):
    used = attributes(path)
    experimental = {u for u in used if u.startswith("jax.experimental")}
    if name(path) == "jaxsolve/convex/sparse.py":
        experimental -= {"jax.experimental.sparse", "jax.experimental.sparse.BCOO"}
    assert not experimental
    # The command line is a process of its own.
    if name(path) != "jaxsolve/cli.py":
        assert not [u for u in used if u.endswith("config.update")]
    assert not {"pickle", "dill", "cloudpickle", "joblib"} & used


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_convergence_loops_stand_in_the_loop_alone(path):
    if name(path) in ("jaxsolve/core/loop.py", "jaxsolve/core/queue.py"):
        return
    last = {u.split(".")[-1] for u in attributes(path)}
    assert not last & {"while_loop", "fori_loop"}, "an iteration goes through core.loop.run"
