"""The chat template of a base, rendered as transformers and llama.cpp render it, with the messages kept apart from its text.

While a template is rendered, each message is a place that stands for its content; so what a person wrote is never taken for
the template's own text, and what an assistant said is known to the letter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

from comigs_edge.data.document import Message
from comigs_edge.errors import ComigsError

# For a base without a template: ChatML, which llama.cpp falls back to as well.
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MAX_TURNS = 3_000_000  # of all loops together: about two seconds
MAX_TEXT = 1_000_000  # characters that one multiplication may make
_PLACE = re.compile("[\ue000\ue002](\\d+)\ue001")  # \ue002: inside a JSON string
_THOUGHTS = r"\A\s*<((?:\w+:)?think(?:ing)?)>.*?(?:</\1>\s*|\Z)"
PROBE = (Message("user", "?"), Message("assistant", "!"))  # the simplest chat with an answer
# How a chat is handed over: whether content is a list of parts, as for pictures, and what stands for no tools.
_FORMS: tuple[tuple[bool, list[str] | None], ...] = ((False, None), (False, []), (True, None), (True, []))

Part = tuple[str, Message | None]  # text of the template, or a message's content and the message
Turn = tuple[str, str]  # role, and the place of the content


class ChatTemplate:
    """A template and the tokens that it may name (`bos_token`, ...); raises `ComigsError` if it cannot be compiled.

    `thinking`: prompts of a thinking base ask for thoughts before the answer.
    """

    def __init__(self, source: str, tokens: dict[str, str], thinking: bool = False) -> None:
        self.source, self._tokens, self._thinking = source, tokens, thinking
        self._environment = _Environment()
        try:
            self._template = self._environment.from_string(self._environment.counting(source))
        except (jinja2.TemplateError, RecursionError) as error:
            raise ComigsError(f"the base's chat template cannot be read ({error})") from error
        # A thinking base's template cuts whatever ends in </think>, as the prompt may have opened it.
        self._thoughts = re.compile(_THOUGHTS + (r"|\A.*</think>\s*" if "</think>" in source else ""), re.DOTALL)
        self._form = next(filter(self._holds_question, _FORMS), _FORMS[0])

    def render(self, messages: tuple[Message, ...], for_answer: bool, day: datetime | None = None) -> list[Part]:
        """A chat in pieces, on a `day` (default: today), without the thoughts in earlier answers.

        Raises `ComigsError` for a chat that the template refuses, or of which it leaves out what matters.
        """
        self._environment.day = day
        messages = tuple(self._without_thoughts(message) for message in messages)
        places = [f"\ue000{i}\ue001" if message.content else "" for i, message in enumerate(messages)]
        turns = [(message.role, place) for message, place in zip(messages, places, strict=True)]
        rendered = self._render_merging(turns, for_answer)
        if not for_answer and len(turns) > 1 and [role for role, _ in turns[-2:]] == ["user", "assistant"]:
            rendered = self._begin_as_asked(rendered, turns)
        parts = list(_parts(rendered, messages))
        _check_kept(messages, [message for _, message in parts if message], for_answer)
        return parts

    def after_answer(self) -> str:
        """The template's text behind an answer; raises `ComigsError` if it refuses the simplest chat."""
        parts = self.render(PROBE, for_answer=False)
        last = max(index for index, (_, message) in enumerate(parts) if message == PROBE[1])
        return "".join(text for text, _ in parts[last + 1 :])

    def _without_thoughts(self, message: Message) -> Message:
        return message._replace(content=self._thoughts.sub("", message.content)) if message.role == "assistant" else message

    def _holds_question(self, form: tuple[bool, list[str] | None]) -> bool:
        self._form = form
        try:
            return "\ue0000\ue001" in self._render([("user", "\ue0000\ue001")], for_answer=True)
        except ComigsError:
            return False

    def _render_merging(self, turns: list[Turn], for_answer: bool) -> str:
        """The chat; a system prompt that the template refuses stands before the next message, as in llama.cpp."""
        try:
            return self._render(turns, for_answer)
        except ComigsError as refusal:
            if len(turns) < 2 or turns[0][0] != "system":
                raise
            try:
                return self._render([(turns[1][0], f"{turns[0][1]}\n{turns[1][1]}"), *turns[2:]], for_answer)
            except ComigsError:
                raise refusal from None

    def _begin_as_asked(self, rendered: str, turns: list[Turn]) -> str:
        """The last answer begins where `chat` would ask for it, also in templates that write an answer otherwise.

        Thinking bases' do: their prompt holds the thoughts that are left out, the answers of a text do not. Where they are to
        think, thoughts stand between prompt and answer: a text's answer is written as the template writes it.
        """
        if self._thinking:
            return rendered
        answer = turns[-1][1]
        try:
            prompt = self._render_merging(turns[:-1], for_answer=True)
        except ComigsError:  # nobody can ask for it
            return rendered
        if not answer or answer not in rendered or rendered.startswith(prompt):
            return rendered
        return prompt + rendered[rendered.rindex(answer) :]

    def _render(self, turns: list[Turn], for_answer: bool) -> str:
        in_parts, tools = self._form
        messages = [{"role": role, "content": [{"type": "text", "text": text}] if in_parts else text} for role, text in turns]
        self._environment.turns = 0
        try:
            return self._template.render(
                messages=messages, add_generation_prompt=for_answer, enable_thinking=self._thinking, tools=tools, documents=None,
                **self._tokens,
            )  # fmt: skip
        except Exception as error:  # the template is foreign code: it can raise anything
            raise ComigsError(f"the base's chat template refuses this chat: {error}") from error


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what an assistant says; its text is rendered as any other."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Jinja as transformers sets it up, with an end to loops and products."""

    intercepted_binops = frozenset(("*", "**"))

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _Generation])
        self.turns = 0
        self.day: datetime | None = None
        self.globals |= {"raise_exception": _refuse, "strftime_now": self._date}
        self.filters |= {"tojson": _to_json, "_counted": self._counted}

    def counting(self, source: str) -> jinja2.nodes.Template:
        """The parsed template, every loop of which is counted."""
        tree = self.parse(source)
        for loop in tree.find_all(jinja2.nodes.For):
            loop.iter = jinja2.nodes.Filter(loop.iter, "_counted", [], [], None, None, lineno=loop.lineno)
        return tree

    def _counted(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self.turns += 1
            if self.turns > MAX_TURNS:
                _refuse(f"it loops more than {MAX_TURNS:,} times")
            yield value

    def _date(self, wanted: str) -> str:
        return (self.day or datetime.now()).strftime(wanted)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and abs(right) > 64:
            _refuse(f"it asks for the power {right}")
        if operator == "*":
            text, count = (right, left) if isinstance(left, int) else (left, right)
            if hasattr(text, "__len__") and len(text) * count > MAX_TEXT:
                _refuse(f"it repeats a text {count:,} times")
        return super().call_binop(context, operator, left, right)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, **options: Any) -> str:
    return json.dumps(value, **{"ensure_ascii": False} | options).replace("\ue000", "\ue002").replace("\\ue000", "\ue002")


def _parts(rendered: str, messages: tuple[Message, ...]) -> Iterator[Part]:
    position = 0
    for place in _PLACE.finditer(rendered):
        if place.start() > position:
            yield rendered[position : place.start()], None
        message = messages[int(place[1])]
        in_json = rendered[place.start()] == "\ue002"
        yield json.dumps(message.content, ensure_ascii=False)[1:-1] if in_json else message.content, message
        position = place.end()
    if position < len(rendered):
        yield rendered[position:], None


def _check_kept(messages: tuple[Message, ...], kept: list[Message], for_answer: bool) -> None:
    """What is asked must be in the prompt, and of what is learned from, something that the assistant said."""
    asked = messages[-1:] if for_answer else messages
    wanted = [message for message in asked if message.role == ("user" if for_answer else "assistant") and message.content]
    if wanted and not any(message in kept for message in wanted):
        raise ComigsError(f"the base's chat template leaves out what the {wanted[-1].role} said")
