"""Which way of drawing answers goes before which."""

import pytest

from comigs_edge import llamacpp
from comigs_edge.data.tokenizer import Tokenizer
from comigs_edge.inference.chat import Chat
from comigs_edge.inference.sampling import Sampling, choose_sampling
from tests.base.test_wrong_files import KIND, rewritten

MODELS_OWN = {"general.sampling.temp": "0.3", "general.sampling.min_p": "0.15", "general.sampling.penalty_repeat": "1.05"}


def test_the_persons_wish_goes_before_the_models_and_that_before_the_defaults():
    assert choose_sampling({}) == Sampling()
    assert choose_sampling(MODELS_OWN) == Sampling(temperature=0.3, min_p=0.15, repeat_penalty=1.05)
    assert choose_sampling(MODELS_OWN, temperature=0.0, top_p=None) == Sampling(temperature=0.0, min_p=0.15, repeat_penalty=1.05)
    assert choose_sampling({"general.sampling.top_k": "20"}) == Sampling(top_k=20, repeat_penalty=1.0)


@pytest.mark.parametrize("odd", ["", "warm", "nan", "-1", "1e9"])
def test_an_odd_value_of_a_model_is_not_taken(odd):
    assert choose_sampling({"general.sampling.temp": odd}) == Sampling()


def test_the_models_own_values_reach_llama_cpp(ready, run, tmp_path, tiny_path, monkeypatch):
    own = {"general.sampling.temp": (0.25, KIND.FLOAT32), "general.sampling.top_k": (20, KIND.INT32)}
    base = rewritten(tmp_path / "own.gguf", tiny_path, own)
    run("init", "--force", "--base", base)
    seen, real = [], llamacpp.llama_cpp.Llama.generate
    monkeypatch.setattr(
        llamacpp.llama_cpp.Llama, "generate", lambda self, ids, **ways: seen.append(ways) or real(self, ids, **ways)
    )
    run("chat", "--base", "--prompt", "hen")
    run("chat", "--base", "--prompt", "hen", "--temperature", "0")
    assert [ways["temp"] for ways in seen] == [0.25, 0.0]
    assert {ways["top_k"] for ways in seen} == {20}
    assert {ways["repeat_penalty"] for ways in seen} == {1.0}


def test_a_penalty_keeps_the_likeliest_answer_from_going_round_in_circles(tiny_path):
    def distinct(penalty):
        way = Sampling(temperature=0.0, repeat_penalty=penalty)
        chat = Chat(tiny_path, (), Tokenizer(tiny_path), "", 256, 1, way, 60)
        "".join(chat.answer("hen?"))
        ids = chat.tokenizer.chat(tuple(chat.messages), for_answer=False).ids
        return len(set(ids)) / len(ids)

    assert distinct(2.0) > distinct(1.0)
