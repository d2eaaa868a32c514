"""Settings in TOML files: a dataclass says each setting once, with type, bounds, default and comment.

`read` refuses unknown keys, wrong types and impossible values by name; `template` writes the file that shows every default.
"""

from __future__ import annotations

import difflib
import functools
import json
import sys
from collections.abc import Collection, Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, inspect

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Section = TypeVar("Section")
Value = bool | int | float | str


class SettingsError(Exception):
    """A table that is not what its dataclass says; the text names the place, the value and what it must be."""


def setting(comment: str = "", low: float | None = None, high: float | None = None, example: Value | None = None) -> Meta:
    """What `Annotated` says of a setting: its comment in the file, its bounds, and what is shown where the default is None."""
    return Meta(ge=low, le=high, description=comment, examples=None if example is None else [example])


def load(path: Path) -> dict[str, Any]:
    """The tables of a TOML file; raises `OSError` or `ValueError` (UTF-8 and TOML)."""
    return tomllib.loads(path.read_text(encoding="utf-8"))


def read(cls: type[Section], table: object, section: str = "") -> Section:
    """The table as the dataclass `cls`, whose fields are settings or further sections; raises `SettingsError`."""
    if not isinstance(table, dict):
        raise SettingsError(f"{section} must be a section, [{section}]")
    hints, where = _hints(cls), f"in [{section}]" if section else "at the top"  # type: ignore[arg-type]
    for key in table:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(hints)}"
            raise SettingsError(f"unknown key {key!r} {where} ({hint})")
    missing = [each.name for each in fields(cls) if _is_required(each) and each.name not in table]  # type: ignore[arg-type]
    if missing:
        raise SettingsError(f"{', '.join(missing)} missing {where}")
    return cls(**{key: _read_value(hints[key], value, f"{section}.{key}".strip(".")) for key, value in table.items()})


def template(settings: Any, written: Collection[str] = (), section: str = "") -> Iterator[str]:
    """The lines of a file with these settings: those that are `written` or not the default, and the others as comments."""
    hints = _hints(type(settings))  # type: ignore[arg-type]
    for field in fields(settings):
        value, meta = getattr(settings, field.name), _meta(hints[field.name])
        name = f"{section}.{field.name}".strip(".")
        if is_dataclass(value):
            yield from ("", _line(f"[{name}]", meta))
            yield from template(value, written, name)
            continue
        is_active = name in written or _is_required(field) or value != field.default
        shown = value if value is not None or not meta.examples else meta.examples[0]
        yield _line(f"{'' if is_active else '# '}{field.name} = {json.dumps(shown, ensure_ascii=False)}", meta)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)


def _read_value(hint: Any, value: object, name: str) -> object:
    section: Any = getattr(hint, "__origin__", hint)  # of `Annotated`, the section
    if is_dataclass(section):
        return read(section, value, name)  # type: ignore[arg-type]
    if get_origin(hint) is dict:
        if not isinstance(value, dict) or not value:
            raise SettingsError(f"{name} must have sections, [{name}.NAME]")
        return {key: read(get_args(hint)[1], each, f"{name}.{key}") for key, each in value.items()}
    return convert(value, hint, name)


def convert(value: object, hint: Any, name: str, strict: bool = True) -> Any:
    """The value as a setting's type and bounds ask for; raises `SettingsError`. What is not `strict` is read from text."""
    try:
        return msgspec.convert(value, hint, strict=strict)
    except msgspec.ValidationError:
        choices = _choices(hint)  # in their own order, which `inspect` loses
        wanted = f"one of {', '.join(choices)}" if choices else _expected(inspect.type_info(hint))
        raise SettingsError(f"{name} = {value!r} must be {wanted}") from None


def _choices(hint: Any) -> tuple[str, ...]:
    if get_origin(hint) is Literal:
        return get_args(hint)
    return next((choices for each in get_args(hint) if (choices := _choices(each))), ())


def _expected(info: inspect.Type) -> str:
    """What a value of this type is, in words."""
    if isinstance(info, inspect.Metadata):
        return _expected(info.type)
    if isinstance(info, inspect.UnionType):
        return " or ".join(_expected(each) for each in info.types if not isinstance(each, inspect.NoneType))
    if isinstance(info, inspect.VarTupleType):
        return f"a list, each {_expected(info.item_type)}"
    if isinstance(info, (inspect.IntType, inspect.FloatType)):
        noun = "a whole number" if isinstance(info, inspect.IntType) else "a number"
        low, high = (f"{each:.10g}" if each is not None else "" for each in (info.ge, info.le))
        return f"{noun} between {low} and {high}" if low and high else f"{noun} of at least {low}" if low else noun
    return {inspect.BoolType: "true or false", inspect.StrType: "text in quotes"}[type(info)]


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _meta(hint: Any) -> Meta:
    """What `setting` says, of a type that may also be None."""
    hints = (hint, *get_args(hint))
    return next((meta for each in hints for meta in getattr(each, "__metadata__", ())), setting())


def _line(text: str, meta: Meta) -> str:
    return f"{text:<24} # {meta.description}" if meta.description else text
