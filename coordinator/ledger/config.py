"""Settings of the coordinator: `config.toml` in its folder."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from coordinator.protocol import settings
from coordinator.protocol.compress import UpdateFormat
from coordinator.protocol.errors import CoordinatorError
from coordinator.protocol.messages import Settings
from coordinator.protocol.rounds import Rules
from coordinator.protocol.settings import SettingsError, setting

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
        return Settings(
            local_steps=self.training.local_steps, update_format=self.training.update_format, averaging=self.rounds.averaging
        )

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


def template() -> str:
    """A config.toml that shows every setting with its default."""
    return "\n".join((HEADER, *settings.template(Config()), ""))


def read(path: Path) -> Config:
    """The settings in `path`, which is made if missing; raises `CoordinatorError` for what cannot be used."""
    try:
        if not path.exists():
            path.write_text(template())
        return settings.read(Config, settings.load(path))
    except (OSError, ValueError, SettingsError) as error:
        raise CoordinatorError(f"{path} cannot be used: {error}; mend that line or delete it") from error
