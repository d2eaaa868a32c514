"""What `comigs-edge train` says at its end."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from comigs_edge.arrays import digest
from comigs_edge.commands.console import counted, next_command, out, print_json, size
from comigs_edge.commands.follow import place
from comigs_edge.commands.settings import settings_of
from comigs_edge.errors import ComigsError
from comigs_edge.home.versions import read_manifest, versions
from comigs_edge.training.next_step import find_next
from comigs_edge.training.pauses import duration
from coordinator.protocol.text import printable

if TYPE_CHECKING:
    from comigs_edge.fleet.rounds import Rounds, Totals
    from comigs_edge.home.folder import Home
    from comigs_edge.inference.elsewhere import Elsewhere
    from comigs_edge.training.loop import Outcome
    from comigs_edge.training.run import TrainingRun

NOTHING = "nothing was trained, so your model stays as it is"
SHARES = {0.5: "half", 0.25: "a quarter"}  # of `ON_THE_WAY`, in words


def report(
    home: Home, run: TrainingRun, outcome: Outcome, paused: float, fleet: Rounds | None, elsewhere: Elsewhere | None,
    as_json: bool,
) -> dict[str, Any]:  # fmt: skip
    """Prints what became of a training, or that as JSON, and returns what JSON has."""
    result = _facts(home, run, outcome, paused, fleet, elsewhere)
    if as_json:
        print_json(result)
    else:
        _tell(run, outcome, paused, fleet, elsewhere)
        next_command(str(result["next"]))
    return result


def _facts(
    home: Home, run: TrainingRun, outcome: Outcome, paused: float, fleet: Rounds | None, elsewhere: Elsewhere | None
) -> dict[str, Any]:  # fmt: skip
    trainer, (kept, layout, loss) = run.trainer, run.result()
    # A training that made nothing better than the base leaves it to be talked to.
    then = "comigs-edge chat" if versions(home.adapters) else "comigs-edge chat --base"
    result = {
        "finished": run.is_done,
        "expert_steps": trainer.expert_steps,
        "router_steps": trainer.router_steps,
        "closing_steps": 0 if run.closing is None else run.closing.steps,
        "validation_loss_before": run.loss_before,
        "validation_loss": loss,
        "share_of_way": trainer.way,
        "zero_expert": layout.zero_expert,
        "tokens": outcome.tokens,
        "seconds": round(outcome.seconds, 1),
        "paused_seconds": round(paused, 1),
        "adapters_version": outcome.version,
        "adapters_sha256": digest(trainer.adapters.arrays()),
        "best_sha256": digest(kept),
        "fleet": None if fleet is None else asdict(fleet.totals),
        "next": then if run.is_done else find_next(home, settings_of(home)),
    }
    return result if elsewhere is None else result | {"elsewhere": elsewhere._asdict()}


def _tell(run: TrainingRun, outcome: Outcome, paused: float, fleet: Rounds | None, elsewhere: Elsewhere | None) -> None:
    trainer = run.trainer
    out.print(_first_line(run, outcome, paused) if outcome.tokens or not run.is_done else NOTHING, soft_wrap=True)
    if trainer.way in SHARES and outcome.version is not None:
        out.print(
            f"kept is {SHARES[trainer.way]} of the way from the best model before to where this training has ended: by your "
            "validation text more of it is worse",
            soft_wrap=True,
        )
    if elsewhere is not None:
        out.print(f"elsewhere, on answers of the base itself: {elsewhere}", soft_wrap=True)
    if fleet is not None:
        out.print(_summary_of(fleet.totals), soft_wrap=True)
        if fleet.totals.trouble is not None:
            out.print(f"trained alone: {printable(fleet.totals.trouble)}", soft_wrap=True)
    if outcome.tokens and (said := _what_is_to_be_known(run, outcome)):
        out.print(said, soft_wrap=True)


def _what_is_to_be_known(run: TrainingRun, outcome: Outcome) -> str:
    """Of the model: that it is as before, or has no zero expert."""
    if outcome.version is None:
        if run.trainer.is_better and not run.is_done:
            return "your model stays in use as it is until this training has ended"
        return "nothing better than the start was found, so the personal model is unchanged"
    if run.closing is not None and run.closing.is_done and not run.result()[1].zero_expert:
        return "your model has no zero expert: with one the little that was gained would be lost"
    if _has_lost_zero(run):
        return "your model has no zero expert any more; what that costs: comigs-edge evaluate --elsewhere"
    return ""


def _has_lost_zero(run: TrainingRun) -> bool:
    """Whether the model before had a zero expert and the newest has none, as that was asked for."""
    if run.from_version is None or run.result()[1].zero_expert:
        return False
    with suppress(ComigsError):
        return bool(read_manifest(run.home.adapters, run.from_version)["layout"].get("zero_expert"))
    return False


def _first_line(run: TrainingRun, outcome: Outcome, paused: float) -> str:
    """What was done, and what it came to."""
    trainer = run.trainer
    stopped = f"stopped {place(trainer.expert_steps, trainer.schedule.steps)}; everything is saved"
    state = "trained" if run.is_done else stopped
    pauses = f", paused for {duration(paused)}" if paused else ""
    closing, closed = run.closing, ""
    if closing is not None and closing.is_done:
        closed = f", {closing.loss:.4f} with the zero expert{'' if closing.is_kept else ', which is not kept'}"
    return (
        f"{state}: validation loss {run.loss_before:.4f} before, {trainer.best_loss:.4f} at its best{closed} "
        f"({outcome.tokens:,} tokens in {duration(outcome.seconds)}{pauses})"
    )


def _summary_of(totals: Totals) -> str:
    newest = "" if totals.newest is None else f", the newest is {totals.newest}"
    remedy = "" if totals.kept_out else " for the next round or for the network, it is brought by: comigs-edge sync"
    waits = f"; an update waits{remedy}" if totals.waits else ""
    waits += f"; {totals.round_waits}" if totals.round_waits else ""
    return (
        f"fleet: {counted(totals.updates, 'update')} brought ({size(totals.bytes_sent)}), "
        f"{counted(totals.generalists, 'generalist')} taken over ({size(totals.bytes_received)}){newest}{waits}"
    )
