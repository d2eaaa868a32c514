"""Kills devices and coordinator 200 times in private rounds: `python benchmarks/torture/private_kills.py [--kills N]`.

device       its process stops before the Nth change of its home, N drawn at random: a file opened for writing, renamed, deleted
coordinator  strace stops it on entry to the Nth call of a system call of its ledger or its files, both drawn at random

Each of four devices learns in a place of its own of every tensor, so the generalists tell what each has brought. Whatever was
killed goes on from its disk, and after every fourth kill must hold: what a device learned is in the generalists or still its own,
once; of a window it says one thing in each step, and all who answer give one kind of share of each device; no seed of a window
that is over is in any file. JSON goes to `private-kills.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sqlite3
import sys
import tempfile
import time
from collections import Counter, defaultdict
from contextlib import closing, suppress
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.common import result_file, write_json  # noqa: E402
from comigs_edge.fleet.private import PrivateTransport, connect  # noqa: E402
from comigs_edge.fleet.transport import Offline  # noqa: E402
from comigs_edge.home.marks import Mark  # noqa: E402
from coordinator.protocol import wire  # noqa: E402
from coordinator.protocol.messages import T  # noqa: E402
from tests.coordinator.inject import dies_at  # noqa: E402
from tests.coordinator.rig import Coordinator, arrays  # noqa: E402
from tests.fleet.killed import is_killed  # noqa: E402
from tests.fleet.owner import UNIT, Owner  # noqa: E402
from tests.fleet.rig import NAME, Device  # noqa: E402

DEVICES, DEADLINE, PATIENCE, PASSES = 4, 6, 0.5, 60  # a deadline in seconds, so that windows that lost too many are given up
CALLS = {
    "main": ("pwrite64", "fsync,fdatasync", "ftruncate", "unlink,rename", "openat", "sendto", "recvfrom"),
    "files": ("write", "fsync,fdatasync", "rename", "openat", "close"),
}
MOST_CHANGES, MOST_CALLS = 16, 30


class Board(Owner):
    """A device that learns in the place of every tensor that is its own, and writes down all that it says of windows."""

    def __init__(self, root: Path, coordinator: Coordinator, place: int) -> None:
        super().__init__(root, coordinator)
        self.place, self.learned, self._rng = place, 0.0, random.Random(place)
        self._save(arrays(0.0), Mark(None, 0))

    def _open(self) -> Device:
        device = super()._open()
        device._exchange = connect(device.books, PATIENCE)
        return device

    def learn(self) -> None:
        """About a unit, in each tensor another: two updates that are cut to the bound must not be the same."""
        device, change = self._open(), arrays(0.0)
        for array in change.values():
            array.reshape(-1)[self.place] = UNIT * self._rng.uniform(0.5, 1.5)
        device.learn(change)
        device.books.keep(device.local, 100)
        self._keep(device)
        self.learned += float(change[NAME].reshape(-1)[self.place])

    def sync(self) -> bool:
        """An exchange; whether the coordinator was there."""
        device = self._open()
        outcome = device.exchange(tokens=0)
        self._keep(device)
        return outcome.offline is None

    def stands(self) -> tuple[int, float]:
        """The generalist that it trains on, and what its own has in its place."""
        device = self._open()
        return device.books.standing.trained_from, float(device.local[NAME].reshape(-1)[self.place])

    def windows(self) -> set[str]:
        """Those that are on their way."""
        while True:
            with suppress(Offline):
                return {note.window for note in self._open()._exchange.transport.state().windows}


class Sweep:
    """One private fleet through all its kills."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.folder, self.rng, self.said_file = folder, rng, folder / "said"
        self.coordinator = Coordinator(folder / "coordinator", private=True, deadline_seconds=DEADLINE)
        self.boards = [Board(folder / f"home-{place}", self.coordinator, place) for place in range(DEVICES)]
        for board in self.boards:
            board.join(self.coordinator.invite())
        self.where: Counter[str] = Counter()
        self.problems: list[str] = []
        self.seeds: dict[str, set[str]] = defaultdict(set)  # window -> seeds that were seen of it
        self.brought = {-1: np.zeros(DEVICES), 0: np.zeros(DEVICES)}  # generalist -> what all up to it have of each device
        self.values: dict[int, np.ndarray] = {}  # generalist -> its numbers in the devices' places
        self.checks = 0
        _write_down(self.said_file)

    def go(self, kills: int) -> None:
        """Until that many."""
        while self.where.total() < kills:
            for board in self.boards:
                if self.rng.random() < 0.4:
                    board.learn()
            if self.rng.random() < 0.6:
                self.kill_devices()
            else:
                self.kill_the_coordinator()
            if self.where.total() >= 4 * (self.checks + 1):
                self.check()
                print(
                    f"{self.where.total()} kills, {len(self.values)} generalists, {len(self.problems)} problems",
                    *self.problems[-1:],
                    flush=True,
                )
        self.check()
        self.live_on()
        self.end()

    def live_on(self) -> None:
        """The fleet makes generalists as before, and what was learned through all kills is in them at last."""
        more, passes = len(self.values) + 3, 0
        while len(self.values) < more and (passes := passes + 1) < PASSES:
            for board in self.boards:
                board.learn()
                board.sync()
            self.look()
        self.problems += [f"no three generalists in {PASSES} exchanges without a kill"] if len(self.values) < more else []
        self.check()

    def kill_devices(self) -> None:
        """Each in an exchange of its own, if that changes so much."""
        for board in self.rng.sample(self.boards, DEVICES):
            if is_killed(board.root, self.rng.randint(1, MOST_CHANGES), board.sync):
                self.where["device"] += 1
            self.note_seeds()
        self.look()

    def kill_the_coordinator(self) -> None:
        """While devices speak to it."""
        thread = self.rng.choice(list(CALLS))
        call, number, process = self.rng.choice(CALLS[thread]), self.rng.randint(1, MOST_CALLS), self.coordinator.process

        def speak() -> None:
            for board in self.rng.sample(self.boards, DEVICES):
                board.sync()
                self.note_seeds()

        if dies_at(process, thread, call, number, speak, 0.3):
            self.where[f"coordinator {thread} {call.split(',')[0]}"] += 1
            self.coordinator.kill()
            self.coordinator.restart()
        self.look()

    def note_seeds(self) -> None:
        """Those that are on the disk."""
        for path in self.folder.glob("home-*/fleet/windows/.*.seed"):
            with suppress(FileNotFoundError):
                self.seeds[path.name.split(".")[1]].add(path.read_text())

    def look(self) -> None:
        """Notes the seeds that are on the disk, and the generalists that were published."""
        self.note_seeds()
        for row in self.coordinator.rounds():
            if row["number"] in self.values or not row["sha256"]:
                continue
            path, number = self.coordinator.data / "payloads" / row["sha256"], row["number"]
            with suppress(FileNotFoundError):
                array = wire.decode(path.read_bytes(), "a generalist")[NAME].reshape(-1)
                self.values[number] = array[:DEVICES].astype(np.float64)
                if number and number - 1 in self.brought:
                    change = (self.values[number] - self.values[number - 1]) * row["devices"]
                    self.brought[number] = self.brought[number - 1] + change

    def check(self) -> None:
        """What must hold at any time, and of windows that are over once every device has heard so."""
        after = f"after kill {self.where.total()}: "
        self.coordinator.until(lambda status: status["newest_round"] == status["open_round"] - 1, seconds=60)
        over = set(self.seeds)
        over -= self.boards[0].windows()
        for board in 2 * self.boards:
            while not board.sync():
                pass
        self.look()
        for board in self.boards:
            number, value = board.stands()
            if number not in self.brought:
                self.problems.append(f"{after}generalist {number} was not seen")
                continue
            own = value - (self.values[number][board.place] if number >= 0 else 0.0)
            if abs(own + self.brought[number][board.place] - board.learned) > UNIT / 4:
                found = f"{own:g} of its own and {self.brought[number][board.place]:g} in generalists"
                self.problems.append(f"{after}device {board.place} learned {board.learned:g} and has {found}")
        self.problems += [after + each for each in flaws(self.said_file)]
        self.find_seeds(over, after)
        self.checks += 1

    def find_seeds(self, over: set[str], after: str) -> None:
        """Of windows that were over when the devices asked last, in any file."""
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        for window in over:
            seeds = self.seeds[window]
            for path in files if seeds else ():
                with suppress(FileNotFoundError):
                    data = path.read_bytes()
                    if any(seed.encode() in data or bytes.fromhex(seed) in data for seed in seeds):
                        self.problems.append(f"{after}a seed of the window {window}, which is over, is in {path.name}")
            self.seeds[window] = set()

    def end(self) -> None:
        """What the ledger says of all updates."""
        self.coordinator.stop()
        with closing(sqlite3.connect(self.coordinator.data / "coordinator.db")) as ledger:
            query = "SELECT count(*), count(DISTINCT device || ' ' || update_id) FROM updates WHERE round > 0"
            self.updates, ids = ledger.execute(query).fetchone()
        self.problems += [f"{self.updates - ids} updates count twice"] if self.updates != ids else []


def _write_down(file: Path) -> None:
    """From now on, whatever this process and its children say of windows."""
    ask = PrivateTransport._ask

    def said(self: PrivateTransport, kind: type[T], method: str, path: str, body: bytes = b"") -> T:
        if method == "POST" and "/windows/" in path:
            window, step = path.split("/")[-2:]
            line = json.dumps({"device": self._id, "window": window, "step": step, "said": body.decode()}) + "\n"
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.write(descriptor, line.encode())
            os.close(descriptor)
        return ask(self, kind, method, path, body)

    PrivateTransport._ask = said  # type: ignore[method-assign]


def flaws(file: Path) -> list[str]:
    """What devices must not have said: two things in one step of a window, or both kinds of share of one device."""
    said, kinds = defaultdict(set), defaultdict(set)
    for line in file.read_text().splitlines() if file.exists() else ():
        one = json.loads(line)
        said[one["device"], one["window"], one["step"]].add(one["said"])
        if one["step"] == "answers":
            for kind, shares in json.loads(one["said"]).items():
                for of in shares:
                    kinds[one["window"], of].add(kind)
    found = [f"{key[0]} said {len(each)} things in the {key[2]} of {key[1]}" for key, each in said.items() if len(each) > 1]
    return found + [f"both kinds of share of {of} in {window}" for (window, of), each in kinds.items() if len(each) > 1]


def main() -> None:
    """Sweeps, prints the table, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        sweep = Sweep(Path(folder), random.Random(options.seed))
        sweep.go(options.kills)
        said = [json.loads(line) for line in sweep.said_file.read_text().splitlines()]
    result = {
        "command": f"python benchmarks/torture/private_kills.py --kills {options.kills} --seed {options.seed}",
        "kills": sweep.where.total(), "generalists": len(sweep.values), "updates_counted": sweep.updates,
        "windows": len({each["window"] for each in said}),
        "windows_answered": len({each["window"] for each in said if each["step"] == "answers"}),
        "checks": sweep.checks, "problems": sorted(set(sweep.problems))[:50],
        "seconds": round(time.monotonic() - begin), "where": dict(sweep.where),
    }  # fmt: skip
    write_json(options.output or result_file("private-kills.json"), result)
    print("\n".join(f"{name.replace('_', ' '):20}{value}" for name, value in result.items()))
    sys.exit(1 if sweep.problems else 0)


if __name__ == "__main__":
    main()
