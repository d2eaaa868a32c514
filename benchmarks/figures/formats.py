"""Formats and layouts side by side: `python -m benchmarks.figures.formats HOMES [--parts gap,table,speed,training,seconds]`.

HOMES is the folder in which `four_bits.py` trained: its homes de-lora, de-parallel and those of the same names with -plain
are used. Wants a quiet machine. Everything is measured in one run, speeds in turn, and written to formats.json,
each part as it is done.

gap       torch in the weights of the file against llama.cpp on the file; and llama.cpp against itself, token by token
table     every format that `export --format` lists, after training without fake quantisation: size, perplexity, tokens a
          second, a few words of an answer
speed     generation and prompt in llama.cpp against the base of the same block format
training  a step with and without fake quantisation
seconds   an export, and bringing in a new generalist
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import torch

from benchmarks.common import result_file, write_json
from comigs_edge import llamacpp
from comigs_edge.data.tokenizer import Tokenizer, encode
from comigs_edge.export import folder as models
from comigs_edge.export import hot
from comigs_edge.export.current import HOT_PARTS
from comigs_edge.export.merged import Origin, export
from comigs_edge.export.replace import replace_experts
from comigs_edge.home.config import FORMATS_TO_EXPORT, TRAINABLE, Config, Storage
from comigs_edge.home.folder import Home, corpus
from comigs_edge.inference.evaluate import TestText, in_llama_cpp, prepare
from comigs_edge.nn.adapters import Adapters
from comigs_edge.nn.model import Model
from comigs_edge.nn.weights import open_base
from comigs_edge.training.memory import tune_allocator
from comigs_edge.training.schedule import make_schedule
from comigs_edge.training.text import read_rows
from comigs_edge.training.trainer import Trainer
from quantize.formats import FILE_TYPES
from quantize.gguf_file import GGUFFile

THREADS = len(os.sched_getaffinity(0))
WINDOW, GAP_TOKENS, TABLE_TOKENS, ROUNDS = 512, 1024, 3072, 3


class Personal:
    """A trained home."""

    def __init__(self, root: Path) -> None:
        self.home = Home(root)
        self.settings: Config = self.home.settings()
        self.adapters: Adapters = models.newest_adapters(self.home, self.settings)[0]
        self.base = GGUFFile(self.home.base_file)

    def text(self, tokens: int) -> TestText:
        """Windows of the home's test text."""
        tokenizer = Tokenizer(self.home.base_file)
        encoded = list(encode(corpus(self.home, self.settings), tokenizer, "test", []))
        return prepare(encoded, tokenizer, WINDOW, tokens)


def requantised(source: Path, format_name: str, target: Path) -> Path:
    """The base in another format, by llama.cpp's own quantiser."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize = FILE_TYPES[format_name], True
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), params) == 0
    return target


def logits(path: Path, text: TestText, adapters: tuple[Path, ...] = (), batch: int = WINDOW, exact: bool = False) -> Any:
    """llama.cpp's logits of every window, one after the other, as float32 (N, V)."""
    options: dict[str, Any] = {"type_k": 0, "type_v": 0, "flash_attn": False} if exact else {}
    llama = llamacpp.load(path, n_ctx=WINDOW + 8, n_batch=batch, n_ubatch=batch, logits_all=True, n_threads=THREADS, **options)
    if adapters:
        llamacpp.LoadedAdapters(llama).use(adapters)
    found = []
    for window in text.windows:
        llama.reset()
        llama.eval(window.ids[:-1])
        found.append(llama.scores[: len(window.ids) - 1].copy())
    llama.close()
    return torch.from_numpy(np.concatenate(found))


def torch_logits(model: Model, text: TestText) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([model.logits(model(torch.tensor([window.ids[:-1]])).hidden) for window in text.windows])


def compare(reference: torch.Tensor, found: torch.Tensor, text: TestText) -> dict[str, float]:
    """Mean KL(reference || found) in nats, share of equal likeliest tokens, and change of the perplexity."""
    targets = torch.tensor([token for window in text.windows for token in window.ids[1:]])
    divergence, losses, same = 0.0, [0.0, 0.0], 0
    for start in range(0, len(targets), 256):
        a, b = (part[start : start + 256].double().log_softmax(-1) for part in (reference, found))
        divergence += float((a.exp() * (a - b)).sum())
        same += int((a.argmax(-1) == b.argmax(-1)).sum())
        for index, part in enumerate((a, b)):
            losses[index] -= float(part.gather(1, targets[start : start + 256, None]).sum())
    count = len(targets)
    change = float(np.exp((losses[1] - losses[0]) / count) - 1)
    return {"mean_kl": divergence / count, "same_top1": same / count, "perplexity_change": change}


def gap(homes: Path, work: Path) -> dict[str, Any]:
    """How far the file in llama.cpp is from what was trained."""
    found: dict[str, Any] = {}
    for name, formats in (("de-lora", ("Q4_0", "Q8_0", "F32")), ("de-parallel", ("Q4_0", "Q8_0", "F32"))):
        personal = Personal(homes / name)
        text = personal.text(GAP_TOKENS)
        model = Model(open_base(personal.home.base_file), personal.adapters)
        for each in formats:
            export(personal.base, personal.adapters, each, work / "mixture.gguf", threads=THREADS)
            model.block_format = each if each in TRAINABLE else None
            ours, theirs = torch_logits(model, text), logits(work / "mixture.gguf", text, exact=each == "F32")
            found[f"{name.removeprefix('de-')} merged {each}"] = compare(ours, theirs, text)
            if each == "Q4_0":
                alone = logits(work / "mixture.gguf", text, batch=1)
                found[f"{name.removeprefix('de-')} merged {each}, llama.cpp against itself"] = compare(theirs, alone, text)
    personal = Personal(homes / "de-lora")
    text = personal.text(GAP_TOKENS)
    for each in ("Q4_0", "Q8_0", "F32"):
        path = personal.home.base_file if each == "F32" else requantised(personal.home.base_file, each, work / "base.gguf")
        kind, base = "F32" if each == "F32" else "F16", GGUFFile(path)
        hot.write_base(base, personal.adapters, kind, work / "hot.gguf")
        paths = tuple(work / f"{part}.gguf" for part in HOT_PARTS)
        for part, target in zip(HOT_PARTS, paths, strict=True):
            hot.write_adapter(base, personal.adapters, part, kind, target, "")
        ours = torch_logits(Model(open_base(path), personal.adapters), text)
        found[f"lora hot {each}"] = compare(ours, logits(work / "hot.gguf", text, paths, exact=each == "F32"), text)
    return found


def pace(llama: llama_cpp.Llama, prompt: list[int], count: int = 48) -> tuple[float, float]:
    """Tokens a second: reading the prompt, and generating."""
    llama.reset()
    start = time.perf_counter()
    llama.eval(prompt)
    read = time.perf_counter()
    for _ in range(count):
        llama.eval([llama.sample(temp=0.0)])
    return len(prompt) / (read - start), count / (time.perf_counter() - read)


def table(homes: Path, work: Path) -> dict[str, Any]:
    """Every format: LoRA merged after plain training, parallel, hot."""
    lora, parallel = Personal(homes / "de-lora-plain"), Personal(homes / "de-parallel-plain")
    text, tokenizer = lora.text(TABLE_TOKENS), Tokenizer(lora.home.base_file)
    rows: dict[str, Any] = {}

    def measure(name: str, path: Path, adapters: tuple[Path, ...] = (), seconds: float = 0.0, formats: Any = None) -> None:
        score = in_llama_cpp(path, text, THREADS, adapters=adapters)
        llama = llamacpp.load(path, n_ctx=512, n_threads=THREADS, n_threads_batch=THREADS)
        if adapters:
            llamacpp.LoadedAdapters(llama).use(adapters)
        speeds = [pace(llama, text.windows[0].ids[:256]) for _ in range(3)]
        llama.reset()
        answer, prompt = b"", llama.tokenize(b"Das Programm", add_bos=True)
        for token, _ in zip(llama.generate(prompt, temp=0.0), range(12), strict=False):
            answer += tokenizer.piece(token)
        llama.close()
        rows[name] = {
            "bytes": sum(each.stat().st_size for each in (path, *adapters)), "perplexity": score.perplexity,
            "bits_per_byte": score.bits_per_byte, "generation_tokens_per_second": statistics.median(s[1] for s in speeds),
            "prompt_tokens_per_second": statistics.median(s[0] for s in speeds), "export_seconds": round(seconds, 2),
            "formats": formats, "answer": answer.decode("utf-8", "replace"),
        }  # fmt: skip
        print(name, rows[name], flush=True)

    measure("base", lora.home.base_file)
    for personal, label in ((lora, "lora"), (parallel, "parallel")):
        for each in FORMATS_TO_EXPORT:
            if personal is parallel and each not in ("F32", "F16", "Q8_0", *TRAINABLE, "IQ4_NL"):
                continue
            start = time.perf_counter()
            exported = export(personal.base, personal.adapters, each, work / "m.gguf", threads=THREADS)
            measure(f"{label} {each}", exported.path, (), time.perf_counter() - start, exported.formats)
    start = time.perf_counter()
    exported = models.export_newest(lora.home, lora.settings, Storage("hot", "F16", 1.0), work / "hot")
    measure("lora hot F16", exported.path, exported.adapters, time.perf_counter() - start)
    for row in rows.values():
        row["perplexity_change_to_f16"] = None
    for label in ("lora", "parallel"):
        reference = rows[f"{label} F16"]["perplexity"]
        for name, row in rows.items():
            if name.startswith(label):
                row["perplexity_change_to_f16"] = row["perplexity"] / reference - 1
    return rows


def speed(homes: Path, work: Path) -> dict[str, Any]:
    """Generation and prompt, in turn; ratios to the base of the same format, medians of the rounds' ratios."""
    lora, parallel = Personal(homes / "de-lora"), Personal(homes / "de-parallel")
    prompt = lora.text(TABLE_TOKENS).windows[0].ids[:128]
    found: dict[str, Any] = {}
    for kind in ("Q4_1", "Q4_0"):
        original = lora.home.base_file
        path = original if kind == "Q4_1" else requantised(original, kind, work / f"base-{kind}.gguf")
        base, candidates = GGUFFile(path), {"base": (path, ())}
        for each in ("F16", "Q8_0", "Q4_0"):
            target = work / f"parallel-{kind}-{each}.gguf"
            export(base, parallel.adapters, each, target)
            candidates[f"parallel {each}"] = (target, ())
        export(base, lora.adapters, kind, work / f"lora-{kind}.gguf", threads=THREADS)
        candidates[f"lora merged {kind}"] = (work / f"lora-{kind}.gguf", ())
        hot.write_base(base, lora.adapters, "F16", work / f"hot-{kind}.gguf")
        paths = tuple(work / f"{part}.gguf" for part in HOT_PARTS)
        for part, target in zip(HOT_PARTS, paths, strict=True):
            hot.write_adapter(base, lora.adapters, part, "F16", target, "")
        candidates["lora hot"] = (work / f"hot-{kind}.gguf", paths)
        sizes = {name: sum(each.stat().st_size for each in (file, *extra)) for name, (file, extra) in candidates.items()}
        for threads in sorted({1, THREADS}):
            for name, row in _in_turn(candidates, threads, prompt).items():
                found[f"base {kind}, {threads} threads: {name}"] = row | {
                    "bytes": sizes[name],
                    "bytes_ratio": sizes[name] / sizes["base"],
                }
    return found


def _in_turn(candidates: dict[str, Any], threads: int, prompt: list[int]) -> dict[str, dict[str, float]]:
    """Tokens a second of each, round after round, and the medians of the rounds' ratios to the base."""
    loaded = {}
    for name, (file, adapters) in candidates.items():
        loaded[name] = llamacpp.load(file, n_ctx=512, n_threads=threads, n_threads_batch=threads)
        if adapters:
            llamacpp.LoadedAdapters(loaded[name]).use(adapters)
    rounds = [{name: pace(llama, prompt) for name, llama in loaded.items()} for _ in range(ROUNDS)]
    for llama in loaded.values():
        llama.close()
    result = {}
    for name in loaded:
        row = {}
        for index, what in enumerate(("prompt", "generation")):
            row[what] = statistics.median(each[name][index] for each in rounds)
            row[f"{what}_ratio"] = statistics.median(each[name][index] / each["base"][index] for each in rounds)
        result[name] = row
    return result


def training(homes: Path, work: Path) -> dict[str, Any]:
    """Seconds of an expert step of 8 x 128 tokens, plain and fake quantised in turn."""
    torch.set_num_threads(THREADS)
    found: dict[str, Any] = {}
    for name in ("de-lora", "de-parallel"):
        personal = Personal(homes / name)
        device, tokenizer = personal.settings.device(), Tokenizer(personal.home.base_file)
        rows = read_rows(personal.home, personal.settings, device.context, tokenizer, [], lambda *_: None)[:2]
        tune_allocator()
        plan = make_schedule(personal.settings, device.batch, 10**6)
        plan = replace(plan, batch=8, router_period=10**6, block_format="Q4_0")
        trainer = Trainer(Model(open_base(personal.home.base_file), personal.adapters), *rows, plan)
        trainer.step()
        times: dict[str, list[float]] = {"plain": [], "quantised": []}
        for _ in range(ROUNDS):
            for kind, share in (("plain", 1.0), ("quantised", 0.0)):
                trainer.schedule = replace(plan, quantise_start=share)
                start = time.perf_counter()
                trainer.step()
                times[kind].append(time.perf_counter() - start)
        ratio = statistics.median(q / p for q, p in zip(times["quantised"], times["plain"], strict=True))
        found[name.removeprefix("de-")] = {kind: statistics.median(values) for kind, values in times.items()} | {"ratio": ratio}
    return found


def seconds(homes: Path, work: Path) -> dict[str, Any]:
    """Seconds of an export, and from new adapters in memory to a model that can be talked to."""
    found: dict[str, Any] = {}
    lora, parallel = Personal(homes / "de-lora"), Personal(homes / "de-parallel")
    for name, personal, each in (("lora Q8_0", lora, "Q8_0"), ("lora Q4_0", lora, "Q4_0"), ("parallel Q8_0", parallel, "Q8_0")):
        times = []
        for _ in range(3):
            start = time.perf_counter()
            export(personal.base, personal.adapters, each, work / "e.gguf", Origin("a" * 64, "b" * 64), threads=THREADS)
            times.append(time.perf_counter() - start)
        found[f"export {name}"] = statistics.median(times)
    times, reload = [], []
    for number in range(3):
        start = time.perf_counter()
        assert replace_experts(
            work / "e.gguf", parallel.base, parallel.adapters, "Q8_0", work / "f.gguf", Origin(f"{number}" * 64, "b" * 64)
        )
        (work / "f.gguf").rename(work / "e.gguf")
        times.append(time.perf_counter() - start)
        llamacpp.load(work / "e.gguf", n_ctx=512).close()
        reload.append(time.perf_counter() - start)
    found["swap parallel, writing"], found["swap parallel, until loaded"] = (statistics.median(times), statistics.median(reload))
    hot.write_base(lora.base, lora.adapters, "F16", work / "hot.gguf")
    paths = tuple(work / f"{part}.gguf" for part in HOT_PARTS)
    hot.write_adapter(lora.base, lora.adapters, HOT_PARTS[1], "F16", paths[1], "")
    llama = llamacpp.load(work / "hot.gguf", n_ctx=512)
    loaded, times, live = llamacpp.LoadedAdapters(llama), [], []
    for _ in range(5):
        start = time.perf_counter()
        hot.write_adapter(lora.base, lora.adapters, HOT_PARTS[0], "F16", paths[0], "")
        written = time.perf_counter()
        loaded.use(paths)
        times.append(time.perf_counter() - start)
        live.append(time.perf_counter() - written)
    found["swap hot, writing and live"], found["swap hot, live alone"] = (statistics.median(times), statistics.median(live))
    return found


PARTS = {"seconds": seconds, "speed": speed, "training": training, "gap": gap, "table": table}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("homes", type=Path)
    parser.add_argument("--parts", default=",".join(PARTS))
    options = parser.parse_args()
    output = result_file("formats.json")
    results = json.loads(output.read_text()) if output.exists() else {}
    for part in options.parts.split(","):
        with tempfile.TemporaryDirectory(dir=options.homes) as work:
            results[part] = PARTS[part](options.homes, Path(work))
        print(json.dumps({part: results[part]}, indent=1), flush=True)
        write_json(output, results)


if __name__ == "__main__":
    main()
