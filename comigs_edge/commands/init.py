"""`comigs-edge init`: makes the home and prints the plan."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Optional, cast

import typer

import profiles
from comigs_edge.base.catalogue import DEFAULT_BASE, find_base
from comigs_edge.base.hparams import HParams, check_tensors, read_hparams
from comigs_edge.base.parts import is_part, join
from comigs_edge.commands import completion
from comigs_edge.commands.console import bar, fact, next_command, out, size, warn
from comigs_edge.commands.plan import show
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
        str,
        typer.Option(
            metavar="NAME", autocompletion=completion.profiles, help=f"What the device can carry: {', '.join(profiles.names())}."
        ),
    ] = "auto",
    expert_form: Annotated[
        Optional[str],
        typer.Option(
            metavar="lora|parallel", help="LoRA in the MLP, or small experts beside it; default: parallel where the base allows."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write the settings and the base anew; text and models stay.")] = False,
) -> None:
    """Make the home of your model: its base, its settings, and a place for your text."""
    from comigs_edge.training.next_step import find_next

    home = homes.locate()
    if home.exists and not force:
        out.print(
            f"{printable(str(home.root))} is there already; nothing was changed (--force writes its settings anew).\n",
            soft_wrap=True,
        )
        settings = home.settings()
    else:
        profiles.load(profile)
        if expert_form is not None and expert_form not in FORMS:
            raise typer.BadParameter(f"--expert-form {expert_form} is not one of {', '.join(FORMS)}")
        name, source = find_base(base or DEFAULT_BASE)
        with home.lock("init") if home.exists else nullcontext():
            settings = _make_home(home, name, source, format.upper(), expert_form, profile, specialists)
        out.print(f"made {printable(str(home.root))}\n", soft_wrap=True)
    _print_plan(home, settings)
    next_command(find_next(home, settings, has_new_text=True))


def _make_home(
    home: Home, name: str, source: Path, format_name: str, expert_form: str | None, profile: str, specialists: int | None
) -> Config:
    from comigs_edge.inference.runnable import check_runnable

    converted = _convert(home, source, format_name, expert_form) if source.is_dir() or is_part(source) else None
    source = converted or source
    try:
        form, stored = _choose_form(source, expert_form)
        for oddity in check_runnable(source):
            warn(oddity)
    except Exception:
        if converted:
            converted.unlink()
        raise
    with bar("reading the base") as progress:
        advance = count_up(progress, source.stat().st_size)
        return homes.create(
            home, (name, source), advance, profile=profile, specialists=specialists, expert_form=form, format=stored
        )


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


def _choose_form(path: Path, expert_form: str | None) -> tuple[Form, Format | None]:
    """The experts' form and, if not the default, block format; nothing is made for a base that could not be trained."""
    file = GGUFFile(path)
    hparams = read_hparams(file)
    check_tensors(file, hparams)
    form = _form(hparams.architecture, expert_form)
    return form, _choose_format(hparams, form)


def _choose_format(hparams: HParams, form: Form) -> Format | None:
    """F16 where the rows of what is trained are no whole blocks of the format that is the default."""
    try:
        queries = hparams.num_heads * hparams.head_width
        check_format(DEFAULT_FORMAT, ModelConfig(expert_form=form), hparams.width, hparams.ff_width, queries)
    except QuantizeError as error:
        warn(f'{str(error).partition(";")[0]}; config.toml says format = "F16" in [quantize]')
        return "F16"
    return None


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
        ("training", f"{train.steps} expert steps, {train.router_steps} router steps after every {train.router_period}"),
        ("settings", str(home.config_file)),
    )
    for name, value in rows:
        fact(name, printable(value), 11, "  ")
    show(resolved.plan, settings, [])
