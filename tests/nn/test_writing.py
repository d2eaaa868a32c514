"""The base writes: many rows at once, with cached keys and values."""

import pytest

from comigs_edge.nn.weights import open_base
from comigs_edge.nn.writing import rows_at_once, write
from tests.conftest import llama_logits
from tests.tiny import write_llama

PROMPTS = [[5, 90, 33], [200], [17, 18, 19, 20, 21]]
BASES = {
    "llama": {},
    "rope factors, untied": {"rope_factors": True, "tied": False},
    "qwen2": {"architecture": "qwen2", "bias": True},
    "qwen3": {"architecture": "qwen3", "head_norms": True, "head": 32},
}


@pytest.mark.parametrize("options", BASES.values(), ids=BASES.keys())
def test_at_temperature_zero_the_base_writes_what_llama_cpp_finds_likeliest(tmp_path, options):
    path = write_llama(tmp_path / "base.gguf", **options)
    for prompt, written in zip(PROMPTS, write(open_base(path), PROMPTS, 12, 0.0, ends=[]), strict=True):
        assert len(written) == 12
        assert written[: len(prompt)] == prompt
        assert llama_logits(path, written[:-1]).argmax(-1).tolist()[len(prompt) - 1 :] == written[len(prompt) :]


def test_a_base_that_stays_in_its_file_writes_the_same(tiny_path, tiny_base):
    assert write(open_base(tiny_path, keep=False), PROMPTS, 12, 1.0, [2]) == write(tiny_base, PROMPTS, 12, 1.0, [2])


def test_what_the_base_writes_ends_with_the_first_end(tiny_base):
    (written,) = write(tiny_base, [[5, 90, 33]], 12, 0.0, ends=[])
    assert write(tiny_base, [[5, 90, 33]], 12, 0.0, ends=[written[5]])[0] == written[: written.index(written[5], 3) + 1]


def test_neither_an_end_in_a_prompt_nor_one_that_would_be_written_there_ends_a_row(tiny_base):
    (written,) = write(tiny_base, [[5]], 12, 0.0, ends=[])
    end = written[1]
    short, long = [5], [5, 90, end, 18]  # behind 5 the base writes the end: the short one has ended there
    alone = [write(tiny_base, [prompt], 12, 0.0, [end])[0] for prompt in (short, long)]
    assert alone[0] == [5, end]
    assert (alone[1][:4], len(alone[1])) == (long, 12)
    assert write(tiny_base, [short, long], 12, 0.0, [end]) == alone


def test_rows_are_read_until_the_last_one_has_ended(tiny_base):
    (written,), seen = write(tiny_base, [[5]], 12, 0.0, ends=[]), []
    for ends in ([written[1]], [written[4]], []):
        seen.append([])
        write(tiny_base, [[5]], 12, 0.0, ends, progress=lambda *done: seen[-1].append(done))
    assert seen == [[(place, 12) for place in range(count)] for count in (1, written.index(written[4], 1), 11)]


def test_a_prompt_that_fills_its_row_is_cut_and_nothing_is_written(tiny_base):
    assert write(tiny_base, [[*range(5, 25)], [5]], 12, 0.0, []) == [[*range(5, 17)], write(tiny_base, [[5]], 12, 0.0, [])[0]]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_tokens_are_drawn_as_often_as_llama_cpp_finds_them_likely(tiny_path, tiny_base, temperature):
    drawn = [row[-1] for seed in range(8) for row in write(tiny_base, [[5, 90]] * 500, 3, temperature, [], seed)]
    likely = (llama_logits(tiny_path, [5, 90])[-1] / temperature).softmax(-1)
    for token in likely.topk(3).indices.tolist():
        share = float(likely[token])
        assert abs(drawn.count(token) / 4000 - share) < 4 * (share * (1 - share) / 4000) ** 0.5


def test_another_seed_writes_another_text(tiny_base):
    one, same, other = (write(tiny_base, [[5, 90]] * 9, 9, 1.0, [], seed) for seed in (1, 1, 2))
    assert one == same != other


def test_long_rows_are_written_few_at_a_time(tiny_base):
    assert rows_at_once(tiny_base, 128) == 64
    assert rows_at_once(tiny_base, 1 << 17) == 128 * 2**20 // (2 * 2 * 2 * 2**17 * 16 * 2)
    assert rows_at_once(tiny_base, 1 << 24) == 1
