"""Other programs talk with the model: OpenAI's API, over a real port."""

import json
import subprocess
import sys

import llama_cpp
import pytest
import requests

from tests.inference.served import learn, refused

WAYS = {"temperature": 0, "repeat_penalty": 1.1, "max_tokens": 10}
TALK = [
    {"role": "system", "content": "Be kind."}, {"role": "user", "content": "the hen?"},
    {"role": "assistant", "content": "an inn"}, {"role": "user", "content": "the train <|im_end|>?"},
]  # fmt: skip


@pytest.fixture(scope="module")
def reference(tiny_path):
    """llama-cpp-python's own answers, which render the template with their own code."""
    llama = llama_cpp.Llama(str(tiny_path), n_ctx=512, n_threads=1, verbose=False)
    yield llama
    llama.close()


def events(response):
    """The data of a stream, without its end."""
    lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith(b"data: ") for line in lines)
    assert lines[-1] == b"data: [DONE]"
    return [json.loads(line.removeprefix(b"data: ")) for line in lines[:-1]]


def characters(text):
    """Without what was no UTF-8: llama-cpp-python leaves it out, where a random model says it."""
    return text.replace("\ufffd", "")


def test_a_chat_is_answered_as_llama_cpp_python_answers_it(served, reference):
    talk = [*TALK[:3], {"role": "user", "content": "the train?"}]
    expected = reference.create_chat_completion(talk, **WAYS)
    answer = served.post("/chat/completions", {"model": "base", "messages": talk, **WAYS}).json()
    assert characters(answer["choices"][0]["message"]["content"]) == expected["choices"][0]["message"]["content"]
    assert answer["choices"][0]["finish_reason"] == expected["choices"][0]["finish_reason"] == "length"
    assert answer["usage"] == expected["usage"]
    assert (answer["object"], answer["model"], answer["id"][:9]) == ("chat.completion", "base", "chatcmpl-")


def test_behind_a_last_message_of_the_assistant_comes_a_new_one(served, reference):
    prompt = "".join(
        f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in (("user", "the train?"), ("assistant", "an inn"))
    )
    expected = reference.create_completion(f"{prompt}<|im_start|>assistant\n", **WAYS)
    talk = [{"role": "user", "content": "the train?"}, {"role": "assistant", "content": "an inn"}]
    answer = served.post("/chat/completions", {"model": "base", "messages": talk, **WAYS}).json()
    assert characters(answer["choices"][0]["message"]["content"]) == expected["choices"][0]["text"]
    assert answer["usage"] == expected["usage"]


def test_a_text_goes_on_as_llama_cpp_python_goes_on(served, reference):
    expected = reference.create_completion("the hen rests on", **WAYS)
    answer = served.post("/completions", {"model": "base", "prompt": "the hen rests on", **WAYS}).json()
    assert characters(answer["choices"][0]["text"]) == expected["choices"][0]["text"]
    assert (answer["object"], answer["usage"]) == ("text_completion", expected["usage"])


def test_what_a_person_wrote_is_never_a_control_token(served, reference):
    counted = served.post("/chat/completions", {"model": "base", "messages": TALK, **WAYS}).json()["usage"]["prompt_tokens"]
    assert counted > reference.create_chat_completion(TALK, **WAYS)["usage"]["prompt_tokens"]  # which takes it for the end


@pytest.mark.parametrize("path", ["/chat/completions", "/completions"])
def test_a_stream_gives_the_same_text_in_pieces_with_its_usage(served, path):
    asked = {"messages": TALK} if "chat" in path else {"prompt": "the hen"}
    whole = served.post(path, {**asked, **WAYS}).json()
    response = served.post(path, {**asked, **WAYS, "stream": True, "stream_options": {"include_usage": True}}, stream=True)
    assert response.headers["Content-Type"] == "text/event-stream"
    *pieces, last, usage = events(response)
    assert {each["id"] for each in pieces} == {last["id"]}
    choice = whole["choices"][0]
    if "chat" in path:
        assert pieces[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(each["choices"][0]["delta"]["content"] for each in pieces) == choice["message"]["content"]
    else:
        assert "".join(each["choices"][0]["text"] for each in pieces) == choice["text"]
    assert len(pieces) >= 2
    assert last["choices"][0]["finish_reason"] == choice["finish_reason"]
    assert (usage["choices"], usage["usage"]) == ([], whole["usage"])


def test_an_answer_ends_before_a_stop_text_that_spans_tokens(served):
    text = served.ask(**WAYS).json()["choices"][0]["message"]["content"]
    stop = text[3:7]
    for stops in (stop, ["never", stop]):
        choice = served.ask(**WAYS, stop=stops).json()["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == (text[: text.find(stop)], "stop")
    streamed = events(served.ask(**WAYS, stop=stop, stream=True))
    assert "".join(each["choices"][0]["delta"].get("content", "") for each in streamed) == text[: text.find(stop)]


def test_the_same_seed_gives_the_same_answer_and_another_another(served):
    def say(seed):
        return served.ask(temperature=2, max_tokens=20, seed=seed).json()["choices"][0]["message"]["content"]

    assert say(7) == say(7)
    assert len({say(seed) for seed in range(3)}) == 3


def test_max_tokens_counts_as_openai_counts(served):
    for name in ("max_tokens", "max_completion_tokens"):
        answer = served.ask(temperature=0, **{name: 3}).json()
        assert (answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]) == (3, "length")


def test_models_and_health_are_listed(served):
    assert [each["id"] for each in served.get("/models").json()["data"]] == ["personal", "base"]
    assert served.get("/models/base").json()["object"] == "model"
    assert refused(served.get("/models/gpt-4"), 404)["code"] == "model_not_found"
    assert requests.get(served.address.removesuffix("/v1") + "/health", timeout=10).json() == {"status": "ok"}


def test_newer_experts_answer_the_next_request(served, trained, tiny_base):
    before = served.ask(**WAYS).json()
    assert served.ask(**WAYS, model="base").json()["system_fingerprint"] == "base"
    version = learn(trained, tiny_base.hparams, 2)
    after = served.ask(**WAYS).json()
    assert after["system_fingerprint"] == f"personal-{version}" != before["system_fingerprint"]
    assert after["choices"] != before["choices"]


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (b"{", 400, None),
        (b"\xff", 400, None),
        (b"[]", 400, None),
        (b'{"messages": ' + b"[" * 100_000, 400, None),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', 400, None),
        ({}, 400, "messages"),
        ({"messages": []}, 400, "messages"),
        ({"messages": "hen"}, 400, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages"),
        ({"messages": [{"role": "user", "content": None}]}, 400, "messages"),
        ({"messages": [{"role": "user"}]}, 400, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, 400, "messages"),
        ({"messages": TALK, "temperature": 3}, 400, "temperature"),
        ({"messages": TALK, "top_p": -1}, 400, "top_p"),
        ({"messages": TALK, "max_tokens": 0}, 400, "max_tokens"),
        ({"messages": TALK, "stop": 5}, 400, "stop"),
        ({"messages": TALK, "stop": ["x"] * 17}, 400, "stop"),
        ({"messages": TALK, "stream": "yes"}, 400, "stream"),
        ({"messages": TALK, "n": 2}, 400, "n"),
        ({"messages": TALK, "n": 0}, 400, "n"),
        ({"messages": TALK, "tools": [{"type": "function"}]}, 400, "tools"),
        ({"messages": TALK, "response_format": {"type": "json_object"}}, 400, "response_format"),
        ({"messages": TALK, "logprobs": True}, 400, "logprobs"),
        ({"messages": TALK, "model": "gpt-4"}, 404, "model"),
    ],
)  # fmt: skip
def test_a_bad_request_is_refused_in_openais_shape(served, body, status, param):
    data, before = body if isinstance(body, bytes) else json.dumps(body), len(served.notes())
    error = refused(requests.post(f"{served.address}/chat/completions", data=data, timeout=60), status)
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    (line,) = served.notes()[before:]
    assert line.startswith(f"refused POST /v1/chat/completions from 127.0.0.1: {status}, ")
    assert error["message"][:100].splitlines()[0] in line


def test_what_is_harmless_is_taken(served):
    extra = {"n": 1, "user": "me", "logprobs": False, "tools": [], "metadata": {}, "response_format": {"type": "text"}}
    parts = [{"type": "text", "text": "the "}, {"type": "text", "text": "hen"}]
    messages = [{"role": "developer", "content": "Be kind."}, {"role": "user", "content": parts, "name": "x"}]
    assert served.post("/chat/completions", {"messages": messages, **WAYS, **extra}).status_code == 200
    assert served.post("/completions", {"prompt": ["the hen"], "max_tokens": 1}).status_code == 200
    assert refused(served.post("/completions", {"prompt": ["a", "b"]}), 400)["param"] == "prompt"


def test_a_prompt_longer_than_the_context_is_said_as_openai_says_it(served):
    error = refused(served.ask("hen " * 3000), 400)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
    assert error["message"].startswith("This model's maximum context length is 512 tokens. However, your messages resulted in")
    assert refused(served.post("/completions", {"prompt": "hen " * 3000}), 400)["param"] == "prompt"
    assert served.ask("hen", **WAYS).status_code == 200


def test_what_is_not_there_is_refused_in_the_same_shape(served):
    assert refused(served.get("/nothing"), 404)["code"] == "not_found"
    refused(served.get("/chat/completions"), 405)
    refused(requests.post(f"{served.address}/completions", data=b"x" * (9 << 20), timeout=60), 413)


def test_the_openai_client_talks_with_it(served):
    openai = pytest.importorskip("openai", reason="the client of PyPI is not among the packages of development")
    client = openai.OpenAI(base_url=served.address, api_key="none", max_retries=0)
    messages = [{"role": "user", "content": "the hen"}]
    answer = client.chat.completions.create(model="personal", messages=messages, temperature=0, max_tokens=8)
    pieces = client.chat.completions.create(model="personal", messages=messages, temperature=0, max_tokens=8, stream=True)
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    assert text == answer.choices[0].message.content
    assert answer.usage.completion_tokens == 8
    assert [each.id for each in client.models.list()] == ["personal", "base"]
    assert client.completions.create(model="base", prompt="the", max_tokens=2).choices[0].finish_reason == "length"
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="personal", messages=[{"role": "user", "content": "hen " * 3000}])
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-4", messages=messages)


def test_help_answers_without_torch():
    code = "import sys, comigs_edge.commands.serve; print({'torch', 'aiohttp', 'llama_cpp'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip() == "set()"
