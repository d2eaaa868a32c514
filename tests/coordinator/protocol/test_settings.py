"""The reader of settings: one sentence for what is wrong, and the file that it writes is the file that it reads."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.protocol.settings import SettingsError, convert, read, setting, template, tomllib


@dataclass(frozen=True, kw_only=True)
class Part:
    count: Annotated[int, setting("how many", 0, 2**30)] = 3
    share: Annotated[float, setting("of it", 0, 1)] | None = None
    kind: Annotated[Literal["small", "large"], setting("or large")] = "small"
    name: str = 'it is "quoted"'
    steps: tuple[Annotated[int, setting("", 1)], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Whole:
    is_on: Annotated[bool, setting("or off")]
    part: Annotated[Part, setting("a section")] = field(default_factory=Part)
    parts: dict[str, Part] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is_on missing at the top"),
        ("is_on = 1", "is_on = 1 must be true or false"),
        ("is_on = true\nparts = 1", r"parts must have sections, \[parts.NAME\]"),
        ("is_on = true\nparts = {}", r"parts must have sections, \[parts.NAME\]"),
        ("is_on = true\npart.cuont = 1", r"unknown key 'cuont' in \[part\] .did you mean 'count'"),
        ("is_on = true\npart.zzz = 1", r"unknown key 'zzz' in \[part\] .known: count, share, kind"),
        ("is_on = true\npart.share = nan", "part.share = nan must be a number between 0 and 1"),
        ("is_on = true\npart.count = 1.5", "part.count = 1.5 must be a whole number between 0 and 1073741824"),
        ("is_on = true\npart.steps = [0]", r"part.steps = \[0\] must be a list, each a whole number of at least 1"),
        ("is_on = true\nparts.a.kind = 'huge'", "parts.a.kind = 'huge' must be one of small, large"),
        ("is_on = true\nparts.a.name = 1979-05-27", "parts.a.name = datetime.* must be text in quotes"),
    ],
)
def test_what_is_wrong_is_said_with_its_place_its_value_and_what_it_must_be(text, sentence):
    with pytest.raises(SettingsError, match=sentence):
        read(Whole, tomllib.loads(text))


@given(
    st.booleans(), st.integers(0, 2**30), st.none() | st.floats(0, 1), st.sampled_from(["small", "large"]),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x7f")),
)  # fmt: skip
def test_what_is_written_is_read_back(is_on, count, share, kind, name):
    whole = Whole(is_on=is_on, part=Part(count=count, share=share, kind=kind, name=name))
    plain = {key: value for key, value in asdict(whole.part).items() if value not in (None, ())}
    lines = "\n".join(line for line in template(whole) if not line.startswith(("parts", "# steps")))
    table = tomllib.loads(lines)
    assert table["is_on"] is is_on
    assert table.get("part", {}).items() <= plain.items()
    assert read(Whole, table) == whole


def test_text_of_a_command_line_becomes_what_the_setting_is():
    assert convert("7", int, "count", strict=False) == 7
    assert convert("true", bool, "is_on", strict=False) is True
    with pytest.raises(SettingsError, match="count = '7' must be a whole number"):
        convert("7", int, "count")
