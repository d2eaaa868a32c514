"""How answers end under ways of drawing them: 50 questions to a model, without a system prompt, one answer each.

    python -m benchmarks.figures.sampling [MODEL.gguf]

For each way: the share of answers that end by themselves, their mean length in tokens, and the share of 4-grams of tokens that
stood in the same answer before. An answer of 384 tokens is cut off. The seed of an answer is the question's number.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.common import result_file, write_json
from comigs_edge import llamacpp
from comigs_edge.base.catalogue import DEFAULT_BASE, find_base
from comigs_edge.data.document import Message
from comigs_edge.data.tokenizer import Tokenizer

LIMIT = 384
# The first is llama.cpp's own.
WAYS: dict[str, dict[str, float]] = {
    "llama.cpp": {"temp": 0.8, "top_p": 0.95},
    "0.7 0.9": {"temp": 0.7, "top_p": 0.9},
    "0.7 0.9 repeat 1.1": {"temp": 0.7, "top_p": 0.9, "repeat_penalty": 1.1},
    "llama.cpp repeat 1.1": {"temp": 0.8, "top_p": 0.95, "repeat_penalty": 1.1},
    "0.2 0.9": {"temp": 0.2, "top_p": 0.9},
    "0.2 0.9 repeat 1.1": {"temp": 0.2, "top_p": 0.9, "repeat_penalty": 1.1},
    "0.5 0.9 repeat 1.05": {"temp": 0.5, "top_p": 0.9, "repeat_penalty": 1.05},
}
QUESTIONS = """What is the capital of Portugal?|Why is the sky blue?|Write a short poem about rain.|How do I boil an egg?
Give me three names for a cat.|What is 17 times 6?|Tell me a joke.|Explain photosynthesis to a child.|Hi, how are you?
What should I cook tonight?|Summarise the story of Cinderella.|How does a bicycle stay upright?|What is a black hole?
Write an email to my boss: I am ill today.|Which planet is the largest?|Is a tomato a fruit?|Translate "good night" to French.
I feel sad today.|What can I do on a rainy Sunday?|How do I remove a coffee stain?|Who wrote Hamlet?|What is machine learning?
Write a haiku about winter.|Name five rivers in Europe.|How long does it take to walk ten kilometres?|What is inflation?
Give me advice for a job interview.|Why do cats purr?|Write the first sentence of a novel.|How do I learn to swim?
What is the difference between a virus and a bacterium?|Plan a day in Rome.|What does "ambiguous" mean?|Thank you!
How do I tie a tie?|List the days of the week.|What is the speed of light?|Describe the taste of a lemon.
Should I buy a dog?|What is an algorithm?|Write a Python function that adds two numbers.|How old is the universe?
What are the primary colours?|Tell me about the Roman Empire.|How do I sleep better?|What is your favourite book?
Explain what a mortgage is.|What is the plural of mouse?|Make a shopping list for pancakes.|Goodbye.""".replace("\n", "|").split(
    "|"
)


def repeated(ids: list[int], length: int = 4) -> float:
    """Share of the runs of `length` tokens that stood in the same answer before."""
    runs = [tuple(ids[start : start + length]) for start in range(len(ids) - length + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def draw(llama: Any, tokenizer: Tokenizer, way: dict[str, float], limit: int = LIMIT) -> Iterator[tuple[list[int], bool]]:
    """Each question's answer, and whether it ended by itself within `limit` tokens."""
    for number, question in enumerate(QUESTIONS):
        llama.set_seed(number)
        said: list[int] = []
        ended = False
        for token in llama.generate(tokenizer.chat((Message("user", question),), for_answer=True).ids, **way):
            if ended := tokenizer.is_end(token):
                break
            said.append(token)
            if len(said) == limit:
                break
        yield said, ended


def answers(llama: Any, tokenizer: Tokenizer, way: dict[str, float]) -> dict[str, float]:
    """The figures of one way."""
    drawn = list(draw(llama, tokenizer, way))
    return {
        "ended": statistics.mean(ended for _, ended in drawn), "mean_tokens": statistics.mean(len(said) for said, _ in drawn),
        "repeated_4_grams": round(statistics.mean(repeated(said) for said, _ in drawn), 4),
    }  # fmt: skip


def main() -> None:
    """Measures every way, with the default base unless another model is named."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else find_base(DEFAULT_BASE)[1]
    llama, tokenizer = llamacpp.load(path, n_ctx=1024, n_threads=1, n_threads_batch=1), Tokenizer(path)
    table = {}
    for name, way in WAYS.items():
        table[name] = answers(llama, tokenizer, way)
        print(name, table[name], flush=True)
    write_json(result_file("sampling.json"), table)


if __name__ == "__main__":
    main()
