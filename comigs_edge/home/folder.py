"""The folder that holds everything of one person on one device.

    config.toml   base.gguf   data/documents.db   chats.db   state/ (checkpoints)   adapters/   models/ (exported GGUF)

`COMIGS_EDGE_HOME`, or the platform's data directory; for the owner alone (0700, files 0600).
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import filelock
import platformdirs

from comigs_edge import files
from comigs_edge.base.catalogue import PACKAGED_BASES
from comigs_edge.data.corpus import Corpus
from comigs_edge.errors import ComigsError, remedy
from comigs_edge.home import config_file, holder
from comigs_edge.home.config import BaseConfig, Config, Format
from comigs_edge.home.seals import Seals, stamp_of
from comigs_edge.nn.experts import Form
from comigs_edge.progress import SILENT, Progress
from coordinator.protocol.text import printable, well_formed

NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)  # what FAT and its like answer


class Home:
    """Paths of one home, and its lock."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config_file = root / "config.toml"
        self.base_file = root / "base.gguf"
        self.converted_file = root / ".converted.gguf"  # a base that is not in its place yet
        self.documents_file = root / "data" / "documents.db"
        self.chats_file = root / "chats.db"
        self.owner_file = root / "data" / "owner.json"
        self.state = root / "state"
        self.seals = Seals(self.state / "seals.json", root)
        self.holder_file = self.state / "holder.json"
        self.night_file = self.state / "night.json"  # what the service did last
        self.log_file = self.state / "train.log"  # of a training in the background
        self.adapters = root / "adapters"
        self.models = root / "models"
        self.fleet = root / "fleet"

    @property
    def written(self) -> tuple[Path, ...]:
        """What training and adding text write in or into, beside the folder itself."""
        return (self.state, self.state / "lock", self.adapters, self.models, self.documents_file.parent, self.documents_file)

    @property
    def exists(self) -> bool:
        """Whether `init` has been here."""
        return self.config_file.exists()

    def settings(self, progress: Progress = SILENT) -> Config:
        """The home's settings; raises `ComigsError` if there is no home or its base has changed.

        `progress` gets the bytes of a base that was touched, which is read whole once.
        """
        if not self.exists:
            raise ComigsError(f"there is no home at {self.root}; make one with: comigs-edge init")
        settings = config_file.read(self.config_file)
        if not self.base_file.exists():
            raise ComigsError(
                f"the base {settings.base.name} is gone from {self.base_file}; bring it back with: "
                "comigs-edge init --force --base FILE.gguf"
            )
        if self.base_file.stat().st_size != settings.base.size:
            raise ComigsError(
                f"{self.base_file} has {self.base_file.stat().st_size:,} bytes and not the {settings.base.size:,} it had "
                "at init; bring the base back or run: comigs-edge init --force --base FILE.gguf"
            )
        if not self.seals.holds(self.base_file, settings.base.sha256, progress):
            raise ComigsError(self._changed(settings.base.name))
        return settings

    def _changed(self, name: str) -> str:
        if name in PACKAGED_BASES:
            return (
                f"{self.base_file} is damaged (its SHA-256 is not what it was at init); mend it with: "
                f"comigs-edge init --force --base {name}"
            )
        return (
            f"{self.base_file.resolve()}, the base {name}, has another content than at init (the same size and another SHA-256); "
            "bring that file back, or take another base with: comigs-edge init --force --base FILE.gguf"
        )

    @contextlib.contextmanager
    def lock(self, what: str) -> Iterator[None]:
        """Holds the home for one long-running command; raises `ComigsError` saying who else holds it."""
        lock = filelock.FileLock(self.state / "lock", timeout=0, mode=0o600)
        try:
            files.make_folder(self.state)
            lock.acquire()
        except filelock.Timeout:
            raise holder.refusal(self.holder_file) from None
        except (OSError, NotImplementedError) as error:  # the latter is how a disk without locks is told
            error = error if isinstance(error, OSError) else OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
            raise ComigsError(
                f"`comigs-edge {what}` must write in {self.state}, and cannot ({error.strerror or error}); {remedy(error)}"
            ) from error
        try:
            with contextlib.suppress(ComigsError):  # it only says who holds the lock: a full disk need not stop a training
                holder.hold(self.holder_file, what)
            files.remove_dead(self.root)
            yield
        finally:
            with contextlib.suppress(OSError):
                self.holder_file.unlink(missing_ok=True)
            lock.release()


def locate() -> Home:
    """The home that `COMIGS_EDGE_HOME` names, or the one in the platform's data directory."""
    named = os.environ.get("COMIGS_EDGE_HOME")
    try:
        return Home(Path(named).expanduser().absolute() if named else platformdirs.user_data_path("comigs-edge"))
    except RuntimeError as error:  # a user without a home directory
        raise ComigsError(f"COMIGS_EDGE_HOME = {named} cannot be found ({error}); name a folder by its whole path") from None


def create(
    home: Home, base: tuple[str, Path], on_hash: Callable[[int], None], *, profile: str, specialists: int | None,
    expert_form: Form, format: Format | None = None, before: Config | None = None,
) -> Config:  # fmt: skip
    """Makes the home's folder, base (name and file) and config.toml; texts, adapters and models that are there stay.

    Settings from `before` stay too, but for those that are given here.

    A packaged base is copied, because its package may be upgraded; a file of the user's is linked.
    """
    name, source = base
    stamp = stamp_of(source)
    record = BaseConfig(printable(name), files.sha256_file(source, on_hash), source.stat().st_size)
    if well_formed(str(home.root)) != str(home.root):
        raise ComigsError(
            f"the name {home.root} is not UTF-8, and llama.cpp opens no file there; name another folder with COMIGS_EDGE_HOME"
        )
    files.make_folder(home.root)
    with contextlib.suppress(PermissionError):  # FAT keeps no rights; the folder's disk says who may read it
        home.root.chmod(0o700)
    if source == home.converted_file:
        source.replace(home.base_file)
    elif source.resolve() != home.base_file.resolve() or home.base_file.is_symlink():
        _install(home, source, copy=name in PACKAGED_BASES)
    home.seals.seal(home.base_file, record.sha256, stamp if home.base_file.is_symlink() else None)
    settings = replace(before or Config(base=record), base=record, profile=profile)
    model = replace(settings.model, specialists=specialists, expert_form=expert_form)
    settings = replace(settings, model=model, quantize=replace(settings.quantize, format=format))
    files.write_atomic(home.config_file, config_file.text(settings).encode())
    return config_file.read(home.config_file)


def _install(home: Home, source: Path, copy: bool) -> None:
    if copy:
        with files.atomic_writer(home.base_file, source.stat().st_size) as target, source.open("rb") as file:
            shutil.copyfileobj(file, target, 1 << 20)
        return
    temporary = home.root / ".base.gguf.link"
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(source.resolve())
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        _install(home, source, copy=True)
        return
    temporary.replace(home.base_file)


def corpus(home: Home, settings: Config) -> Corpus:
    """The home's documents."""
    return Corpus(home.documents_file, settings.data.training, settings.data.validation)
