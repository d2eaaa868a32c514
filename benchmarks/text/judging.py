"""Text for judging, from Debian's packages; `corpus_from_packages` writes it to a folder `judging`."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Document = dict[str, Any]
LANGUAGES = {"cs": ("cs-CZ", "cs"), "pt": ("pt-BR", "pt_BR"), "id": ("id-ID", "id"), "sv": ("sv-SE", "sv")}
TOPICS = ("geography", "people", "physical_sciences", "society_and_social_sciences")
PEOPLE = (6, 8, 9, 10)  # by how much they have written
QUOTATIONS = 20  # in a document: most are a line or two


def manuals(root: Path) -> Iterator[Document]:
    """Manual pages of Linux's calls, formats and protocols, without their markup."""
    for path in sorted(root.glob("usr/share/man/man[2-7]/*.[2-7].gz")):
        with gzip.open(path, "rt", encoding="utf-8", errors="replace") as file:
            yield {"id": f"man/{path.stem}", "text": plain(file.read())}


def plain(page: str) -> str:
    """The words of a manual page in troff: macros that set words keep them, others go, and so do escapes."""
    lines = []
    for line in page.splitlines():
        macro = re.match(r"[.'](\S*)\s*(.*)", line)
        if macro and macro[1] in ("SH", "SS", "B", "I", "BR", "BI", "IR", "RB", "RI", "IB", "TP", "PP", "IP", "P", "LP"):
            line = ("\n" if macro[1] in ("SH", "SS", "TP", "PP", "IP", "P", "LP") else "") + macro[2].replace('"', "")
        elif macro:
            continue
        line = re.sub(r"\\\*?\([aA]q", "'", line)
        line = re.sub(r"\\(?:f\(..|f.|&|\||s[-+]?\d|:|\*?\(..|\*.)", "", line)
        lines.append(line.replace("\\-", "-").replace("\\e", "\\"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def quotations(root: Path) -> Iterator[Document]:
    """Quotations, some to a document."""
    for path in sorted(root.glob("usr/share/games/fortunes/*")):
        if not path.suffix:
            quotes = [quote.strip() for quote in path.read_text(encoding="utf-8", errors="replace").split("\n%\n")]
            for start in range(0, len(quotes), QUOTATIONS):
                yield {"id": f"{path.name}/{start}", "text": "\n\n".join(quotes[start : start + QUOTATIONS])}


def perl_programs(root: Path) -> Iterator[Document]:
    """Modules of Perl's own library."""
    for path in sorted(root.glob("usr/share/perl/*.*.*/**/*.pm")):
        yield {"id": f"perl/{path.name}", "text": path.read_text(encoding="utf-8", errors="replace").strip()}


def guides(help_pages: Path, read: Any) -> Iterator[Document]:
    """English help pages; `read` gives the paragraphs of one."""
    for path in sorted(help_pages.glob("*.page")):
        yield {"id": f"gnome/{path.name}", "text": "\n\n".join(read(path))}
