"""Every example printed anywhere was executed: README, documents, docstrings.

The Python blocks of a page run from top to bottom in one namespace. A block fenced as `text`
straight after a Python block is what it prints: `...` stands for anything, spaces do not count, and
a number with a decimal point is right to three digits. The Python blocks of a docstring run in a
namespace that holds jax, jnp, optax, optx, jaxopt and all public names; so do its `>>>` lines.
"""

import ast
import contextlib
import doctest
import io
import re
import textwrap
import types
import warnings
from pathlib import Path
from typing import NamedTuple

import jax
import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MODULES = sorted((ROOT / "jaxsolve").rglob("*.py"))

FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```[ ]*$",
    re.MULTILINE | re.DOTALL,
)
COMPARE = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
NUMBER = r"[-+]?(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?"


class Block(NamedTuple):
    line: int
    code: str
    printed: str | None


def blocks(text: str) -> list[Block]:
    """The Python blocks of a text, each with the output that is printed after it."""
    found = list(FENCE.finditer(text))
    out = []
    for i, match in enumerate(found):
        if match["language"] != "python":
            continue
        printed = None
        if i + 1 < len(found) and found[i + 1]["language"] == "text":
            after = found[i + 1]
            if not text[match.end() : after.start()].strip():
                printed = textwrap.dedent(after["text"])
        line = text.count("\n", 0, match.start()) + 1
        out.append(Block(line, textwrap.dedent(match["text"]), printed))
    return out


def normal(text: str) -> str:
    """One space where there is any, none inside of brackets."""
    return re.sub(r" ?([\[\]]) ?", r"\1", " ".join(text.split()))


def same(expected: str, printed: str) -> bool:
    """Whether a text is what the page says: see the head of this file."""
    expected, printed = normal(expected), normal(printed)
    parts = re.split(rf"({NUMBER}|\.\.\.)", expected)
    numbers = [float(part) for part in parts if re.fullmatch(NUMBER, part)]
    pattern = ""
    for part in parts:
        if part == "...":
            pattern += ".*?"
        elif re.fullmatch(NUMBER, part):
            pattern += rf"({NUMBER})"
        else:
            pattern += re.escape(part)
    match = re.fullmatch(pattern, printed)
    if match is None:
        return False
    found = [float(group) for group in match.groups()]
    return all(abs(f - e) <= 1e-3 * max(1, abs(e)) for f, e in zip(found, numbers, strict=True))


def run(block: Block, path: Path, namespace: dict) -> None:
    """Execute a block; its last expression is not printed. Compare what it does print."""
    # Blank lines put the block where it stands in the page, for tracebacks.
    code = compile("\n" * block.line + block.code, str(path), "exec")
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream):
        exec(code, namespace)
    if block.printed is not None:
        printed = stream.getvalue()
        assert same(block.printed, printed), (
            f"{path.name}:{block.line} prints\n{printed}\ninstead of\n{block.printed}"
        )


@pytest.fixture(autouse=True)
def precision():
    """A page may switch to float64; the next one starts in float32."""
    before = jax.config.read("jax_enable_x64")
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.mark.fast
def test_the_comparison_can_fail():
    assert same("[0.25 1.]\nok ...", "[ 0.2500001  1.0000000e+00]\nok then")
    assert not same("[0.25 1.]", "[0.25 1.01]")
    assert not same("[0.25 1.]", "[0.25 nan]")
    assert not same("3 lanes", "4 lanes")
    assert not same("True", "False")


def with_code(path: Path) -> bool:
    return bool(blocks(path.read_text()))


FAST = {"README.md"}
SLOW = {
    "bilevel.md", "derivatives.md", "interop.md", "layers.md", "schrodinger_bridge.md",
    "stochastic_bilevel.md", "transport.md",
}  # fmt: skip


def pages() -> list:
    found = [p for p in PAGES if with_code(p)]
    marks = dict.fromkeys(FAST, pytest.mark.fast) | dict.fromkeys(SLOW, pytest.mark.slow)
    return [
        pytest.param(p, marks=marks.get(p.name, ()), id=str(p.relative_to(ROOT))) for p in found
    ]


@pytest.mark.parametrize("path", pages())
def test_page(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": path.stem}
    for block in blocks(path.read_text()):
        run(block, path, namespace)


@pytest.mark.fast
def test_the_first_example_of_the_readme_has_ten_lines():
    first = blocks((ROOT / "README.md").read_text())[0]
    lines = [line for line in first.code.splitlines() if line.strip()]
    assert len(lines) <= 10
    assert "js.solve(" in first.code and "jax.grad(" in first.code


def docstrings() -> list:
    """Docstrings with an example, found without importing: `(path, name, text)`."""
    found = []
    for path in MODULES:
        module = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node)
                if text and ("```python" in text or ">>> " in text):
                    name = f"{module}.{getattr(node, 'name', '')}".rstrip(".")
                    found.append(pytest.param(path, name, text, id=name))
    return found


def public() -> dict:
    import jax.numpy as jnp
    import numpy as np
    import optax
    import optimistix as optx

    import jaxsolve
    from jaxsolve.interop import Optimistix

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jaxopt announces its end at import
        import jaxopt

    names = {n: getattr(jaxsolve, n) for n in dir(jaxsolve) if not n.startswith("_")}
    modules = {"jax": jax, "jnp": jnp, "np": np, "optax": optax, "js": jaxsolve}
    foreign = {"optx": optx, "jaxopt": jaxopt, "Optimistix": Optimistix}
    return names | modules | foreign | {"jaxsolve": jaxsolve}


@pytest.mark.parametrize("path, name, text", docstrings())
def test_docstring(path, name, text):
    namespace = public()
    for block in blocks(text):
        run(block, path, namespace)
    examples = doctest.DocTestParser().get_doctest(text, namespace, name, str(path), 0)
    if examples.examples:
        runner = doctest.DocTestRunner(optionflags=COMPARE)
        report = io.StringIO()
        runner.run(examples, out=report.write)
        assert runner.failures == 0, report.getvalue()


@pytest.mark.fast
def test_a_result_code_has_a_page():
    from jaxsolve import RESULTS

    pages = {p.stem for p in (ROOT / "docs" / "results").glob("*.md")} - {"index"}
    assert pages == set(RESULTS._name_to_item)
    for name in pages:
        text = (ROOT / "docs" / "results" / f"{name}.md").read_text()
        assert text.startswith(f"# `{name}`")
        assert any(name in (block.printed or "") for block in blocks(text)), (
            f"docs/results/{name}.md has no executed example that prints {name}"
        )


@pytest.mark.fast
def test_a_public_name_is_in_the_reference():
    import jaxsolve

    text = "".join(p.read_text() for p in (ROOT / "docs" / "api").glob("*.md"))
    for name, value in vars(jaxsolve).items():
        if not name.startswith("_") and not isinstance(value, types.ModuleType):
            assert re.search(rf"\b{name}\b", text), f"{name} is not in docs/api"


@pytest.mark.fast
def test_the_pages_of_the_site_are_all_in_its_navigation():
    text = (ROOT / "mkdocs.yml").read_text()
    for path in PAGES[1:]:
        assert str(path.relative_to(ROOT / "docs")) in text
