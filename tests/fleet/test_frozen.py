"""Where the fleet averages one side of the experts at a time, a training leaves the other one alone."""

import json

import numpy as np

from comigs_edge.home.versions import versions
from coordinator.protocol import wire
from tests.coordinator.rig import Coordinator


def newest(home):
    folder = home / "adapters" / f"{versions(home / 'adapters')[-1]:04d}"
    return wire.decode((folder / "generalist.safetensors").read_bytes(), "the generalist")


def test_a_side_that_the_fleet_does_not_average_is_not_trained(run, ready, tmp_path):
    coordinator = Coordinator(tmp_path / "coordinator", local_steps=2, averaging="freeze-a")
    try:
        run("join", coordinator.invite())
        run("train", "--steps", 2)  # begins the fleet; until then every side learns
        coordinator.until(lambda status: status["newest_round"] >= 0)
        before = newest(ready)
        assert json.loads(run("train", "--steps", 6, "--json").stdout)["fleet"]["generalists"] >= 1
    finally:
        coordinator.stop()
    for name, array in newest(ready).items():
        is_frozen = name.endswith((".ffn_gate.weight", ".ffn_up.weight"))
        assert is_frozen == (np.abs(array - before[name]).max() < 2**-20), name
