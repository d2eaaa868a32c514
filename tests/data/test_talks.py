"""Talks of KakaoTalk, LINE, Telegram's clipboard, Google Chat and Skype become the same chats as WhatsApp's."""

import json

import pytest

from comigs_edge.data import documents
from tests.data.test_archives import pack
from tests.data.test_messengers import BO_AND_ADA, chats
from tests.data.test_shapes import content

TALKS = {
    "KakaoTalk, Windows, Korean": """Bo 님과 카카오톡 대화
저장한 날짜 : 2024-01-02 10:11:12

--------------- 2023년 12월 31일 일요일 ---------------
Bo님이 들어왔습니다.
[Bo] [오후 10:15] Is the shed
painted?
[Ada] [오후 10:16] Two coats.
[Ada] [오후 10:16] 10:30 tomorrow: the fence
[Bo] [오후 10:17] 사진
--------------- 2024년 1월 1일 월요일 ---------------
[Bo] [오전 8:05] Good
[Ada] [오전 8:05] Bye
[Ada] [오전 8:06] 이모티콘
""",
    "KakaoTalk, Windows, English": """KakaoTalk Chats with Bo
Date Saved : 2024-01-02 10:11:12

--------------- Sunday, December 31, 2023 ---------------
[Bo] [10:15 PM] Is the shed
painted?
[Ada] [10:16 PM] Two coats.
[Ada] [10:16 PM] 10:30 tomorrow: the fence
[Bo] [10:17 PM] Photo
--------------- Monday, January 1, 2024 ---------------
[Bo] [8:05 AM] Good
[Ada] [8:05 AM] Bye
""",
    "KakaoTalk, Android, Korean": """Bo 님과 카카오톡 대화
저장한 날짜 : 2024년 1월 2일 오전 10:11


2023년 12월 31일 오후 10:15
2023년 12월 31일 오후 10:15, Bo : Is the shed
painted?
2023년 12월 31일 오후 10:16, Ada : Two coats.
2023년 12월 31일 오후 10:16, Ada : 10:30 tomorrow: the fence
2023년 12월 31일 오후 10:17, Bo님이 나갔습니다.

2024년 1월 1일 오전 8:05
2024년 1월 1일 오전 8:05, Bo : Good
2024년 1월 1일 오전 8:05, Ada : Bye
""",
    "KakaoTalk, Android, English": """KakaoTalk Chats with Bo
Date Saved : January 2, 2024, 10:11 AM

December 31, 2023, 10:15 PM
December 31, 2023, 10:15 PM, Bo : Is the shed
painted?
December 31, 2023, 10:16 PM, Ada : Two coats.
December 31, 2023, 10:16 PM, Ada : 10:30 tomorrow: the fence

January 1, 2024, 8:05 AM
January 1, 2024, 8:05 AM, Bo : Good
January 1, 2024, 8:05 AM, Ada : Bye
""",
    "KakaoTalk, iPhone": """Bo 님과 카카오톡 대화
저장한 날짜 : 2024. 1. 2. 오전 10:11

2023년 12월 31일 일요일
2023. 12. 31. 오후 10:15, Bo : Is the shed
painted?
2023. 12. 31. 오후 10:16, Ada : Two coats.
2023. 12. 31. 오후 10:16, Ada : 10:30 tomorrow: the fence
2024년 1월 1일 월요일
2024. 1. 1. 오전 8:05, Bo : Good
2024. 1. 1. 오전 8:05, Ada : Bye
""",
    "LINE, Japanese": """[LINE] Boとのトーク履歴
保存日時：2024/01/02 10:11

2023/12/31(日)
22:15\tBo\t"Is the shed
painted?"
22:16\tAda\tTwo coats.
22:16\tAda\t10:30 tomorrow: the fence
22:17\tBo\t[写真]
22:18\t\tBoがグループに参加しました。
22:19\tメッセージの送信を取り消しました

2024/01/01(月)
08:05\tBo\tGood
08:05\tAda\tBye
08:06\tAda\t[スタンプ]
08:07\tBo\t☎ 通話時間 1:23
""",
    "LINE, English": """[LINE] Chat history with Bo
Saved on: 1/2/2024, 10:11

Sun, 12/31/2023
10:15PM\tBo\t"Is the shed
painted?"
10:16PM\tAda\tTwo coats.
10:16PM\tAda\t10:30 tomorrow: the fence
10:17PM\tBo\t[Photo]

Mon, 1/1/2024
08:05AM\tBo\tGood
08:05AM\tAda\tBye
""",
    "LINE, Chinese": """[LINE] 與Bo的聊天記錄
儲存日期：2024/01/02 10:11

2023/12/31（週日）
下午10:15\tBo\t"Is the shed
painted?"
下午10:16\tAda\tTwo coats.
下午10:16\tAda\t10:30 tomorrow: the fence
2024/01/01（週一）
上午08:05\tBo\tGood
上午08:05\tAda\tBye
""",
    "Telegram, copied": """Bo, [31.12.23 22:15]
Is the shed
painted?

Ada, [31.12.23 22:16]
[In reply to Bo]
Two coats.

Ada, [31.12.23 22:16]
10:30 tomorrow: the fence

Bo, [31.12.23 22:17]
[Photo]

Bo, [31.12.23 22:18]
[Forwarded from Cy]
News from elsewhere

Bo, [01.01.24 08:05]
Good

Ada, [01.01.24 08:05]
Bye
""",
    "Telegram, copied on a Mac": """Bo, [Dec 31, 2023 at 10:15:30 PM]:
Is the shed
painted?

Ada, [Dec 31, 2023 at 10:16:00 PM]:
Two coats.

Ada, [Dec 31, 2023 at 10:16:30 PM]:
10:30 tomorrow: the fence

Bo, [Jan 1, 2024 at 8:05:00 AM]:
Good

Ada, [Jan 1, 2024 at 8:05:10 AM]:
Bye
""",
}


@pytest.mark.parametrize("name", TALKS)
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["lf", "crlf"])
def test_a_talk_is_read_as_chats(tmp_path, name, end):
    assert chats(tmp_path, "talk.txt", "\ufeff" + TALKS[name].replace("\n", end)) == BO_AND_ADA


@pytest.mark.parametrize("text", [
    "A diary\n\n10:15\tBread\tbaked at noon\n10:30\tTea\tand cake\n11:00\tWalk\tin the wood\n",  # everybody speaks once
    "Notes\n\nBo, [31.12.23 22:15]\nsaid that the shed\n",  # words before it, and only one
    "December 31, 2023, 10:15 PM, we met.\nIt rained.\nWe went home.\nDecember 31, 2023, 11:15 PM, alone.\n",
    "[a] [b] c\n[d] [e] f\n",
])  # fmt: skip
def test_what_only_looks_like_a_talk_stays_text(tmp_path, text):
    (tmp_path / "a.txt").write_text(text)
    (document,) = documents.read([tmp_path / "a.txt"], ()).files[tmp_path / "a.txt"]
    assert document.text == text.strip()


def test_a_talk_of_kakaotalk_on_a_mac_is_a_table(tmp_path):
    rows = [
        'Date,User,Message', '2023-12-31 22:15:30,"Bo","Is the shed\npainted?"', '2023-12-31 22:16:00,"Ada","Two coats."',
        '2023-12-31 22:16:10,"Ada","10:30 tomorrow: the fence"', '2024-01-01 08:05:00,"Bo","Good"',
        '2024-01-01 08:05:01,"Ada","Bye"',
    ]  # fmt: skip
    assert chats(tmp_path, "talk.csv", "\n".join(rows)) == BO_AND_ADA


def google(name, moment, text):
    who = {"name": name, "email": f"{name}@example.org", "user_type": "Human"}
    return {"creator": who, "created_date": moment, "text": text, "topic_id": "t", "message_id": "m"}


GOOGLE = {"messages": [
    google("Bo", "Sunday, December 31, 2023 at 10:15:30 PM UTC", "Is the shed\npainted?"),
    google("Ada", "Sunday, December 31, 2023 at 10:16:00\u202fPM UTC", "Two coats."),
    google("Ada", "Sunday, December 31, 2023 at 10:16:10\u202fPM UTC", "10:30 tomorrow: the fence"),
    google("Bo", "Sunday, January 7, 2024 at 8:05:00\u202fAM UTC", "Good"),
    google("Ada", "Sunday, January 7, 2024 at 8:05:01\u202fAM UTC", "Bye"),
]}  # fmt: skip


def skype(who, moment, text, kind="RichText"):
    return {
        "id": moment, "displayName": None, "originalarrivaltime": moment, "messagetype": kind, "version": 1, "content": text,
        "conversationid": "8:bo", "from": who, "properties": None, "amsreferences": None,
    }  # fmt: skip


SKYPE = {"userId": "8:ada", "exportDate": "2024-01-02", "conversations": [
    {"id": "48:notes", "displayName": None, "MessageList": []},
    {"id": "8:bo", "displayName": "Bo", "version": 1, "MessageList": [
        skype("8:ada", "2024-01-01T08:05:01Z", "Bye <ss type=\"smile\"></ss>"),
        skype("8:bo", "2024-01-01T08:05:00Z", "<quote author=\"Ada\">Two coats.</quote>Good"),
        skype("8:bo", "2023-12-31T22:17:00Z", "<URIObject>a picture</URIObject>", "RichText/UriObject"),
        skype("8:ada", "2023-12-31T22:16:10Z", "10:30 tomorrow: <b raw_pre=\"*\">the fence</b>"),
        skype("8:ada", "2023-12-31T22:16:00Z", "Two coats."),
        skype("8:bo", "2023-12-31T22:15:30Z", "Is the shed\npainted?"),
        skype("8:bo", "2023-12-31T22:15:00Z", "<partlist/>", "Event/Call"),
    ]},
]}  # fmt: skip


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("export", "me"), [(GOOGLE, ["Ada"]), (SKYPE, None)], ids=["Google Chat", "Skype"])
def test_exports_of_google_chat_and_skype_are_chats(tmp_path, export, me, packed):
    path = tmp_path / "messages.json"
    path.write_text(json.dumps(export))
    if packed:
        path = pack(tmp_path / "takeout.zip", {"Takeout/Google Chat/Groups/DM 1/messages.json": path.read_text()})
    assert [content(document) for document in documents.read([path], me).files[path]] == BO_AND_ADA


PARAGRAPH = {"context": "Bo paints sheds.", "qas": [
    {"question": "Who paints?", "id": "1", "answers": [{"text": "Bo", "answer_start": 0}, {"text": "Bo paints"}]},
    {"question": "Who sings?", "id": "2", "answers": [], "is_impossible": True},
]}  # fmt: skip
ASKED = [(("user", "Who paints?\n\nBo paints sheds."), ("assistant", "Bo"))]


@pytest.mark.parametrize("value", [
    {"version": "v2.0", "data": [{"title": "Sheds", "paragraphs": [PARAGRAPH]}]},
    {"id": "1", "title": "Sheds", "context": "Bo paints sheds.", "question": "Who paints?",
     "answers": {"text": ["Bo", "Bo paints"], "answer_start": [0, 0]}},
], ids=["nested", "flat"])  # fmt: skip
def test_questions_of_squad_are_asked_with_their_paragraph(tmp_path, value):
    (tmp_path / "a.json").write_text(json.dumps(value))
    reading = documents.read([tmp_path / "a.json"])
    assert [content(document) for document in reading.files[tmp_path / "a.json"]] == ASKED
    assert list(reading.left) == (["a question without an answer"] if "data" in value else [])


def test_a_notebook_of_format_3_is_its_words_and_code(tmp_path):
    cells = [
        {"cell_type": "heading", "level": 1, "source": ["Shed"]}, {"cell_type": "markdown", "source": ["Paint."]},
        {"cell_type": "code", "input": ["print(1)"], "outputs": [{"text": "1"}]}, {"cell_type": "raw", "source": "raw"},
    ]  # fmt: skip
    (tmp_path / "a.ipynb").write_text(json.dumps({"nbformat": 3, "worksheets": [{"cells": cells}]}))
    (document,) = documents.read([tmp_path / "a.ipynb"]).files[tmp_path / "a.ipynb"]
    assert document.text == "Shed\n\nPaint.\n\nprint(1)"
