"""Six homes in a private fleet and the same six in a plain one, real processes: a kill in the middle of an update, a late joiner.

    python -m benchmarks.figures.private_fleet TEXT [--work DIR] [--base GGUF]

TEXT holds a file of each person somewhere below it. Each home learns alone by `comigs-edge train` before it joins. Both fleets
begin with copies of these homes and go through one story, with the same steps in the same order: `comigs-edge sync` by one after
the other until generalist 1 is there, then another training each, and the same for generalist 2. In the first round one is killed
(SIGKILL) while its update is on its way; the round ends without it, by the deadline. For the second it comes back with what it
had learned, and so does the late one, which joins then. Test text is measured in torch, with each home's newest mixture.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.common import WORK, change_settings, result_file, text_file, write_json
from benchmarks.figures.fleet import Device
from comigs_edge.commands.evaluate import open_base_to_measure, open_test
from comigs_edge.home.folder import Home
from comigs_edge.inference.evaluate import in_torch
from comigs_edge.nn.model import Model
from coordinator import admin

NAMES = ("person00", "person02", "person04", "person06", "person09", "person11")
KILLED, LATE = "person02", "person11"
STEPS = 3  # expert steps of a home in a round
LONG, SHORT = 36000.0, 60.0  # seconds of deadline: a round waits for everybody, until it is clear that one is away
KINDS = {"plain": ["--no-private"], "private": ["--private"]}
SETTINGS = {
    "model": "specialists = 1\nzero_expert = false",
    "train": f"batch = 2\ncontext = 64\nprecision = \"bfloat16\"\nrouter_period = {STEPS}\nrouter_steps = 1\nvalidation_rows = 4",
    "pause": "enabled = false", "evaluate": "max_tokens = 512",
}  # fmt: skip


class Member(Device):
    """One home, whose trainings are waited for."""

    def prepare(self) -> None:
        """Home, settings and text; without canaries, so that both fleets train on the text alone."""
        change_settings(self.home, SETTINGS)
        self.run("data", "add", str(text_file(self._text, self.name)))

    def learn(self, *more: str) -> None:
        """One training."""
        self.train(STEPS, *more)
        assert self.process is not None
        if self.process.wait():
            raise SystemExit(f"{self.name}: the training failed; see {self.home.parent / self.name}.log")

    def is_killed(self) -> bool:
        """An exchange, killed once a third of a megabyte has left; whether so much had to leave."""
        assert self.proxy is not None
        self.proxy.cut_at = self.proxy.sent + 300_000
        self.process = subprocess.Popen(
            self._command(("sync",)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True, env=self._environment()
        )
        while self.is_training and not self.proxy.is_cut:
            time.sleep(0.01)
        self.kill()
        was_cut, self.proxy.is_cut, self.proxy.cut_at = self.proxy.is_cut, False, float("inf")
        return was_cut


class Fleet:
    """One coordinator's process, its members and what happened."""

    def __init__(self, kind: str, work: Path, text: Path) -> None:
        self.kind, self.data, self.port = kind, work / "coordinator", 0
        self.members = {name: Member(name, work, text) for name in NAMES}
        self.events: list[str] = []
        self.serve(LONG)

    def serve(self, deadline: float) -> None:
        """Starts the coordinator, with the rounds that were on their way."""
        command = [sys.executable, "-m", "coordinator", "serve", "--data", str(self.data), "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--local-steps", str(STEPS), "--min-devices", "3", "--weights", "uniform"]
        log = (self.data.parent / "coordinator.log").open("a")
        self.process = subprocess.Popen(
            [*command, "--deadline-seconds", str(deadline), *KINDS[self.kind]], stdout=subprocess.PIPE, stderr=log, text=True
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline().rsplit(":", 1)[1])

    def stop(self) -> None:
        """Ends the coordinator."""
        self.process.terminate()
        self.process.wait()

    def note(self, text: str) -> None:
        """Keeps what happened."""
        self.events.append(f"{self.status['newest_round']}: {text}")
        print(self.kind, time.strftime("%H:%M:%S"), self.events[-1], flush=True)

    @property
    def status(self) -> dict[str, Any]:
        """Of the coordinator."""
        return admin.call(self.data, "", "status")

    def finish(self, number: int, present: list[Member], victim: Member | None = None) -> int:
        """Members come by until this round's generalist is there; returns how often all had to. The `victim` dies on the way."""
        seen, visits, is_short = None, 0, False
        end = time.monotonic() + 900
        while (status := self.status)["open_round"] <= number:
            now = [status[name] for name in ("newest_round", "updates", "private")]
            if now == seen:  # nobody but the victim can bring it further
                if time.monotonic() > end:
                    raise SystemExit(f"{self.kind}: generalist {number} does not come: {now}")
                if victim in present or not victim:
                    time.sleep(1)
                elif not is_short:
                    self.restart(SHORT)
                    is_short = True
                time.sleep(1)
                continue
            seen, visits = now, visits + 1
            for member in list(present):
                if self.status["open_round"] > number:
                    break
                if member is victim:
                    if member.is_killed():
                        present.remove(member)
                        self.note(f"{member.name} was killed while its update was on its way")
                else:
                    member.run("sync", "--json")
        while self.status["newest_round"] < number:
            time.sleep(0.2)
        if is_short:
            self.restart(LONG)
        self.note(f"generalist {number} is there, after {visits} visits by all")
        return visits

    def restart(self, deadline: float) -> None:
        """The coordinator with another deadline."""
        self.stop()
        self.serve(deadline)

    def live(self) -> dict[str, Any]:
        """The story; returns its figures."""
        begun, members = time.monotonic(), self.members
        killed, late = members[KILLED], members[LATE]
        early = [each for each in members.values() if each is not late]
        for member in early:
            member.join(self.data, self.port)
        visits = [self.finish(1, early, killed)]
        late.join(self.data, self.port)
        self.note(f"{late.name} has joined")
        for member in members.values():
            if member not in (killed, late):  # these have something to bring
                member.learn()
        visits.append(self.finish(2, list(members.values())))
        last = {name: member.run("sync", "--json") for name, member in members.items()}
        rounds = admin.call(self.data, "", "rounds")["rounds"]
        devices = {each["name"]: each for each in admin.call(self.data, "", "devices")["devices"]}
        self.stop()
        return {
            "events": self.events, "visits_by_all": visits, "minutes": round((time.monotonic() - begun) / 60, 1),
            "generalists": [
                {"number": each["number"], "sha256": each["sha256"], "updates": [
                    {"name": update["name"], "weight": round(update["weight"], 3), "trained_from": update["trained_from"]}
                    for update in each["updates"]
                ]} for each in rounds if each["published"]
            ],
            "updates": {name: each["updates"] - (name == NAMES[0]) for name, each in devices.items()},  # one is generalist 0
            "refusals": sum(each["refusals"] for each in devices.values()),
            "megabytes_sent": {name: round(each["bytes_in"] / 1e6, 1) for name, each in devices.items()},
            "waits": [name for name, each in last.items() if each["waits"]],
            "newest": {name: each["taken_over"] for name, each in last.items()},
        }  # fmt: skip


class Ruler:
    """Measures test text, with one base in memory."""

    def __init__(self, home: Path) -> None:
        self._home = Home(home)

    @cached_property
    def base(self) -> Any:
        """That of every home."""
        return open_base_to_measure(self._home, self._home.settings())

    def measure(self, home: Path, is_base: bool = False) -> float:
        """Bits per byte of a home's test text, with its newest mixture or with the base alone."""
        opened = Home(home)
        adapters, _, _, text = open_test(opened, opened.settings())
        return round(in_torch(Model(self.base, None if is_base else adapters), text).bits_per_byte, 4)


def make_homes(work: Path, text: Path, base: str | None) -> None:
    """One for each person, who has learned alone; both fleets begin with copies of them."""
    for name in NAMES:
        member = Member(name, work, text)
        member.run("init", *(["--base", base] if base else []))
        member.prepare()
        member.learn()
        print(f"{name}: has learned alone", flush=True)


def main() -> None:
    """Runs both fleets and writes private-fleet.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--work", type=Path, default=WORK / "private-fleet")
    parser.add_argument("--base", help="default: that of `init`")
    options = parser.parse_args()
    work, begun = options.work.absolute(), time.monotonic()
    shutil.rmtree(work, ignore_errors=True)
    make_homes(work / "homes", options.text, options.base)
    found: dict[str, Any] = {}
    for kind in KINDS:
        shutil.copytree(work / "homes", work / kind)
        fleet = Fleet(kind, work / kind, options.text)
        try:
            found[kind] = fleet.live()
        finally:
            fleet.stop()
    facts = summary(work, found) | {"minutes": round((time.monotonic() - begun) / 60, 1), **found}
    write_json(result_file("private-fleet.json"), facts)
    for name, each in facts["bits_per_byte"].items():
        print(name, *(f"{kind} {value:.3f}" for kind, value in each.items()))


def summary(work: Path, found: dict[str, Any]) -> dict[str, Any]:
    """Test text of all homes, before and after, and whether both fleets made the same generalists."""
    ruler, bits = Ruler(work / "homes" / NAMES[0]), {}
    for name in NAMES:
        home = work / "homes" / name
        bits[name] = {"base": ruler.measure(home, is_base=True), "before joining": ruler.measure(home)}
        bits[name] |= {kind: ruler.measure(work / kind / name) for kind in KINDS}
    made = zip(*(found[kind]["generalists"] for kind in KINDS), strict=True)
    return {
        "command": "make bench WHAT=private-fleet TEXT=FOLDER", "base": Home(work / "homes" / NAMES[0]).settings().base.name,
        "steps_of_a_training": STEPS, "rows": 2, "context": 64, "killed": KILLED, "late": LATE, "bits_per_byte": bits,
        "mean_bits_per_byte": {kind: round(mean(each[kind] for each in bits.values()), 4) for kind in bits[NAMES[0]]},
        "generalists_of_the_same_bits": [one["sha256"] == other["sha256"] for one, other in made],
    }  # fmt: skip


if __name__ == "__main__":
    main()
