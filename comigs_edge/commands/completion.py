"""Names that a shell completes: what there is on this device, found without torch. Whatever goes wrong, there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from comigs_edge.base.catalogue import CATALOGUE, PACKAGED_BASES, bases_folder
from comigs_edge.errors import EXPECTED
from comigs_edge.home import folder as homes
from profiles import ProfileError
from profiles import names as profile_names

Completion = Callable[[str], list[str]]  # of what was typed so far


def _completion(find: Callable[[], Iterable[object]]) -> Completion:
    def complete(incomplete: str) -> list[str]:
        try:
            return [name for name in map(str, find()) if name.startswith(incomplete)]
        except (*EXPECTED, ProfileError):
            return []

    return complete


def _chats() -> Iterable[object]:
    from comigs_edge.inference.history import History

    return [chat["id"] for chat in History(homes.locate().chats_file).chats()]


def _versions() -> list[int]:
    from comigs_edge.home.versions import versions

    return versions(homes.locate().adapters)


def _unused_versions() -> Iterable[object]:
    return _versions()[:-1]  # the newest is the one in use


def _known_bases() -> Iterable[str]:
    return sorted({*CATALOGUE, *_pulled()})


def _unused_bases() -> Iterable[str]:
    used = homes.locate().base_file.resolve()
    return [path.stem for path in _pulled().values() if path.resolve() != used]


def _pulled() -> dict[str, Path]:
    return {path.stem: path for path in sorted(bases_folder().glob("*.gguf"))}


def _recipes() -> Iterable[str]:
    from comigs_edge.simulate.recipe import shipped_names

    return shipped_names()


def _methods() -> Iterable[str]:
    from comigs_edge.simulate.methods.catalogue import METHODS

    return METHODS


def _generalists() -> Iterable[object]:
    folder = homes.locate().fleet / "generalists"
    return sorted(int(path.stem) for path in folder.glob("*.safetensors") if path.stem.isdecimal())


def _lines() -> Iterable[str]:
    from comigs_edge.planning.fixed import LINES

    return [f"{name}=" for name in LINES]


def _chat_lines() -> Iterable[str]:
    from comigs_edge.planning.plan import CHAT_LINES

    return [f"{name}=" for name in CHAT_LINES]


def _bases() -> Iterable[str]:
    return dict.fromkeys([*PACKAGED_BASES, *_pulled()])


bases, profiles = _completion(_bases), _completion(profile_names)
known_bases, unused_bases = _completion(_known_bases), _completion(_unused_bases)
versions, unused_versions = _completion(_versions), _completion(_unused_versions)
chats, generalists = _completion(_chats), _completion(_generalists)
recipes, methods = _completion(_recipes), _completion(_methods)
plan_lines, chat_lines = _completion(_lines), _completion(_chat_lines)
