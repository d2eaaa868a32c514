"""Where the coordinator listens, and what its invitations call it."""

from __future__ import annotations

import argparse
import contextlib
import errno
import ipaddress
import re
import socket
import threading

PORT = 8443  # where nobody says another
EVERYWHERE = ("", "::")  # all addresses of both families; 0.0.0.0 means those of IPv4
BACKLOG = 512
MDNS_SECONDS = 2.0  # for this machine's own name


def listen(host: str, port: int) -> list[socket.socket]:
    """Sockets on every address that `host` means, all on one port; raises `OSError`."""
    wanted = [(socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")] if host in EVERYWHERE else _resolve(host)
    sockets: list[socket.socket] = []
    refusal = OSError(f"{host} has no address")
    for family, address in wanted:
        try:
            sockets.append(socket.create_server((address, port), family=family, backlog=BACKLOG))
        except OSError as error:
            refusal = error
            if error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):  # a machine without this family
                continue
            for each in sockets:
                each.close()
            raise
        port = sockets[0].getsockname()[1]
    if not sockets:
        raise refusal
    return sockets


def _resolve(host: str) -> list[tuple[socket.AddressFamily, str]]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((family, str(address[0])) for family, _, _, _, address in found))


def invited(host: str, port: int) -> str:
    """The address for invitations.

    Where the coordinator listens everywhere it is a name that mDNS answers for, which stays when the router gives the machine
    another address, or else its address on its network today.
    """
    if host in (*EVERYWHERE, "0.0.0.0"):
        host = _mdns_name() or _address(socket.AF_INET, "192.0.2.1") or _address(socket.AF_INET6, "2001:db8::1") or (
            socket.gethostname()
        )  # fmt: skip
    return f"https://{f'[{host}]' if ':' in host else host}:{port}"


def _address(family: socket.AddressFamily, elsewhere: str) -> str | None:
    """This machine's address towards `elsewhere`; None without a route."""
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((elsewhere, 9))  # sends nothing: it selects the local address
        return str(probe.getsockname()[0])
    return None


def _mdns_name() -> str | None:
    """HOSTNAME.local if that leads to this machine from its network; None if not, or if nobody answers soon."""
    name = socket.gethostname().partition(".")[0] + ".local"
    found: list[str] = []

    def ask() -> None:
        with contextlib.suppress(OSError, UnicodeError):
            found.extend(address for _, address in _resolve(name))

    asking = threading.Thread(target=ask, daemon=True)  # a resolver may wait for long
    asking.start()
    asking.join(MDNS_SECONDS)
    return name if any(map(_is_reached_here, found)) else None


def _is_reached_here(address: str) -> bool:
    """Whether it is one of this machine's addresses that others can reach."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if found.is_loopback or found.is_link_local:
        return False
    family = socket.AF_INET if found.version == 4 else socket.AF_INET6
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.bind((address, 0))
        return True
    return False


def check_port(text: str) -> int:
    """The port that a person typed; raises `ArgumentTypeError`."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: 0 to 65535")
    return int(text)


def check_address(text: str) -> str:
    """As devices accept it: https, a host, perhaps a port, and nothing else."""
    found = re.fullmatch(r"https://(\[[0-9A-Fa-f:.]+\]|[^\s/:@?#\[\]]+)(?::([0-9]{1,5}))?", text)
    if not found or not 0 < int(found[2] or PORT) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no address: write https://HOST:PORT")
    return text
