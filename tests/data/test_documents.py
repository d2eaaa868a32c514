"""Files become documents; what cannot be read is said in one sentence."""

import json

import pytest

from comigs_edge.data import documents
from comigs_edge.data.documents import Document, Message
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
    assert all(len(document.text) <= documents.SECTION for document in found)
    assert "".join("".join(d.text for d in found).split()) == "".join("".join(paragraphs).split())


def test_binary_files_other_encodings_and_empty_documents_are_counted(tmp_path):
    (tmp_path / "good.md").write_text("good text")
    (tmp_path / "latin.txt").write_bytes("Grüße".encode("latin-1"))
    (tmp_path / "zeros.txt").write_bytes(b"a\0b")
    (tmp_path / "empty.jsonl").write_text('{"text": " .. "}\n')
    (tmp_path / "picture.png").write_bytes(b"png")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "secret.txt").write_text("not read")
    reading = documents.read([tmp_path])
    assert [path.name for path, _ in reading.skipped] == ["latin.txt", "zeros.txt"]
    assert (reading.empty, reading.ignored) == (1, 1)
    assert sum(map(len, reading.files.values())) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a"', r"bad\.jsonl, line 2 is not JSON"),
        ('{"body": "a"}', r"bad\.jsonl, line 2 is no document"),
        ('{"messages": [{"role": "pirate", "content": "arr"}]}', r"bad\.jsonl, line 2 has a message"),
        ("[1]", r"bad\.jsonl, line 2 is no document"),
    ],
)
def test_a_bad_line_is_named_by_its_number(tmp_path, line, message):
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(ComigsError, match=message):
        documents.read([tmp_path])


def test_paths_that_lead_nowhere_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.pdf").write_bytes(b"x")
    for path, message in (("empty", r"no \.txt"), ("missing", "does not exist"), ("a.pdf", r"a\.pdf cannot be read")):
        with pytest.raises(ComigsError, match=message):
            documents.read([tmp_path / path])


def test_a_document_survives_storage():
    for document in (Document(text="Grüße \u2028"), Document(messages=(Message("user", "a"), Message("assistant", "b")))):
        assert Document.from_json(document.to_json()) == document
