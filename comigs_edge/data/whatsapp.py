"""WhatsApp's text exports, in the date forms of Android and iOS in every language, and what looks like them (Signal's)."""

from __future__ import annotations

import re

from comigs_edge.data.conversation import Conversation, Turn

_INVISIBLE = dict.fromkeys(map(ord, "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff"))
_SPACES = dict.fromkeys(map(ord, "\u00a0\u202f\u2009"), " ")
# A date of three numbers, a word or two, a time, a word or two (PM, Uhr, p. m.), and "] ", " - ", ", " or ": " before the author.
_HEAD = re.compile(
    r"\[?(?P<day>\d{1,4}[./年-] ?\d{1,2}[./月-] ?\d{1,4}日?)\.?[,،]?[^\d\n\]]{0,16}?\d{1,2}[:.]\d\d(?:[:.]\d\d)?"
    r"[^\d\n\]]{0,12}?(?:\] ?| [-–] |, |: )(?P<rest>.*)"
)
_AUTHOR = re.compile(r"(?P<author>[^:\n]{1,80}?) ?: ?(?P<text>.*)", re.DOTALL)
# What stands in place of a picture, a voice message or deleted words. Android has it in brackets, in every language.
_NO_WORDS = re.compile(
    r"<[^<>\n]{3,60}>|\S+\.\w{2,4} \([^()\n]{3,40}\)|null|"
    r"(?:image|video|audio|sticker|gif|document|contact card|bild|dokument|imagen|vídeo|foto|immagine|afbeelding|imagem) "
    r"(?:omitted|weggelassen|omitid[oa]|omitid[oa]|omis[e]?|omess[oa]|weggelaten|ocultad[oa])|"
    r"this message was deleted\.?|you deleted this message\.?|diese nachricht wurde gelöscht\.?|"
    r"du hast diese nachricht gelöscht\.?|se eliminó este mensaje\.?|eliminaste este mensaje\.?|"
    r"ce message a été supprimé\.?|vous avez supprimé ce message\.?|questo messaggio è stato eliminato\.?|"
    r"hai eliminato questo messaggio\.?|mensagem apagada\.?|dit bericht is verwijderd\.?",
    re.IGNORECASE,
)
_NOTICE = re.compile(  # the program's own first message, which an iPhone writes in the other person's name
    r".*(?:end-to-end|ende-zu-ende|extremo a extremo|bout en bout|ponta a ponta|crittografi|端到端|エンドツーエンド|сквозн)",
    re.IGNORECASE | re.DOTALL,
)
_EDITED = re.compile(  # what stands behind words that were changed: an iPhone has a mark before it
    r"(?<=[^\0])\0<[^<>\n]{5,60}>|"
    r"(?<=\S) ?<(?:this message was edited|diese nachricht wurde bearbeitet|se editó este mensaje|ce message a été modifié|"
    r"questo messaggio è stato modificato|(?:esta )?mensagem (?:foi )?editada|dit bericht is bewerkt)\.?>$",
    re.IGNORECASE,
)
_QUOTES = (('"', '"'), ("“", "”"), ("„", "“"), ("«", "»"), ("「", "」"))
_LOG_LEVEL = re.compile(r"(?:\S*[.\s])?(?:TRACE|DEBUG|INFO|NOTICE|WARN(?:ING)?|ERROR|CRITICAL|FATAL)", re.IGNORECASE)


def conversation(text: str) -> Conversation | None:
    """The messages, or None where the text is no such export; lines of the program itself are left out."""
    if not _HEAD.match(text[:400].translate(_INVISIBLE).lstrip()[:200].translate(_SPACES)):
        return None
    text = text.replace("\u200e<", "\0<").translate(_INVISIBLE)
    turns: list[Turn] = []
    lines: list[str] | None = None  # of the message that goes on
    for line in text.strip().split("\n"):
        head = _HEAD.match(line[:200].translate(_SPACES))
        if not head:
            if lines is not None:
                lines.append(line.rstrip())
            continue
        _close(turns, lines)
        author = _AUTHOR.match(line, head.start("rest"))
        author = None if author and _is_in_quotes(author["author"], author["text"]) else author
        lines = [author["text"].strip()] if author else None
        if author:
            turns.append(Turn(author["author"].translate(_SPACES).strip(" ~"), "", head["day"]))
    _close(turns, lines)
    turns = [turn for number, turn in enumerate(turns) if turn.text and not (number == 0 and _NOTICE.match(turn.text[:500]))]
    return as_talk(turns)


def as_talk(turns: list[Turn]) -> Conversation | None:
    """The conversation of these messages, or None where they look like a diary or a log."""
    authors = {turn.author for turn in turns}
    # Where nearly everybody speaks once it is a diary: "2024-01-01 10:00 - Dentist: bring papers".
    is_talk = len(turns) > 1 and len(authors) * 4 <= max(8, len(turns) * 3)
    if not is_talk or all(_LOG_LEVEL.fullmatch(author) for author in authors):
        return None
    return Conversation(turns, own=next((author for author in authors if author.casefold() == "me"), ""))


def _is_in_quotes(before: str, behind: str) -> bool:
    """Whether a colon stands inside quotes, as in a notice with a group's name, and so behind no author."""
    return any(
        before.count(mark) % 2 if mark == end else before.rfind(mark) > before.rfind(end)
        for mark, end in _QUOTES
        if end in behind
    )


def _close(turns: list[Turn], lines: list[str] | None) -> None:
    """Puts the words of the last message in their place."""
    if lines is not None:
        words = _EDITED.sub("", "\n".join(lines)).replace("\0", "").strip()
        turns[-1] = turns[-1]._replace(text="" if _NO_WORDS.fullmatch(words) else words)
