"""Shows that a change of the code keeps the bits: trainings, exported files, an exchange and a resumed checkpoint.

    python benchmarks/same_bits.py make WORK --checkout BEFORE     digests of the commit before, and its interrupted training
    python benchmarks/same_bits.py check WORK [--checkout AFTER]   the same with the commit after; exit code 1 on a difference

Only the command line programs of the checkout are used, in processes of their own, so the script does not care which modules
are called inside. Both commands take `--only training,export,exchange,resume`. The text is made here, from a seed. Digests
depend on the processor and on the versions of torch and numpy, which are written beside them; nothing else should change them.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

Digests = dict[str, str]

PARTS = ("training", "export", "exchange", "resume")
STEPS, LEAN_STEPS, EXCHANGE_STEPS = 30, 6, 3
# Every line of the plan that a measured rate or free memory could choose.
PLAN = {
    "specialists": "1", "batch": "2", "context": "16", "threads": "1", "precision": "float32", "backend": "blas",
    "device": "cpu", "keep": "true", "checkpointing": "none", "blocks": "0",
}  # fmt: skip
LEAN = {"keep": "false", "checkpointing": "block", "blocks": "8", "cache": "true", "specialists": "2"}
TRAIN_SETTINGS = "router_period = 10\nrouter_steps = 2\nvalidation_rows = 4\nseed = {seed}\n"
MERGED = (("Q8_0", "merged"), ("Q4_0", "merged"))  # format and layout of exported files
GATE = 100  # nats a token: every generalist is taken over
FEATURES = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_tile", "asimd", "bf16", "sve")
PACKAGES = ("torch", "numpy", "llama-cpp-python")


# Text ---------------------------------------------------------------------------------------------------------------


def write_text(folder: Path) -> None:
    """Writes first.jsonl and second.jsonl: 50 texts and 10 chats each, of different made-up words."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(("first", "second")):
        chance = random.Random(2025 + number)
        words = ["".join(_pick(chance, SYLLABLES) for _ in range(1 + _below(chance, 3))) for _ in range(400)]
        lines: list[dict[str, Any]] = [{"text": _paragraph(chance, words, 8)} for _ in range(50)]
        for _ in range(10):
            turns = [("user" if turn % 2 == 0 else "assistant", _paragraph(chance, words, 2)) for turn in range(4)]
            lines.append({"messages": [{"role": role, "content": content} for role, content in turns]})
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvw" for vowel in ("a", "e", "i", "o", "u", "en", "ar")]


def _below(chance: random.Random, limit: int) -> int:
    return int(chance.random() * limit)  # of all of Random only `random` is promised to stay as it is


def _pick(chance: random.Random, choices: list[str]) -> str:
    return choices[_below(chance, len(choices))]


def _paragraph(chance: random.Random, words: list[str], sentences: int) -> str:
    made = [" ".join(_pick(chance, words) for _ in range(5 + _below(chance, 8))) for _ in range(sentences)]
    return " ".join(f"{sentence.capitalize()}." for sentence in made)


# Programs -----------------------------------------------------------------------------------------------------------


class Checkout:
    """The programs of one checkout."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._environment = os.environ | {"PYTHONPATH": str(root), "OMP_WAIT_POLICY": "PASSIVE"}

    def start(self, package: str, *arguments: str, home: Path | None = None, **pipes: Any) -> subprocess.Popen[str]:
        """A command in the background."""
        environment = self._environment | ({} if home is None else {"COMIGS_EDGE_HOME": str(home)})
        command = [sys.executable, "-m", package, *arguments]
        return subprocess.Popen(command, cwd=self.root, env=environment, text=True, **pipes)

    def run(self, package: str, *arguments: str, home: Path | None = None) -> str:
        """A command's standard output; raises `SystemExit` where it fails."""
        process = self.start(package, *arguments, home=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out, notes = process.communicate()
        if process.returncode:
            raise SystemExit(f"{package} {' '.join(arguments)} ended with {process.returncode}: {(notes or out)[-2000:]}")
        return out


class Device:
    """One home and its commands."""

    def __init__(self, checkout: Checkout, home: Path) -> None:
        self._checkout, self.home = checkout, home

    def run(self, *arguments: str) -> str:
        """A command's standard output."""
        return self._checkout.run("comigs_edge", *arguments, home=self.home)

    def prepare(self, text: Path, form: str, seed: int = 42) -> None:
        """Home, settings and text. LoRA is trained for Q4_0, of which the last steps take account."""
        self.run("init", "--expert-form", form)
        settings = self.home / "config.toml"
        changed = settings.read_text().replace("[train]\n", "[train]\n" + TRAIN_SETTINGS.format(seed=seed))
        changed = changed.replace("# seed = 42\n", "").replace("# gate = 0.1 ", f"gate = {GATE} ")
        if form == "lora":
            changed = changed.replace('# format = "Q8_0" ', 'format = "Q4_0" ')
        for setting in ("router_period = 30", "router_steps = 10", "validation_rows = 32"):
            assert f"# {setting} " in changed, setting
        settings.write_text(changed)
        self.run("data", "add", str(text))

    def train(self, *arguments: str, steps: int | None = STEPS, **plan: str) -> dict[str, Any]:
        """Trains; returns the command's JSON."""
        return dict(json.loads(self.run(*self._training(steps, arguments, plan))))

    def interrupt(self) -> None:
        """Starts a training and stops it as Ctrl-C does, after its first period."""
        process = self._checkout.start(
            "comigs_edge", *self._training(STEPS, (), {}), home=self.home, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stderr is not None
        for line in process.stderr:
            if re.match(r"expert step \d+/", line):
                process.send_signal(signal.SIGINT)
                break
        out, _ = process.communicate()
        if process.returncode or json.loads(out)["finished"]:
            raise SystemExit("the training was not interrupted")

    @staticmethod
    def _training(steps: int | None, arguments: tuple[str, ...], plan: dict[str, str]) -> list[str]:
        lines = [part for name, value in (PLAN | plan).items() for part in ("--plan", f"{name}={value}")]
        return ["train", "--no-pause", "--json", *(("--steps", str(steps)) if steps else ()), *arguments, *lines]


class Coordinator:
    """A real coordinator on 127.0.0.1."""

    def __init__(self, checkout: Checkout, data: Path) -> None:
        self._checkout, self.data = checkout, data
        self._log = data.with_suffix(".log").open("w")
        self._process = checkout.start(
            "coordinator", "serve", "--data", str(data), "--host", "127.0.0.1", "--port", "0", "--local-steps", "1000",
            stdout=subprocess.PIPE, stderr=self._log,
        )  # fmt: skip
        assert self._process.stdout is not None
        if "https://" not in self._process.stdout.readline():
            raise SystemExit(f"the coordinator did not start: {Path(self._log.name).read_text()[-2000:]}")

    def ask(self, *arguments: str) -> dict[str, Any]:
        """The JSON of an operator's command."""
        return dict(json.loads(self._checkout.run("coordinator", *arguments, "--data", str(self.data), "--json")))

    def settle(self) -> None:
        """Waits until every closed round has its generalist."""
        end = time.monotonic() + 60
        while (status := self.ask("status"))["newest_round"] != status["open_round"] - 1:
            if time.monotonic() > end:
                raise SystemExit(f"a generalist did not come: {status}")
            time.sleep(0.2)

    def stop(self) -> None:
        """As systemd does."""
        self._process.terminate()
        self._process.wait(30)
        self._log.close()


@contextlib.contextmanager
def serving(checkout: Checkout, data: Path) -> Iterator[Coordinator]:
    """A coordinator for the time of a block."""
    coordinator = Coordinator(checkout, data)
    try:
        yield coordinator
    finally:
        coordinator.stop()


# Digests ------------------------------------------------------------------------------------------------------------


def sha256(path: Path) -> str:
    """Of a file, or of all files of a folder with their names."""
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    each = [f"{file.relative_to(path)} {sha256(file)}\n" for file in sorted(path.rglob("*")) if file.is_file()]
    return hashlib.sha256("".join(each).encode()).hexdigest()


def _trained(name: str, result: dict[str, Any]) -> Digests:
    return {f"{name}, last state": result["adapters_sha256"], f"{name}, best state": result["best_sha256"]}


def _newest_adapters(home: Path) -> str:
    folder = max((home / "adapters").glob("[0-9]*"))
    return str(json.loads((folder / "manifest.json").read_text())["sha256"])


def training(checkout: Checkout, text: Path, work: Path) -> Digests:
    """Both forms in all blocks, and LoRA in the last blocks as lean as can be."""
    digests: Digests = {}
    for form in ("parallel", "lora"):
        device = Device(checkout, work / form)
        device.prepare(text / "first.jsonl", form)
        digests |= _trained(f"{STEPS} steps, {form}", device.train())
    lean = Device(checkout, work / "lean")
    lean.prepare(text / "first.jsonl", "lora")
    return digests | _trained(f"{LEAN_STEPS} steps, lora in the last blocks, lean", lean.train(steps=LEAN_STEPS, **LEAN))


def export(checkout: Checkout, text: Path, work: Path) -> Digests:
    """The files of both forms; trains what `training` has not."""
    digests: Digests = {}
    for form, files in (("parallel", MERGED), ("lora", (*MERGED, ("F16", "hot")))):
        device = Device(checkout, work / form)
        if not device.home.exists():
            device.prepare(text / "first.jsonl", form)
            device.train()
        for format_name, layout in files:
            target = work / ("hot" if layout == "hot" else "model.gguf")
            device.run("export", "--format", format_name, "--layout", layout, "--output", str(target))
            digests[f"{form}, {format_name}, {layout}"] = sha256(target)
            shutil.rmtree(target) if target.is_dir() else target.unlink()
    return digests


def exchange(checkout: Checkout, text: Path, work: Path) -> Digests:
    """Two devices, one after the other: alone, joined, two rounds of training and exchange.

    In the fleet they train `--fresh`, from its generalist and initial specialists and routers: up to 5ef66e1 routers that are
    read from a file come in another order in every process, and what their offsets learn depends on that order.
    """
    digests: Digests = {}
    devices = {name: Device(checkout, work / name) for name in ("first", "second")}
    for seed, (name, device) in enumerate(devices.items(), 42):
        device.prepare(text / f"{name}.jsonl", "parallel", seed)
        digests |= _trained(f"{name} before it joins", device.train("--no-sync", steps=EXCHANGE_STEPS))
    with serving(checkout, work / "coordinator") as coordinator:
        for name, device in devices.items():
            device.run("join", coordinator.ask("invite", "--name", name)["link"])
            device.run("sync")
            coordinator.settle()
        for number in (1, 2):
            for name, device in devices.items():
                result = device.train("--fresh", steps=EXCHANGE_STEPS)
                digests |= _trained(f"{name} after training {number} in the fleet", result)
            coordinator.settle()
            for name, device in devices.items():
                device.run("sync")
                digests[f"{name} after exchange {number}"] = _newest_adapters(device.home)
        for row in coordinator.ask("rounds")["rounds"]:
            if row["sha256"]:
                digests[f"generalist {row['number']}"] = row["sha256"]
    return digests


def resume(checkout: Checkout, text: Path, work: Path, kept: Path) -> Digests:
    """A training that is interrupted and resumed; what was interrupted stays in `kept`, unless that is there already."""
    device = Device(checkout, work / "interrupted")
    device.prepare(text / "first.jsonl", "lora")
    device.interrupt()
    if not kept.exists():
        shutil.copytree(device.home, kept)
    return _trained("resumed", device.train("--resume", steps=None))


def resume_older(checkout: Checkout, work: Path, kept: Path) -> Digests:
    """The training that the commit before has begun, ended by this one."""
    device = Device(checkout, work / "begun-before")
    shutil.copytree(kept, device.home)
    return _trained("resumed", device.train("--resume", steps=None))


# Commands -----------------------------------------------------------------------------------------------------------


def processor() -> dict[str, Any]:
    """Its name, and the instructions on which products depend."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    table = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines) if value}
    known = (table.get("flags") or table.get("Features") or "").split()
    kinds = {name: table[name] for name in ("model name", "cpu family", "model", "stepping", "CPU part") if name in table}
    return {"machine": platform.machine(), **kinds, "features": [name for name in FEATURES if name in known]}


def measure(checkout: Checkout, parts: list[str], work: Path, text: Path, kept: Path) -> dict[str, Digests]:
    """The digests of each part; says how long it took."""
    runs: dict[str, Callable[[], Digests]] = {
        "training": lambda: training(checkout, text, work), "export": lambda: export(checkout, text, work),
        "exchange": lambda: exchange(checkout, text, work), "resume": lambda: resume(checkout, text, work, kept),
    }  # fmt: skip
    results: dict[str, Digests] = {}
    for part in parts:
        started = time.monotonic()
        results[part] = runs[part]()
        print(f"{part}: {len(results[part])} digests in {time.monotonic() - started:.0f} seconds", flush=True)
    return results


def make(checkout: Checkout, parts: list[str], work: Path, homes: Path) -> None:
    """Digests of the commit before, for `check`."""
    shutil.rmtree(work / "interrupted", ignore_errors=True)
    write_text(work / "text")
    table = {
        "command": "python benchmarks/same_bits.py make WORK --checkout BEFORE",
        "processor": processor(),
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}},
        "text": sha256(work / "text"),
        "digests": measure(checkout, parts, homes, work / "text", work / "interrupted"),
    }
    (work / "digests.json").write_text(json.dumps(table, indent=1) + "\n")
    print(json.dumps(table, indent=1))


def check(checkout: Checkout, parts: list[str], work: Path, homes: Path) -> None:
    """Compares; ends with 1 on any difference."""
    before = json.loads((work / "digests.json").read_text())
    if sha256(work / "text") != before["text"]:
        raise SystemExit(f"{work / 'text'} is not the text of the digests; make them anew")
    if before["processor"] != processor():
        print("another processor than that of the digests: its bits may differ")
    after = measure(checkout, parts, homes, work / "text", work / "interrupted")
    pairs = {part: (before["digests"][part], after[part]) for part in parts}
    if "resume" in parts:
        older = resume_older(checkout, homes, work / "interrupted")
        pairs["begun by the commit before"] = (before["digests"]["resume"], older)
        whole = before["digests"].get("training", {})
        wanted = {f"resumed, {kind}": whole.get(f"{STEPS} steps, lora, {kind}") for kind in ("last state", "best state")}
        if whole:
            pairs["resumed and uninterrupted"] = (wanted, older)
    differences = [
        (part, name, one.get(name, "missing"), other.get(name, "missing"))
        for part, (one, other) in pairs.items()
        for name in one | other
        if one.get(name) != other.get(name)
    ]
    for part, name, one, other in differences:
        print(f"DIFFERENT  {part}: {name:<44} {str(one)[:16]} -> {str(other)[:16]}")
    if differences:
        raise SystemExit(1)
    print(f"the same bits: {sum(len(one) for one, _ in pairs.values())} digests of {', '.join(pairs)}")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("make", "check"))
    parser.add_argument("work", type=Path)
    parser.add_argument("--checkout", type=Path, default=Path(__file__).parent.parent)
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts, of {','.join(PARTS)}")
    options = parser.parse_args()
    parts = options.only.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}; parts are {', '.join(PARTS)}")
    work = options.work.absolute()
    homes = work / "homes"
    shutil.rmtree(homes, ignore_errors=True)
    homes.mkdir(parents=True)
    {"make": make, "check": check}[options.action](Checkout(options.checkout.absolute()), parts, work, homes)
    shutil.rmtree(homes)


if __name__ == "__main__":
    main()
