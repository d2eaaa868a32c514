"""The model that answers requests: which files it takes, and where an answer ends."""

from itertools import islice

import llama_cpp
import numpy as np
import pytest

from comigs_edge import llamacpp
from comigs_edge.commands.serve import Newest
from comigs_edge.data.document import Message
from comigs_edge.data.tokenizer import Tokenizer
from comigs_edge.inference.engine import Defaults, Ended, Engine, Started
from comigs_edge.inference.generation import Generation, Stopped
from comigs_edge.inference.openai_api import Ask
from comigs_edge.inference.sampling import Sampling
from tests.inference.served import learn, make_home

LIKELIEST = Sampling(temperature=0.0)
ASK = Ask(model="", messages=(Message("user", "the hen"),), max_tokens=8, sampling={"temperature": 0.0})
OPTIONS = llamacpp.context_options(context=512, threads=1, batch=64, cache="F16", mmap=True)


@pytest.fixture
def llama(tiny_path):
    loaded = llamacpp.load(tiny_path, **OPTIONS)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def tokenizer(tiny_path):
    return Tokenizer(tiny_path)


def answered(engine, name="personal"):
    started, *pieces, ended = engine.answer(name, ASK, lambda: True)
    assert isinstance(started, Started)
    assert isinstance(ended, Ended)
    return started.label, "".join(pieces)


def engine_of(home, newest):
    defaults = Defaults(system="", max_tokens=16, sampling={})
    return Engine(Tokenizer(home.base_file), newest.find, OPTIONS, defaults)


@pytest.mark.parametrize("layout", ["merged", "hot"])
def test_newer_experts_take_the_place_of_those_before(tmp_path, tiny_path, tiny_base, monkeypatch, layout):
    home = make_home(tmp_path / "home", tiny_path, "--expert-form", "lora")
    home.config_file.write_text(home.config_file.read_text().replace('# layout = "merged"', f'layout = "{layout}"'))
    loads, load = [], llamacpp.load

    def counting(path, **options):
        loads.extend([path] if "n_ctx" in options else [])
        return load(path, **options)

    monkeypatch.setattr(llamacpp, "load", counting)
    learn(home, tiny_base.hparams, 1, "lora")
    newest = Newest(home, home.settings())
    engine = engine_of(home, newest)
    first = answered(engine)
    assert answered(engine) == first
    before = len(loads)
    learn(home, tiny_base.hparams, 2, "lora")
    second = answered(engine)
    assert [label for label, _ in (first, second)] == ["personal-1", "personal-2"]
    assert first[1] != second[1]
    assert len(loads) - before == (0 if layout == "hot" else 1)  # adapters are swapped in place
    fresh = engine_of(home, Newest(home, home.settings()))
    assert answered(fresh) == second
    engine.close()
    fresh.close()


def test_experts_that_cannot_be_used_leave_those_before_in_place(tmp_path, tiny_path, tiny_base, capsys):
    home = make_home(tmp_path / "home", tiny_path)
    learn(home, tiny_base.hparams, 1)
    newest = Newest(home, home.settings())
    first = newest.find("personal")
    version = learn(home, tiny_base.hparams, 2)
    (home.adapters / f"{version:04d}" / "manifest.json").write_text("{")
    assert newest.find("personal") == first
    assert "version 2 cannot be used, continuing with the one before" in capsys.readouterr().err
    learn(home, tiny_base.hparams, 3)
    assert newest.find("personal").label == "personal-3"


def test_a_prompt_that_nobody_waits_for_is_left_in_the_middle(llama, tokenizer, tiny_path):
    prompt, asked = [int(token) for token in np.random.default_rng(0).integers(10, 200, 500)], []

    def is_wanted():
        asked.append(None)
        return len(asked) < 40  # of some hundred operations

    with pytest.raises(Stopped):
        list(Generation(llama, tokenizer, prompt, LIKELIEST, room=8, is_wanted=is_wanted))
    assert len(asked) < 50
    other = llama_cpp.Llama(str(tiny_path), n_ctx=512, n_threads=1, n_batch=64, n_ubatch=64, verbose=False)
    expected = b"".join(tokenizer.piece(token) for token in islice(other.generate(prompt, temp=0.0, repeat_penalty=1.1), 8))
    other.close()
    generation = Generation(llama, tokenizer, prompt, LIKELIEST, room=8)
    assert "".join(generation) == expected.decode("utf-8", "replace")
    assert (generation.tokens, generation.finish) == (8, "length")


def test_an_answer_that_nobody_waits_for_ends_within_a_token(llama, tokenizer):
    wanted = [True]
    pieces = iter(Generation(llama, tokenizer, [5, 6, 7], LIKELIEST, room=400, is_wanted=lambda: wanted[0]))
    next(pieces)
    wanted[0] = False
    with pytest.raises(Stopped):
        list(islice(pieces, 2))


def test_stops_cut_a_text_where_it_first_has_one_of_them(llama, tokenizer):
    whole = "".join(Generation(llama, tokenizer, [5, 6, 7], LIKELIEST, room=60))
    rng = np.random.default_rng(1)
    for _ in range(60):
        places, lengths = rng.integers(0, len(whole) - 1, 2), rng.integers(1, 6, 2)
        stops = tuple(whole[place : place + length] for place, length in zip(places, lengths, strict=True))
        generation = Generation(llama, tokenizer, [5, 6, 7], LIKELIEST, room=60, stop=(*stops, "never there"))
        assert "".join(generation) == whole[: min(whole.find(stop) for stop in stops)]
        assert generation.finish == "stop"
