"""Exports of messengers and chat tools become chats in which the owner of the device is the assistant."""

import json
from collections import Counter

import pytest

from comigs_edge.data import documents
from comigs_edge.errors import ComigsError
from tests.data.test_shapes import content

# How WhatsApp writes the same two days on telephones of different languages and systems.
HEADS = {
    "android, german": ("31.12.23, 22:15 - ", "01.01.24, 08:05 - "),
    "android, english": ("12/31/23, 10:15 PM - ", "1/1/24, 8:05 AM - "),
    "android, new english": ("12/31/23, 10:15\u202fPM - ", "1/1/24, 8:05\u202fAM - "),
    "android, indian": ("31/12/23, 10:15 pm - ", "01/01/24, 8:05 am - "),
    "android, british": ("31/12/2023, 22:15 - ", "01/01/2024, 08:05 - "),
    "android, portuguese": ("31/12/2023 22:15 - ", "01/01/2024 08:05 - "),
    "android, french": ("31/12/2023 à 22:15 - ", "01/01/2024 à 08:05 - "),
    "android, spanish": ("31/12/23, 10:15 p.\xa0m. - ", "1/1/24, 8:05 a.\xa0m. - "),
    "android, dutch": ("31-12-2023 22:15 - ", "01-01-2024 08:05 - "),
    "android, swedish": ("2023-12-31 22:15 - ", "2024-01-01 08:05 - "),
    "android, danish": ("31.12.2023 22.15 - ", "01.01.2024 08.05 - "),
    "android, hungarian": ("2023. 12. 31. 22:15 - ", "2024. 01. 01. 8:05 - "),
    "android, japanese": ("2023/12/31 22:15 - ", "2024/01/01 8:05 - "),
    "android, chinese": ("2023/12/31 下午10:15 - ", "2024/1/1 上午8:05 - "),
    "android, korean": ("2023. 12. 31. 오후 10:15, ", "2024. 1. 1. 오전 8:05, "),
    "android, arabic": ("٣١\u200f/١٢\u200f/٢٠٢٣، ١٠:١٥ م - ", "١\u200f/١\u200f/٢٠٢٤، ٨:٠٥ ص - "),
    "android, greek": ("31/12/23, 10:15 μ.μ. - ", "1/1/24, 8:05 π.μ. - "),
    "old ios, english": ("2023-12-31, 10:15:30 PM: ", "2024-01-01, 8:05:01 AM: "),
    "ios, german": ("[31.12.23, 22:15:30] ", "[01.01.24, 08:05:01] "),
    "ios, english": ("[12/31/23, 10:15:30\u202fPM] ", "[1/1/24, 8:05:01\u202fAM] "),
    "ios, finnish": ("[31.12.2023 klo 22.15.30] ", "[1.1.2024 klo 8.05.01] "),
    "ios, french": ("[31/12/2023 à 22:15:30] ", "[01/01/2024 à 08:05:01] "),
    "ios, dutch": ("[31-12-2023 22:15:30] ", "[01-01-2024 08:05:01] "),
    "ios, canadian": ("[2023-12-31, 10:15:30 p.m.] ", "[2024-01-01, 8:05:01 a.m.] "),
    "ios, chinese": ("[2023/12/31 下午10:15:30] ", "[2024/1/1 上午8:05:01] "),
    "ios, marked": ("\u200e[31.12.23, 22:15:30] ", "\u200e[01.01.24, 08:05:01] "),
    "signal-export": ("[2023-12-31 22:15] ", "[2024-01-01 08:05] "),
}
BO_AND_ADA = [
    (("user", "Is the shed\npainted?"), ("assistant", "Two coats.\n10:30 tomorrow: the fence")),
    (("user", "Good"), ("assistant", "Bye")),
]


def chats(tmp_path, name, text, me=("Ada",), **options):
    path = tmp_path / name
    path.write_text(text, encoding=options.pop("encoding", "utf-8"), newline="")
    return [content(document) for document in documents.read([path], me, **options).files[path]]


@pytest.mark.parametrize(("first", "second"), HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["lf", "crlf"])
def test_whatsapp_is_read_in_the_date_forms_of_every_language(tmp_path, first, second, end):
    lines = [
        f"{first}Messages and calls are end-to-end encrypted.",
        f"{first}Bo: \u200eNachrichten und Anrufe sind Ende-zu-Ende-verschlüsselt.",
        f"{first}Bo: Is the shed", "painted?",
        f"{first}Ada: Two coats.",
        f"{first}Ada: 10:30 tomorrow: the fence",
        f"{first}Bo: <Media omitted>",
        f"{second}Bo: \u200eGood",
        f"{second}Ada: Bye \u200e<This message was edited>",
        f"{second}Ada: \u200eimage omitted",
        f"{second}Bo: This message was deleted",
    ]  # fmt: skip
    assert chats(tmp_path, "chat.txt", "\ufeff" + end.join(lines) + end) == BO_AND_ADA


def test_a_name_is_told_in_any_case_and_a_group_keeps_its_names(tmp_path):
    lines = ["Bo: Who comes?", "Cy: Me", "+49 170 1234567: I", "ADA: I do", "ADA: And then?", "Bo: Home", "Cy: Yes", "ADA: Fine"]
    text = "\n".join(f"31.12.23, 22:15 - {line}" for line in lines)
    others = ("user", "Bo: Who comes?\nCy: Me\n+49 170 1234567: I")
    assert chats(tmp_path, "a.txt", text) == [
        (others, ("assistant", "I do\nAnd then?"), ("user", "Bo: Home\nCy: Yes"), ("assistant", "Fine"))
    ]


def test_messages_that_answer_nothing_and_days_without_an_answer_are_left_out(tmp_path):
    text = "\n".join(
        f"{day}.12.23, 22:15 - {line}"
        for day, line in ((1, "Ada: Hello?"), (1, "Bo: Hi"), (1, "Ada: Yes"), (1, "Bo: Bye"), (2, "Bo: Hello"), (3, "Ada: Ho"))
    )
    assert chats(tmp_path, "a.txt", text) == [(("user", "Hi"), ("assistant", "Yes"))]


def test_a_long_day_is_cut_after_answers(tmp_path):
    text = "".join(f"31.12.23, 22:15 - {('Bo', 'Ada')[number % 2]}: number {number} {'x' * 90}\n" for number in range(1000))
    found = chats(tmp_path, "a.txt", text)
    assert len(found) > 20
    assert all(chat[0][0] == "user" and chat[-1][0] == "assistant" for chat in found)
    assert sum(len(chat) for chat in found) == 1000


@pytest.mark.parametrize(
    "text",
    [
        "2024-01-01 08:00:00 - INFO: started\n2024-01-01 08:00:01 - ERROR: stopped\n",
        "[2024-01-01 08:00:00] local.ERROR: it broke\n[2024-01-01 08:00:02] local.INFO: mended\n",
        "2024-01-01 a day: nothing\n2024-01-02 another: nothing\n",
        "2024-01-01 10:00 - Dentist: bring papers\n2024-01-02 11:00 - Bo: cake\n2024-01-03 12:00 - Shed: paint\n",
        "1. Paint the shed: green\n2. Then the fence: brown\n",
    ],
)
def test_logs_and_lists_are_no_conversations(tmp_path, text):
    assert chats(tmp_path, "a.txt", text) == [text.strip()]


def said(number, date, who, text, **more):
    return {"id": number, "type": "message", "date": date, "from": who, "from_id": f"user {who}", "text": text, **more}


TELEGRAM = [
    {"id": 1, "type": "service", "date": "2023-12-31T22:00:00", "actor": "Bo", "action": "create", "text": ""},
    said(2, "2023-12-31T22:15:00", "Bo", ["Is the shed\n", {"type": "bold", "text": "painted?"}]),
    said(3, "2023-12-31T22:15:00", "Ada", "Two coats."),
    said(4, "2023-12-31T22:16:00", "Ada", "10:30 tomorrow: the fence"),
    said(5, "2023-12-31T22:16:00", "Ada", "Bla", forwarded_from="News"),
    said(6, "2024-01-01T08:05:00", "Bo", "Good"),
    said(7, "2024-01-01T08:05:00", "Ada", "Bye"),
    said(8, "2024-01-01T08:05:00", None, ""),
]
PLAIN = [
    ("Bo", "Is the shed\npainted?"),
    ("Ada", "Two coats."),
    ("Ada", "10:30 tomorrow: the fence"),
    ("Bo", "Good"),
    ("Ada", "Bye"),
]
STAMPS = ["2023-12-31T12:15:00+00:00"] * 3 + ["2024-01-01T12:05:00+00:00"] * 2
MILLISECONDS = [1_704_024_900_000, 1_704_024_900_001, 1_704_024_900_002, 1_704_110_700_000, 1_704_110_700_001]
EXPORTS = {
    "telegram": {"name": "Bo", "type": "personal_chat", "id": 1, "messages": TELEGRAM},
    "telegram with stamps": {
        "messages": [
            {"type": "message", "date_unixtime": str(stamp // 1000), "from": who, "text": words}
            for (who, words), stamp in zip(PLAIN, MILLISECONDS, strict=True)
        ]
    },
    "telegram without dates": {"name": "Bo", "messages": [{**each, "date": None} for each in TELEGRAM[1:4]]},
    "discord": {
        "guild": {}, "channel": {}, "messages": [
            {"id": "1", "timestamp": stamp, "content": words, "author": {"id": "7", "name": who.lower(), "nickname": who}}
            for (who, words), stamp in zip(PLAIN, STAMPS, strict=True)
        ],
    },
    "signal-export": [{"date": stamp, "sender": who, "body": words} for (who, words), stamp in zip(PLAIN, STAMPS, strict=True)],
    "signal": {
        "messages": [
            {"type": "outgoing" if who == "Ada" else "incoming", "conversationId": "c", "sent_at": stamp, "body": words}
            for (who, words), stamp in zip(PLAIN, MILLISECONDS, strict=True)
        ]
    },
    "slack": [
        {"type": "message", "subtype": "channel_join", "user": "U7", "ts": "1704024000.000000", "text": "<@U7> has joined"},
        *(
            {"type": "message", "user": who, "ts": f"{stamp / 1000:.6f}", "text": words}
            for (who, words), stamp in zip(PLAIN, MILLISECONDS, strict=True)
        ),
    ],
    "slack, the newest first": {
        "ok": True, "messages": [
            {"type": "message", "user": f"U{who}", "user_profile": {"display_name": "", "real_name": who},
             "ts": f"{stamp / 1000:.6f}", "text": words}
            for (who, words), stamp in reversed(list(zip(PLAIN, MILLISECONDS, strict=True)))
        ],
    },
    "matrix": {
        "room_name": "Shed", "messages": [
            {"type": "m.room.message", "sender": "Bo", "origin_server_ts": 1_704_024_800_000,
             "content": {"msgtype": "m.image", "body": "shed.png"}},
            *(
                {"type": "m.room.message", "sender": who, "origin_server_ts": stamp,
                 "content": {"msgtype": "m.text", "body": words}}
                for (who, words), stamp in zip(PLAIN, MILLISECONDS, strict=True)
            ),
            {"type": "m.room.message", "sender": "Ada", "origin_server_ts": 1_704_110_800_000,
             "content": {"msgtype": "m.text", "body": "* Bye!", "m.new_content": {"body": "Bye!"}}},
            {"type": "m.room.member", "sender": "Bo", "origin_server_ts": 1_704_110_800_001,
             "content": {"membership": "leave"}},
        ],
    },
    "meta": {
        "participants": [{"name": "Bo"}], "messages": [
            {"sender_name": who, "timestamp_ms": stamp, "content": words}
            for (who, words), stamp in reversed(list(zip(PLAIN, MILLISECONDS, strict=True)))
        ] + [{"sender_name": "Bo", "timestamp_ms": 1_600_000_000_000, "photos": [{}]}] * 9,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", EXPORTS)
def test_json_exports_of_messengers_are_the_same_chats(tmp_path, name):
    one_day = [BO_AND_ADA[0]] if name == "telegram without dates" else BO_AND_ADA
    assert chats(tmp_path, "result.json", json.dumps(EXPORTS[name], indent=1)) == one_day


def test_one_message_a_line_and_one_message_a_row_are_the_same_chats(tmp_path):
    for records in (EXPORTS["signal-export"], EXPORTS["slack"], EXPORTS["matrix"]["messages"]):
        assert chats(tmp_path, "data.jsonl", "\n".join(map(json.dumps, records))) == BO_AND_ADA
    assert chats(tmp_path, "matrix.json", json.dumps(EXPORTS["matrix"]["messages"])) == BO_AND_ADA
    rows = [f'7,{who},{stamp},"{words}",,' for (who, words), stamp in zip(PLAIN, STAMPS, strict=True)]
    assert chats(tmp_path, "a.csv", "\n".join(["AuthorID,Author,Date,Content,Attachments,Reactions", *rows])) == BO_AND_ADA


def test_a_whole_account_knows_its_owner(tmp_path):
    account = {
        "personal_information": {"user_id": " Ada", "first_name": "Ada"},
        "chats": {"list": [EXPORTS["telegram"], {"name": "empty", "messages": []}]},
    }
    assert chats(tmp_path, "result.json", json.dumps(account), None) == BO_AND_ADA
    assert chats(tmp_path, "signal.json", json.dumps(EXPORTS["signal"]), None) == BO_AND_ADA


def test_slack_s_written_out_signs_are_signs(tmp_path):
    said = [{"type": "message", "user": who, "ts": "1704024000.0001", "text": "a &lt; b &amp; c"} for who in ("Bo", "Ada")]
    assert chats(tmp_path, "2024-01-01.json", json.dumps(said)) == [(("user", "a < b & c"), ("assistant", "a < b & c"))]


def test_meta_s_broken_letters_are_mended(tmp_path):
    words = "Grüße 😀".encode().decode("latin-1")
    names = ("Bo", "Müde".encode().decode("latin-1"))
    messages = [{"sender_name": who, "timestamp_ms": 1_704_000_000_000, "content": words} for who in names]
    assert chats(tmp_path, "message_1.json", json.dumps({"messages": messages}), ["Müde"]) == [
        (("user", "Grüße 😀"), ("assistant", "Grüße 😀"))
    ]


def test_one_s_own_messages_alone_are_a_text(tmp_path):
    package = [
        {"ID": 1, "Timestamp": "2024", "Contents": "First", "Attachments": ""},
        {"ID": 2, "Timestamp": "2024", "Contents": "Second"},
    ]
    assert chats(tmp_path, "messages.json", json.dumps(package), None) == ["First\nSecond"]
    assert chats(tmp_path, "messages.csv", "ID,Timestamp,Contents,Attachments\n1,2024,First,\n2,2024,Second,\n", None) == [
        "First\nSecond"
    ]
    assert chats(tmp_path, "a.txt", "31.12.23, 22:15 - Ada: milk\n31.12.23, 22:16 - Ada: bread") == ["milk\nbread"]


def test_who_is_the_owner_is_asked_once_with_the_names_that_were_found(tmp_path):
    (tmp_path / "a.txt").write_text("31.12.23, 22:15 - Bo: hi\n31.12.23, 22:15 - Ada: yo\n31.12.23, 22:15 - Ada: ho")
    (tmp_path / "b.txt").write_text("[31.12.23, 22:15:01] Cy: hi\n[31.12.23, 22:15:30] Ada: yes")
    asked = []
    reading = documents.read([tmp_path], ask=lambda names: asked.append(names) or ["Ada"])
    assert asked == [Counter(Ada=3, Bo=1, Cy=1)]
    assert [content(document) for found in reading.files.values() for document in found] == [
        (("user", "hi"), ("assistant", "yo\nho")), (("user", "hi"), ("assistant", "yes")),
    ]  # fmt: skip
    (tmp_path / "c.txt").write_text("[31.12.23, 22:15:01] Cy: hi\n[31.12.23, 22:15:30] Bo: yes")
    left = documents.read([tmp_path], ["ada"]).left
    assert {reason: str(each) for reason, each in left.items()} == {"a conversation without an answer of yours": "c.txt"}
    with pytest.raises(ComigsError, match=r'nobody is called Dora there, but "Ada", "Bo", "Cy"'):
        documents.read([tmp_path], ["Dora"])


def test_without_a_name_a_conversation_is_a_text(tmp_path):
    text = "31.12.23, 22:15 - Bo: hi\n31.12.23, 22:15 - Ada: yo"
    assert chats(tmp_path, "a.txt", text, me=()) == ["Bo: hi\nAda: yo"]


# Chat tools -----------------------------------------------------------------------------------------------------------


def node(name, parent, children, role=None, parts=None, **more):
    message = role and {"author": {"role": role}, "content": {"content_type": more.pop("kind", "text"), "parts": parts}, **more}
    return {name: {"id": name, "parent": parent, "children": children, "message": message}}


TREE = {
    **node("root", None, ["s"]),
    **node("s", "root", ["q"], "system", [""], metadata={"is_visually_hidden_from_conversation": True}),
    **node(
        "q", "s", ["bad", "t"], "user", [{"content_type": "image_asset_pointer"}, "Is the shed painted?"], kind="multimodal_text"
    ),
    **node("bad", "q", [], "assistant", ["A retry that was not taken."]),
    **node("t", "q", ["c"], "assistant", None, kind="thoughts"),
    **node("c", "t", ["o"], "assistant", ["search(shed)"], recipient="browser"),
    **node("o", "c", ["a"], "tool", ["result"]),
    **node("a", "o", ["a2"], "assistant", ["Two coats."]),
    **node("a2", "a", [], "assistant", ["It is dry."]),
}
QUESTION = "Is the shed painted?"
PARTS = [{"type": "text", "text": QUESTION}, {"type": "tool_result", "text": "no"}]
CLAUDE = {
    "uuid": "x", "name": "Shed", "chat_messages": [
        {"sender": "human", "text": QUESTION, "content": PARTS}, {"sender": "assistant", "text": "Two coats.\nIt is dry."},
        {"sender": "human", "text": ""},
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    "value",
    [
        [{"title": "Shed", "mapping": TREE, "current_node": "a2"}],
        {"title": "Shed", "mapping": TREE},
        {"mapping": TREE, "current_node": "gone"},
        [CLAUDE],
    ],
    ids=["chatgpt", "chatgpt, last leaf", "chatgpt, damaged", "claude"],
)
def test_a_chat_tool_s_thread_is_read_as_it_was_shown(tmp_path, value):
    path = tmp_path / "conversations.json"
    path.write_text(json.dumps(value))
    reading = documents.read([path])
    assert [content(document) for document in reading.files[path]] == [
        (("user", "Is the shed painted?"), ("assistant", "Two coats.\nIt is dry."))
    ]
    assert reading.tools == [path]


def test_of_a_chat_tool_one_s_own_messages_are_learned_on_request(tmp_path):
    more = [{"sender": "human", "text": "And the fence?"}, {"sender": "assistant", "text": "No."}]
    chat = {"chat_messages": [*CLAUDE["chat_messages"][:2], *more]}
    assert chats(tmp_path, "a.json", json.dumps([chat]), ["user"]) == [
        (("user", "Two coats.\nIt is dry."), ("assistant", "And the fence?"))
    ]


def test_a_tree_that_goes_round_ends(tmp_path):
    tree = {**node("a", "b", ["b"], "user", ["Hi"]), **node("b", "a", ["a"], "assistant", ["Yo"])}
    assert chats(tmp_path, "a.json", json.dumps([{"mapping": tree, "current_node": "b"}])) == [
        (("user", "Hi"), ("assistant", "Yo"))
    ]


@pytest.mark.parametrize("mark", ["", "\u200e"])
@pytest.mark.parametrize("note", ["This message was edited", "Diese Nachricht wurde bearbeitet", "Se editó este mensaje."])
def test_what_whatsapp_puts_behind_edited_words_is_not_learned(tmp_path, mark, note):
    head = "31.12.23, 22:15 - "
    text = f"{head}Bo: Is it dry? {mark}<{note}>\n{head}Ada: Yes, since\nnoon {mark}<{note}>\n"
    text += f"{head}Bo: <b>Good</b>\n{head}Ada: x <y>\n"
    expected = (("user", "Is it dry?"), ("assistant", "Yes, since\nnoon"), ("user", "<b>Good</b>"), ("assistant", "x <y>"))
    assert chats(tmp_path, "a.txt", text) == [expected]


NOTICES = [
    'Bo created group "Trip: June"', 'Bo changed the subject from "Trip: May" to "Trip: June"', "Bo a créé « Été : juin »",
    'Bo changed the group name from "June" to "Trip: June"', "Bo hat die Gruppe „Reise: Juni“ erstellt", "Bo 创建了“旅行: 六月”",
]  # fmt: skip


@pytest.mark.parametrize("notice", NOTICES)
def test_a_notice_with_a_colon_in_quotes_has_no_author(tmp_path, notice):
    head = "31.12.23, 22:15 - "
    text = f'{head}{notice}\n{head}Bo "the builder": He said "no: never"\n{head}Ada: Yes\n'
    path = tmp_path / "a.txt"
    path.write_text(text)
    seen = []
    documents.read([path], ask=lambda names: seen.append(set(names)) or ["Ada"])
    assert seen == [{'Bo "the builder"', "Ada"}]
    assert chats(tmp_path, "a.txt", text) == [(("user", 'He said "no: never"'), ("assistant", "Yes"))]
