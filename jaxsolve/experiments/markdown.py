"""The little Markdown of `table.md`: headings, paragraphs, lists and pipe tables."""

import re
from collections.abc import Iterable, Sequence
from html import escape


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A pipe table; the first column to the left, the others to the right."""
    lines = [list(header), ["---"] + ["---:"] * (len(header) - 1), *map(list, rows)]
    return "\n".join(
        "| " + " | ".join(c.replace("|", r"\|") for c in line) + " |" for line in lines
    )


def to_html(text: str) -> str:
    """As HTML, every character of the text escaped; what is not understood is a paragraph."""
    blocks = re.split(r"\n[ \t]*\n", text.strip()) if text.strip() else []
    return "\n".join(_block(block.strip("\n").split("\n")) for block in blocks)


def _block(lines: list[str]) -> str:
    heading = re.fullmatch(r"(#{1,4}) +(.+)", lines[0])
    if heading and len(lines) == 1:
        level = len(heading[1]) + 2
        return f"<h{level}>{_inline(heading[2])}</h{level}>"
    if len(lines) > 1 and all(line.lstrip().startswith("|") for line in lines):
        if all(re.fullmatch(r" *:?-+:? *", cell) for cell in _cells(lines[1])):
            return _table(lines)
    if lines[0].startswith("- "):
        items = re.split(r"(?:^|\n)- ", "\n".join(lines))[1:]
        return "<ul>" + "".join(f"<li>{_inline(item)}</li>" for item in items) + "</ul>"
    return f"<p>{_inline(chr(10).join(lines))}</p>"


def _table(lines: list[str]) -> str:
    sides = ["right" if cell.strip().endswith(":") else "left" for cell in _cells(lines[1])]

    def row(line: str, tag: str) -> str:
        cells = _cells(line)
        sided = zip(cells, sides + ["left"] * len(cells), strict=False)
        return (
            "<tr>" + "".join(f'<{tag} class="{s}">{_inline(c.strip())}</{tag}>' for c, s in sided)
            + "</tr>"
        )  # fmt: skip

    body = "".join(row(line, "td") for line in lines[2:])
    head = row(lines[0], "th")
    return f'<div class="wide"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'


def _cells(line: str) -> list[str]:
    inner = line.strip().removeprefix("|")
    inner = inner[:-1] if inner.endswith("|") and not inner.endswith(r"\|") else inner
    return [cell.replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", inner)]


def _inline(text: str) -> str:
    """Escaped, with `code` and **strong** as they are meant."""
    text = re.sub(r"`([^`\n]+)`", r"<code>\1</code>", escape(text, quote=True))
    return re.sub(r"\*\*([^*\n]+)\*\*", r"<strong>\1</strong>", text)
