"""HTML pages as single files: figures are embedded, and no script, style or font is loaded."""

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 72rem; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; }
h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd; padding-bottom: .2rem; }
.said { font-family: ui-monospace, monospace; color: #555; overflow-wrap: anywhere; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
th, td { padding: .25rem .8rem .25rem 0; text-align: left; vertical-align: top; }
th { border-bottom: 1px solid #999; }
tr + tr td { border-top: 1px solid #eee; }
figure { margin: 1.2rem 0; }
img { max-width: 100%; height: auto; }
figcaption { color: #555; }
pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: 13px; }
"""


class Raw(str):
    """HTML code, which is not escaped again."""

    __slots__ = ()


def page(title: str, said: str, sections: Iterable[Raw]) -> str:
    """A complete page: title, the line `said` below it, sections."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n'
        f'<body><h1>{escape(title)}</h1>\n<p class="said">{escape(said)}</p>\n' + "\n".join(sections) + "\n</body></html>\n"
    )


def heading(text: str) -> Raw:
    """A section's heading."""
    return Raw(f"<h2>{escape(text)}</h2>")


def paragraph(text: str) -> Raw:
    """A paragraph."""
    return Raw(f"<p>{escape(text)}</p>")


def preformatted(text: str) -> Raw:
    """Text in a fixed-width font, with its line breaks."""
    return Raw(f"<pre>{escape(text)}</pre>")


def link(target: str, text: str) -> Raw:
    """A link to another file."""
    return Raw(f'<a href="{escape(target)}">{escape(text)}</a>')


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Raw:
    """A table. If `heads` is empty, it has no heading row."""
    head = "<tr>" + "".join(f"<th>{escape(h)}</th>" for h in heads) + "</tr>" if heads else ""
    body = "\n".join("<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return Raw(f'<div class="wide"><table>{head}\n{body}</table></div>')


def image(path: Path, caption: str) -> Raw:
    """A figure with the PNG at `path`, embedded in the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    return Raw(
        f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{data}"><figcaption>{escape(caption)}</figcaption></figure>'
    )


def _cell(text: str) -> str:
    return text if isinstance(text, Raw) else escape(text)
