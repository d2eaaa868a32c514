"""Settings of the coordinator: `config.toml` in its folder."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from coordinator.ledger.database import Database
from coordinator.protocol import settings
from coordinator.protocol.compress import MASKED, UpdateFormat
from coordinator.protocol.errors import CoordinatorError
from coordinator.protocol.messages import Settings
from coordinator.protocol.rounds import Rules
from coordinator.protocol.settings import SettingsError, setting

FACT = "settings"  # in the ledger: those in force since the last start
log = logging.getLogger("comigs-coordinator")
HEADER = "# comigs-coordinator: how the fleet's rounds go. It is read when `serve` starts, which has a flag for each line."


@dataclass(frozen=True)
class Training:
    """What devices receive."""

    local_steps: Annotated[int, setting("expert steps between two updates", 1, 10**6)] = 10  # the paper's
    update_format: Annotated[
        UpdateFormat, setting('or "float32", or "int8" (half the bytes); what rounding takes comes with the next update')
    ] = "float16"


@dataclass(frozen=True)
class Config:
    """All of config.toml."""

    rounds: Rules = field(default_factory=Rules)
    training: Training = field(default_factory=Training)

    @property
    def settings(self) -> Settings:
        """What devices receive."""
        update_format = MASKED if self.rounds.private else self.training.update_format
        return Settings(local_steps=self.training.local_steps, update_format=update_format, averaging=self.rounds.averaging)

    def with_values(self, values: dict[str, Any]) -> Config:
        """With other values; the names are those of the file's keys, None changes nothing.

        Raises `CoordinatorError` for a value out of bounds.
        """
        table = asdict(self)
        for section in table.values():
            section |= {name: values[name] for name in section if values.get(name) is not None}
        try:
            return settings.read(Config, table)
        except SettingsError as error:
            raise CoordinatorError(f"the flags: {error}") from None

    def gone(self) -> str:
        """What is said where the file is missing."""
        named = [f"{name} = {value}" for name, (_, value) in _differences(Config(), self).items()]
        return f"config.toml is gone or empty; the settings of the last start are in force: {', '.join(named) or 'the defaults'}"


def template(config: Config | None = None) -> str:
    """A config.toml that shows every setting, those with their defaults as comments."""
    return "\n".join((HEADER, *settings.template(config or Config()), ""))


def read(path: Path, makes: bool = True) -> Config | None:
    """The settings in `path`, which `makes` writes if missing; None for a file that is missing or empty otherwise.

    Raises `CoordinatorError` for what cannot be used.
    """
    try:
        is_empty = not path.exists() or not path.read_bytes().strip(b"\0")  # NULs are what a power cut leaves
        if makes and is_empty:
            path.write_text(template())
        elif is_empty:
            return None
        return settings.read(Config, settings.load(path))
    except OSError as error:
        raise CoordinatorError(f"{path} cannot be read ({error.strerror}); move it away, or give it back to its owner") from error
    except (ValueError, SettingsError) as error:
        raise CoordinatorError(f"{path} cannot be used: {error}; mend that line or delete it") from error


def last(database: Database) -> Config | None:
    """The settings that were in force at the last start; None before the first one, and where they cannot be read."""
    try:
        return settings.read(Config, json.loads(database.fact(FACT) or ""))
    except (ValueError, SettingsError):  # of another version
        return None


def is_private(database: Database, config: Config) -> bool:
    """Whether a fleet is private, by its settings or by those of its last start, which may have had flags."""
    before = last(database)
    return config.rounds.private or (before is not None and before.rounds.private)


def note(database: Database, config: Config, has_file: bool) -> None:
    """At a start: names in the log what is in force where the file is gone, or else what has changed, and keeps it."""
    before = last(database)
    if not has_file:
        log.warning(config.gone())
    for name, (old, new) in _differences(before or config, config).items():
        log.warning("setting changed since the last start: %s = %s, it was %s", name, new, old)
    if before != config:
        database.set_fact(FACT, json.dumps(asdict(config)))


def _differences(before: Config, after: Config) -> dict[str, tuple[Any, Any]]:
    old, new = asdict(before), asdict(after)
    return {
        f"{section}.{name}": (old[section][name], value)
        for section, values in new.items() for name, value in values.items() if value != old[section][name]
    }  # fmt: skip
