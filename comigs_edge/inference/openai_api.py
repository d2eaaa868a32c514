"""OpenAI's chat and text completions as JSON: what is asked for, and the shapes of answers and errors.

Fields that change nothing here (`user`, `metadata`, ...) are ignored; those that would change the answer are refused.
"""

from __future__ import annotations

import re
import secrets
import time
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from comigs_edge.data.document import Message

Finish = Literal["stop", "length"]
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
# What no answer here can have, with the values that ask for nothing.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "n": (None, 1), "best_of": (None, 1), "echo": (None, False), "suffix": (None, ""), "logprobs": (None, False),
    "logit_bias": (None, {}), "tools": (None, []), "functions": (None, []), "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]), "audio": (None,),
}  # fmt: skip
_INSTEAD = dict.fromkeys(("n", "best_of"), "one answer is made at a time, so leave it out and ask again")
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repeat_penalty")


class Refused(Exception):
    """A request that gets an error in place of an answer: the HTTP status, and what OpenAI's errors have."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None,
        kind: str = "invalid_request_error",
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status, self.param, self.code, self.kind = status, param, code, kind

    @property
    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One request, checked: a chat (`messages`), or a `text` to go on with."""

    model: str
    messages: tuple[Message, ...] = ()
    text: str = ""
    max_tokens: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    sampling: dict[str, float] = field(default_factory=dict)  # of SAMPLING, as far as they are asked for
    penalties: dict[str, float] = field(default_factory=dict)
    stream: bool = False
    include_usage: bool = False

    @property
    def is_chat(self) -> bool:
        """Whether it is a chat."""
        return bool(self.messages)


_Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]
_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Count = Annotated[int, msgspec.Meta(ge=1)]


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Body(msgspec.Struct, kw_only=True):
    """What both kinds of request have."""

    model: str | None = None
    max_tokens: _Count | None = None
    max_completion_tokens: _Count | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: _Share | None = None
    top_k: Annotated[int, msgspec.Meta(ge=0, le=1 << 20)] | None = None
    min_p: _Share | None = None
    repeat_penalty: Annotated[float, msgspec.Meta(ge=1, le=10)] | None = None
    frequency_penalty: _Penalty | None = None
    presence_penalty: _Penalty | None = None
    seed: int | None = None
    stop: str | Annotated[list[str], msgspec.Meta(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None


class _Part(msgspec.Struct):
    type: str
    text: str = ""


class _Message(msgspec.Struct):
    role: str
    content: str | list[_Part] | None = None


class _Chat(_Body, kw_only=True):
    messages: Annotated[list[_Message], msgspec.Meta(min_length=1)]


class _Text(_Body, kw_only=True):
    prompt: str | list[str]


_Known = TypeVar("_Known", bound=_Body)


def read_chat(body: bytes) -> Ask:
    """The request of /v1/chat/completions; raises `Refused`."""
    asked = _read(body, _Chat)
    return _ask(asked, messages=tuple(map(_message, asked.messages)))


def read_text(body: bytes) -> Ask:
    """The request of /v1/completions; raises `Refused`."""
    asked = _read(body, _Text)
    prompts = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
    if len(prompts) != 1:
        raise Refused(400, f"one prompt is answered at a time, and these are {len(prompts)}", param="prompt")
    return _ask(asked, text=prompts[0])


def _read(body: bytes, kind: type[_Known]) -> _Known:
    try:
        table: dict[str, Any] = msgspec.json.decode(body, type=dict[str, Any])
        asked = msgspec.convert(table, kind)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        place = re.search(r"\$\.(\w+)", str(error)) or re.search(r"field `(\w+)`", str(error))
        raise Refused(400, f"the request cannot be read: {error}", param=place[1] if place else None) from None
    for name, harmless in UNSUPPORTED.items():
        if name in table and table[name] not in harmless:
            text = f"{name} is not supported here; {_INSTEAD.get(name, 'leave it out')}"
            raise Refused(400, text, param=name, code="unsupported_parameter")
    return asked


def _message(asked: _Message) -> Message:
    role, content = ROLES.get(asked.role), asked.content
    if role is None:
        raise Refused(400, f"messages have the roles {', '.join(ROLES)}, and not {asked.role!r}", param="messages")
    if content is None:
        raise Refused(400, "a message has no content: expected a text, got null", param="messages")
    if isinstance(content, list):
        if kinds := {part.type for part in content} - {"text"}:
            raise Refused(400, f"this model reads text, and no {', '.join(sorted(kinds))}", param="messages")
        content = "".join(part.text for part in content)
    return Message(role, content)


def _ask(asked: _Body, *, messages: tuple[Message, ...] = (), text: str = "") -> Ask:
    given = {name: value for name, value in msgspec.structs.asdict(asked).items() if value is not None}
    stop = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
    return Ask(
        model=asked.model or "", messages=messages, text=text, max_tokens=asked.max_completion_tokens or asked.max_tokens,
        seed=asked.seed, stop=tuple(filter(None, stop)), sampling={name: given[name] for name in SAMPLING if name in given},
        penalties={name: value for name, value in given.items() if name in ("frequency_penalty", "presence_penalty")},
        stream=bool(asked.stream), include_usage=bool(asked.stream_options and asked.stream_options.include_usage),
    )  # fmt: skip


class Reply:
    """The answer to one request; `fingerprint` says which version of the model gives it."""

    def __init__(self, ask: Ask, model: str, fingerprint: str, prompt_tokens: int) -> None:
        self._is_chat, self._prompt_tokens = ask.is_chat, prompt_tokens
        self._head = {
            "id": f"{'chatcmpl' if ask.is_chat else 'cmpl'}-{secrets.token_hex(12)}",
            "object": "chat.completion" if ask.is_chat else "text_completion",
            "created": int(time.time()), "model": model, "system_fingerprint": fingerprint,
        }  # fmt: skip

    def whole(self, text: str, finish: Finish, tokens: int) -> dict[str, Any]:
        """All of it at once."""
        said = {"message": {"role": "assistant", "content": text, "refusal": None}} if self._is_chat else {"text": text}
        return self._head | {"choices": [_choice(said, finish)], "usage": self._usage(tokens)}

    def piece(self, text: str | None, finish: Finish | None = None, *, is_first: bool = False) -> dict[str, Any]:
        """A piece of a stream; without text, its beginning or its end."""
        if self._is_chat:
            delta = ({"role": "assistant", "content": ""} if is_first else {}) | ({} if text is None else {"content": text})
            return self._chunk([_choice({"delta": delta}, finish)])
        return self._chunk([_choice({"text": text or ""}, finish)])

    def usage(self, tokens: int) -> dict[str, Any]:
        """The last piece of a stream that was asked for it."""
        return self._chunk([]) | {"usage": self._usage(tokens)}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return self._head | {"object": "chat.completion.chunk" if self._is_chat else "text_completion", "choices": choices}

    def _usage(self, tokens: int) -> dict[str, int]:
        read = self._prompt_tokens
        return {"prompt_tokens": read, "completion_tokens": tokens, "total_tokens": read + tokens}


def _choice(said: dict[str, Any], finish: Finish | None) -> dict[str, Any]:
    return {"index": 0, **said, "logprobs": None, "finish_reason": finish}
