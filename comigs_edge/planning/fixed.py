"""The lines of a plan about which there is no choice, and who chose them."""

from __future__ import annotations

import json
from typing import Any, NamedTuple, get_type_hints

from comigs_edge.home.config import Config, ModelConfig, TrainConfig
from comigs_edge.home.folder import Home
from comigs_edge.home.versions import otherwise_than_begun, read_manifest, versions
from profiles.cost import Backend, Checkpointing, Plan, Precision, Processor

_MODEL, _TRAIN = (get_type_hints(each, include_extras=True) for each in (ModelConfig, TrainConfig))
LINES: dict[str, Any] = {  # of a training's plan, which --plan may fix -> type and bounds
    "specialists": _MODEL["specialists"], "batch": _TRAIN["batch"], "context": _TRAIN["context"],
    "threads": _TRAIN["threads"], "precision": Precision, "keep": bool, "checkpointing": Checkpointing, "backend": Backend,
    "device": Processor, "blocks": _MODEL["blocks"], "cache": bool,
    "zero_expert": bool, "cuda_graph": bool,
}  # fmt: skip
RESULTS = ("specialists", "batch", "context", "precision", "blocks", "cache", "device")  # what the result depends on
_OF_EXPERTS = ("specialists", "blocks")  # with others no training goes on
BY_FLAG, BY_FILE = "as asked for", "as config.toml says"
BY_TRAINING, BY_MODEL = "as the interrupted training began", "as your model has it"


class Fixed(NamedTuple):
    """Values of lines, and why each is so."""

    lines: dict[str, Any]
    reasons: dict[str, str]

    def explain(self, plan: Plan) -> dict[str, str]:
        """The reasons of the plan's lines, with those of the lines that were fixed."""
        return plan.reasons | {name: why for name, why in self.reasons.items() if getattr(plan, name) == self.lines[name]}


def fixed_lines(home: Home, settings: Config, flags: dict[str, Any], resume: bool | None) -> Fixed:
    """What a command's flags say, then config.toml, then what an earlier training has left.

    `resume` False starts from the bare base. Raises `ComigsError` where flags or settings contradict a training that was
    interrupted.
    """
    train = settings.train
    written: dict[str, Any] = {
        "specialists": settings.model.specialists, "batch": train.batch, "context": train.context,
        "threads": train.threads, "precision": train.precision, "checkpointing": train.checkpointing,
        "keep": None if train.base is None else train.base == "dequantised", "blocks": settings.model.blocks,
        "zero_expert": settings.model.zero_expert,
    }  # fmt: skip
    asked = {name: value for name, value in (written | flags).items() if value is not None}
    earlier, why = _earlier_lines(home, settings, asked) if resume is not False else ({}, "")
    by_hand = {name: BY_FLAG if name in flags else BY_FILE for name in asked}
    return Fixed(earlier | asked, dict.fromkeys(earlier, why) | by_hand)


def _earlier_lines(home: Home, settings: Config, asked: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Of an interrupted training its plan, otherwise the experts of the newest adapters; and why."""
    plan = home.state / "plan.json"
    if plan.exists() and any(home.state.glob("checkpoint-*")):
        lines = {name: value for name, value in json.loads(plan.read_bytes()).items() if name in LINES}
        for name in set(RESULTS) & lines.keys():
            if asked.get(name, lines[name]) != lines[name]:
                differences, is_other = f"{name} = {asked[name]} where it is {lines[name]}", name in _OF_EXPERTS
                raise otherwise_than_begun(differences, is_other, home.adapters, settings.base.sha256)
        return lines, BY_TRAINING
    if numbers := versions(home.adapters):
        manifest = read_manifest(home.adapters, numbers[-1])
        if manifest["base_sha256"] == settings.base.sha256:
            layout = manifest["layout"]
            lines = {"specialists": layout["num_specialists"], "blocks": layout.get("blocks", 0)}
            return lines | ({"zero_expert": True} if layout.get("zero_expert", False) else {}), BY_MODEL
    return {}, ""
