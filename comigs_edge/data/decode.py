"""Bytes become text: by their mark (BOM), as UTF-8, or in the encoding that chardet finds; `.gz` is unpacked."""

from __future__ import annotations

import codecs
import gzip
import io
import re
import zlib
from importlib.util import find_spec

from comigs_edge.data.document import Unreadable

LARGEST = 200_000_000  # bytes that a packed file may unpack to
INSTALL = "pip install 'comigs-edge[import]'"
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
_ODD = re.compile(r"(?<=[^\W\d_])[^\x00-\x7f\w\s’–—…·\xad](?=[^\W\d_])|(?<=[a-zß-ÿ])[À-ÞŠŽŸ](?=[a-zß-ÿ])")
_BETWEEN = re.compile(r"(?<=[^\W\d_])[^\x00-\x7f](?=[^\W\d_])")
# Letters of an alphabet that is not Latin: beside those of ASCII, and beside each other.
_MIXED, _PURE = re.compile(r"[A-Za-z][\u0370-\u0e7f]|[\u0370-\u0e7f][A-Za-z]"), re.compile(r"[\u0370-\u0e7f]{2}")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]")


def decode(data: bytes) -> tuple[str, str]:
    """The text and the encoding it was read as ("" for UTF-8); raises `Unreadable` for what is no text."""
    if data[:100_000].count(0) > 80_000:  # more than any encoding has
        raise Unreadable("binary data")
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return _checked(data.decode(encoding, "replace")), encoding.upper()
    try:
        return _checked(data.decode("utf-8-sig")), ""
    except UnicodeDecodeError as error:
        place = error.start
    if _is_mostly_utf8(data[max(0, place - (1 << 19)) : place + (1 << 19)]):
        return _checked(data.decode("utf-8-sig", "replace")), "UTF-8 with damaged bytes"
    try:
        encoding = _detect(data, place)
        return _checked(data.decode(encoding, "replace")), encoding
    except LookupError as error:  # a codec that this Python cannot load
        raise Unreadable(f"not UTF-8 text (byte {place:,}), and its encoding is not known here ({error})") from None


def _is_mostly_utf8(data: bytes) -> bool:
    """Whether nearly all of what is not ASCII is sound."""
    return data.decode("utf-8", "replace").count("\ufffd") * 4 < len(re.findall(rb"[\xc2-\xf4][\x80-\xbf]", data))


def _detect(data: bytes, place: int) -> str:
    """The encoding of what is not UTF-8 at byte `place`."""
    if find_spec("chardet") is None:
        raise Unreadable(f"not UTF-8 text (byte {place:,}); other encodings are read after: {INSTALL}")
    import chardet

    start = max(0, place - 1000)  # where the bytes are that tell encodings apart
    piece = data if len(data) <= 200_000 else data[start : start + 200_000]
    if _is_western(piece):
        return "Windows-1252"
    eras = chardet.EncodingEra
    found = [
        each
        for era, default in ((eras.MODERN_WEB, "cp1252"), (eras.DOS | eras.LEGACY_MAC, "cp850"))
        if (each := chardet.detect(piece, encoding_era=era, prefer_superset=True, no_match_encoding=default)["encoding"])
    ]
    if not found:
        raise Unreadable(f"not UTF-8 text (byte {place:,}), nor another encoding that could be told")
    texts = [piece.decode(each, "replace") for each in found]
    odd = [_count_odd(text) for text in texts]
    if 4 * odd[-1] < odd[0]:
        return found[-1]
    return "Windows-1252" if len(_MIXED.findall(texts[0])) > len(_PURE.findall(texts[0])) else found[0]


def _is_western(piece: bytes) -> bool:
    """Whether a single character beyond ASCII, which is too little to tell languages by, is at its place as Windows-1252."""
    text = piece.decode("cp1252", "replace")
    beyond = {character for character in text if character > "\x7f"}
    return len(beyond) == 1 and all(each.isalpha() or each == "’" for each in _BETWEEN.findall(text))


def _count_odd(text: str) -> int:
    """Marks inside words and capitals between small letters: there are many where DOS or the old Mac were taken for Windows."""
    return len(_ODD.findall(text))


def _checked(text: str) -> str:
    beginning = text[:100_000]
    if "\0" in text or len(_CONTROL.findall(beginning)) > len(beginning) / 50 or beginning.count("\ufffd") > len(beginning) / 10:
        raise Unreadable("binary data")
    return text


def unpack(data: bytes) -> bytes:
    """What a `.gz` file holds; raises `Unreadable` if it is damaged or unpacks to more than `LARGEST` bytes."""
    try:
        with gzip.open(io.BytesIO(data)) as file:
            unpacked = file.read(LARGEST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise Unreadable(f"a damaged .gz file ({error})") from None
    if len(unpacked) > LARGEST:
        raise Unreadable(f"unpacks to more than {LARGEST // 10**6} MB; unpack and cut it yourself")
    return unpacked
