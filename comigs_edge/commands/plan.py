"""`comigs-edge plan`: how this device would train, and why."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, NamedTuple, Optional

import typer

from comigs_edge.commands import completion
from comigs_edge.commands.console import counted, fact, in_minutes, measuring, next_command, out, print_json, size
from comigs_edge.commands.follow import how_far
from comigs_edge.commands.settings import settings_of
from comigs_edge.home import folder as homes
from comigs_edge.home import holder
from comigs_edge.home.config import Config
from comigs_edge.home.folder import Home
from profiles import ProfileError
from profiles.chat import ChatPlan
from profiles.cost import Plan
from profiles.detect import detect

if TYPE_CHECKING:
    from comigs_edge.training.checkpoint import Checkpoint, Progress

Profile = Annotated[
    Optional[str],
    typer.Option(metavar="NAME", autocompletion=completion.profiles, help="Profile of the device, in place of config.toml's."),
]
Lines = Annotated[
    Optional[list[str]],
    typer.Option(
        "--plan", metavar="NAME=VALUE", autocompletion=completion.plan_lines,
        help="Fixes a line of the plan, as in --plan batch=4; may be given several times.",
    ),
]  # fmt: skip


class Standing(NamedTuple):
    """Where a training stands: the steps of each phase that were done, and whether it goes on from a finished one."""

    expert: int = 0
    router: int = 0
    closing: int = 0
    local: int = 0
    goes_on: bool = False


NOTHING = Standing()


def plan(
    profile: Profile = None,
    lines: Lines = None,
    measure: Annotated[bool, typer.Option(help="Measure the processor for two seconds, for the time of a step.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show how this device would train: experts, batch, threads, memory, time, each with its reason."""
    from comigs_edge.planning.plan import resolve
    from comigs_edge.training.checkpoint import Latest
    from comigs_edge.training.known import NOTHING_NEW, goes_on
    from comigs_edge.training.next_step import RESUME, TRAIN, find_next
    from profiles import plan as planner

    home = homes.locate()
    settings = settings_of(home)
    with measuring(measure):
        resolved = resolve(home, settings, profile, lines or (), measure=measure)
    plan, rates, latest = resolved.plan, resolved.rates, Latest(home.state)
    then = find_next(home, resolved.settings, has_new_text=True, latest=latest)
    continues = then == TRAIN and goes_on(home)
    steps = _likely_steps(home, resolved.settings, latest.state if continues else None)
    done = Standing(goes_on=continues)
    if then == RESUME and latest.interrupted is not None:
        steps, done = latest.interrupted.progress["schedule"]["steps"], _done(latest.interrupted.progress)
    settings = replace(resolved.settings, train=replace(resolved.settings.train, steps=steps))
    local = max(0, _count_local_steps(home, settings, done.goes_on) - done.local)
    has_news = then != TRAIN or steps > 0 or local > 0
    if not has_news:
        plan, then = replace(plan, step_seconds=None), "comigs-edge chat"
    others = planner.neighbours(plan, resolved.base, rates)
    talk, running = _plan_chat(home, settings, profile), holder.training(home.holder_file)
    if json:
        block_format = settings.storage().fake_format
        print_json({
            "running": running and asdict(running),
            "plan": asdict(plan)
            | {"steps": steps, "steps_done": done.expert, "minutes": _minutes(plan, settings, done), "block_format": block_format,
               "local_steps": local},
            "chat": talk if isinstance(talk, str) else asdict(talk),
            "rates": None if rates is None else asdict(rates),
            "neighbours": [asdict(each) | {"minutes": _minutes(each, settings, done)} for each in others],
        })  # fmt: skip
        return
    if running:
        out.print(f"a training runs now: {how_far(running)}; another one would be:", soft_wrap=True)
    show(plan, settings, others if has_news else [], done)
    if not has_news:
        out.print(f"  {NOTHING_NEW}", soft_wrap=True)
    if local and plan.step_seconds is not None:
        why = f"about {local} steps of the specialists and the router, behind the others: only they learn local text"
        _show_lines({"local": in_minutes(local * plan.step_seconds / 60)}, {"local": why})
    _show_chat(talk)
    next_command(then)


def _done(progress: Progress) -> Standing:
    """What an interrupted training has done."""
    # `PROGRESS` of training/closing.py and training/local.py, which load torch.
    closing, local = progress.get("closing", {}), progress.get("local", {})
    return Standing(
        progress["expert_steps"], progress["router_steps"], closing.get("router_steps", 0),
        local.get("expert_steps", 0) + local.get("router_steps", 0), progress["schedule"].get("rate_factor", 1) < 1,
    )  # fmt: skip


def _likely_steps(home: Home, settings: Config, state: Checkpoint | None) -> int:
    """The steps of a training behind that in this `state`, if there is one, as long as the text's tokens were not counted."""
    from comigs_edge.planning.plan import new_tokens, training_tokens
    from comigs_edge.training.known import find_knowledge
    from comigs_edge.training.passage import MOST_NEW, find_passage
    from comigs_edge.training.schedule import make_schedule

    train, tokens = settings.train, training_tokens(home, settings)
    if train.batch is None or train.context is None or tokens is None:
        return train.steps
    knowledge = find_knowledge(home, settings, state, resume=None)
    if knowledge.known is not None and find_passage(state).is_read(train.passes):
        new = new_tokens(home, settings, knowledge.known)
        steps = math.ceil(train.passes * new / train.context / train.batch)
        if new < MOST_NEW * tokens and steps <= train.steps:  # as in `read_rows`
            return steps
    return make_schedule(settings, train.batch, None, -(-tokens // train.context)).steps


def _count_local_steps(home: Home, settings: Config, goes_on: bool) -> int:
    """About how many steps local text takes, of the experts and of the router; a training that `goes_on` may be shorter."""
    from comigs_edge.planning.plan import training_tokens
    from comigs_edge.training.local import total_local_steps
    from comigs_edge.training.schedule import make_schedule

    train, tokens = settings.train, training_tokens(home, settings, local=True)
    if train.batch is None or train.context is None or tokens is None or not settings.model.specialists:
        return 0
    schedule = make_schedule(settings, train.batch, None)
    return total_local_steps(-(-tokens // train.context), schedule.slow() if goes_on else schedule)


def _plan_chat(home: Home, settings: Config, profile: str | None) -> ChatPlan | str:
    """How the personal model would be run, of which the base's size is a guess; or why it would not fit."""
    from comigs_edge.planning.plan import chat_plan

    kind, size = settings.device(profile), settings.base.size
    try:
        return chat_plan(settings, home.base_file, profile=kind, device=detect(), size=size)
    except ProfileError as error:
        return str(error)


def _show_chat(plan: ChatPlan | str) -> None:
    if isinstance(plan, str):
        out.print(f"chat, in llama.cpp: {plan}", soft_wrap=True)
        return
    out.print("chat, in llama.cpp:")
    _show_lines({
        "context": f"{plan.context} tokens", "threads": str(plan.threads), "mmap": "yes" if plan.mmap else "no",
        "cache": plan.cache, "batch": f"{plan.batch} tokens", "gpu_layers": str(plan.gpu_layers), "memory": size(plan.memory),
    }, plan.reasons)  # fmt: skip


def show(plan: Plan, settings: Config, neighbours: list[Plan], done: Standing = NOTHING) -> None:
    """Prints a plan as lines with their reasons; the time is what follows the steps `done`."""
    storage, reasons = settings.storage(), plan.reasons
    _show_lines({
        "experts": f"1 generalist + {plan.specialists}", "blocks": f"the last {plan.blocks}" if plan.blocks else "all",
        "batch": f"{plan.batch} rows", "context": f"{plan.context} tokens", "threads": str(plan.threads),
        "device": plan.device, "precision": plan.precision, "backend": plan.backend,
        "weights": "in memory" if plan.keep else "in its file", "recompute": plan.checkpointing,
        "cache": "on disk" if plan.cache else "none",
        **({"graph": "yes" if plan.cuda_graph else "no"} if plan.device == "cuda" else {}),
        "zero": "yes" if plan.zero_expert else "no", "memory": size(plan.memory), "format": storage.format,
    }, reasons | {
        "experts": reasons["specialists"], "weights": reasons["keep"], "recompute": reasons["checkpointing"],
        "zero": reasons["zero_expert"], "graph": reasons["cuda_graph"],
        "format": f"trained in {storage.fake_format or 'the weights as they are'}",
    })  # fmt: skip
    if plan.step_seconds is not None and (left := _minutes(plan, settings, done)):
        train = settings.train
        about = "at most" if train.patience else "about"
        count = f"the last {train.steps - done.expert} of " if done.expert else f"{about} "
        kinds = (
            f"{count}{counted(train.steps, 'expert step')} and their router steps"
            if train.steps > done.expert
            else "the last router steps"
        )
        steps = f"{kinds}, {plan.step_seconds:.1f} s each"
        if "step_seconds" in reasons:
            steps += f", {reasons['step_seconds']}"
        _show_lines({"time": in_minutes(left)}, {"time": steps})
    for each in neighbours:
        minutes = _minutes(each, settings, done)
        time = "" if minutes is None else f", {in_minutes(minutes)}"
        out.print(f"  with {each.specialists} specialist{'s' * (each.specialists != 1)}: {size(each.memory)}{time}")


def _show_lines(values: dict[str, str], reasons: dict[str, str]) -> None:
    for name, value in values.items():
        fact(name, f"{value:<18} {reasons[name]}", 11, "  ")


def summary(
    plan: Plan, settings: Config, steps: int, done: Standing = NOTHING, *, most: bool = False, local: int = 0,
    minutes: float | None = None,
) -> str:  # fmt: skip
    """The plan in one line, for so many `steps`, or at `most` so many, `done` of them before; in `minutes`, if those end it.

    `local` steps come behind.
    """
    few = "at most " if most else "about " if minutes else ""  # with minutes, the number follows the clock
    if minutes is None:
        minutes = _minutes(plan, replace(settings, train=replace(settings.train, steps=steps)), done)
    left = f"the last {steps - done.expert} of {steps} steps" if steps > done.expert else "the last router steps"
    count = left if done.expert else f"{few}{counted(steps, 'step')}"
    time = f", {count} in {in_minutes(minutes)}" if minutes and (steps or done.expert) else ""
    if minutes is not None and local:
        time += f", then {local} of local text in {in_minutes(local * (plan.step_seconds or 0) / 60)}"
    where = "on the GPU" if plan.device == "cuda" else counted(plan.threads, "thread")
    return (
        f"plan: 1 generalist + {plan.specialists}, {plan.batch} x {plan.context} tokens, {plan.precision}, {where}, "
        f"up to {size(plan.memory)}{time} (comigs-edge plan says why)"
    )


def _minutes(plan: Plan, settings: Config, done: Standing = NOTHING) -> float | None:
    """Of a training of which the steps `done` were done."""
    from comigs_edge.planning.plan import settings_of
    from comigs_edge.training.pace import of_steps, seconds_left
    from comigs_edge.training.schedule import make_schedule

    if plan.step_seconds is None:
        return None
    schedule = make_schedule(settings_of(settings, plan), plan.batch, None)
    schedule = schedule.slow() if done.goes_on else schedule
    has_router = plan.specialists > 0
    return seconds_left(of_steps(plan.step_seconds, schedule), schedule, has_router, done[:2], done.closing) / 60
