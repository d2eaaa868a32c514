"""The generalist that a home trains with its fleet: its form, its tensors, its present values. Without torch."""

from __future__ import annotations

from comigs_edge.arrays import select
from comigs_edge.base.hparams import HParams, read_hparams
from comigs_edge.home.config import Config
from comigs_edge.home.folder import Home
from comigs_edge.home.marks import Mark, read_mark
from comigs_edge.home.versions import load, read_manifest, versions
from comigs_edge.nn.experts import ExpertsConfig, generalist_shapes
from comigs_edge.planning.plan import plan_experts, resolve
from comigs_edge.training import checkpoint
from coordinator.protocol.generalist import may_leave
from coordinator.protocol.messages import Generalist
from coordinator.protocol.wire import Arrays
from quantize.gguf_file import GGUFFile


def read_layout(home: Home, settings: Config) -> tuple[ExpertsConfig, HParams]:
    """What the newest adapters look like, or those that are planned; and the base's hyper-parameters."""
    hparams, made = read_hparams(GGUFFile(home.base_file)), versions(home.adapters)
    if made:
        return ExpertsConfig(**read_manifest(home.adapters, made[-1])["layout"]), hparams
    return plan_experts(resolve(home, settings).settings.model, hparams), hparams


def describe_generalist(home: Home, settings: Config) -> Generalist:
    """What this home's device would train with a fleet."""
    layout, hparams = read_layout(home, settings)
    return Generalist(
        base_name=settings.base.name, base_sha256=settings.base.sha256, form=layout.form, scale=layout.expert_scale,
        tensors=dict(generalist_shapes(layout, hparams)),
    )  # fmt: skip


def initial_generalist(layout: ExpertsConfig, hparams: HParams, seed: int) -> Arrays:
    """The generalist with which a training begins."""
    from comigs_edge.nn.adapters import Adapters

    return Adapters.initial(layout, hparams, seed).generalist()


def read_interrupted(home: Home) -> tuple[Arrays, Mark] | None:
    """The generalist of an interrupted training, and its mark; None if there is no such training."""
    if (state := checkpoint.interrupted(home.state)) is None:
        return None
    return select_generalist(select(state.arrays, "current.")), read_mark(state.progress)


def read_generalist(home: Home, settings: Config) -> Arrays | None:
    """This device's generalist now, of an interrupted training or else of the newest adapters; None before both."""
    if interrupted := read_interrupted(home):
        return interrupted[0]
    if not versions(home.adapters):
        return None
    return select_generalist(load(home.adapters, read_hparams(GGUFFile(home.base_file)), settings.base.sha256).arrays)


def select_generalist(arrays: Arrays) -> Arrays:
    """The tensors that may leave."""
    return {name: array for name, array in arrays.items() if may_leave(name)}
