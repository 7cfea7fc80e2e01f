"""The report: one page, nothing in it runs, and nothing from a run's files is taken for HTML."""

import json
from html.parser import HTMLParser

import pytest

from jaxsolve.experiments import write_report
from jaxsolve.experiments.markdown import table, to_html

HOSTILE = """<script>alert('1')</script>"><img src=x onerror="alert(2)">&amp;{}`<b>`**<i>**"""


class Tags(HTMLParser):
    """All tags with their attributes, and all text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def leave(folder, text, figures=1):
    figure = {"name": text, "value": 0.5, "unit": text, "method": text, "baseline": 1.0,
              "better": "lower", "source": text}  # fmt: skip
    data = {"experiment": text, "seed": 0, "full": False, "seconds": 1.0, "device": text,
            "dtype": text, "versions": {text: text}, "figures": [figure] * figures}  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "figures.json").write_text(json.dumps(data))
    (folder / "table.md").write_text(
        f"# {text}\n\n{text}\n\n- {text}\n\n" + table(["a", text], [[text, "1"]])
    )


def test_every_string_is_escaped(tmp_path):
    leave(tmp_path / "run", HOSTILE)
    (tmp_path / "run" / 'a"><script>b.png').write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "run" / "c<script>.png").write_bytes(b"GIF89a")
    leave(tmp_path / '"><script>', "fine")
    page, records = write_report(tmp_path)
    assert len(records) == 2
    found = Tags(page.read_text())
    names = {tag for tag, _ in found.tags}
    assert not names & {"script", "b", "i", "iframe", "object", "link"}
    for tag, attributes in found.tags:
        assert not [a for a in attributes if a.startswith("on")]
        if tag == "img":
            assert attributes["src"].startswith("data:image/png;base64,")
    assert sum(tag == "img" for tag, _ in found.tags) == 1, "what is not a PNG is not embedded"
    assert found.text.count("<script>alert('1')</script>") >= 8, "shown as it is written"


def test_the_page_needs_nothing_else_and_may_run_nothing(tmp_path):
    leave(tmp_path / "run", "fine")
    text = write_report(tmp_path)[0].read_text()
    policy = next(a["content"] for t, a in Tags(text).tags if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'") and "script" not in policy
    assert "http://" not in text and "https://" not in text and "url(" not in text


def test_a_run_that_cannot_be_read_is_shown_as_such(tmp_path):
    leave(tmp_path / "good", "good")
    for name, content in (("bad", "{"), ("worse", '{"experiment": "<script>"}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "figures.json").write_text(content)
    page, records = write_report(tmp_path)
    assert [r.experiment for r in records] == ["good"]
    assert Tags(page.read_text()).text.count("This run cannot be shown") == 2


def test_no_runs(tmp_path):
    with pytest.raises(FileNotFoundError, match="jaxsolve run"):
        write_report(tmp_path)


def test_the_same_runs_make_the_same_page(tmp_path):
    leave(tmp_path / "run", "fine")
    assert write_report(tmp_path)[0].read_text() == write_report(tmp_path)[0].read_text()


def test_tables_survive_their_own_separator():
    html = to_html(table(["a", "b|c"], [["x|y", "2"]]))
    cells = [t for t in Tags(html).tags if t[0] in ("th", "td")]
    assert len(cells) == 4 and "x|y" in html and "b|c" in html


@pytest.mark.parametrize(
    "text, html",
    [
        ("", ""),
        ("## A & b", "<h4>A &amp; b</h4>"),
        ("one\ntwo", "<p>one\ntwo</p>"),
        ("`a<b` **c**", "<p><code>a&lt;b</code> <strong>c</strong></p>"),
        ("- a\n- b\n  c", "<ul><li>a</li><li>b\n  c</li></ul>"),
        ("[x](javascript:alert)", "<p>[x](javascript:alert)</p>"),
        ("| not a table", "<p>| not a table</p>"),
    ],
)
def test_markdown(text, html):
    assert to_html(text) == html
