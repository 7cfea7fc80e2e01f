"""All runs of a folder as one HTML page: no scripts, no other files, every string escaped."""

import base64
from html import escape
from pathlib import Path

from .base import Figure, Record, read_record
from .markdown import to_html
from .store import write

_PNG = b"\x89PNG\r\n\x1a\n"

# What the browser is told: nothing on this page may be loaded from anywhere, nothing may run.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

_STYLE = """
:root { --ink: #1d2530; --soft: #5d6b7c; --line: #dfe4ea; --paper: #fff; --page: #f4f6f8;
  --good: #10714a; --good-soft: #e2f4eb; --bad: #a3401a; --bad-soft: #fbeae1; --link: #1f5fa8 }
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif }
header, main, footer { max-width: 1080px; margin: 0 auto; padding: 0 24px }
header { padding-top: 40px }
h1 { font-size: 30px; letter-spacing: -.01em; margin: 0 0 4px }
h2 { font-size: 22px; margin: 0 }
h3 { font-size: 17px; margin: 28px 0 8px }
h4, h5, h6 { font-size: 15px; margin: 24px 0 8px }
p { max-width: 76ch; margin: 8px 0 } li { max-width: 74ch }
a { color: var(--link) } .soft { color: var(--soft) }
code { font: .9em ui-monospace, "DejaVu Sans Mono", monospace; background: var(--page);
  padding: 1px 5px; border-radius: 4px }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 10px;
  padding: 26px 28px; margin: 24px 0 }
.facts { display: flex; flex-wrap: wrap; gap: 6px 18px; margin: 6px 0 4px; padding: 0;
  list-style: none; color: var(--soft); font-size: 14px }
.facts span { color: var(--ink); font-weight: 600 }
.wide { overflow-x: auto; margin: 12px 0 }
table { border-collapse: collapse; width: 100%; font-size: 14.5px; line-height: 1.4 }
th { text-align: left; color: var(--soft); font-weight: 600; font-size: 13px }
thead th { vertical-align: bottom }
th, td { padding: 7px 12px 7px 0; border-bottom: 1px solid var(--line); vertical-align: top }
tbody tr:last-child td { border-bottom: 0 }
.right { text-align: right; font-variant-numeric: tabular-nums } td.right { white-space: nowrap }
.left { text-align: left } td:first-child { min-width: 150px }
.good, .bad, .none { display: inline-block; border-radius: 99px; padding: 0 9px; font-size: 13px;
  white-space: nowrap }
.good { color: var(--good); background: var(--good-soft) }
.bad { color: var(--bad); background: var(--bad-soft) } .none { color: var(--soft) }
figure { margin: 20px 0 0 } figcaption { color: var(--soft); font-size: 13.5px; margin-top: 4px }
img { max-width: 100%; height: auto; display: block }
details { margin-top: 20px; font-size: 14px; color: var(--soft) } summary { cursor: pointer }
footer { color: var(--soft); font-size: 13.5px; padding-bottom: 40px }
"""


def write_report(out: Path) -> tuple[Path, list[Record]]:
    """Gather the runs in `out` into `out/report.html`.

    Returns:
        The page's path, and the runs it shows. A run that cannot be read has its place on the page,
        with the reason.

    Raises:
        FileNotFoundError: there is no run in `out`.
    """
    paths = sorted(out.glob("*/figures.json"))
    if not paths:
        raise FileNotFoundError(f"No runs in {out}: `jaxsolve run NAME --out {out}` makes one.")
    records, rows, sections = [], [], []
    for path in paths:
        folder = path.parent
        try:
            record = read_record(path)
        except ValueError as error:
            sections.append(_broken(folder, str(error)))
            continue
        records.append(record)
        rows.append(_row(folder, record))
        sections.append(_section(folder, record))
    page = out / "report.html"
    write(page, _page(rows, sections).encode())
    return page, records


def shown(figure: Figure, value: float | None) -> str:
    """A value of a figure as people read it."""
    if value is None:
        return "-"
    number = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{number} {figure.unit}".strip()


def _page(rows: list[str], sections: list[str]) -> str:
    head = "".join(f"<th>{x}</th>" for x in ("experiment", "seed", "size", "time", "device"))
    overview = (
        f'<section><h2>Runs</h2><div class="wide"><table><thead><tr>{head}'
        "<th>at least as good as the baseline</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div></section>"
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>jaxsolve: experiments</title>
<style>{_STYLE}</style>
</head>
<body>
<header><h1>jaxsolve: experiments</h1>
<p class="soft">Each method beside the baseline it has to beat, measured on this machine.</p>
</header>
<main>
{overview}
{chr(10).join(sections)}
</main>
<footer>Written by <code>jaxsolve report</code>. The numbers are in each run's
<code>figures.json</code>.</footer>
</body>
</html>
"""


def _row(folder: Path, record: Record) -> str:
    judged = [figure.wins for figure in record.figures if figure.wins is not None]
    cells = [
        f'<a href="#{escape(folder.name)}">{escape(record.experiment)}</a>',
        str(record.seed),
        "full" if record.full else "quick",
        f"{record.seconds:.0f} s",
        escape(record.device),
        f"{sum(judged)} of {len(judged)} figures",
    ]
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _section(folder: Path, record: Record) -> str:
    facts = {
        "seed": str(record.seed),
        "size": "full" if record.full else "quick",
        "time": f"{record.seconds:.1f} s",
        "device": record.device,
        "dtype": record.dtype,
    }
    listed = "".join(f"<li>{escape(k)} <span>{escape(v)}</span></li>" for k, v in facts.items())
    versions = ", ".join(f"{k} {v}" for k, v in record.versions.items())
    return f"""<section id="{escape(folder.name)}">
<h2>{escape(record.experiment)}</h2>
<ul class="facts">{listed}</ul>
{_figures(record)}
{_table(folder)}
{_plots(folder)}
<details><summary>Versions</summary><p>{escape(versions)}</p></details>
</section>"""


def _figures(record: Record) -> str:
    names = ("figure", "method", "value", "baseline", "", "baseline is")
    sides = ("left", "left", "right", "right", "left", "left")
    head = "".join(f'<th class="{s}">{n}</th>' for n, s in zip(names, sides, strict=True))
    rows = []
    for figure in record.figures:
        verdict = {
            True: '<span class="good">at least as good</span>',
            False: '<span class="bad">not as good</span>',
            None: '<span class="none">-</span>',
        }[figure.wins]
        cells = (
            escape(f"{figure.name} ({figure.better} is better)"),
            escape(figure.method),
            escape(shown(figure, figure.value)),
            escape(shown(figure, figure.baseline)),
            verdict,
            escape(figure.source),
        )
        body = "".join(f'<td class="{s}">{c}</td>' for c, s in zip(cells, sides, strict=True))
        rows.append(f"<tr>{body}</tr>")
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _table(folder: Path) -> str:
    try:
        return to_html((folder / "table.md").read_text())
    except (OSError, UnicodeDecodeError):
        return '<p class="soft">table.md is missing or cannot be read.</p>'


def _plots(folder: Path) -> str:
    shown = []
    for path in sorted(folder.glob("*.png")):
        # A number in front only orders the plots.
        name = escape(path.stem.lstrip("0123456789-").replace("-", " "))
        content = path.read_bytes()
        if not content.startswith(_PNG):
            shown.append(f'<p class="soft">{name}: not a PNG.</p>')
            continue
        data = base64.b64encode(content).decode()
        shown.append(
            f'<figure><img alt="{name}" src="data:image/png;base64,{data}">'
            f"<figcaption>{name}</figcaption></figure>"
        )
    return "\n".join(shown)


def _broken(folder: Path, reason: str) -> str:
    return (
        f'<section id="{escape(folder.name)}"><h2>{escape(folder.name)}</h2>'
        f"<p>This run cannot be shown: {escape(reason)}</p></section>"
    )
