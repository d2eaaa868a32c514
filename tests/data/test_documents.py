"""Files become documents; what cannot be read costs itself alone, and is counted with its place."""

import gzip
import json

import pytest

from comigs_edge.data import documents
from comigs_edge.data.document import Document, Message
from comigs_edge.data.sections import SECTION
from comigs_edge.errors import ComigsError


def test_each_line_of_jsonl_is_detected_on_its_own(tmp_path):
    lines = [
        {"text": "a text", "id": 3},
        {"prompt": "why?", "completion": " because "},
        {"prompt": "ignored", "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]},
    ]
    path = tmp_path / "all.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    text, pair, chat = documents.read([path]).files[path]
    assert (text.kind, text.text) == ("text", "a text")
    assert pair.messages == (Message("user", "why?"), Message("assistant", "because"))
    assert chat.messages == (Message("user", "hi"), Message("assistant", "yo"))


def test_a_long_text_is_cut_between_paragraphs_and_nothing_is_lost(tmp_path):
    paragraphs = [f"paragraph {number} " + "word " * 100 for number in range(30)]
    (tmp_path / "long.txt").write_text("\n\n".join(paragraphs))
    found = documents.read([tmp_path]).files[tmp_path / "long.txt"]
    assert len(found) > 3
    assert all(len(document.text) <= SECTION for document in found)
    assert "".join("".join(d.text for d in found).split()) == "".join("".join(paragraphs).split())


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(f"line {number} of a poem without an empty one" for number in range(3000)),
        " ".join(f"Sentence {number} of one long line." for number in range(3000)),
        " ".join(f"word{number}" for number in range(9000)),
        "".join(f"第{number}句很长。" for number in range(9000)),
        "x" * 50_000,
        "old\rmac\r" * 5000,
        json.dumps({"text": "one book a line. " * 5000}),
    ],
    ids=["lines", "sentences", "words", "chinese", "one word", "carriage returns", "json"],
)
def test_text_without_blank_lines_is_cut_where_it_can_be(tmp_path, text):
    path = tmp_path / ("a.jsonl" if text.startswith("{") else "a.txt")
    path.write_text(text, newline="")
    found = [document.text for document in documents.read([path]).files[path]]
    assert len(found) >= 10
    assert max(map(len, found)) <= 4000
    assert min(map(len, found[:-1])) > 3000
    words = json.loads(text)["text"] if text.startswith("{") else text
    assert "".join("".join(found).split()) == "".join(words.split())


def test_megabytes_in_one_line_and_of_white_space_are_cut(tmp_path):
    for text in ("word " * 1_000_000, "x" * 10_000_000, " \n" * 2_000_000 + "end"):
        (tmp_path / "a.txt").write_text(text)
        found = documents.read([tmp_path]).files[tmp_path / "a.txt"]
        assert sum(len("".join(document.text.split())) for document in found) == len("".join(text.split()))


def test_binary_files_and_empty_documents_are_counted(tmp_path):
    (tmp_path / "good.md").write_text("good text")
    (tmp_path / "zeros.txt").write_bytes(b"a\0b")
    (tmp_path / "noise.txt").write_bytes(bytes(range(1, 32)) * 100)
    (tmp_path / "empty.jsonl").write_text('{"text": " "}\n{"text": "👍"}\n')
    (tmp_path / "picture.png").write_bytes(b"png")
    (tmp_path / "README").write_bytes(b"?")
    reading = documents.read([tmp_path])
    assert [(path.name, why) for path, why in reading.skipped] == [("noise.txt", "binary data"), ("zeros.txt", "binary data")]
    assert reading.empty == 1
    assert reading.ignored == {".png": 1, "without an ending": 1}
    assert [document.text for found in reading.files.values() for document in found] == ["👍", "good text"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": "a"', "no JSON"),
        ('{"body": "a", "id": 3}', "no known shape with the keys body, id"),
        ('{"messages": [{"role": "pirate", "content": "arr"}]}', 'the role "pirate" is unknown'),
        ('{"messages": [{"role": "user", "content": 3}]}', "a message whose content is no text"),
        ('{"messages": ["hello"]}', "a message without role and content"),
        ('{"messages": []}', "a chat without a message"),
        ('{"text": null}', '"text" is no text'),
        ("[1]", "no document but a number"),
        ("3", "no document but a number"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ('{"text": ' + "1" * 5000 + "}", ""),
        ("garbage", "no JSON"),
    ],
    ids=lambda text: text[:40],
)
def test_a_bad_line_costs_itself_alone_and_is_named(tmp_path, line, reason):
    (tmp_path / "bad.jsonl").write_text('{"text": "one"}\n' + line + '\n{"text": "two"}\n')
    (tmp_path / "other.txt").write_text("other")
    reading = documents.read([tmp_path])
    assert [document.text for document in reading.files[tmp_path / "bad.jsonl"]] == ["one", "two"]
    [(why, left)] = reading.left.items()
    assert why.startswith(reason)
    assert (left.count, left.first) == (1, "bad.jsonl, line 2")


def test_odd_lines_are_counted_by_their_reason(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' + '{"body": 1}\n' * 3 + '{"messages": []}\n')
    left = documents.read([tmp_path]).left
    assert {reason: (each.count, each.first) for reason, each in left.items()} == {
        "no known shape with the keys body": (3, "a.jsonl, line 2"),
        "a chat without a message": (1, "a.jsonl, line 5"),
    }


def test_where_nothing_is_left_the_keys_and_the_wanted_shape_are_shown(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": "x", "title": "y"}\n' * 4)
    with pytest.raises(ComigsError, match=r'keys body, title \(4 times, first in a\.jsonl, line 1\).*\{"text": \.\.\.\}'):
        documents.read([path])


def test_paths_that_lead_nowhere_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.png").write_bytes(b"x")
    for path, message in (("empty", r"no \.txt"), ("missing", "does not exist"), ("a.png", r"a\.png cannot be read")):
        with pytest.raises(ComigsError, match=message):
            documents.read([tmp_path / path])


def test_packed_files_are_read_as_what_they_hold(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "packed"}\n'))
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress("müde".encode("utf-16")))
    (tmp_path / "c.md.gz").write_bytes(gzip.compress(b"cut short" * 1000)[:-20])
    (tmp_path / "d.txt.gz").write_bytes(b"not packed")
    (tmp_path / "e.txt.gz").write_bytes(gzip.compress(bytes(300_000_000), 1))
    (tmp_path / "f.pdf.gz").write_bytes(gzip.compress(b"pdf"))
    reading = documents.read([tmp_path])
    assert [found[0].text for found in reading.files.values()] == ["packed", "müde"]
    assert [path.name for path, _ in reading.skipped] == ["c.md.gz", "d.txt.gz", "e.txt.gz"]
    assert "more than 200 MB" in reading.skipped[2][1]
    assert reading.ignored == {".gz": 1}


def test_a_document_survives_storage():
    for document in (Document(text="Grüße \u2028"), Document(messages=(Message("user", "a"), Message("assistant", "b")))):
        assert Document.from_json(document.to_json()) == document


def test_halves_of_characters_are_replaced(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "cut \\ud83d"}\n{"prompt": "\\udc00", "completion": "whole \\ud83d\\ude00"}\n')
    text, chat = documents.read([tmp_path]).files[tmp_path / "a.jsonl"]
    assert text.text == "cut \ufffd"
    assert chat.messages == (Message("user", "\ufffd"), Message("assistant", "whole 😀"))
    assert len(chat.sha256) == 64


def test_reading_tells_how_many_of_all_bytes_it_has_read(tmp_path):
    for name, size in (("a.txt", 100), ("b.txt", 50), ("c.txt", 850)):
        (tmp_path / name).write_bytes(b"x" * size if name != "b.txt" else bytes(size))  # which cannot be read
    seen = []
    documents.read([tmp_path, tmp_path / "a.txt"], progress=lambda done, total: seen.append((done, total)))
    assert seen == [(100, 1000), (150, 1000), (1000, 1000)]
