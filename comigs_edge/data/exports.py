"""JSON exports of messengers (Telegram, Signal, Discord, Slack, Matrix, Meta's, Google Chat,
Skype) and of chat tools (ChatGPT, Claude)."""

from __future__ import annotations

import html
import re
import time
from collections.abc import Iterator
from typing import Any

from comigs_edge.data.conversation import PERSON, TOOL, Conversation, Turn

_AUTHORS = ("sender_name", "sender", "from", "author", "user_profile", "user", "creator")
_NAMES = ("nickname", "global_name", "display_name", "real_name", "name", "username")
_TEXTS = ("text", "content", "body")
_TIMES = (
    "date",
    "date_unixtime",
    "timestamp",
    "timestamp_ms",
    "sent_at",
    "received_at",
    "datetime",
    "ts",
    "origin_server_ts",
    "created_date",
)


def conversations(value: Any) -> list[Conversation] | None:
    """The conversations of a messenger's export, or None where the value is none."""
    if isinstance(value, list):  # without a frame around it only what no text of a data set looks like
        is_certain = any(isinstance(each, dict) and ("sender_name" in each or is_message(each)) for each in value[:10])
        return _conversation(value) if is_certain else None
    if not isinstance(value, dict):
        return None
    chats = value.get("chats")
    if isinstance(chats, dict) and isinstance(chats.get("list"), list):  # the whole of a Telegram account
        person = value.get("personal_information")
        own = f"user{person.get('user_id')}" if isinstance(person, dict) else ""
        found = [_conversation(chat["messages"], own) for chat in chats["list"] if _has_messages(chat)]
        return [each for some in found if some for each in some]
    talks = value.get("conversations")
    if isinstance(talks, list) and any(isinstance(talk, dict) and "MessageList" in talk for talk in talks):
        return list(_skype(talks, str(value.get("userId") or "")))
    return _conversation(value["messages"]) if _has_messages(value) else None


def is_message(value: dict[str, Any]) -> bool:
    """Whether this is a message of Signal, Slack or Matrix and no record of a data set, also without a frame around it."""
    is_slack = value.get("type") == "message" and "user" in value and "ts" in value
    return "body" in value or is_slack or ("sender" in value and "origin_server_ts" in value)


def _has_messages(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("messages"), list)


def _conversation(messages: list[Any], own: str = "") -> list[Conversation] | None:
    """One conversation from messages that say who wrote them and when; None if they do not."""
    known = [each for each in messages if isinstance(each, dict) and _is_dated(each)]
    if len(known) * 2 < len(messages) or not any(key in each for each in known for key in _TEXTS):
        return None
    times = [each for each in map(_time, known) if isinstance(each, int | float)]
    if len(times) > 1 and times[0] > times[-1]:
        known.reverse()  # Meta's begin with the newest
    turns, name = [], ""
    for message in known:
        author = str(_author(message))
        if message.get("from_id") == own or message.get("type") == "outgoing":
            name = author
        words = _words(message)
        if words and not message.get("forwarded_from"):
            turns.append(Turn(author, words, _day(message)))
    name = name or next((turn.author for turn in turns if turn.author.casefold() == "me"), "")
    return [Conversation(turns, name)]


def _skype(talks: list[Any], own: str) -> Iterator[Conversation]:
    """The talks of an account, whose messages stand there with the newest first and in HTML."""
    for talk in talks:
        if isinstance(talk, dict) and isinstance(talk.get("MessageList"), list):
            turns = [turn for message in reversed(talk["MessageList"]) if (turn := _skype_turn(message, talk, own))]
            if turns:
                yield Conversation(turns, own)


def _skype_turn(message: Any, talk: dict[str, Any], own: str) -> Turn | None:
    if not isinstance(message, dict) or message.get("messagetype") not in ("RichText", "Text"):
        return None  # calls, pictures, polls
    content, who = message.get("content"), message.get("from")
    if not isinstance(content, str) or not isinstance(who, str):
        return None
    words = html.unescape(re.sub(r"<quote\b.*?</quote>|<[^<>]*>", "", content, flags=re.DOTALL)).strip()
    of_two = "@thread" not in str(talk.get("id"))
    name = own if who == own else message.get("displayName") or (of_two and talk.get("displayName")) or who
    return Turn(str(name), words, str(message.get("originalarrivaltime"))[:10]) if words else None


def _author(message: dict[str, Any]) -> str | None:
    for key in _AUTHORS:
        who = message.get(key)
        if isinstance(who, dict):
            who = next((who[name] for name in _NAMES if who.get(name)), None)
        if isinstance(who, str) and who:
            return _mended(who.strip())
    if message.get("type") in ("incoming", "outgoing") and "body" in message:  # Signal's own tables
        return "me" if message["type"] == "outgoing" else str(message.get("conversationId") or "them")
    return None


def _is_dated(value: dict[str, Any]) -> bool:
    """Whether it says who wrote, and when or under which number."""
    return (_time(value) is not None or "id" in value) and _author(value) is not None


def _time(message: dict[str, Any]) -> str | int | float | None:
    moment = next((message[key] for key in _TIMES if isinstance(message.get(key), str | int | float)), None)
    is_number = isinstance(moment, str) and re.fullmatch(r"\d{1,16}(\.\d*)?", moment)
    return float(moment) if moment is not None and is_number else moment


def _day(message: dict[str, Any]) -> str:
    moment = _time(message)
    if moment is None:
        return ""
    if isinstance(moment, str):
        return moment[:10] if moment[:4].isdecimal() else moment.partition(" at ")[0]
    try:
        return time.strftime("%Y-%m-%d", time.localtime(moment / 1000 if moment > 1e11 else moment))
    except (OverflowError, ValueError, OSError):
        return ""


def _words(message: dict[str, Any]) -> str:
    if str(message.get("subtype", "")).startswith(("channel_", "group_", "bot_")):
        return ""  # Slack's own words
    content = next((message[key] for key in _TEXTS if message.get(key)), "")
    if isinstance(content, list):  # Telegram's parts: bold, links
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        content = "".join(part for part in parts if isinstance(part, str))
    if isinstance(content, dict):  # Matrix's; what a later one says anew stands there twice
        is_said = content.get("msgtype") in ("m.text", "m.emote") and "m.new_content" not in content
        content = content.get("body") if is_said else ""
    if "ts" in message and isinstance(content, str):
        content = html.unescape(content)  # as Slack writes it
    return _mended(content.strip()) if isinstance(content, str) else ""


def _mended(text: str) -> str:
    """Meta's exports hold UTF-8 whose bytes were taken for Latin-1."""
    if "Ã" not in text and "â" not in text and "ð" not in text:
        return text
    try:
        return text.encode("latin-1").decode()
    except UnicodeError:
        return text


def own_words(value: Any) -> str:
    """The texts of an export that has only its owner's messages (Discord's own package); none where the value is none."""
    if not isinstance(value, list) or not all(
        isinstance(each, dict) and "Contents" in each and "Timestamp" in each for each in value
    ):
        return ""
    return "\n".join(each["Contents"] for each in value if isinstance(each["Contents"], str))


# Chat tools -----------------------------------------------------------------------------------------------------------


def tool_chat(value: Any) -> Conversation | None:
    """The chat in one entry of ChatGPT's or Claude's conversations.json, or None where the value is none."""
    if not isinstance(value, dict):
        return None
    if isinstance(value.get("mapping"), dict):
        turns = list(_thread(value["mapping"], value.get("current_node")))[::-1]
    elif isinstance(value.get("chat_messages"), list):
        turns = list(_claude(value["chat_messages"]))
    else:
        return None
    return Conversation([Turn(PERSON if is_person else TOOL, words, "") for is_person, words in turns], is_tool=True)


def _thread(nodes: dict[str, Any], current: Any) -> Iterator[tuple[bool, str]]:
    """ChatGPT's tree has every retry; the thread that was shown last goes from its end to the root."""
    if not isinstance(current, str) or current not in nodes:
        current = next(
            (name for name, node in reversed(nodes.items()) if isinstance(node, dict) and not node.get("children")), ""
        )
    seen = set()
    while isinstance(current, str) and current not in seen and isinstance(node := nodes.get(current), dict):
        seen.add(current)
        current = node.get("parent")
        if isinstance(message := node.get("message"), dict) and (words := _shown(message)):
            yield message["author"]["role"] == "user", words


def _shown(message: dict[str, Any]) -> str:
    """The words of a message that a person saw."""
    author, content, about = message.get("author"), message.get("content"), message.get("metadata")
    if not isinstance(author, dict) or author.get("role") not in ("user", "assistant") or not isinstance(content, dict):
        return ""
    if message.get("recipient", "all") != "all" or (
        isinstance(about, dict) and about.get("is_visually_hidden_from_conversation")
    ):
        return ""
    parts = content.get("parts") if content.get("content_type", "text") in ("text", "multimodal_text") else None
    return "\n".join(part for part in parts if isinstance(part, str)).strip() if isinstance(parts, list) else ""


def _claude(messages: list[Any]) -> Iterator[tuple[bool, str]]:
    for message in messages:
        if isinstance(message, dict) and message.get("sender") in ("human", "assistant"):
            parts = message.get("content")
            shown = [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
            texts = [part.get("text") for part in shown if part.get("type", "text") == "text"]
            words = "\n".join(text for text in texts if isinstance(text, str)) or message.get("text")
            if isinstance(words, str) and words.strip():
                yield message["sender"] == "human", words.strip()
