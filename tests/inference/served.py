"""`comigs-edge serve` in a process of its own, with a home whose base and experts are tiny and random."""

from __future__ import annotations

import os
import subprocess

import requests
import torch
from typer.testing import CliRunner

from comigs_edge.cli import app
from comigs_edge.home import versions
from comigs_edge.home.folder import Home
from comigs_edge.nn.adapters import Adapters
from comigs_edge.nn.experts import ExpertsConfig
from tests import warm


def make_home(root, base, *options):
    """A home that has learned nothing yet."""
    result = CliRunner().invoke(app, ["init", "--base", str(base), *options], env={"COMIGS_EDGE_HOME": str(root)})
    assert result.exit_code == 0, result.output
    return Home(root)


def learn(home, hparams, seed, form="parallel"):
    """The next version of the home's adapters: random ones."""
    layout = ExpertsConfig(1, 4, 8.0, 2, False, form, 32 if form == "parallel" else 0)
    adapters = Adapters.initial(layout, hparams, seed)
    for tensor in adapters.named.values():
        tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed)) * 0.2)
    return versions.save(home.adapters, adapters.arrays(), layout, home.settings().base.sha256, {})


class Served:
    """The running command, and requests to it."""

    def __init__(self, home, *options, **environment):
        self.log = home.root.with_suffix(".log")
        with self.log.open("wb") as log:
            words = ["serve", "--port", "0", "--plan", "threads=1", *options]
            environment = os.environ | {"COMIGS_EDGE_HOME": str(home.root)} | environment
            words = ["-m", "comigs_edge", *words]
            self.process = warm.Process(words, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
        self.printed = []
        while not self.printed or "Ctrl-C" not in self.printed[-1]:
            line = self.process.stdout.readline()
            assert line, self.log.read_text()
            self.printed.append(line)
        self.address = self.printed[0].split()[1]

    def notes(self):
        return self.log.read_text().splitlines()

    def get(self, path, **options):
        return requests.get(f"{self.address}{path}", timeout=60, **options)

    def post(self, path, body, **options):
        return requests.post(f"{self.address}{path}", json=body, timeout=60, **options)

    def ask(self, text="the hen", **fields):
        return self.post("/chat/completions", {"messages": [{"role": "user", "content": text}], **fields})

    def stop(self):
        self.process.terminate()
        assert self.process.wait(30) == 0
        self.process.stdout.close()


def refused(response, status):
    """The error of a refusal, in OpenAI's shape."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error
