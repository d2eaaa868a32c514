"""config.toml: written by `init` with every default in a comment, and read again."""

from __future__ import annotations

from pathlib import Path

import profiles
from comigs_edge.errors import ComigsError
from comigs_edge.home.config import HOME_FORMAT, Config
from comigs_edge.nn.experts import FORMS
from coordinator.protocol import settings
from coordinator.protocol.settings import SettingsError

HEADER = "# Settings of comigs-edge. A line that starts with # shows the default; remove the # to change it."


def text(config: Config) -> str:
    """A commented config.toml of these settings."""
    return "\n".join((HEADER, *settings.template(config, ("format", "profile", "model.expert_form")), ""))


def read(path: Path) -> Config:
    """The settings in `path`; raises `ComigsError` for what is no TOML, unknown or impossible, and `OSError`."""
    try:
        table = settings.load(path)
    except ValueError as error:
        raise ComigsError(f"{path} cannot be read ({error}); mend it, or start over with: comigs-edge init --force") from error
    version = table.get("format", HOME_FORMAT)
    if isinstance(version, int) and version > HOME_FORMAT:
        raise ComigsError(
            f"{path.parent} was made by a newer comigs-edge (home format {version}; this one reads {HOME_FORMAT}); "
            "upgrade comigs-edge"
        )
    export, quantize = table.get("export"), table.setdefault("quantize", {})
    if isinstance(quantize, dict):
        if isinstance(export, dict) and "format" in export:  # where it stood at first
            quantize.setdefault("format", export.pop("format"))
        if isinstance(name := quantize.get("format"), str):
            quantize["format"] = name.upper()
    try:
        config = settings.read(Config, table)
        _check(config)
    except SettingsError as error:
        raise ComigsError(f"{path}: {error}; mend that, or start over with: comigs-edge init --force") from None
    profiles.load(config.profile)
    return config


def _check(config: Config) -> None:
    """What one setting demands of another, and would otherwise end in a wrong result or a traceback."""
    model, data, stored = config.model, config.data, config.storage()
    if data.training + data.validation > 0.99:
        raise SettingsError(
            f"data.validation = {data.validation} must be between 0.01 and {0.99 - data.training:g}, which "
            f"data.training = {data.training} and a little test text leave"
        )
    low_rank = FORMS[model.expert_form].is_low_rank
    if stored.layout == "hot" and (not low_rank or stored.format not in ("F16", "F32")):
        raise SettingsError(
            f'export.layout = "hot" is for LoRA experts in F16 or F32, not for {model.expert_form} experts in '
            f'{stored.format}: use layout = "merged"'
        )
    if not low_rank and stored.format not in ("F16", "F32") and (model.expert_width or 0) % 32:
        raise SettingsError(
            f"model.expert_width = {model.expert_width} is not a multiple of 32, the block of {stored.format}: use one, "
            'or format = "F16" in [quantize]'
        )
