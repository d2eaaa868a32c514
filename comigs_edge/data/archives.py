"""Exports of messengers and chat tools as they are sent: the one or few files of a `.zip` that hold the words."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from comigs_edge.data.decode import LARGEST
from comigs_edge.data.document import Unreadable

# WhatsApp's; Telegram's; ChatGPT's and Claude's; Messenger's and Instagram's; Google Chat's and Skype's.
_EXPORT = re.compile(
    r"(?:.*/)?(?:_chat\.txt|[^/]*whatsapp[^/]*\.txt|result\.json|conversations(?:-\d+)?\.json|message_\d+\.json|messages\.json)",
    re.IGNORECASE,
)
_BROKEN = (OSError, EOFError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error)  # one of them: it is locked


def holds_export(path: Path) -> bool:
    """Whether there is something to read in an archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(map(_EXPORT.fullmatch, archive.namelist()))
    except _BROKEN:
        return False


def read_exports(path: Path) -> Iterator[tuple[Path, bytes]]:
    """Name and bytes of each file of an export; raises `Unreadable` where there is none, and for what is too large or broken."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if _EXPORT.fullmatch(info.filename)]
            if not members:
                raise Unreadable(_why_none(archive.namelist()))
            if sum(info.file_size for info in members) > LARGEST:  # which is as far as a member is read
                raise Unreadable(f"unpacks to more than {LARGEST // 10**6} MB; unpack it and name its folder")
            for info in members:
                yield Path(info.filename), archive.read(info)
    except _BROKEN as error:
        raise Unreadable(f"a damaged or locked archive ({error}); unpack it and name its folder") from None


def _why_none(names: list[str]) -> str:
    if any(name.rpartition("/")[2] == "messages.html" for name in names):
        return "pages of Telegram's export; export the chat as JSON (machine-readable) instead"
    return "an archive without an export of a messenger, ChatGPT or Claude that is known; unpack it and name its folder"
