"""Settings of the coordinator: `config.toml` in its folder; unknown keys and wrong types are refused by name."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import msgspec

from coordinator.protocol.compress import FORMATS
from coordinator.protocol.errors import CoordinatorError
from coordinator.protocol.messages import Settings
from coordinator.protocol.rounds import AVERAGING, WEIGHTS, Rules

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TEMPLATE = """\
# comigs-coordinator: how the fleet's rounds go. Started anew it reads this again; `serve` has a flag for each line.

[rounds]
# goal = 0                  # updates that close a round; 0: one of every active device
# deadline_seconds = 1800   # after a round's first update it closes with those that are in ...
# min_fraction = 0.5        # ... if they are this share of the active devices
# active_seconds = 172800   # a device that was not heard of for so long is not waited for
# max_staleness = 20        # an update that is further behind is refused; its device pulls and brings it the next time
# weights = "uniform"       # or "tokens": an update counts by the tokens it was trained on
# averaging = "separate"    # the paper's; "freeze-a" and "alternate" average low-rank products exactly

[training]
# local_steps = 10          # expert steps between two updates
# update_format = "float16" # or "float32", or "int8" (half the bytes of float16); what rounding takes comes with the next update
"""


@dataclass(frozen=True)
class Training:
    """What devices are told."""

    local_steps: int = 10  # the paper's
    update_format: str = "float16"


@dataclass(frozen=True)
class Config:
    """All of config.toml."""

    rounds: Rules = field(default_factory=Rules)
    training: Training = field(default_factory=Training)

    @property
    def settings(self) -> Settings:
        """What devices are told."""
        return Settings(
            local_steps=self.training.local_steps, update_format=self.training.update_format,
            averaging=self.rounds.averaging,
        )  # fmt: skip

    def with_values(self, values: dict[str, Any]) -> Config:
        """With other values; the names are those of the file's keys, None changes nothing."""
        given = {name: value for name, value in values.items() if value is not None}
        parts = {
            part.name: replace(
                getattr(self, part.name),
                **{k: given[k] for k in asdict(getattr(self, part.name)) if k in given},
            )
            for part in fields(self)
        }
        return check(Config(**parts), "the flags")


def read(path: Path) -> Config:
    """The settings in `path`, which is made if there is none; raises `CoordinatorError` for what cannot be read."""
    try:
        if not path.exists():
            path.write_text(TEMPLATE)
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        parts = {
            part.name: _section(getattr(Config(), part.name), table.pop(part.name, {}), part.name)
            for part in fields(Config)
        }
        if table:
            raise ValueError(f"unknown section {next(iter(table))!r}")
        return check(Config(**parts), str(path))
    except (OSError, UnicodeDecodeError, ValueError, msgspec.ValidationError) as error:
        raise CoordinatorError(f"{path} cannot be used ({error}); mend that line or delete it") from error


def check(config: Config, source: str) -> Config:
    """The same; raises `CoordinatorError` for a value out of bounds."""
    rules, training = config.rounds, config.training
    bounds = (
        ("goal", rules.goal, 0, 1024), ("deadline_seconds", rules.deadline_seconds, 0, 31e6),
        ("min_fraction", rules.min_fraction, 0.01, 1), ("active_seconds", rules.active_seconds, 1, 31e7),
        ("max_staleness", rules.max_staleness, 0, 10**6), ("local_steps", training.local_steps, 1, 10**6),
    )  # fmt: skip
    for name, value, low, high in bounds:
        if not low <= value <= high:
            raise CoordinatorError(f"{source}: {name} = {value} must be between {low} and {high:g}")
    for name, chosen, known in (
        ("weights", rules.weights, WEIGHTS), ("averaging", rules.averaging, AVERAGING),
        ("update_format", training.update_format, FORMATS),
    ):  # fmt: skip
        if chosen not in known:
            raise CoordinatorError(f"{source}: {name} = {chosen!r} must be one of {', '.join(known)}")
    return config


def _section(defaults: Any, table: Any, name: str) -> Any:
    if not isinstance(table, dict):
        raise ValueError(f"[{name}] is a section and not a value")
    known = asdict(defaults)
    for key in table:
        if key not in known:
            raise ValueError(f"unknown key {key!r} in [{name}]; known: {', '.join(known)}")
    return msgspec.convert({**known, **table}, type(defaults), strict=True)
