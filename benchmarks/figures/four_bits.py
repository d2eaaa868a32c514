"""Both forms of expert at four bits: `python -m benchmarks.figures.four_bits TEXT [--work DIR] [--only NAME,...] [--report]`.

TEXT is a folder with de.jsonl, fr.jsonl, nl.jsonl, user04.jsonl and legal.jsonl somewhere below it. Every run is a home of
its own, trained by the command line with equal steps and about equal weights of the experts, exported, and measured in
llama.cpp on its test text; runs that were done are kept in DIR, so it can be interrupted. `--report` writes the JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from benchmarks.common import WORK, make_home, result_file, run, text_file, write_json
from comigs_edge.data.tokenizer import encode
from comigs_edge.home.folder import corpus

STEPS, TEST_TOKENS = 32, 6144
SETTINGS = "batch = 4\ncontext = 128\nrouter_period = 16\nrouter_steps = 4\nvalidation_rows = 16\n"
# Name -> text, form, format that is trained for, share of steps before fake quantisation (1: never), formats to export
TEXTS = ("de", "user04", "fr", "nl", "legal")
RUNS: dict[str, tuple[str, str, str, float, tuple[str, ...]]] = {
    "de-lora-plain": ("de", "lora", "Q4_0", 1.0, ("F16", "Q8_0", "Q4_0", "Q4_1")),
    "de-lora-0": ("de", "lora", "Q4_0", 0.0, ("F16", "Q4_0")),
    "de-parallel-plain": ("de", "parallel", "Q4_0", 1.0, ("F16", "Q8_0", "Q4_0")),
}
for _text in TEXTS:
    RUNS[f"{_text}-lora"] = (_text, "lora", "Q4_0", 0.65, ("F16", "Q4_0"))
    RUNS[f"{_text}-parallel"] = (_text, "parallel", "Q4_0", 0.0, ("F16", "Q4_0"))


def scores(home: Path, paths: dict[str, Path], tokens: int = TEST_TOKENS) -> dict[str, dict[str, float]]:
    """Bits per byte and perplexity of these files in llama.cpp, on the home's test text."""
    os.environ["COMIGS_EDGE_HOME"] = str(home)
    from comigs_edge.data.tokenizer import Tokenizer
    from comigs_edge.home import folder as homes
    from comigs_edge.inference.evaluate import in_llama_cpp, prepare

    here = homes.locate()
    settings = here.settings()
    tokenizer = Tokenizer(here.base_file)
    encoded = list(encode(corpus(here, settings), tokenizer, "test", []))
    text = prepare(encoded, tokenizer, settings.evaluate.context, tokens)
    found = {}
    for name, path in paths.items():
        score = in_llama_cpp(path, text, settings.threads("chat"))
        found[name] = {"bits_per_byte": score.bits_per_byte, "perplexity": score.perplexity}
    return found


def one(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Trains, exports and measures one run, or gives what was measured before."""
    record: Path = options.work / f"{name}.json"
    if record.exists():
        return dict(json.loads(record.read_text()))
    text, form, format_name, start, formats = RUNS[name]
    home = options.work / name
    training = options.work / f"{name}.training.json"
    if not training.exists():  # a training that was cut off is done again from its start: its seconds are wanted whole
        shutil.rmtree(home, ignore_errors=True)
        settings = {"train": SETTINGS, "quantize": f'format = "{format_name}"\nstart = {start}'}
        source = text_file(options.text, text)
        make_home(home, source, "--specialists", "1", "--expert-form", form, settings=settings)
        training.write_text(run(home, "train", "--no-pause", "--steps", str(STEPS), "--json"))
    trained = json.loads(training.read_text())
    paths, sizes = {"base": home / "base.gguf"}, {}
    for each in formats:
        paths[each] = home / f"{each}.gguf"
        exported = json.loads(run(home, "export", "--format", each, "--output", str(paths[each]), "--json"))
        sizes[each] = exported["bytes"]
    result = {
        "text": text, "form": form, "format": format_name, "start": start, "steps": STEPS,
        "training": {key: trained[key] for key in ("tokens", "seconds", "validation_loss", "validation_loss_before")},
        "scores": scores(home, paths), "bytes": sizes, "measured": time.strftime("%Y-%m-%d %H:%M"),
    }  # fmt: skip
    for path in list(paths.values())[1:]:
        path.unlink()
    record.write_text(json.dumps(result, indent=1))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path)
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--only", default=",".join(RUNS))
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    results = {name: one(name, options) for name in options.only.split(",")}
    if options.report:
        write_json(result_file("four-bits.json"), {"command": "make bench WHAT=formats TEXT=FOLDER", "runs": results})


if __name__ == "__main__":
    main()
