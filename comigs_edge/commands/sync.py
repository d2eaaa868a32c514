"""`comigs-edge sync` and `rollback`: an exchange with the fleet by hand, what would leave, and the way back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from comigs_edge.home import folder as homes
from comigs_edge.nn.experts import may_leave

if TYPE_CHECKING:
    from comigs_edge.fleet.exchange import Federation
    from comigs_edge.home.config import Config
    from comigs_edge.home.folder import Home
    from coordinator.protocol.wire import Arrays

PATIENCE = 300.0  # seconds


def sync(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would leave this device, and send nothing.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:  # fmt: skip
    """Exchange generalists with the fleet now. `train` does it by itself."""
    home = homes.locate()
    settings = home.settings()
    with home.locked("sync"):
        federation = _federation(home, settings)
        if dry_run:
            _show_receipt(federation, _generalist(home, settings), json)
        elif _interrupted(home) is not None:  # it takes over what is new when it goes on
            _exchange_waiting(federation, "comigs-edge train --resume", json)
        else:
            _exchange(home, settings, federation, json)


def rollback(
    to: Annotated[
        Optional[int], typer.Option(help="Number of a generalist that is kept; default: the one before.")
    ] = None,
) -> None:
    """Return to an older generalist of the fleet; the three newest are kept."""
    from comigs_edge.base.hparams import read_shape
    from comigs_edge.commands.console import next_command, out
    from comigs_edge.errors import ComigsError
    from comigs_edge.home.versions import load, save
    from quantize.gguf_file import GGUFFile

    home = homes.locate()
    settings = home.settings()
    with home.locked("rollback"):
        if _interrupted(home) is not None:
            raise ComigsError(
                "a training is interrupted and holds the generalist; end it first with: comigs-edge train --resume"
            )
        shape = read_shape(GGUFFile(home.base_file))
        saved = load(home.adapters, shape, settings.base.sha256)
        federation = _federation(home, settings)
        number, generalist = federation.roll_back(to)
        notes = _notes(saved.manifest) | {"generalist": number, "fleet_mark": federation.mark}
        version = save(home.adapters, saved.arrays | generalist, saved.layout, settings.base.sha256, notes)
    out.print(
        f"went back to generalist {number}, as version {version} of your model; the next one that is published is taken over"
    )
    next_command("comigs-edge chat")


def _federation(home: Home, settings: Config) -> Federation:
    from comigs_edge.commands.join import generalist
    from comigs_edge.fleet.rounds import open_federation

    tensors = {name: tuple(shape) for name, shape in generalist(home, settings).tensors.items()}
    return open_federation(home, settings.fleet, tensors, settings.base.sha256, PATIENCE)


def _interrupted(home: Home) -> Arrays | None:
    """The state of an interrupted training; None where none is."""
    from comigs_edge.training import checkpoint

    found = checkpoint.load(home.state)
    return found[0] if found and found[1] and not found[1]["finished"] else None


def _notes(manifest: dict[str, Any]) -> dict[str, Any]:
    """What a manifest says beside what `save` writes itself."""
    return {
        name: value for name, value in manifest.items() if name not in ("version", "base_sha256", "layout", "sha256")
    }


# What would leave ---------------------------------------------------------------------------------------------------


def _generalist(home: Home, settings: Config) -> Arrays | None:
    """This device's generalist now, of the interrupted training or else of the newest adapters; None before both."""
    from comigs_edge.arrays import part
    from comigs_edge.base.hparams import read_shape
    from comigs_edge.home.versions import load, versions
    from quantize.gguf_file import GGUFFile

    state = _interrupted(home)
    if state is not None:
        return may_leave(part(state, "current."))
    if not versions(home.adapters):
        return None
    shape = read_shape(GGUFFile(home.base_file))
    return may_leave(load(home.adapters, shape, settings.base.sha256).arrays)


def _show_receipt(federation: Federation, generalist: Arrays | None, json: bool) -> None:
    from comigs_edge.commands.console import next_command, out, print_json, size
    from coordinator.protocol import compress, wire

    member, update = federation.membership, federation.preview(generalist)
    tensors = {
        name: {"type": str(a.dtype), "shape": list(a.shape), "bytes": a.nbytes}
        for name, a in sorted(update.packed.items())
    }
    total = len(wire.encode(update.packed))
    stays = [
        "your text",
        "specialists",
        "router",
        "optimiser state",
        "validation loss" if update.validation_loss is None else "",
    ]
    if json:
        print_json({
            "to": member.address, "fleet": member.fleet, "device": member.name, "bytes": total, "tensors": tensors,
            "also": ["number of tokens trained on", "number of the generalist it is a change of"],
            "stays": [each for each in stays if each], "changes_nothing_yet": generalist is None,
        })  # fmt: skip
        return
    out.print(
        f"to {member.address}, as {member.name}: {len(tensors)} tensors, {size(total)}, nothing was sent\n",
        soft_wrap=True,
    )
    for kind, names in _kinds(tensors).items():
        first = tensors[names[0]]
        shape = " x ".join(map(str, first["shape"]))
        out.print(f"  {kind:<44} {len(names):>3} times {shape:<12} {first['type']}", soft_wrap=True)
    out.print("\nwith it: the number of tokens trained on, and of which generalist it is a change")
    out.print(f"stays: {', '.join(each for each in stays if each)}")
    if generalist is None:
        out.print("nothing was trained yet: these are the names that the first update will have")
    if compress.used(member.update_format, update.trained_from) == "float32":
        out.print("the first generalist of a fleet is sent unrounded")
    next_command("comigs-edge sync")


def _kinds(tensors: dict[str, Any]) -> dict[str, list[str]]:
    """Names by what they are in every block."""
    import re

    kinds: dict[str, list[str]] = {}
    for name in tensors:
        kinds.setdefault(re.sub(r"\.blk\.\d+\.", ".blk.*.", name), []).append(name)
    return kinds


# Exchanging ---------------------------------------------------------------------------------------------------------


def _exchange_waiting(federation: Federation, following: str, json: bool) -> None:
    """Brings the outbox only: there are no adapters that could take something over."""
    from comigs_edge.commands.console import bar
    from comigs_edge.fleet.outcome import Exchange

    found = Exchange()
    with bar("bringing the update") as progress:
        federation.bring_waiting(found, progress)
    _report(found, None, following, json)


def _exchange(home: Home, settings: Config, federation: Federation, json: bool) -> None:
    from comigs_edge.base.hparams import read_shape
    from comigs_edge.commands.console import bar
    from comigs_edge.home.versions import load, save, versions
    from comigs_edge.nn.adapters import Adapters
    from quantize.gguf_file import GGUFFile

    if not versions(home.adapters):
        _exchange_waiting(federation, "comigs-edge train", json)
        return
    version = None
    shape = read_shape(GGUFFile(home.base_file))
    saved = load(home.adapters, shape, settings.base.sha256)
    adapters = Adapters.from_arrays(saved.layout, shape, saved.arrays)
    generalist = federation.begin(adapters.generalist(), saved.manifest.get("fleet_mark"))
    judge = _judge(home, settings, adapters)
    with bar("exchanging generalists") as progress:
        found = federation.exchange(generalist, 0, judge, None, progress)
    if found.generalist is not None:
        adapters.load_generalist(found.generalist)
        notes = _notes(saved.manifest) | {"generalist": found.taken_over, "fleet_mark": federation.mark}
        version = save(home.adapters, adapters.arrays(), adapters.layout, settings.base.sha256, notes)
    _report(found, version, "comigs-edge chat", json)


def _judge(home: Home, settings: Config, adapters: Any) -> Any:
    """Compares generalists on the validation text; the base and the text are loaded only if there is something to compare."""

    def judge(before: Arrays, after: Arrays) -> Any:
        from comigs_edge.fleet.rounds import compare

        return compare(_trainer(home, settings, adapters), before, after)

    return judge


def _trainer(home: Home, settings: Config, adapters: Any) -> Any:
    import torch

    from comigs_edge.data.tokenizer import Tokenizer
    from comigs_edge.nn.model import Model
    from comigs_edge.nn.weights import open_base
    from comigs_edge.planning.plan import resolve
    from comigs_edge.training import run as session
    from comigs_edge.training.trainer import Trainer

    resolved = resolve(home, settings)
    settings, plan = resolved.settings, resolved.plan
    torch.set_num_threads(plan.threads)
    rows = session.rows(home, settings, settings.device(), Tokenizer(home.base_file), [], lambda done, total: None)
    base = open_base(home.base_file, plan.threads, plan.keep, getattr(torch, plan.precision))
    model = Model(base, adapters, checkpointing=plan.checkpointing)
    return Trainer(model, *rows, session.schedule(settings, settings.device(), None))


def _report(found: Any, version: int | None, following: str, json: bool) -> None:
    from comigs_edge.commands.console import next_command, out, print_json, size
    from comigs_edge.errors import ComigsError

    if json:
        print_json({
            "updates": [{"round": each.round, "weight": each.weight} for each in found.receipts], "taken_over": found.taken_over,
            "refused": found.refused, "waits": found.waits, "offline": found.offline, "bytes_sent": found.bytes_sent,
            "bytes_received": found.bytes_received, "adapters_version": version, "next": following,
        })  # fmt: skip
    if found.offline:
        raise ComigsError(found.offline)
    if json:
        return
    for receipt in found.receipts:
        out.print(
            f"brought an update to round {receipt.round}, it counts {receipt.weight:.2f} ({size(found.bytes_sent)})"
        )
    if found.taken_over is not None:
        out.print(
            f"took over generalist {found.taken_over} ({size(found.bytes_received)}), as version {version} of your model"
        )
    if found.refused is not None:
        before, after = found.judgement
        out.print(
            f"generalist {found.refused} is worse for your text ({before:.3f} to {after:.3f} nats a token): kept the old one"
        )
    if not found.receipts and found.taken_over is None and found.refused is None:
        out.print("an update waits for the next round" if found.waits else "there is nothing new")
    next_command(following)
