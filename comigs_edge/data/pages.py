"""Web pages, PDF, Word, e-books and mailboxes become texts; run in a process of its own, see `importing.py`.

The libraries come with the extra `import`.
"""

from __future__ import annotations

import contextlib
import email
import email.policy
import functools
import io
import mailbox
import posixpath
import re
import zipfile
from collections.abc import Callable, Iterator
from email.message import EmailMessage, MIMEPart
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from comigs_edge.data.decode import LARGEST, decode
from comigs_edge.data.document import Unreadable

_UNSEEN = {
    "script",
    "style",
    "noscript",
    "template",
    "head",
    "nav",
    "footer",
    "aside",
    "form",
    "button",
    "svg",
    "iframe",
    "object",
}
_INLINE = {
    "a", "abbr", "b", "bdi", "bdo", "cite", "code", "data", "dfn", "del", "em", "font", "i", "img", "ins", "kbd", "label", "mark",
    "q", "s", "samp", "small", "span", "strong", "sub", "sup", "time", "tt", "u", "var", "wbr",
}  # fmt: skip
_CELLS = {"td", "th"}
_CONTAINER = {"c": "urn:oasis:names:tc:opendocument:xmlns:container"}
_ATTRIBUTION = re.compile(r"[^\n]{5,200}:\s*\Z")


def html(data: bytes) -> str:
    """The words of a web page, without scripts, menus and forms; a blank line between blocks."""
    from lxml import etree

    if b"<title>Exported Data</title>" in data[:2000]:
        raise Unreadable("a page of Telegram's export; export the chat as JSON (machine-readable) instead")
    try:
        data.decode("utf-8")
        encoding = "utf-8"
    except UnicodeDecodeError:
        encoding = None  # what the page itself says
        if b"charset" not in data[:4096].lower():
            data, encoding = decode(data)[0].encode("utf-8", "replace"), "utf-8"
    parser = etree.HTMLParser(encoding=encoding, no_network=True, remove_comments=True, remove_pis=True)
    root = etree.fromstring(data, parser) if data.strip() else None
    return _words(root) if root is not None else ""


def _words(root: Any) -> str:
    from lxml import etree

    out: list[str] = []
    hidden = preformatted = 0
    for event, element in etree.iterwalk(root, events=("start", "end")):
        name = element.tag if isinstance(element.tag, str) else ""
        start = event == "start"
        hidden += (name in _UNSEEN) * (1 if start else -1)
        preformatted += (name == "pre") * (1 if start else -1)
        if name not in _INLINE and (start or name != "br"):
            out.append("\n" if name == "br" else "\t" if name in _CELLS else "\n\n")
        if not start and element is root:
            break
        words = "" if hidden else (element.text if start else element.tail) or ""
        if not preformatted:
            words = re.sub(r"\s+", " ", words)
            words = words.lstrip() if out[-1:] and out[-1][-1:].isspace() else words
        out.append(words)
    lines = [line.rstrip() for line in "".join(out).split("\n")]
    return "\n".join(line for number, line in enumerate(lines) if line or (number and lines[number - 1])).strip()


def pdf(data: bytes) -> str:
    """The text of a PDF's pages."""
    import pypdf

    reader = pypdf.PdfReader(io.BytesIO(data))
    if reader.is_encrypted and not reader.decrypt(""):
        raise Unreadable("locked with a password")
    text = "\n\n".join(page.extract_text() for page in reader.pages)
    if reader.pages and not text.strip():
        raise Unreadable("pictures of pages, without text")
    return text


def docx(data: bytes) -> str:
    """The paragraphs and tables of a Word file."""
    import docx as word
    from docx.table import Table

    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        _check_size(archive.infolist())
    blocks = []
    for block in word.Document(io.BytesIO(data)).iter_inner_content():
        if isinstance(block, Table):
            blocks.append("\n".join(" | ".join(cell.text for cell in row.cells) for row in block.rows))
        else:
            blocks.append(block.text)
    return "\n\n".join(blocks)


def epub(data: bytes) -> str:
    """The chapters of an e-book, in the order in which it is read."""
    from lxml import etree

    parser = etree.XMLParser(resolve_entities=False, no_network=True)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        container = etree.fromstring(_member(archive, "META-INF/container.xml"), parser)
        path = container.find(".//c:rootfile", _CONTAINER).get("full-path")
        package = etree.fromstring(_member(archive, path), parser)
        places = {item.get("id"): unquote(item.get("href") or "") for item in package.iterfind(".//{*}manifest/{*}item")}
        order = [places.get(each.get("idref"), "") for each in package.iterfind(".//{*}spine/{*}itemref")]
        names = dict.fromkeys(posixpath.normpath(posixpath.join(posixpath.dirname(path), place)) for place in order)
        members = [info for name in names for info in archive.infolist() if info.filename == name]
        _check_size(members)
        return "\n\n".join(html(archive.read(member)) for member in members)


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    _check_size([archive.getinfo(name)])
    return archive.read(name)


def _check_size(members: list[zipfile.ZipInfo]) -> None:
    if sum(member.file_size for member in members) > LARGEST:
        raise Unreadable(f"unpacks to more than {LARGEST // 10**6} MB")


def mails(path: Path) -> Iterator[str | None]:
    """Subject and words of each mail of a mailbox, without what it quotes; None in the place of a damaged one."""
    factory = functools.partial(email.message_from_binary_file, policy=email.policy.default)
    with contextlib.closing(mailbox.mbox(path, factory=factory, create=False)) as box:  # type: ignore[arg-type]
        for message in box:
            if not isinstance(message, EmailMessage):
                continue
            try:
                yield _mail(message)
            except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError, Unreadable):
                yield None  # what the library raises over a mail costs this mail only


def _mail(message: EmailMessage) -> str:
    body = message.get_body(("plain", "html"))
    words = ""
    if body is not None:
        content = _content(body)
        words = html(content.encode("utf-8", "replace")) if body.get_content_subtype() == "html" else content
    kept: list[str] = []
    for line in words.replace("\r\n", "\n").split("\n"):
        if line.rstrip("\r") in ("-- ", "--"):
            break  # the signature
        if not line.startswith(">"):
            kept.append(line)
        elif kept and _ATTRIBUTION.match(kept[-1]):
            kept.pop()  # "On Monday Bo wrote:"
    return f"{message.get('subject', '')}\n\n" + "\n".join(kept)


def _content(body: MIMEPart) -> str:
    try:
        return str(body.get_content())
    except LookupError:  # an encoding that nobody knows
        data = body.get_payload(decode=True)
        return decode(data)[0] if isinstance(data, bytes) else ""


READERS: dict[str, Callable[[bytes], str]] = {".html": html, ".htm": html, ".pdf": pdf, ".docx": docx, ".epub": epub}
