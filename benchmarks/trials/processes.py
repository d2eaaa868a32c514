"""Trials on several processes: each takes what is free and ready, in order of worth, until time is up."""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import shutil
import tarfile
import time
import traceback
from pathlib import Path

import torch

from benchmarks.trials import text
from benchmarks.trials.catalogue import Trial, trials
from benchmarks.trials.workshop import TINY, Scale, Workshop
from comigs_edge.nn.weights import open_base


def chosen(only: str) -> list[Trial]:
    """The trials with such names, and what they need."""
    every = trials()
    wanted = {"base"} | {trial.name for trial in every if trial.name.startswith(tuple(only.split(",")))}
    for _ in range(2):  # what is needed needs something too
        wanted |= {name for trial in every if trial.name in wanted for name in trial.needs}
    return [trial for trial in every if trial.name in wanted]


def run(options: argparse.Namespace) -> None:
    """Starts the processes, packs records as they come, and ends in time."""
    deadline = time.time() + 60 * options.minutes
    options.records.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(options.records / "claims", ignore_errors=True)
    (options.records / "claims").mkdir()
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=work, args=(options, deadline), daemon=True) for _ in range(options.jobs)]
    for worker in workers:
        worker.start()
    packed = 0
    while any(worker.is_alive() for worker in workers) and time.time() < deadline:
        time.sleep(0.5)
        done = len(list(options.records.glob("*.json")))
        if options.tar and done != packed:
            pack(options.records, options.tar)
            packed = done
    for worker in workers:
        worker.terminate()
        worker.join(5)
    if options.tar:
        pack(options.records, options.tar)
    print(f"{len(list(options.records.glob('*.json')))} of {len(trials())} records in {options.records}", flush=True)


def work(options: argparse.Namespace, deadline: float) -> None:
    """One process: takes the first trial that is free, ready and short enough, until there is none."""
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // options.jobs))
    if options.precision == "tf32":
        torch.set_float32_matmul_precision("high")
    dtype = torch.bfloat16 if options.precision == "bfloat16" else torch.float32
    inputs, path = options.paths
    base = open_base(path, 2, True, dtype, options.device)
    shop = Workshop(base, text.Inputs(inputs), options.records, TINY if options.tiny else Scale())
    queue, pace = chosen(options.only), 0.0  # pace: seconds a step, of the last trial
    while True:
        free = [
            trial
            for trial in queue
            if not (options.records / "claims" / trial.name).exists() and not _is_there(options, trial.name)
        ]
        short = [trial for trial in free if time.time() + pace * trial.steps < deadline]
        ready = [trial for trial in short if all(_is_there(options, need) for need in trial.needs)]
        if not short:
            return
        if not ready:
            time.sleep(0.2)
            if all(any((options.records / "failed" / need).exists() for need in trial.needs) for trial in short):
                return
            continue
        if claim(options.records / "claims" / ready[0].name):
            start = time.time()
            if not _try(shop, options, ready[0]):
                return
            torch.cuda.empty_cache()  # other processes want it too
            pace = (time.time() - start) / ready[0].steps


def claim(path: Path) -> bool:
    """Whether this process is the first to ask."""
    try:
        path.mkdir()
    except FileExistsError:
        return False
    return True


def _try(shop: Workshop, options: argparse.Namespace, trial: Trial) -> bool:
    """Whether this process can go on: not behind an error of CUDA, which leaves it unusable."""
    try:
        record = shop.run(trial)
    except Exception:
        (options.records / "failed").mkdir(exist_ok=True)
        (options.records / "failed" / trial.name).write_text(traceback.format_exc())
        print(f"{trial.name} failed\n{traceback.format_exc()}", flush=True)
        return "CUDA error" not in traceback.format_exc()
    path = options.records / f"{trial.name}.json"
    path.with_suffix(".new").write_text(
        json.dumps(record | {"precision": options.precision, "tiny": options.tiny}, indent=1) + "\n"
    )
    path.with_suffix(".new").replace(path)
    print(f"{trial.name}: {record['seconds']} s", flush=True)
    return True


def _is_there(options: argparse.Namespace, name: str) -> bool:
    return bool((options.records / f"{name}.json").exists())


def pack(records: Path, target: Path) -> None:
    """All records, failures and nothing of the cache in one file, replaced at once."""
    with tarfile.open(target.with_suffix(".new"), "w:gz") as file:
        for path in sorted([*records.glob("*.json"), *(records / "failed").glob("*")]):
            data = path.read_bytes()
            info = tarfile.TarInfo(str(path.relative_to(records)))
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    target.with_suffix(".new").replace(target)
