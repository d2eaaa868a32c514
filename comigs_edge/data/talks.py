"""Conversations as lines of text: WhatsApp's are in `whatsapp.py`; here KakaoTalk's, LINE's and what Telegram copies."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from comigs_edge.data import whatsapp
from comigs_edge.data.conversation import Conversation, Turn

_CLOCK = r"(?:(?:오전|오후|午前|午後|上午|下午|凌晨|早上|晚上) ?)?\d{1,2}:\d\d(?::\d\d)?(?:[ \u202f]?[AaPp]\.?[Mm]\.?)?"
_WEEKDAY = r"(?:[ \u3000]?[(（][^()（）\d]{1,12}[)）]| [^\W\d]{2,12})"
_DATE = r"\d{1,4}[./-] ?\d{1,2}[./-] ?\d{1,4}\.?"
_ASIAN = r"\d{4}[년年] ?\d{1,2}[월月] ?\d{1,2}[일日]"
_ENGLISH = r"(?:[A-Z]\w+, )?[A-Z]\w+ \d{1,2}, \d{4}"


class _Form(NamedTuple):
    """How a program writes a talk, line by line."""

    head: re.Pattern[str]  # the first line of a message: author, text and perhaps day; without an author it is a notice
    day: re.Pattern[str]  # a line of its own
    title: int  # lines that may stand above all


_FORMS = (
    _Form(  # KakaoTalk on a computer
        head=re.compile(rf"\[(?P<author>[^\[\]\n]{{1,80}})\] \[{_CLOCK}\] (?P<text>.*)"),
        day=re.compile(rf"-{{5,}} (?P<day>{_ASIAN}.*|{_ENGLISH}) -{{5,}}"),
        title=4,
    ),
    _Form(  # on a telephone
        head=re.compile(
            rf"(?P<day>{_ASIAN}|{_ENGLISH},?|{_DATE},?) (?:at )?{_CLOCK}, (?:(?P<author>[^:\n]{{1,80}}?) : )?(?P<text>.*)"
        ),
        day=re.compile(rf"(?P<day>{_ASIAN}|{_ENGLISH},?)(?: {_CLOCK}|{_WEEKDAY})?"),
        title=4,
    ),
    _Form(  # LINE
        head=re.compile(rf"{_CLOCK}\t(?:(?P<author>[^\t\n]{{1,80}})\t)?(?P<text>.*)"),
        day=re.compile(rf"(?P<day>(?:[^\W\d]{{1,9}}\.?, )?{_DATE}{_WEEKDAY}?)"),
        title=3,
    ),
    _Form(  # what Telegram's programs for computers copy
        head=re.compile(rf"(?P<author>[^\[\]\n]{{1,80}}?), \[(?P<day>[^\[\]\n]{{5,24}}?),? (?:at )?{_CLOCK}\]:?(?P<text>.*)"),
        day=re.compile(r"(?!)"),
        title=0,
    ),
)
_NO_WORDS = re.compile(
    r"\[[^\[\]\n]{1,40}\]|\(?(?:사진|동영상|이모티콘|photos?|videos?|emoticons?|stickers?)\)?(?: ?\d+(?:장)?)?|"
    r"삭제된 메시지입니다\.?|this message (?:was|has been) deleted\.?|☎.{0,40}",
    re.IGNORECASE,
)
_NOTICE = re.compile(r".{1,80}님(?:이 (?:들어왔습니다|나갔습니다)|을 (?:초대|내보)\S*)\.?.{0,40}")
_REPLY, _FORWARD = re.compile(r"\[In reply to [^\[\]\n]+\]\n"), "[Forwarded from "


def conversation(text: str) -> Conversation | None:
    """The talk of a messenger, or None where the text is none; lines of the program itself are left out."""
    if found := whatsapp.conversation(text):
        return found
    text = text.lstrip("\ufeff \r\n")
    top = [line.rstrip() for line in text[:2000].split("\n") if line.strip()][:10]
    for form in _FORMS:
        first = next((number for number, line in enumerate(top) if form.head.fullmatch(line)), len(top))
        above = [line for line in top[:first] if not form.day.fullmatch(line)]
        if first < len(top) and len(above) <= form.title:
            turns = _turns(form, text.replace("\r\n", "\n").split("\n"))
            if found := whatsapp.as_talk([turn for turn in turns if turn.text]):
                return found
    return None


def _turns(form: _Form, lines: list[str]) -> Iterator[Turn]:
    day, turn, words = "", None, list[str]()
    for line in lines:
        line = line.rstrip()
        head, new_day = form.head.fullmatch(line), form.day.fullmatch(line)
        if head or new_day or _NOTICE.fullmatch(line):
            if turn:
                yield turn._replace(text=_said("\n".join(words)))
            turn = None
        if head:
            day = head.groupdict().get("day") or day
            turn, words = Turn(head["author"].strip(), "", day) if head["author"] else None, [head["text"].strip()]
        elif new_day:
            day = new_day["day"]
        else:
            words.append(line)
    if turn:
        yield turn._replace(text=_said("\n".join(words)))


def _said(words: str) -> str:
    words = _REPLY.sub("", words.strip())
    if "\n" in words and words[0] == words[-1] == '"':
        words = words[1:-1].replace('""', '"')  # LINE puts more than one line in quotes
    return "" if _NO_WORDS.fullmatch(words) or words.startswith(_FORWARD) else words.strip()
