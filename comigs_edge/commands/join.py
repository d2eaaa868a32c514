"""`comigs-edge join` and `leave`: this device in a coordinator's fleet."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from comigs_edge.home import folder as homes

if TYPE_CHECKING:
    from comigs_edge.home.config import Config
    from comigs_edge.home.folder import Home
    from coordinator.protocol.messages import Generalist

PATIENCE = 30.0  # seconds


def join(
    link: Annotated[str, typer.Argument(metavar="LINK", help="What `comigs-coordinator invite` printed: https://host:port#CODE")],
    name: Annotated[Optional[str], typer.Option(help="This device's name in the fleet; default: the invitation's.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:  # fmt: skip
    """Join a fleet: this device's generalist is averaged with the others'. Text, specialists and router never leave."""
    from comigs_edge import __version__
    from comigs_edge.commands.console import next_command, notes, out, print_json
    from comigs_edge.errors import ComigsError
    from comigs_edge.fleet.client import Remote
    from comigs_edge.fleet.folder import FleetFolder, Membership
    from coordinator.protocol import keys
    from coordinator.protocol.messages import Join

    home = homes.locate()
    settings = home.settings()
    try:
        address, code, pin = keys.read_link(link)
    except ValueError as error:
        raise ComigsError(
            f"{link[:60]!r} is no invitation ({error}); ask for one: comigs-coordinator invite"
        ) from error
    folder = FleetFolder(home)
    if folder.is_member and folder.membership().address != address:
        raise ComigsError(
            f"this device is in the fleet of {folder.membership().address}; leave it first: comigs-edge leave"
        )
    with home.locked("join"):
        key = folder.key()
        public = keys.public_text(key)
        trained = generalist(home, settings)
        with notes.status(f"asking {address}"):
            remote = Remote(address, pin, key, keys.device_id(public), PATIENCE)
            joined = remote.join(Join(code=code, name=name, public_key=public, generalist=trained, version=__version__))
        folder.leave()
        member = Membership(
            address,
            pin.hex(),
            joined.fleet,
            joined.device,
            joined.name,
            joined.signing_key,
            secrets.token_hex(4),
            0,
            "",
            "",
        )
        folder.save_membership(member.with_settings(joined.settings))
    if json:
        print_json(
            {
                "fleet": joined.fleet,
                "device": joined.device,
                "name": joined.name,
                "address": address,
                "next": "comigs-edge train",
            }
        )
        return
    weights = sum(a * b for a, b in trained.tensors.values())
    out.print(f"joined the fleet at {address} as [bold]{joined.name}[/]", soft_wrap=True)
    out.print(
        f"what leaves: changes of the generalist's {weights / 1e6:.2f} million weights, every {joined.settings.local_steps} "
        f"expert steps, as {joined.settings.update_format}; `comigs-edge sync --dry-run` lists them",
        soft_wrap=True,
    )  # fmt: skip
    out.print("what stays: your text, specialists, router and optimiser")
    next_command("comigs-edge train")


def generalist(home: Home, settings: Config) -> Generalist:
    """What this home's device would train with a fleet."""
    from comigs_edge.base.hparams import read_shape
    from comigs_edge.home.versions import read_manifest, versions
    from comigs_edge.nn.experts import Layout, generalist_shapes
    from comigs_edge.planning.plan import plan_experts, resolve
    from coordinator.protocol.messages import Generalist
    from quantize.gguf_file import GGUFFile

    shape, made = read_shape(GGUFFile(home.base_file)), versions(home.adapters)
    if made:
        layout = Layout(**read_manifest(home.adapters, made[-1])["layout"])
    else:
        layout = plan_experts(resolve(home, settings).settings.model, settings.device(), shape)
    return Generalist(
        base_name=settings.base.name, base_sha256=settings.base.sha256, form=layout.form, scale=layout.expert_scale,
        tensors=dict(generalist_shapes(layout, shape)),
    )  # fmt: skip


def leave() -> None:
    """Leave the fleet; your model, its generalist included, stays as it is."""
    from comigs_edge.commands.console import next_command, out
    from comigs_edge.fleet.folder import FleetFolder

    home = homes.locate()
    home.settings()
    with home.locked("leave"):
        folder = FleetFolder(home)
        member = folder.membership()
        folder.leave()
    out.print(
        f"{member.name} trains alone again; to have it forgotten there: comigs-coordinator revoke {member.name}",
        soft_wrap=True,
    )
    next_command("comigs-edge train")
