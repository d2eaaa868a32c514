"""Where the fleet averages one side of the experts at a time, a training leaves the other one alone."""

import json

import numpy as np

from comigs_edge.base.hparams import read_hparams
from comigs_edge.home.versions import read_manifest, versions
from comigs_edge.nn.adapters import Adapters
from comigs_edge.nn.experts import ExpertsConfig
from coordinator.protocol import wire
from quantize.gguf_file import GGUFFile
from tests.coordinator.rig import Coordinator


def test_a_side_that_the_fleet_does_not_average_is_not_trained(run, ready, tmp_path):
    coordinator = Coordinator(tmp_path / "coordinator", local_steps=2, averaging="freeze-a")
    try:
        run("join", coordinator.invite())
        run("sync")
        coordinator.until(lambda status: status["newest_round"] == 0)
        assert json.loads(run("train", "--steps", 6, "--json").stdout)["fleet"]["generalists"] >= 1
    finally:
        coordinator.stop()
    version = versions(ready / "adapters")[-1]
    layout = ExpertsConfig(**read_manifest(ready / "adapters", version)["layout"])
    begun = Adapters.initial(layout, read_hparams(GGUFFile(ready / "base.gguf")), 42).generalist()
    trained = wire.decode((ready / "adapters" / f"{version:04d}" / "generalist.safetensors").read_bytes(), "trained")
    for name, array in trained.items():
        is_frozen = name.endswith((".lora_a", ".ffn_gate.weight", ".ffn_up.weight"))
        assert is_frozen == (np.abs(array - begun[name]).max() < 2**-20), name
