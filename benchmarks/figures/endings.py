"""Whether personal models still come to an end: the 50 questions of `sampling` to the base, and to the model of each home.

    python -m benchmarks.figures.endings HOME...

Every home has one trained model of the default base. Answers are drawn as `comigs-edge chat` draws them. Writes endings.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from benchmarks.common import result_file, run, write_json
from benchmarks.figures.sampling import WAYS, answers
from comigs_edge import llamacpp
from comigs_edge.base.catalogue import DEFAULT_BASE, find_base
from comigs_edge.data.tokenizer import Tokenizer

WAY = "llama.cpp repeat 1.1"  # the default of `[chat]`


def measure(path: Path) -> dict[str, float]:
    """The figures of one model."""
    llama, tokenizer = llamacpp.load(path, n_ctx=1024, n_threads=1, n_threads_batch=1), Tokenizer(path)
    return answers(llama, tokenizer, WAYS[WAY])


def main() -> None:
    """Reads the homes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("homes", type=Path, nargs="+")
    table: dict[str, dict[str, object]] = {"base": {**measure(find_base(DEFAULT_BASE)[1])}}
    print("base", table["base"], flush=True)
    for home in parser.parse_args().homes:
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / "personal.gguf"
            run(home, "export", "--output", model)
            shown = json.loads(run(home, "models", "show", "--json"))
            table[home.name] = {**measure(model), "steps": shown["expert_steps"], "elsewhere": shown["measured"]["elsewhere"]}
        print(home.name, table[home.name], flush=True)
    write_json(result_file("endings.json"), {"way": WAYS[WAY], "models": table})


if __name__ == "__main__":
    main()
