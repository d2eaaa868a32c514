"""A page that is one file: no script, no request, light and dark, from a phone to a desk. Everything that is passed is escaped,
but for what is called HTML."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from comigs_edge import __version__, files
from coordinator.protocol.text import readable

CSS = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
COLOURS = 5  # of specialists; then they begin again


def write_page(path: Path, title: str, about: str, body: str) -> None:
    """Writes the page; `body` is HTML."""
    files.write_atomic(path, page(title, about, body).encode("utf-8", "replace"))


def page(title: str, about: str, body: str) -> str:
    """The page as HTML; `about` is a sentence below its title."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f"<title>{say(title)}</title><style>{CSS}</style></head><body><header><h1>{say(title)}</h1><p>{say(about)}</p></header>"
        f"<main>{body}</main><footer><p>comigs-edge {say(__version__)}. This page quotes your text: it is for whom you give "
        "it to.</p></footer></body></html>\n"
    )


def say(value: object) -> str:
    """Any text as HTML, with an escape in place of what is no character."""
    return escape(readable(str(value)))


def likely(probability: float) -> str:
    """In percent; what is next to nothing is said to be."""
    return f"{probability:.2%}" if probability >= 5e-5 else "< 0.01%"


def tile(name: str, figure: str, note: str) -> str:
    """One number that is read first."""
    return f'<div class="tile"><h2>{say(name)}</h2><p class="number-of">{say(figure)}</p><p class="note">{say(note)}</p></div>'


def section(kind: str, *inside: str) -> str:
    """Tiles or charts side by side; `inside` is HTML."""
    return f'<section class="{kind}">{"".join(inside)}</section>'


def card(name: str, note: str, inside: str) -> str:
    """A part of the page with a head; `inside` is HTML."""
    return f'<section class="card"><h2>{say(name)}</h2><p class="note">{say(note)}</p>{inside}</section>'


def figure(name: str, note: str, drawing: str) -> str:
    """A chart with a head; `drawing` is HTML."""
    return f"<figure><figcaption><h2>{say(name)}</h2><p>{say(note)}</p></figcaption>{drawing}</figure>"


def colour(expert: int, names: Sequence[str], silent: str) -> str:
    """The class of an expert, by its place in the names; `silent` is that of a zero expert."""
    if names[expert] == silent:
        return "zero"
    return f"e{1 + (expert - 1) % COLOURS}" if expert else "e0"


def legend(names: Sequence[str], silent: str) -> str:
    """What the colours mean."""
    marks = (f'<span class="{colour(number, names, silent)}">{say(name)}</span>' for number, name in enumerate(names))
    return f'<p class="legend">{" ".join(marks)}</p>'
