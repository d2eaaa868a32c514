"""Whether personal models still end and still follow instructions: the 50 questions of `sampling` to the base and to each home's.

    python -m benchmarks.figures.endings HOME...

Every home has one trained model of the default base. Answers are drawn as `comigs-edge chat` draws them; the base's likeliest
answers are compared with the personal model's, up to 128 tokens. Writes endings.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
from pathlib import Path

from benchmarks.common import result_file, run, write_json
from benchmarks.figures.sampling import WAYS, answers, draw
from comigs_edge import llamacpp
from comigs_edge.base.catalogue import DEFAULT_BASE, find_base
from comigs_edge.data.tokenizer import Tokenizer

WAY = "llama.cpp repeat 1.1"  # the default of `[chat]`
LIKELIEST = 128  # tokens of an answer that is compared


def measure(path: Path) -> tuple[dict[str, float], list[list[int]]]:
    """The figures of one model, and its likeliest answers in tokens."""
    llama, tokenizer = llamacpp.load(path, n_ctx=1024, n_threads=1, n_threads_batch=1), Tokenizer(path)
    return answers(llama, tokenizer, WAYS[WAY]), [said for said, _ in draw(llama, tokenizer, {"temp": 0.0}, LIKELIEST)]


def compare(base: list[list[int]], personal: list[list[int]]) -> dict[str, float]:
    """The share of answers that are the same to the last token, and of the base's answer what is before the first other."""
    common = [
        sum(1 for _ in itertools.takewhile(lambda both: both[0] == both[1], zip(one, other, strict=False)))
        for one, other in zip(base, personal, strict=True)
    ]
    return {
        "same_answers": statistics.mean(one == other for one, other in zip(base, personal, strict=True)),
        "same_beginning": statistics.mean(same / max(1, len(one)) for same, one in zip(common, base, strict=True)),
    }  # fmt: skip


def main() -> None:
    """Reads the homes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("homes", type=Path, nargs="+")
    homes = parser.parse_args().homes
    table: dict[str, dict[str, object]] = {}
    figures, likeliest = measure(find_base(DEFAULT_BASE)[1])
    table["base"] = {**figures}
    print("base", table["base"], flush=True)
    for home in homes:
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / "personal.gguf"
            run(home, "export", "--output", model)
            shown = json.loads(run(home, "models", "show", "--json"))
            figures, said = measure(model)
        kept = {"steps": shown["expert_steps"], "elsewhere": shown["measured"]["elsewhere"]}
        table[home.name] = {**figures, **compare(likeliest, said), **kept}
        print(home.name, table[home.name], flush=True)
    write_json(result_file("endings.json"), {"way": WAYS[WAY], "models": table})


if __name__ == "__main__":
    main()
