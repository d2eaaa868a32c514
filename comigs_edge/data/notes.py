"""What a note says to its program and not to its reader: front matter, comments, drawers."""

from __future__ import annotations

import re
from collections.abc import Callable

_FRONT_MATTER = re.compile(r"\A(---|\+\+\+)[ \t]*\n(?:.*\n)*?\1[ \t]*(?:\n|\Z)")
_KEY = re.compile(r"(?:[\w.-]+[ \t]*[:=]|[ \t]*(?:-|#|$)|[ \t]+\S|[\]}\[])", re.MULTILINE)  # what a line there begins with
_OPENERS = re.compile(r"^ {0,3}(?P<fence>```+|~~~+)|<!--|^%%|(?<=\s)%%(?=\S)", re.MULTILINE)
_ORG = re.compile(r"^[ \t]*(?:#(?:[ \t+].*)?|:[A-Z_]+:.*|(?:CLOSED|DEADLINE|SCHEDULED):.*)$\n?", re.MULTILINE)
_ORG_COMMENT = ("#+begin_comment", "#+end_comment")
_RST_COMMENT = re.compile(r"^\.\.(?=\s|\Z)(?![ \t]+(?:[\w:+-]+::|_|\[|\|))[ \t]*.*\n?(?:[ \t]+\S.*\n?)*", re.MULTILINE)
_RST_FIELDS = re.compile(r"\A(?::[\w -]+:.*\n(?:[ \t]+.*\n)*)+")

_URI = re.compile(r"(?<!\w)data:[\w.+-]{1,60}/[\w.+-]{1,80}(?:;[\w.=+-]{1,80}){0,5},[^\s\"'()<>\]]*")
_SHOWN = re.compile(  # what shows one: a link or an image of Markdown, a tag, a reference of Markdown
    r"!?\[(?P<words>[^\]\n]{0,500})\]\(\s?<?\0[^)\n]{0,500}\)|<\w[^<>\0]{0,2000}\0[^<>]{0,2000}>|"
    r"^ {0,3}\[[^\]\n]{1,500}\]:[ \t]?<?\0.*$|\0",
    re.MULTILINE,
)


def drop_pictures(text: str) -> str:
    """Without `data:` URIs and what shows them; the words of a link stay."""
    if "data:" not in text:
        return text
    marked = _URI.sub("\0", text.replace("\0", ""))
    return _SHOWN.sub(lambda match: match["words"] or "", marked) if "\0" in marked else text


def markdown(text: str) -> str:
    """Without front matter, `<!-- -->` and `%% %%`; what stands in a fenced block stays."""
    front = _FRONT_MATTER.match(text[:20_000])
    if front and all(_KEY.match(line) for line in front.group().split("\n")[1:-2]):
        text = text[front.end() :]
    kept, position = [], 0
    never: set[str] = set()  # closers that do not come any more: looked for once
    while opener := _OPENERS.search(text, position):
        start, end, mark = _span(text, opener, never)
        kept.append(text[position : end if mark else start])
        position = end
    return "".join([*kept, text[position:]])


def _span(text: str, opener: re.Match[str], never: set[str]) -> tuple[int, int, bool]:
    """Start and end of what an opener opens, and whether it stays."""
    start, found = opener.start(), opener.group()
    fence = opener["fence"]
    closer = f"\n{fence}" if fence else {"<!--": "-->"}.get(found, "%%")
    end = -1 if closer in never else text.find(closer, opener.end())
    if end < 0:
        never.add(closer)
        return start, opener.end(), True
    inline = found == "%%" and start > 0 and text[start - 1] != "\n"
    if inline and "\n" in text[start : min(end, start + 10_000)]:
        return start, opener.end(), True  # 100 %%x with another far below: no comment
    return start, end + len(closer), bool(fence)


def org(text: str) -> str:
    """Without comments, keywords and drawers."""
    lines, inside = [], False
    for line in text.split("\n"):
        word = line.strip().lower()
        inside = (inside or word == _ORG_COMMENT[0]) and word != _ORG_COMMENT[1]
        if not inside and word != _ORG_COMMENT[1]:
            lines.append(line)
    return _ORG.sub("", "\n".join(lines))


def restructured(text: str) -> str:
    """Without comments and the fields at the top."""
    return _RST_COMMENT.sub("", _RST_FIELDS.sub("", text))


CLEANERS: dict[str, Callable[[str], str]] = {".md": markdown, ".markdown": markdown, ".org": org, ".rst": restructured}
