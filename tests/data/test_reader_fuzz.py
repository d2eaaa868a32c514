"""Whatever bytes a file has: documents or a sentence, within seconds, and each document can be stored."""

import contextlib
import gzip
import io
import json
import os
import time
import zipfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from comigs_edge.data import documents, importing
from comigs_edge.data.document import Document
from comigs_edge.errors import ComigsError
from tests.data.test_messengers import CLAUDE, EXPORTS, TREE
from tests.data.test_pages import CONTAINER, PACKAGE
from tests.data.test_shapes import SHAPES

SECONDS = 30  # on a busy machine; most take milliseconds
FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
KEYS = sorted(
    {"role", "content", "messages", "text", "from", "value", "parts", "author", "type", "body", "date", "id", "chats", "list"}
    | {"mapping", "current_node", "parent", "children", "message", "metadata", "chat_messages", "sender", "personal_information"}
    | {"prompt", "completion", "chosen", "history", "input", "instruction", "output", "system", "cells", "source", "Contents"}
    | {"tool_calls", "recipient", "content_type", "Timestamp", "timestamp", "sender_name", "from_id", "user_id", "cell_type"}
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(
    ["user", "assistant", "human", "tool", "message", "outgoing", "markdown", "text", "a", "2024-01-01"]
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5), max_leaves=25
)
TEXT_KINDS = [suffix for suffix in documents.SUFFIXES if suffix not in importing.SUFFIXES]
PIECES = (
    "31.12.23, 22:15 - Bo: hi", "[1/1/24, 8:05:01 AM] Ada: ho", "---", "%%", "<!--", "-->", "```", "..", "key: value", "", " ",
    ":END:", "#+begin_comment", "\u200e", "\ufeff", "a,b;c", '"', "\r", "\u2028", "]", "[", "{", "}", '{"text": "a"},',
)  # fmt: skip
LINES = st.lists(st.sampled_from(PIECES) | st.text(max_size=20), max_size=30).map("\n".join)


def check(path, data):
    """Reads `data` as the file `path`; what comes is documents or one sentence."""
    path.write_bytes(data)
    start = time.monotonic()
    found = []
    with contextlib.suppress(ComigsError):
        found = [document for each in documents.read([path], ["Ada", "user"]).files.values() for document in each]
    assert time.monotonic() - start < SECONDS
    for document in found[:100]:
        assert Document.from_json(document.to_json()) == document
        assert len(document.sha256) == 64


@pytest.mark.parametrize("suffix", TEXT_KINDS)
@FUZZ
@given(data=st.binary(max_size=300) | LINES.map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_bytes_and_lines_in_every_kind_of_text(tmp_path, suffix, data):
    check(tmp_path / f"a{suffix}", data)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".ipynb"])
@FUZZ
@given(values=st.lists(VALUES, max_size=4), indent=st.sampled_from([None, 1]))
def test_values_of_every_form_under_the_names_that_are_known(tmp_path, suffix, values, indent):
    check(tmp_path / f"a{suffix}", "\n".join(json.dumps(each, indent=indent) for each in values).encode())


KNOWN = [
    *SHAPES.values(),
    *EXPORTS.values(),
    {"mapping": TREE, "current_node": "a2"},
    CLAUDE,
    {"cells": [{"cell_type": "code", "source": "x"}]},
]


def spoil(value, draw):
    """The value with one part of it replaced by another."""
    if isinstance(value, dict | list) and value and draw(st.integers(0, 4)):
        key = draw(st.sampled_from(sorted(value) if isinstance(value, dict) else list(range(len(value)))))
        changed = dict(value) if isinstance(value, dict) else list(value)
        changed[key] = spoil(changed[key], draw)
        return changed
    return draw(VALUES)


@FUZZ
@given(value=st.sampled_from(KNOWN), data=st.data())
def test_exports_with_one_part_that_is_another(tmp_path, value, data):
    check(tmp_path / "a.json", json.dumps([spoil(value, data.draw)]).encode())


def zipped(members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


SEEDS = {
    ".html": b"<html><head><meta charset=utf-8></head><body><p>a<br><pre> b </pre><table><tr><td>c</table><!-- d -->&amp;",
    ".epub": zipped({"META-INF/container.xml": CONTAINER, "OEBPS/book.opf": PACKAGE, "OEBPS/text/two.xhtml": "<p>a</p>"}),
    ".docx": zipped({"[Content_Types].xml": "<Types/>", "word/document.xml": "<w:document/>"}),
    ".pdf": b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj\n"
    b"3 0 obj<</Type/Page/Parent 2 0 R>>endobj\nxref\n0 4\ntrailer<</Root 1 0 R/Size 4>>\nstartxref\n9\n%%EOF",
    ".mbox": b"From a\nSubject: =?utf-8?q?b?=\nContent-Type: multipart/mixed; boundary=x\n\n--x\n\nwords\n> c\n--x--\n",
    ".txt.gz": gzip.compress(b"words and words"),
}  # fmt: skip


@pytest.mark.parametrize("suffix", SEEDS)
@settings(FUZZ, max_examples=10)
@given(data=st.data())
def test_damaged_pages_books_and_mails(tmp_path, suffix, data):
    content = bytearray(SEEDS[suffix])
    for _ in range(data.draw(st.integers(0, 4))):
        place = data.draw(st.integers(0, len(content)))
        content[place : place + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    check(tmp_path / f"a{suffix}", bytes(content))


def test_long_runs_of_every_small_pattern_take_no_time(tmp_path):
    patterns = [
        "[",
        "{",
        '{"a":',
        "<!--",
        "%%",
        "\n%%",
        "\n",
        " ",
        "\r",
        ",",
        '"',
        "a ",
        "a\n",
        "<p>",
        "<",
        "&",
        "\n..",
        "\n#",
        ". ",
    ]
    patterns += [
        "31.12.23, 22:15 - Bo: ",
        "\n31.12.23, 22:15 - ",
        "\n---",
        "```\n",
        "\u200e<",
        "é",
        "。",
        "\n> ",
        "\nFrom a\n",
        "a,b\n",
    ]
    for pattern in patterns:
        text = (pattern * 50_000)[:50_000]
        for suffix in (".txt", ".md", ".org", ".rst", ".json", ".csv"):
            check(tmp_path / f"a{suffix}", text.encode())


def test_random_bytes_in_every_kind(tmp_path):
    for suffix in documents.SUFFIXES:
        check(tmp_path / f"a{suffix}", os.urandom(100_000))
