"""Reading config.toml: unknown keys, wrong types and impossible values are refused by name."""

from __future__ import annotations

import difflib
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import profiles
from comigs_edge.errors import ComigsError
from comigs_edge.home.config import FORMATS_TO_EXPORT, HOME_FORMAT, LAYOUTS, Config
from comigs_edge.nn.experts import FORMS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Section = TypeVar("Section")


def read(path: Path) -> Config:
    """The settings in `path`; raises `ComigsError` for what cannot be read, is unknown or has the wrong type."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ComigsError(
            f"{path} cannot be read ({error}); mend it, or start over with: comigs-edge init --force"
        ) from error
    if isinstance(table.get("export"), dict) and "format" in table["export"]:  # where it stood at first
        table.setdefault("quantize", {}).setdefault("format", table["export"].pop("format"))
    found = table.get("format", HOME_FORMAT)
    if isinstance(found, int) and found > HOME_FORMAT:
        raise ComigsError(
            f"{path.parent} was made by a newer comigs-edge (home format {found}; this one reads {HOME_FORMAT}); "
            "upgrade comigs-edge"
        )
    config = _section(Config, table, path, "")
    _check(config, path)
    return config


def _section(cls: type[Section], table: dict[str, Any], path: Path, name: str) -> Section:
    hints = get_type_hints(cls)
    where = f"in [{name}]" if name else "at the top"
    for key in table:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(hints)}"
            raise ComigsError(f"{path}: unknown key {key!r} {where}{hint}")
    values = {key: _value(hints[key], value, path, f"{name}.{key}".strip(".")) for key, value in table.items()}
    try:
        return cls(**values)
    except TypeError:
        missing = [f.name for f in fields(cls) if f.name not in values]  # type: ignore[arg-type]
        raise ComigsError(f"{path}: {', '.join(missing)} missing {where}; run: comigs-edge init --force") from None


def _value(hint: Any, value: Any, path: Path, name: str) -> Any:
    if isinstance(hint, type) and hint.__module__ == Config.__module__:
        if not isinstance(value, dict):
            raise ComigsError(f"{path}: {name} must be a section, [{name}]")
        return _section(hint, value, path, name)
    kinds = getattr(hint, "__args__", (hint,))
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) not in kinds:
        wanted = " or ".join(kind.__name__ for kind in kinds if kind is not type(None))
        raise ComigsError(f"{path}: {name} = {value!r} must be {wanted}")
    return value


def _check(config: Config, path: Path) -> None:
    """Bounds that would otherwise end in a wrong result or a traceback."""
    model, train, data = config.model, config.train, config.data
    rules = (
        ("model.specialists", model.specialists, 0, 63),
        ("model.rank", model.rank, 1, 1024),
        ("model.blocks", model.blocks, 0, 1024),
        ("train.steps", train.steps, 1, 10**9),
        ("train.batch", train.batch, 1, 4096),
        ("train.context", train.context, 8, 1 << 20),
        ("train.threads", train.threads, 1, 1024),
        ("train.cache_mb", train.cache_mb, 0, 10**9),
        ("train.router_period", train.router_period, 1, 10**9),
        ("train.router_steps", train.router_steps, 0, 10**9),
        ("train.expert_learning_rate", train.expert_learning_rate, 0, 10),
        ("train.final_learning_rate", train.final_learning_rate, 0, 10),
        ("train.router_learning_rate", train.router_learning_rate, 0, 10),
        ("train.router_offset_rate", train.router_offset_rate, 0, 10),
        ("train.validation_rows", train.validation_rows, 1, 10**6),
        ("pause.temperature", config.pause.temperature, 30, 150),
        ("pause.battery", config.pause.battery, 0, 100),
        ("pause.memory_mb", config.pause.memory_mb, 0, 10**6),
        ("pause.load", config.pause.load, 0.01, 1),
        ("quantize.start", config.quantize.start, 0, 1),
        ("model.expert_width", model.expert_width, 1, 1 << 16),
        ("data.training", data.training, 0.01, 0.98),
        ("data.validation", data.validation, 0.01, 0.99 - data.training),
        ("evaluate.context", config.evaluate.context, 8, 1 << 20),
        ("chat.context", config.chat.context, 64, 1 << 20),
        ("fleet.gate", config.fleet.gate, 0, 100),
        ("chat.threads", config.chat.threads, 1, 1024),
        ("chat.batch", config.chat.batch, 1, 1 << 16),
    )
    for name, value, low, high in rules:
        if value is not None and not low <= value <= high:
            raise ComigsError(f"{path}: {name} = {value} must be between {low} and {high:g}")
    choices: tuple[tuple[str, str | None, tuple[str, ...]], ...] = (
        ("model.expert_form", model.expert_form, tuple(FORMS)),
        ("export.layout", config.export.layout, LAYOUTS),
        ("chat.cache", config.chat.cache, ("F16", "Q8_0")),
        ("train.precision", train.precision, ("float32", "bfloat16")),
        ("train.base", train.base, ("dequantised", "quantised")),
        ("train.checkpointing", train.checkpointing, ("block", "attention", "none")),
        ("quantize.format", config.quantize.format and config.quantize.format.upper(), FORMATS_TO_EXPORT),
    )
    for name, chosen, known in choices:
        if chosen is not None and chosen not in known:
            raise ComigsError(f"{path}: {name} = {chosen!r} must be one of {', '.join(known)}")
    stored, low_rank = config.storage(), FORMS[model.expert_form].is_low_rank
    if stored.layout == "hot" and (not low_rank or stored.format not in ("F16", "F32")):
        raise ComigsError(
            f'{path}: export.layout = "hot" is for LoRA experts in F16 or F32, not for {model.expert_form} experts in '
            f'{stored.format}; use layout = "merged"'
        )
    if not low_rank and stored.format not in ("F16", "F32") and (model.expert_width or 0) % 32:
        raise ComigsError(
            f"{path}: model.expert_width = {model.expert_width} is not a multiple of 32, the block of {stored.format}; use one, "
            'or format = "F16" in [quantize]'
        )
    profiles.load(config.profile)
