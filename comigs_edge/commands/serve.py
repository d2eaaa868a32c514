"""`comigs-edge serve`: the personal model for other programs, as OpenAI's API."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import secrets
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from comigs_edge import files
from comigs_edge.commands.console import fact, notes, out, warn
from comigs_edge.commands.settings import settings_of
from comigs_edge.errors import EXPECTED, ComigsError, sentence
from comigs_edge.home import folder as homes
from comigs_edge.home.config import Config
from comigs_edge.home.folder import Home
from coordinator import addresses
from coordinator.protocol.text import printable
from profiles.detect import detect
from profiles.watch import OtherLoad

if TYPE_CHECKING:
    from comigs_edge.inference.engine import Engine, Model

PORT = 8484
KEY = "COMIGS_EDGE_KEY"  # the environment's
SHORTEST_KEY = 16  # characters
PERSONAL, BASE = "personal", "base"


def serve(
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on; every other than this machine's own wants a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = PORT,
    key: Annotated[
        Optional[Path],
        typer.Option(metavar="FILE", help=f"File with the key that programs must send; or the key itself in {KEY}."),
    ] = None,
    origins: Annotated[
        Optional[list[str]],
        typer.Option("--origin", metavar="URL", help="A page that may use it in a browser; may be given several times."),
    ] = None,
    lines: Annotated[
        Optional[list[str]],
        typer.Option("--plan", metavar="NAME=VALUE", help="Fixes a line of the chat's plan; may be given several times."),
    ] = None,
) -> None:
    """Offer your model to other programs, as OpenAI's API: chat and text completions, also streamed."""
    import asyncio

    home, load = homes.locate(), OtherLoad()
    settings = settings_of(home)
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(each) for each in _listen(host, port)]
        is_local = all(ipaddress.ip_address(each.getsockname()[0]).is_loopback for each in sockets)
        secret, made = _key(home, key, is_needed=not is_local)
        with notes.status("loading"):
            from comigs_edge.inference.server import LOCAL_NAMES, Access, Server

            newest = Newest(home, settings)
            engine = _engine(home, settings, newest, load.read() or 0, lines or [])
        access = Access(key=secret, hosts=LOCAL_NAMES | {host.lower()}, origins=frozenset(origins or ()))
        server = Server(engine, newest.names, access, note=lambda line: notes.print(printable(line), style="dim", soft_wrap=True))

        def ready() -> None:
            fact("address ", f"http://{f'[{host}]' if ':' in host else host}:{sockets[0].getsockname()[1]}/v1")
            fact("models  ", ", ".join(newest.names()))
            if secret is not None:
                fact("key     ", f"{secret}  (shown this once; it is kept in {made})" if made else "needed")
            if not is_local:
                warn("what is asked and answered passes the network unencrypted; see docs/serve.md")
            out.print("Ctrl-C ends", style="dim")

        asyncio.run(server.run(sockets, ready))


def _listen(host: str, port: int) -> list[socket.socket]:
    try:
        return addresses.listen(host, port)
    except socket.gaierror as error:
        raise ComigsError(f"{host} is no address of this machine ({error.strerror}); name one with --host") from error
    except OSError as error:
        option = "--host" if error.errno == errno.EADDRNOTAVAIL else "--port"
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ComigsError(f"port {port} of {host} cannot be used ({reason}); choose another with {option}") from error


def _key(home: Home, file: Path | None, is_needed: bool) -> tuple[str | None, Path | None]:
    """The key, if there is one, and the file in which it was made just now."""
    own = home.root / "serve-key"
    if file is not None:
        return _checked(_read(file.expanduser()), str(file)), None
    if named := os.environ.get(KEY):
        return _checked(named, KEY), None
    if not is_needed:
        return None, None
    if own.exists():
        return _checked(_read(own), str(own)), None
    made = secrets.token_urlsafe(24)
    files.write_atomic(own, f"{made}\n".encode())
    return made, own


def _read(file: Path) -> str:
    return file.read_bytes().decode("utf-8", "replace").strip()


def _checked(key: str, where: str) -> str:
    if len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key:
        raise ComigsError(
            f"the key in {where} must be {SHORTEST_KEY} or more ASCII characters without spaces; make one with: "
            "openssl rand -hex 24"
        )
    return key


class Newest:
    """The files of the models as they are now: trained since means exported once more."""

    def __init__(self, home: Home, settings: Config) -> None:
        self._home, self._settings = home, settings
        self._model: Model | None = None  # the personal one that was found last
        self._version = 0  # ... and what it was found for

    def names(self) -> list[str]:
        """Of the models that can be asked for."""
        from comigs_edge.home.versions import versions

        return [PERSONAL, BASE] if versions(self._home.adapters) else [BASE]

    def find(self, name: str) -> Model:
        """The model with this name; one that cannot be used leaves that before in its place."""
        from comigs_edge.export.current import find_current
        from comigs_edge.home.versions import versions
        from comigs_edge.inference.engine import Model

        if name == BASE:
            return Model(BASE, self._home.base_file)
        newest = max(versions(self._home.adapters), default=0)
        if self._model is None or newest != self._version or not self._model.path.exists():
            try:
                storage = self._settings.storage()
                personal = find_current(self._home, self._settings, storage, warn)
                if personal is None:
                    from comigs_edge.export.folder import export_newest

                    personal = export_newest(self._home, self._settings, storage)
                self._model = Model(f"{PERSONAL}-{newest}", personal.path, personal.adapters)
            except EXPECTED as error:
                if self._model is None:
                    raise
                warn(f"version {newest} cannot be used, continuing with the one before: {sentence(error)}")
            self._version = newest
        return self._model


def _engine(home: Home, settings: Config, newest: Newest, busy: float, lines: list[str]) -> Engine:
    from comigs_edge import llamacpp
    from comigs_edge.data.tokenizer import Tokenizer
    from comigs_edge.inference.engine import Defaults, Engine
    from comigs_edge.planning import plan as planning

    personal = newest.find(PERSONAL) if PERSONAL in newest.names() else None
    parts = [home.base_file] if personal is None else [personal.path, *personal.adapters]
    plan = planning.chat_plan(
        settings, home.base_file, profile=settings.device(), device=detect(), size=sum(each.stat().st_size for each in parts),
        busy=busy, flags=planning.parse(lines, planning.CHAT_LINES), model=parts[0],
    )  # fmt: skip
    chat = settings.chat
    sampling = {"temperature": chat.temperature, "top_p": chat.top_p, "repeat_penalty": chat.repeat_penalty}
    return Engine(
        Tokenizer(home.base_file, settings.model.thinking), newest.find,
        llamacpp.context_options(
            context=plan.context, threads=plan.threads, batch=plan.batch, cache=plan.cache, mmap=plan.mmap,
            gpu_layers=plan.gpu_layers,
        ),
        Defaults(system=chat.system, max_tokens=chat.max_tokens, sampling=sampling),
    )  # fmt: skip
