"""Cuts the power of the coordinator's disk 200 times: `python benchmarks/torture/power_cuts.py [--cuts N] [--blind N]`.

The folder is on an ext4 image on a loop device. While four devices push, `xfs_io -x -c shutdown` stops the file system at a
random moment: nothing that was not synced by then reaches the image. Then the process is killed, the image is unmounted, checked
(e2fsck, every tenth time) and mounted, which replays its journal, and the coordinator starts again. After each cut everything
that `audit.check` knows must hold, SQLite's integrity_check among it, and the devices go on.

To see that the method finds losses, `--blind` cuts follow on a coordinator whose fsync and fdatasync do nothing, by a library
that is compiled here and loaded before libc (LD_PRELOAD). Those must lose updates. JSON goes to `power-cuts.json`.
Wants root, xfsprogs, a C compiler.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.common import result_file, write_json  # noqa: E402
from comigs_edge.errors import ComigsError  # noqa: E402
from comigs_edge.fleet.transport import Offline  # noqa: E402
from tests.coordinator.audit import Books, Trainer, check, settle  # noqa: E402
from tests.coordinator.rig import Coordinator  # noqa: E402

BLIND = "int fsync(int f) { (void)f; return 0; }\nint fdatasync(int f) { (void)f; return 0; }\n"


class Disk:
    """An ext4 image of 256 MB on a loop device."""

    def __init__(self, folder: Path) -> None:
        self.image, self.mount = folder / "image", folder / "disk"
        self.mount.mkdir()
        with self.image.open("wb") as file:
            file.truncate(256 << 20)
        _run("mkfs.ext4", "-q", "-F", str(self.image))
        self.plug_in()

    def plug_in(self) -> None:
        """Mounts: the journal is replayed."""
        _run("mount", "-o", "loop", str(self.image), str(self.mount))

    def cut(self) -> None:
        """Stops the file system; what is only in memory is lost."""
        _run("xfs_io", "-x", "-c", "shutdown", str(self.mount))

    def unplug(self) -> None:
        """Unmounts; waits for the last descriptor."""
        for _ in range(100):
            if subprocess.run(["umount", str(self.mount)], capture_output=True).returncode == 0:
                return
            time.sleep(0.02)
        raise RuntimeError(f"{self.mount} stays busy")

    def is_sound(self) -> bool:
        """What e2fsck says, once the journal was replayed."""
        return subprocess.run(["e2fsck", "-fp", str(self.image)], capture_output=True).returncode in (0, 1)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


class Sweep:
    """A coordinator on such a disk, and devices that outlive its power cuts."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        folder.mkdir()
        self.disk = Disk(folder)
        (self.disk.mount / "data").mkdir()
        (folder / "data").symlink_to(self.disk.mount / "data")  # the log, beside it, is on another disk
        self.coordinator = Coordinator(folder / "data", environment=environment, update_format="float32")
        self.books, self.problems, self.ready, self.cuts = Books(), [], [], 0
        self.trainers = [Trainer(self.coordinator.invite(), self.books) for _ in range(4)]
        settle(self.trainers)
        if environment:
            _run("sync", "-f", str(self.disk.mount))  # it loses updates, not everything

    def cut(self, rng: random.Random) -> None:
        """One power cut under load, and everything after it."""
        dead = threading.Event()
        threads = [threading.Thread(target=_push, args=(trainer, dead)) for trainer in self.trainers]
        for thread in threads:
            thread.start()
        time.sleep(rng.uniform(0.0, 0.4))
        self.disk.cut()
        dead.set()
        for thread in threads:
            thread.join()
        self.coordinator.kill()
        self.disk.unplug()
        self.cuts += 1
        if self.cuts % 10 == 0 and not self.disk.is_sound():
            self.problems.append(f"after cut {self.cuts}: e2fsck finds errors")
        self.disk.plug_in()
        self._start_again()

    def _start_again(self) -> None:
        begin = time.monotonic()
        self.coordinator.restart()
        self.ready.append(time.monotonic() - begin)
        joined = self.trainers[0].member.joined
        devices = {trainer.member.id for trainer in self.trainers}
        found = check(self.coordinator.data, self.books, joined.signing_key, devices)
        self.problems += [f"after cut {self.cuts}: {problem}" for problem in found]
        settle(self.trainers)

    def close(self) -> None:
        """Ends the process, and gives the loop device back."""
        self.coordinator.kill()
        self.disk.unplug()


def _push(trainer: Trainer, dead: threading.Event) -> None:
    with suppress(Offline):
        while not dead.is_set():
            trainer.step()


def sweep(folder: Path, cuts: int, seed: int, environment: dict[str, str]) -> dict[str, object]:
    """So many cuts; ends early where the coordinator does not come back."""
    found, rng, end = Sweep(folder, environment), random.Random(seed), ""
    try:
        for _ in range(cuts):
            found.cut(rng)
    except (RuntimeError, AssertionError, ComigsError, OSError) as error:
        end = str(error)[-300:]
    found.close()
    books = found.books
    return {
        "cuts": found.cuts, "updates_tried": len(books.tried), "acknowledged": len(books.acked),
        "lost": sum("lost:" in problem for problem in found.problems),
        "doubled": sum("doubled:" in problem for problem in found.problems),
        "other_problems": [problem for problem in found.problems if "lost:" not in problem and "doubled:" not in problem][:30],
        "generalists_compared": books.means, "generalists_gone_before": books.unseen, "came_again": books.refused,
        "slowest_ready_seconds": round(max(found.ready, default=0), 3), "ended_early": end,
    }  # fmt: skip


def main() -> None:
    """Sweeps with and without syncing, prints, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cuts", type=int, default=200)
    parser.add_argument("--blind", type=int, default=10, help="cuts of a coordinator whose fsync does nothing")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "blind.c").write_text(BLIND)
        _run("cc", "-shared", "-fPIC", "-o", str(folder / "blind.so"), str(folder / "blind.c"))
        result = {"synced": sweep(folder / "synced", options.cuts, 1, {})}
        fakes = []
        for number in range(options.blind):  # each on a disk of its own: a lost ledger does not come back
            fakes.append(sweep(folder / f"blind-{number}", 1, number, {"LD_PRELOAD": str(folder / "blind.so")}))
        result["fsync_does_nothing"] = {
            "cuts": sum(fake["cuts"] for fake in fakes), "acknowledged": sum(fake["acknowledged"] for fake in fakes),
            "lost": sum(fake["lost"] for fake in fakes), "did_not_start": sum(bool(fake["ended_early"]) for fake in fakes),
            "other_problems": [problem for fake in fakes for problem in fake["other_problems"]][:10],
        }  # fmt: skip
    write_json(options.output or result_file("power-cuts.json"), result)
    for kind, values in result.items():
        print(kind)
        for key, value in values.items():
            print(f"  {key.replace('_', ' '):26}{value}")
    synced = result["synced"]
    sys.exit(1 if synced["lost"] or synced["doubled"] or synced["other_problems"] or synced["ended_early"] else 0)


if __name__ == "__main__":
    main()
