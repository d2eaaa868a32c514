"""Kills the coordinator at 1,000 points: `python benchmarks/torture/kills.py [--points N] [--random N] [--starts N]`.

points   strace stops the process on entry to the Nth call of a system call, N = 1, 2, ... through everything that uploads,
         commits, a round's end, the mean, publishing and a roll-back do; one sweep for the thread of the ledger and the network,
         one for the thread of the files (`inject=CALL:signal=KILL:when=N`)
starts   the same through the first start in an empty folder
random   at a random moment, while four devices push at once

After each the coordinator starts again on the same folder (time to ready is measured), everything that `audit.check` knows
must hold, and the devices bring what they still have and one more round. JSON goes to `kills.json`.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.common import result_file, write_json  # noqa: E402
from comigs_edge.fleet.transport import Offline  # noqa: E402
from tests.coordinator.audit import Books, Trainer, check, settle  # noqa: E402
from tests.coordinator.inject import ATTEMPTS, dies_at  # noqa: E402
from tests.coordinator.rig import Coordinator  # noqa: E402

MAIN = ("pwrite64", "fsync,fdatasync", "ftruncate", "sendto", "unlink,rename", "write,writev", "openat", "close", "recvfrom")
FILES = ("write", "fsync", "rename", "openat", "close", "read", "newfstatat,fstat,stat", "unlink", "ftruncate")


class Fleet:
    """One coordinator and devices that outlive its deaths."""

    def __init__(self, folder: Path, devices: int) -> None:
        self.coordinator = Coordinator(folder / "data", prefix=["env"], update_format="float32")
        self.books = Books()
        self.trainers = [Trainer(self.coordinator.invite(), self.books) for _ in range(devices)]
        self.kills, self.ready, self.problems = 0, [], []
        self.where: Counter[str] = Counter()
        settle(self.trainers)

    def after_a_kill(self, where: str) -> None:
        """Starts again, checks everything, and lets the devices go on."""
        self.coordinator.kill()
        start = time.monotonic()
        self.coordinator.restart()
        self.ready.append(time.monotonic() - start)
        self.kills += 1
        self.where[where] += 1
        joined = self.trainers[0].member.joined
        devices = {trainer.member.id for trainer in self.trainers}
        found = check(self.coordinator.data, self.books, joined.signing_key, devices)
        self.problems += [f"after kill {self.kills} ({where}): {problem}" for problem in found]
        settle(self.trainers)

    def work(self) -> None:
        """Two rounds, one download, a roll-back; ends early where the coordinator is dead."""
        with suppress(Offline), tempfile.TemporaryDirectory() as target:
            for trainer in self.trainers:
                trainer.step()
            while not self.trainers[0].is_at_rest():
                time.sleep(0.02)
            self.trainers[0].member.pull(Path(target))
            for trainer in self.trainers:
                trainer.refuse()
            for trainer in self.trainers:
                trainer.step()
            while not self.trainers[0].is_at_rest():
                time.sleep(0.02)


def points(fleet: Fleet, count: int) -> None:
    """Sweeps through the calls of both threads."""
    for thread, calls in (("files", FILES), ("main", MAIN)):
        for call in calls:
            number = 0
            while fleet.kills < count and kill_at(fleet, thread, call, number := number + 1):
                pass


def kill_at(fleet: Fleet, thread: str, call: str, number: int) -> bool:
    """Kills at the call's `number`th entry; whether the work came so far."""
    process = fleet.coordinator.process
    for _ in range(ATTEMPTS if thread == "files" else 1):
        if dies_at(process, thread, call, number, fleet.work, 0.05):
            fleet.after_a_kill(f"{thread} {call.split(',')[0]}")
            return True
    return False


def at_random(fleet: Fleet, count: int, rng: random.Random) -> None:
    """Kills at random moments, under pushes from all devices at once."""
    for _ in range(count):
        dead = threading.Event()
        threads = [threading.Thread(target=_push, args=(trainer, dead)) for trainer in fleet.trainers]
        for thread in threads:
            thread.start()
        time.sleep(rng.uniform(0.0, 0.35))
        fleet.coordinator.process.kill()
        fleet.coordinator.process.wait()
        dead.set()
        for thread in threads:
            thread.join()
        fleet.after_a_kill("random")


def _push(trainer: Trainer, dead: threading.Event) -> None:
    with suppress(Offline):
        while not dead.is_set():
            trainer.step()


def starts(folder: Path, count: int) -> tuple[Counter[str], list[float], list[str]]:
    """Kills the first start in an empty folder at every call that writes."""
    where, ready, problems = Counter(), [], []
    for call in ("pwrite64", "fsync,fdatasync", "rename,unlink", "mkdir", "write", "ftruncate", "bind", "chmod"):
        number = 0
        while where.total() < count:
            number += 1
            data = folder / f"start-{call.split(',')[0]}-{number}"
            if not dies_at_start(data, call, number):
                break
            where[f"start {call.split(',')[0]}"] += 1
            start = time.monotonic()
            again = Coordinator(data, prefix=["env"])
            ready.append(time.monotonic() - start)
            try:
                settle([Trainer(again.invite(), Books())])
            except (AssertionError, subprocess.CalledProcessError) as error:
                problems.append(f"start killed at {call} {number}: {error}")
            again.kill()
    return where, ready, problems


def dies_at_start(data: Path, call: str, number: int) -> bool:
    """Whether a first start comes to the call's `number`th entry, where it is killed."""
    inject = ["-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={number}"]
    try:
        survivor = Coordinator(data, prefix=["strace", "-f", "-qq", "-o", "/dev/null", *inject])
    except (RuntimeError, IndexError):  # before its first line, or between the first two
        return True
    time.sleep(0.1)
    strace = survivor.process.pid
    with suppress(OSError, ValueError):  # it died right behind them
        os.kill(int(Path(f"/proc/{strace}/task/{strace}/children").read_text()), signal.SIGTERM)
    return survivor.process.wait() == -signal.SIGKILL


def main() -> None:
    """Sweeps, prints the table, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=700, help="at most")
    parser.add_argument("--starts", type=int, default=100, help="at most")
    parser.add_argument("--random", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        where, ready, problems = starts(Path(folder), options.starts)
        fleets = []
        for name, devices in (("points", 2), ("random", 4)):
            (Path(folder) / name).mkdir()
            fleet = Fleet(Path(folder) / name, devices)
            fleets.append(fleet)
            points(fleet, options.points) if name == "points" else at_random(fleet, options.random, random.Random(options.seed))
            fleet.coordinator.stop()
    for fleet in fleets:
        where += fleet.where
        ready += fleet.ready
        problems += fleet.problems
    report(where, ready, problems, fleets, time.monotonic() - begin, options.output or result_file("kills.json"))


def report(
    where: Counter[str], ready: list[float], problems: list[str], fleets: list[Fleet], seconds: float, output: Path
) -> None:
    """The table, and the same as JSON."""
    books = [fleet.books for fleet in fleets]
    result = {
        "kills": where.total(),
        "updates_tried": sum(len(book.tried) for book in books),
        "acknowledged": sum(len(book.acked) for book in books),
        "lost": sum("lost:" in problem for problem in problems),
        "doubled": sum("doubled:" in problem for problem in problems),
        "other_problems": [problem for problem in problems if "lost:" not in problem and "doubled:" not in problem][:50],
        "generalists_compared": sum(book.means for book in books),
        "generalists_gone_before": sum(book.unseen for book in books),
        "slowest_ready_seconds": round(max(ready), 3),
        "median_ready_seconds": round(sorted(ready)[len(ready) // 2], 3),
        "came_again": {code: sum(book.refused.get(code, 0) for book in books) for book in books for code in book.refused},
        "seconds": round(seconds),
        "where": dict(where),
    }
    write_json(output, result)
    for name, value in result.items():
        if name != "where":
            print(f"{name.replace('_', ' '):26}{value}")
    for name, count in sorted(where.items()):
        print(f"  {name:24}{count}")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
