"""Chat templates as people's bases have them: what is scored, what is rendered, and what is said where that is not possible."""

import datetime
import os
import time

import jinja2
import pytest

from comigs_edge.data.document import Message
from comigs_edge.data.template import ChatTemplate
from comigs_edge.data.tokenizer import Tokenizer
from comigs_edge.errors import ComigsError
from tests.tiny import TEMPLATE, write_llama

CHAT = (Message("user", "the inn?"), Message("assistant", "an ant"))
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
PARTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}{{ c.text }}{% endfor %}<|im_end|>\n{% endfor %}"
)


def text(source, messages=CHAT, for_answer=False, **tokens):
    parts = ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"} | tokens).render(messages, for_answer)
    return "".join(part for part, _ in parts)


def tokenizer(tmp_path, template):
    return Tokenizer(write_llama(tmp_path / "base.gguf", template=template))


def scored(found, messages=CHAT):
    encoded = found.chat(messages, for_answer=False)
    return b"".join(found.piece(i) for i, counts in zip(encoded.ids, encoded.scored, strict=True) if counts).decode()


@pytest.mark.parametrize("space", [" ", "\n", "\n\n"])
def test_white_space_between_an_answer_and_its_end_is_scored_with_it(tmp_path, space):
    template = CHATML.replace("{{ m.content }}", "{{ m.content }}" + space.replace("\n", "{{ '\\n' }}"))
    assert scored(tokenizer(tmp_path, template)) == f"an ant{space}<|im_end|>"


def test_white_space_that_leads_to_no_end_is_not_scored(tmp_path):
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n{% endfor %}"
    assert scored(tokenizer(tmp_path, template), (*CHAT, Message("user", "on?"))) == "an ant"


def test_the_vocabularys_own_end_stands_for_one_that_it_lacks(tmp_path):
    found = tokenizer(tmp_path, TEMPLATE.replace("<|im_end|>", "<|eot_id|>"))
    assert found.lacking_end == "<|eot_id|>"
    assert scored(found) == "an ant<|im_end|>"  # the end of the tiny vocabulary
    assert found.ends_answers()
    assert not tokenizer(tmp_path, TEMPLATE).lacking_end


def test_generation_marks_and_loop_controls_are_rendered_as_jinja_without_them():
    marked = CHATML.replace("{{ m.content }}", "{% generation %}{{ m.content }}{% endgeneration %}")
    assert text(marked) == text(CHATML)
    skipping = CHATML.replace(
        "{% for m in messages %}", "{% for m in messages %}{% if m.role == 'tool' %}{% continue %}{% endif %}"
    )
    assert text(skipping) == text(CHATML)
    assert text(CHATML.replace("{% endfor %}", "{% if loop.last %}{% break %}{% endif %}{% endfor %}")) == text(CHATML)


def test_a_date_is_todays_in_a_chat_and_stays_the_same_in_a_text(tmp_path):
    found = tokenizer(tmp_path, "{{ strftime_now('%Y-%m-%d') }}\n" + TEMPLATE)
    then = datetime.datetime(2020, 2, 3, 12).timestamp()
    os.utime(tmp_path / "base.gguf", (then, then))
    found = Tokenizer(tmp_path / "base.gguf")

    def read(for_answer):
        return b"".join(map(found.piece, found.chat(CHAT[:1], for_answer).ids)).decode()

    assert read(True).startswith(f"{datetime.date.today()}\n")
    assert read(False).startswith("2020-02-03\n")


def test_a_template_that_reads_content_in_parts_gets_parts():
    assert text(PARTS) == text(CHATML)


def test_a_system_prompt_that_is_refused_stands_before_the_next_message():
    asked = (Message("system", "Be short."), *CHAT)
    assert text(NO_SYSTEM, asked) == text(CHATML, (Message("user", "Be short.\nthe inn?"), CHAT[1]))


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ functions.first }}", "functions"),
        ("{{ ().__class__.__base__.__subclasses__() }}", "__class__"),
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "leaves out what the assistant said"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    ],
)
def test_a_refusal_is_one_sentence_with_the_reason(template, reason):
    with pytest.raises(ComigsError, match=reason):
        text(template)


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
        "{{ 'x' * 10 ** 12 }}",
        "{{ 2 ** 99999999 }}",
        "{{ [1] * 1000000000 }}",
    ],
)
def test_a_template_that_never_ends_is_ended(template):
    start = time.monotonic()
    with pytest.raises(ComigsError, match=r"loops more than|repeats a text|asks for the power"):
        text(template)
    assert time.monotonic() - start < 60


def test_loops_that_are_counted_know_their_length_and_neighbours():
    source = (
        "{% for m in messages %}{{ loop.index }}/{{ loop.length }} {{ loop.last }} {{ loop.nextitem is defined }};{{ m.content }}"
    )
    source += "{% else %}none{% endfor %}"
    chat = (*CHAT, Message("user", "on?"))
    theirs = jinja2.Environment().from_string(source).render(messages=[m._asdict() for m in chat])
    assert text(source, chat, for_answer=True) == theirs


def test_a_message_inside_json_is_escaped_as_json():
    said = 'a "quote", a \\ and ü'
    rendered = text("{{ messages[0] | tojson }}", (Message("user", said),), for_answer=True)
    assert rendered == '{"role": "user", "content": "a \\"quote\\", a \\\\ and ü"}'


@pytest.mark.parametrize(
    "said", ["<think>\nhm\n</think>\n\nan ant", "<thinking>hm</thinking> an ant", "<seed:think>hm</seed:think>an ant"]
)
def test_thoughts_are_taken_out_of_what_is_trained(said):
    assert text(CHATML, (CHAT[0], Message("assistant", said))) == text(CHATML)
    assert text(CHATML, (Message("user", said),)) == f"<|im_start|>user\n{said}<|im_end|>\n"


def test_thoughts_that_the_prompt_opened_are_taken_out_where_the_template_does_so():
    thinking = CHATML + "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n</think>{% endif %}"
    said = (CHAT[0], Message("assistant", "hm\n</think>\n\nan ant"), Message("user", "on?"))
    assert "hm" not in text(thinking, said, for_answer=True)
    assert "hm" in text(CHATML, said)


def test_an_empty_message_is_empty_for_the_template():
    assert (
        text("{% for m in messages %}{{ m.content or 'nothing' }};{% endfor %}", (CHAT[0], Message("assistant", "")))
        == "the inn?;nothing;"
    )
