"""The real thing on loopback: FLARE's server, two sites, a site that is killed, a server that is killed."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from coordinator.protocol import keys
from coordinator.protocol.messages import Manifest, decode
from tests.flare.rig import open_desk

SECONDS = 240.0  # for one thing to come: FLARE starts a job in half a minute, on a busy machine in two

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("nvflare") is None, reason="the extra comigs-edge[flare] is not installed"),
]


class Machine:
    """Processes that run until the end of the test, each the head of a group of its own."""

    def __init__(self, root):
        self.root, self.running = root, {}

    def start(self, name, *words, **environment):
        with (self.root / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                [sys.executable, "-m", *words], stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
                env={**os.environ, **environment},
            )  # fmt: skip

    def kill(self, name, number=signal.SIGKILL):
        """With all that it has started."""
        process = self.running.pop(name)
        for each in [*descendants(process.pid), process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, number)
        process.wait()

    def stop(self, name):
        process = self.running.pop(name)
        process.terminate()
        assert process.wait(60) in (0, 143, 130)

    def log(self, name):
        return (self.root / f"{name}.log").read_text(errors="replace")


def parents():
    """Of all processes."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError):
            found[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    return found


def descendants(pid):
    known = parents()
    children = [each for each, parent in known.items() if parent == pid]
    return [one for child in children for one in (*descendants(child), child)]


@pytest.fixture
def machine(tmp_path):
    machine = Machine(tmp_path)
    yield machine
    for name in list(machine.running):
        machine.kill(name)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def head(home):
    """Number of the newest generalist that a home knows; -1: none."""
    try:
        return json.loads((home / "fleet" / "standing.json").read_text())["head"]
    except (OSError, ValueError):
        return -1


def until(condition, machine, *names):
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, {name: machine.log(name)[-1500:] for name in names}
        time.sleep(0.5)


def test_a_fleet_on_flare_outlives_a_site_and_a_server_that_are_killed(run, ready, tmp_path, machine):
    data, project, homes = tmp_path / "data", tmp_path / "project", {name: tmp_path / name for name in "ab"}
    data.mkdir(mode=0o700)
    (data / "config.toml").write_text("[rounds]\ndeadline_seconds = 20\nmin_fraction = 0.5\n[training]\nlocal_steps = 4\n")
    for home in homes.values():
        shutil.copytree(ready, home)
    words = ["--site", "a", "--site", "b", "--port", str(free_port()), "--rounds", "4"]
    subprocess.run([sys.executable, "-m", "coordinator", "flare", "export", project, "--data", data, *words], check=True)
    provision = ["nvflare.lighter.provision", "-p", str(project / "project.yml"), "-w", str(project / "kits")]
    subprocess.run([sys.executable, "-m", *provision], check=True, capture_output=True)
    kit = project / "kits" / "comigs" / "prod_00"

    def site(name):
        machine.start(
            name, "comigs_edge", "flare", "run", str(kit / name), "--steps", "100000", "--no-pause",
            COMIGS_EDGE_HOME=str(homes[name]),
        )  # fmt: skip

    machine.start("server", "coordinator", "flare", "run", str(project), "--data", str(data))
    for name in homes:
        site(name)
    until(lambda: all(head(home) >= 2 for home in homes.values()), machine, "server", "a", "b")

    machine.kill("b")
    reached = head(homes["a"])
    until(lambda: head(homes["a"]) >= reached + 1, machine, "server", "a")  # at the round's deadline, with one

    [server] = [each for each in descendants(machine.running["server"].pid) if parents()[each] == machine.running["server"].pid]
    for each in [*descendants(server), server]:
        os.kill(each, signal.SIGKILL)
    site("b")
    reached = max(head(home) for home in homes.values())
    until(lambda: all(head(home) >= reached + 1 for home in homes.values()), machine, "server", "a", "b")
    assert machine.log("server").count("submitted job") >= 2

    for name in ("a", "b", "server"):
        machine.stop(name)
    with open_desk(data) as desk:
        chain = [decode(keys.to_bytes(link.manifest), Manifest) for link in desk.fleet.chain.manifests(-1)]
        assert [manifest.round for manifest in chain] == list(range(len(chain)))
        brought = desk.fleet.database.rows("SELECT device, count(*) AS updates FROM updates WHERE round > 0 GROUP BY device")
        assert len(brought) == 2
        assert not desk.fleet.database.rows("SELECT 1 FROM updates GROUP BY device, update_id HAVING count(*) > 1")
