"""A base that can think aloud: one setting says whether it does, in training and in chat."""

import json

import llama_cpp
import pytest

from comigs_edge.data.document import Message
from comigs_edge.data.tokenizer import Tokenizer
from comigs_edge.home.folder import Home
from comigs_edge.inference.chat import Chat
from comigs_edge.planning.plan import resolve
from comigs_edge.training.opening import open_training
from tests.inference.test_chat import LIKELIEST
from tests.tiny import some_text, write_llama

NO_THOUGHTS = "<think>\n\n</think>\n\n"
TEMPLATE = (  # as Qwen3's writes a prompt
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}"
    "<|im_start|>assistant\n{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


@pytest.fixture
def base(tmp_path):
    return write_llama(tmp_path / "thinking.gguf", template=TEMPLATE)


@pytest.mark.parametrize("thinking", [False, True])
def test_training_and_chat_begin_an_answer_as_the_setting_says(run, home, tmp_path, base, monkeypatch, thinking):
    run("init", "--base", base, "--expert-form", "lora")
    settings = home / "config.toml"
    assert "# thinking = false" in settings.read_text()
    settings.write_text(settings.read_text().replace("# thinking = false", f"thinking = {str(thinking).lower()}"))
    questions = [{"prompt": words, "completion": f"<think>\nhm\n</think>\n\n{words}!"} for words in some_text().split("\n\n")]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, questions)))
    run("data", "add", tmp_path / "a.jsonl")

    here = Home(home)
    here.state.mkdir(exist_ok=True)
    training, _ = open_training(here, resolve(here, here.settings(), lines=["context=64", "batch=4"])).rows
    tokenizer = Tokenizer(base)
    read = b"".join(map(tokenizer.piece, training.batch(0, len(training)).tokens.flatten().tolist())).decode(errors="replace")
    assert ("assistant\n" + NO_THOUGHTS in read) is not thinking
    assert "hm" not in read

    prompts, generate = [], llama_cpp.Llama.generate
    monkeypatch.setattr(
        llama_cpp.Llama, "generate", lambda llama, ids, **options: prompts.append(ids) or generate(llama, ids, **options)
    )
    run("chat", "--base", "--prompt", "hen")
    assert (b"".join(map(tokenizer.piece, prompts[0])).decode().endswith(NO_THOUGHTS)) is not thinking


def test_what_was_thought_aloud_is_not_in_the_next_prompt(base):
    chat = Chat(base, (), Tokenizer(base, thinking=True), "", 128, 1, LIKELIEST, 2)
    chat.messages = [Message("user", "Hi."), Message("assistant", "<think>\nlong thoughts\n</think>\n\nHello.")]
    prompts, generate = [], chat.llama.generate
    chat.llama.generate = lambda ids, **options: prompts.append(ids) or generate(ids, **options)
    "".join(chat.answer("And now?"))
    said = b"".join(map(chat.tokenizer.piece, prompts[0])).decode()
    assert "thoughts" not in said
    assert "<|im_start|>assistant\nHello.<|im_end|>" in said
