"""`comigs-edge simulate`: a fleet of virtual devices on this machine compares methods on the same text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

import profiles
from comigs_edge import files
from comigs_edge.base.catalogue import DEFAULT_BASE, find_base
from comigs_edge.commands import completion
from comigs_edge.commands.console import bar, notes, out, print_json, warn
from comigs_edge.errors import ComigsError
from profiles import detect

if TYPE_CHECKING:
    from comigs_edge.simulate.methods.method import Method
    from comigs_edge.simulate.recipe import Recipe, Size
    from comigs_edge.simulate.report import Result, Scores
    from comigs_edge.simulate.run import Simulation


def simulate(
    recipe: Annotated[str, typer.Argument(metavar="NAME|FILE", autocompletion=completion.recipes, help="A shipped recipe "
                                          "(multilingual, topics-ood, domains, quantity, devices, chat, many) or a TOML file.")],
    text: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder with one JSONL file a person, somewhere below it.")],
    size: Annotated[str, typer.Option(metavar="brief|quick|full", help="Size of the recipe.")] = "quick",
    method: Annotated[Optional[list[str]], typer.Option(autocompletion=completion.methods, help="Method; may be given several "
                                                        "times. Default: local, fedavg, "
                                                        "comigs-1g1s, comigs-2g, comigs-2s.")] = None,
    seed: Annotated[Optional[list[int]], typer.Option(min=0, help="Seed; may be given several times. Default: 42.")] = None,
    output: Annotated[Optional[Path], typer.Option(metavar="FOLDER", help="Folder for results; default: in "
                                                   "simulations.")] = None,
    base: Annotated[str, typer.Option(metavar="NAME|FILE", autocompletion=completion.bases,
                                           help="Base model: a name or a GGUF file.",
                                           show_default="that of a new home")] = DEFAULT_BASE,
    rounds: Annotated[Optional[int], typer.Option(min=1, help="Rounds, in place of the size's.")] = None,
    devices: Annotated[Optional[int], typer.Option(min=1, help="The recipe's first so many devices; default: all.")] = None,
    threads: Annotated[Optional[int], typer.Option(min=1, help="Threads; default: the profile's of this device.")] = None,
    device: Annotated[str, typer.Option(metavar="cpu|cuda", help="What computes.")] = "cpu",
    precision: Annotated[str, typer.Option(metavar="float32|bfloat16", help="Of products.")] = "float32",
    zero_expert: Annotated[
        Optional[bool], typer.Option("--zero-expert/--no-zero-expert", help="Whether comigs-edge ends with a zero expert; "
                                     "default: as in a new home.")
    ] = None,
    judge: Annotated[
        bool, typer.Option("--judge", help="On judging text, which no setting may be chosen on: documents are split otherwise, "
                           "and recipes for judging can be read. One run at the recipe's rates, of committed code; "
                           "`make evidence` judges each method at its best rate.")
    ] = False,
    leaky: Annotated[
        bool, typer.Option("--leaky", help="Train by the loop of the paper's published code, whose gradients leak between router "
                           "and experts: for comparison only.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON at the end; progress goes to standard error.")] = False,
) -> None:  # fmt: skip
    """Train a fleet of virtual devices on this machine and compare methods. Run it again to continue."""
    from comigs_edge.simulate import origin, report
    from comigs_edge.simulate import recipe as recipes
    from comigs_edge.simulate.methods import catalogue

    if judge:
        origin.frozen_commit()
    for name, value, known in (("--device", device, ("cpu", "cuda")), ("--precision", precision, ("float32", "bfloat16"))):
        if value not in known:
            raise typer.BadParameter(f"{name} {value} must be one of {', '.join(known)}")
    path = recipes.find(recipe)
    parsed = recipes.read(path)
    wanted, parsed = parsed.size(size), parsed.first(devices)
    if rounds is not None:
        measured = tuple(number for number in wanted.measured_rounds if number <= rounds)
        wanted = replace(wanted, rounds=rounds, measured_rounds=measured)
    methods = [catalogue.find_method(name) for name in dict.fromkeys(method or catalogue.CORE)]
    seeds = list(dict.fromkeys(seed or [42]))
    parts = (path.stem, size, *([str(devices)] if devices else []), *(["judged"] if judge else []))
    folder = output or Path("simulations") / "-".join(parts)
    simulation = _open(parsed, wanted, text, folder, base, threads, (device, precision), leaky, zero_expert, judge)
    results, scores = _run(simulation, methods, seeds)
    made_on = report.hardware(results)
    tokens = ", ".join(f"{name} {each.num_training_tokens:,}" for name, each in simulation.texts.items())
    forms = f"{parsed.experts.form} experts" if parsed.experts.form else "LoRA experts (comigs-edge: as an installation has them)"
    sentences = [
        f"Recipe {path.stem}, size {size}: {parsed.about}.",
        f"Rounds of {wanted.local_steps} expert steps: {wanted.rounds}; {wanted.batch} x {wanted.context} tokens a step.",
        f"Training tokens: {tokens}.",
        f"Base {base}, {forms}, {precision}, on {made_on}" + (", by the published code's leaky loop." if leaky else "."),
    ]
    kind = "Judging" if judge else "Tuning"
    sentences.append(f"{kind} text, digest {simulation.text_digest[:16]}; commit of the code: {report.commits(results)}.")
    if judge and path.parent != recipes.SHIPPED:
        sentences.append(f"{path} is no recipe of the program: nothing shows that its settings were fixed before.")
    if judge:
        sentences.append(
            "Every method has the recipe's rates here; what judges methods is `make evidence JUDGE=1`, each at its best rate."
        )
    _report(results, scores, sentences, simulation, json)


def _open(
    recipe: Recipe, size: Size, text: Path, folder: Path, base: str, threads: int | None, where: tuple[str, str], leaky: bool,
    zero_expert: bool | None, judge: bool,
) -> Simulation:  # fmt: skip
    """Reads text and base."""
    name, file = find_base(base)
    if not file.is_file():
        raise ComigsError(f"the base {name} is a folder; name a GGUF file, or get one with: comigs-edge bases pull NAME")
    with notes.status("loading torch and the tokenizer"):
        import torch

        from comigs_edge.data.tokenizer import Tokenizer
        from comigs_edge.home.config import TrainConfig, has_zero_by_default
        from comigs_edge.nn.experts import default_form
        from comigs_edge.nn.weights import open_base
        from comigs_edge.simulate import texts
        from comigs_edge.simulate.run import Simulation
        from comigs_edge.training.memory import tune_allocator
        from comigs_edge.training.ordinary import OrdinaryText

        if where[0] == "cuda" and not torch.cuda.is_available():
            raise ComigsError("torch sees no CUDA device; leave --device out")
        count = threads or profiles.load("auto").usable_threads
        torch.set_num_threads(count)
        tokenizer = Tokenizer(file)
    with bar("reading the text") as progress:
        corpora = texts.read(recipe, size, text, tokenizer, progress, judge=judge)
    with notes.status("loading the base"):
        sha256 = files.sha256_file(file)
        opened = open_base(file, count, True, getattr(torch, where[1]), where[0])
        tune_allocator()
    form = recipe.experts.form or default_form(opened.hparams.architecture)
    wants_zero = has_zero_by_default(form) if zero_expert is None else zero_expert
    ordinary = OrdinaryText(folder, sha256, "learning", TrainConfig().ordinary_tokens, tokenizer) if wants_zero else None
    return Simulation(recipe, size, corpora, opened, folder, leaky, sha256, where[1], _hardware(where[0]), judge, ordinary)


def _hardware(device: str) -> str:
    import torch

    if device == "cuda":
        return torch.cuda.get_device_name()
    cores = " and ".join(f"{each.count} x {each.kind}" for each in detect.detect().cores)
    return f"{cores}, {torch.get_num_threads()} threads"


def _run(simulation: Simulation, methods: list[Method], seeds: list[int]) -> tuple[list[Result], Scores]:
    results = []
    try:
        with simulation.lock():
            with bar("measuring the base") as progress:
                scores = simulation.measure_base(progress)
            for method in methods:
                if simulation.ordinary is not None:
                    with bar("the base writes ordinary text") as progress:
                        simulation.write_ordinary(method, progress)
                for seed in seeds:
                    with bar(f"{method.name}, seed {seed}") as progress:
                        results.append(simulation.run(method, seed, progress))
    except KeyboardInterrupt:
        notes.print("stopped; the same command continues after the last round that was done")
        raise typer.Exit(130) from None
    return results, scores


def _report(results: list[Result], scores: Scores, sentences: list[str], simulation: Simulation, as_json: bool) -> None:
    from comigs_edge.simulate import costs, plots, report

    folder, rows = simulation.folder, report.summary(results, scores)
    text = report.markdown(rows, sentences) + costs.markdown(results)
    files.write_atomic(folder / "report.md", text.encode())
    if plots.is_possible():
        plots.draw(results, folder)
    else:
        warn(plots.MISSING)
    if as_json:
        print_json({
            "folder": str(folder), "notes": sentences, **report.origin(results), "methods": rows,
            "above_reference": report.compare(rows, report.REFERENCE),
            "validation_losses": report.curves(results), "costs": costs.as_json(results),
            "generalist_scores": plots.generalist_scores(results), "windows": report.windows(results),
            "documents": {name: list(text.test.documents) for name, text in simulation.texts.items()},
        })  # fmt: skip
        return
    from rich.markdown import Markdown

    out.print(Markdown(text))
    out.print(f"{folder}: report.md, and rounds.jsonl and result.json of every run", soft_wrap=True)
