"""Exports as messengers and chat tools send them, packed, are the same chats as unpacked."""

import json
import zipfile

import pytest

from comigs_edge.data import documents
from comigs_edge.data.corpus import Corpus
from comigs_edge.errors import ComigsError
from tests.data.test_messengers import CLAUDE, TREE
from tests.data.test_shapes import content

CHAT = "31.12.23, 22:15 - Bo: Is the shed painted?\n31.12.23, 22:16 - Ada: Two coats.\n"
TELEGRAM = {"name": "Bo", "type": "personal_chat", "messages": [
    {"id": 1, "type": "message", "date": "2023-12-31T22:15:30", "from": "Bo", "from_id": "user2", "text": "Is the shed painted?"},
    {"id": 2, "type": "message", "date": "2023-12-31T22:16:00", "from": "Ada", "from_id": "user1", "text": "Two coats."},
]}  # fmt: skip
ANSWER = {"sender": "assistant", "text": "Two coats."}
EXPORTS = {
    "WhatsApp Chat - Bo.zip": {"_chat.txt": CHAT, "0001-PHOTO.jpg": "x"},
    "WhatsApp Chat mit Bo.zip": {"WhatsApp Chat mit Bo.txt": CHAT, "IMG-1.jpg": "x"},
    "telegram.zip": {"DataExport_2024-01-01/result.json": json.dumps(TELEGRAM), "DataExport_2024-01-01/photos/1.jpg": "x"},
    "chatgpt.zip": {
        "chat.html": "x", "user.json": "{}", "conversations.json": json.dumps([{"mapping": TREE, "current_node": "a"}])
    },
    "new chatgpt.zip": {"conversations-000.json": json.dumps([{"mapping": TREE, "current_node": "a"}])},
    "claude.zip": {
        "users.json": "[]",
        "conversations.json": json.dumps([{"chat_messages": [CLAUDE["chat_messages"][0], ANSWER]}]),
    },
}  # fmt: skip


def pack(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return path


@pytest.mark.parametrize("name", EXPORTS)
@pytest.mark.parametrize("in_a_folder", [True, False])
def test_a_packed_export_is_read_as_what_it_holds(tmp_path, name, in_a_folder):
    path = pack(tmp_path / name, EXPORTS[name])
    reading = documents.read([tmp_path if in_a_folder else path], ["Ada"])
    assert [content(document) for document in reading.files[path]] == [
        (("user", "Is the shed painted?"), ("assistant", "Two coats."))
    ]
    assert not reading.left


def test_a_packed_export_that_grew_keeps_its_chats(tmp_path):
    path, corpus = pack(tmp_path / "WhatsApp Chat.zip", {"_chat.txt": CHAT}), Corpus(tmp_path / "documents.db")
    corpus.add(documents.read([path], ["Ada"]))
    pack(path, {"_chat.txt": CHAT + CHAT.replace("31.12.23", "01.01.24").replace("shed", "old fence")})
    report = corpus.add(documents.read([path], ["Ada"]))
    assert (report.added, report.changed) == (1, 1)


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"notes/a.txt": "words"}, "without an export of a messenger, .* that is known; unpack it and name its folder"),
        ({"DataExport/messages.html": "<html>"}, "export the chat as JSON"),
        ({"_chat.txt": bytes(300_000_000)}, "more than 200 MB"),
        (None, "a damaged or locked archive"),
    ],
    ids=["other", "telegram's pages", "zeros", "damaged"],
)
def test_other_archives_are_refused_with_what_to_do_and_only_counted_in_folders(tmp_path, members, reason):
    path = tmp_path / "a.zip"
    if members is None:
        path.write_bytes(pack(path, {"_chat.txt": CHAT * 100}).read_bytes()[:-30])
    else:
        pack(path, members)
    with pytest.raises(ComigsError, match=f"a.zip: .*{reason}"):
        documents.read([path], [])
    (tmp_path / "b.txt").write_text("words")
    reading = documents.read([tmp_path], [])
    assert [each.name for each in reading.files] == ["b.txt"]
    assert reading.ignored == {".zip": 1} or [why for _, why in reading.skipped if reason in why]
