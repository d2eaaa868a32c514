"""`comigs-edge init`: makes the home and prints the plan."""

from __future__ import annotations

import shlex
from contextlib import nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, NamedTuple, Optional, cast

import typer

import profiles
from comigs_edge.base.catalogue import DEFAULT_BASE, PACKAGED_BASES, find_base
from comigs_edge.base.hparams import HParams, check_tensors, read_hparams
from comigs_edge.base.parts import is_part, join
from comigs_edge.commands import completion
from comigs_edge.commands.console import bar, counted, fact, next_command, out, print_json, size, warn
from comigs_edge.commands.plan import show
from comigs_edge.commands.settings import settings_of
from comigs_edge.errors import EXPECTED, ComigsError
from comigs_edge.home import config_file
from comigs_edge.home import folder as homes
from comigs_edge.home.config import DEFAULT_FORMAT, Config, Format, ModelConfig
from comigs_edge.home.folder import Home
from comigs_edge.nn.experts import FORMS, Form, default_form, expected_shapes
from comigs_edge.planning.plan import check_format
from comigs_edge.progress import count_up
from coordinator.protocol.text import printable
from quantize.formats import QuantizeError
from quantize.gguf_file import GGUFFile


def init(
    base: Annotated[
        Optional[str],
        typer.Option(
            metavar="NAME|FILE|FOLDER",
            autocompletion=completion.bases,
            help=f"Base model: a name, a .gguf file or a Hugging Face folder; default: {DEFAULT_BASE}.",
        ),
    ] = None,
    format: Annotated[
        str, typer.Option(metavar="NAME", help="Block format of a base that is made from a Hugging Face folder.")
    ] = "Q8_0",
    specialists: Annotated[
        Optional[int], typer.Option(min=0, max=63, help="Local experts beside the generalist; default: the profile's.")
    ] = None,
    profile: Annotated[
        Optional[str],
        typer.Option(
            metavar="NAME",
            autocompletion=completion.profiles,
            help=f"What the device can carry: {', '.join(profiles.names())}; default: auto.",
        ),
    ] = None,
    expert_form: Annotated[
        Optional[str],
        typer.Option(
            metavar="lora|parallel", help="LoRA in the MLP, or small experts beside it; default: parallel where the base allows."
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Take another base (--base), or without that write settings and base anew; text and models stay."
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make the home of your model: its base, its settings, and a place for your text."""
    from comigs_edge.training.next_step import find_next

    home, before, origin = homes.locate(), None, None
    is_new = not home.exists
    if is_new or force:
        profiles.load(profile or "auto")
        if expert_form is not None and expert_form not in FORMS:
            raise typer.BadParameter(f"--expert-form {expert_form} is not one of {', '.join(FORMS)}")
        wanted = Wanted(*find_base(base or DEFAULT_BASE), format.upper(), expert_form, profile, specialists)
        with nullcontext() if is_new else home.lock("init"):
            before = _read_settings(home) if base is not None else None
            origin = _origin(home, before.base.name) if before else None
            settings = _make_home(home, wanted, before)
    else:
        settings = settings_of(home)
    then = find_next(home, settings, has_new_text=True)
    if json:
        _print_json(home, settings, is_new or force, then)
        return
    _say_made(home, is_new or force)
    _print_plan(home, settings)
    if before is not None and before.base.sha256 != settings.base.sha256:
        _say_lost(home, before.base.name, origin)
    if is_new and base is None:
        _advise(home, settings)
    next_command(then)


def _say_made(home: Home, is_made: bool) -> None:
    place = printable(str(home.root))
    there = f"{place} is there already; nothing was changed (--force --base NAME takes another base, --force alone begins anew)"
    out.print(f"made {place}\n" if is_made else f"{there}.\n", soft_wrap=True)


def _print_json(home: Home, settings: Config, is_made: bool, then: str) -> None:
    from comigs_edge.commands.bases import fit_bases
    from comigs_edge.planning.plan import resolve

    fits, recommended = fit_bases(home)
    print_json({
        "home": str(home.root), "made": is_made, "base": asdict(settings.base), "plan": asdict(resolve(home, settings).plan),
        "fits": [asdict(fit) | {"is_good": fit.is_good} for fit in fits], "recommended": recommended, "next": then,
    })  # fmt: skip


class Wanted(NamedTuple):
    """What was asked for."""

    name: str
    source: Path
    format: str  # of a base that is converted
    expert_form: str | None
    profile: str | None
    specialists: int | None


def _read_settings(home: Home) -> Config | None:
    """Those of a home that gets another base; None where there are none that can be read."""
    with suppress(*EXPECTED):
        return config_file.read(home.config_file) if home.exists else None
    return None


def _make_home(home: Home, wanted: Wanted, before: Config | None) -> Config:
    from comigs_edge.inference.runnable import check_runnable

    name, source, format_name, expert_form, profile, specialists = wanted
    converted = _convert(home, source, format_name, expert_form) if source.is_dir() or is_part(source) else None
    source = converted or source
    try:
        form, stored = _choose_form(source, expert_form, before)
        for oddity in check_runnable(source):
            warn(oddity)
    except Exception:
        if converted:
            converted.unlink()
        raise
    if before is not None:
        profile, specialists = profile or before.profile, before.model.specialists if specialists is None else specialists
    with bar("reading the base") as progress:
        return homes.create(
            home, (name, source), count_up(progress, source.stat().st_size), profile=profile or "auto", specialists=specialists,
            expert_form=form, format=stored, before=before,
        )  # fmt: skip


def _origin(home: Home, name: str) -> str | None:
    """What brings the present base back: its name or file; None for one that was converted and lies in the home alone."""
    from comigs_edge.commands.bases import here

    if name in PACKAGED_BASES or name in here():
        return name
    return str(home.base_file.resolve()) if home.base_file.is_symlink() else None


def _say_lost(home: Home, old: str, origin: str | None) -> None:
    """What another base means for what is there; `origin` brings the `old` one back."""
    from comigs_edge.fleet.folder import FleetFolder
    from comigs_edge.home.versions import KEPT_VERSIONS, versions
    from comigs_edge.training import checkpoint

    made, back = versions(home.adapters), f"comigs-edge init --force --base {shlex.quote(origin or 'FOLDER')}"
    out.print(f"\ntext, chats and settings are as they were with {old}", soft_wrap=True)
    if made:
        out.print(
            f"what your model learned does not pass to another base: adapters/ keeps it ({counted(len(made), 'version')} of "
            f"{old}) until {KEPT_VERSIONS} newer ones are there, and it is used again after: {back}",
            soft_wrap=True,
        )
    if checkpoint.Latest(home.state).interrupted is not None:
        warn(f"the interrupted training belongs to {old}, and the next one gives it up; to end it first: {back}")
    if FleetFolder(home).is_member:
        warn(f"this device's fleet trains {old}; leave it (comigs-edge leave), or go back: {back}")


def _advise(home: Home, settings: Config) -> None:
    """Which other bases this device carries, and the one that is recommended."""
    from comigs_edge.commands.bases import advice, fit_bases, show_fits

    fits, recommended = fit_bases(home)
    out.print("\nbases that this device carries (all: comigs-edge bases list):", soft_wrap=True)
    show_fits([fit for fit in fits if not fit.hindrance])
    if recommended not in (None, settings.base.name):
        out.print(f"a better talker that it carries well is {recommended}: {advice(str(recommended))}", soft_wrap=True)
    else:
        out.print(f"{settings.base.name} is the one that it carries best", soft_wrap=True)


def _convert(home: Home, source: Path, format_name: str, expert_form: str | None) -> Path:
    """The base made from a Hugging Face folder or from parts, in the home but not in its place yet."""
    if not source.is_dir():
        with bar("joining the parts") as progress:
            join(source, home.converted_file, progress)
        return home.converted_file
    from comigs_edge.base.convert import architecture_of, convert

    _form(architecture_of(source), expert_form)
    with bar("converting the base") as progress:
        convert(source, home.converted_file, format_name, progress)
    return home.converted_file


def _choose_form(path: Path, expert_form: str | None, before: Config | None) -> tuple[Form, Format | None]:
    """The experts' form and, if not the default, block format; nothing is made for a base that could not be trained.

    Those of the settings `before` are kept where this base allows them.
    """
    file = GGUFFile(path)
    hparams = read_hparams(file)
    check_tensors(file, hparams)
    if expert_form is None and before is not None:
        with suppress(ComigsError):
            expert_form = _form(hparams.architecture, before.model.expert_form)
    form = _form(hparams.architecture, expert_form)
    return form, _choose_format(hparams, form, before.quantize.format if before else None)


def _choose_format(hparams: HParams, form: Form, wanted: Format | None) -> Format | None:
    """`wanted`, or F16 where the rows of what is trained are no whole blocks of it or of the format that is the default."""
    try:
        queries = hparams.num_heads * hparams.head_width
        check_format(wanted or DEFAULT_FORMAT, ModelConfig(expert_form=form), hparams.width, hparams.ff_width, queries)
    except QuantizeError as error:
        warn(f'{str(error).partition(";")[0]}; config.toml says format = "F16" in [quantize]')
        return "F16"
    return wanted


def _form(architecture: str, expert_form: str | None) -> Form:
    """What was asked for, or parallel where llama.cpp can run it; raises `ComigsError` where it was asked for and cannot."""
    form = cast(Form, expert_form) or default_form(architecture)
    FORMS[form].architecture(architecture, 2)
    return form


def _print_plan(home: Home, settings: Config) -> None:
    from comigs_edge.planning.plan import plan_experts, resolve

    resolved = resolve(home, settings)
    hparams, train = read_hparams(GGUFFile(home.base_file)), settings.train
    layout = plan_experts(resolved.settings.model, hparams)
    trainable = sum(a * b for a, b in expected_shapes(layout, hparams).values())
    form = FORMS[layout.form].describe(layout)
    base = f"{settings.base.name}, {size(settings.base.size)}, {hparams.num_blocks} blocks, sha256 {settings.base.sha256[:16]}"
    rows = (
        ("base", base),
        ("trained", f"{trainable / 1e6:.2f} million weights ({form}, {layout.experts_per_token} per token)"),
        ("training", f"at most {train.steps} expert steps, {train.router_steps} router steps after every {train.router_period}"),
        ("settings", str(home.config_file)),
    )
    for name, value in rows:
        fact(name, printable(value), 11, "  ")
    show(resolved.plan, settings, [])
