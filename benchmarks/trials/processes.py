"""Trials on several processes: each takes what is free and ready, in order of worth, until time is up."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import tarfile
import time
import traceback
from pathlib import Path

import torch

from benchmarks.common import open_base
from benchmarks.trials import text
from benchmarks.trials.catalogue import Trial, trials
from benchmarks.trials.workshop import TINY, Scale, Workshop
from comigs_edge import files


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
    inputs, path = options.paths
    base = open_base(path, options.device, options.precision, max(1, len(os.sched_getaffinity(0)) // options.jobs))
    shop = Workshop(
        base,
        text.Inputs(inputs),
        options.records,
        TINY if options.tiny else Scale(samples=options.samples, measured=options.measured),
    )
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
    record |= {"precision": options.precision, "tiny": options.tiny}
    files.write_atomic(options.records / f"{trial.name}.json", (json.dumps(record, indent=1) + "\n").encode())
    print(f"{trial.name}: {record['seconds']} s", flush=True)
    return True


def _is_there(options: argparse.Namespace, name: str) -> bool:
    return (options.records / f"{name}.json").exists()


def pack(records: Path, target: Path) -> None:
    """All records, failures and nothing of the cache in one file, replaced at once."""
    with files.atomic_writer(target) as out, tarfile.open(fileobj=out, mode="w:gz") as file:
        for path in sorted([*records.glob("*.json"), *(records / "failed").glob("*")]):
            file.add(path, str(path.relative_to(records)))
