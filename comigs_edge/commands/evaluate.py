"""`comigs-edge evaluate`: how much better the personal model predicts text that it has never seen."""

from __future__ import annotations

from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from comigs_edge.commands.console import bar, next_command, notes, out, print_json, show_table, size, warn
from comigs_edge.commands.settings import settings_of
from comigs_edge.home import folder as homes
from comigs_edge.home.config import Config
from comigs_edge.home.folder import Home, corpus
from comigs_edge.home.versions import note_measured
from comigs_edge.progress import Advance, count_up
from profiles.detect import usable_memory

if TYPE_CHECKING:
    from comigs_edge.data.tokenizer import Tokenizer
    from comigs_edge.inference.elsewhere import Elsewhere
    from comigs_edge.inference.evaluate import Score, TestText
    from comigs_edge.nn.adapters import Adapters
    from comigs_edge.nn.model import Model
    from comigs_edge.nn.weights import Base

MODELS = ("base", "generalist", "specialists", "mixture")


class Engine(str, Enum):
    """What computes base and mixture."""

    llama_cpp = "llama.cpp"
    torch = "torch"


def evaluate(
    engine: Annotated[
        Engine, typer.Option(help="What computes base and mixture: llama.cpp on the files that chat runs, or torch.")
    ] = Engine.llama_cpp,
    elsewhere: Annotated[
        bool, typer.Option("--elsewhere", help="Also measure what is lost on answers of the base itself, which it writes once; "
                           "always done for a model with a zero expert, and where they are there.")
    ] = False,
    lines: Annotated[
        Optional[list[str]], typer.Option("--plan", metavar="NAME=VALUE", help="gpu_layers=0: llama.cpp leaves the GPU alone.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:  # fmt: skip
    """Measure test text, which nothing was trained on: bits per byte and perplexity; lower is better."""
    home = homes.locate()
    settings = settings_of(home)
    with notes.status("loading"):
        from comigs_edge.planning import plan as planning

    wanted = planning.parse(lines or [], planning.GPU_LINE).get("gpu_layers", settings.chat.gpu_layers)
    adapters, manifest, tokenizer, text = open_test(home, settings)
    opened = Opened(home, settings, adapters)
    learned = share_of_learned(home, settings)
    scores = {}
    tokens = sum(len(window.ids) for window in text.windows)
    for name in MODELS:
        with bar(f"measuring {name}") as progress:
            scores[name] = _score(name, opened, text, engine, wanted, count_up(progress, tokens))
    lost = find_elsewhere(opened, tokenizer, may_write=elsewhere or adapters.layout.zero_expert)
    _note(home, manifest["version"], scores, lost)
    _report(scores, text, learned, engine, lost, json)


class Opened:
    """A home's adapters, and its base in torch, which is opened when it is first needed."""

    def __init__(self, home: Home, settings: Config, adapters: Adapters) -> None:
        self.home, self.settings, self.adapters = home, settings, adapters

    @cached_property
    def base(self) -> Base:
        """In memory where that has room."""
        return open_base_to_measure(self.home, self.settings)

    def model(self, is_base: bool = False, only: tuple[int, ...] | None = None) -> Model:
        """Base and adapters in the weights of the exported file, or the base alone; `only` these experts."""
        from comigs_edge.nn.model import Model

        model = Model(self.base, None if is_base else self.adapters, only)
        model.block_format = self.settings.storage().fake_format
        return model


def open_test(home: Home, settings: Config) -> tuple[Adapters, dict[str, Any], Tokenizer, TestText]:
    """The newest adapters with their manifest, and the test text.

    Raises `ComigsError` where there is nothing to measure, or too little.
    """
    with notes.status("loading"):
        import torch

        from comigs_edge.data.tokenizer import Tokenizer, encode
        from comigs_edge.export import folder as models
        from comigs_edge.inference.evaluate import prepare

        torch.set_num_threads(settings.threads("train"))
        documents = corpus(home, settings)
        documents.check_enough()
        adapters, manifest = models.newest_adapters(home, settings)  # tells at once if there is nothing to measure
        tokenizer = Tokenizer(home.base_file, settings.model.thinking)
    with bar("reading the test text") as progress:
        encoded = list(encode(documents, tokenizer, "test", [], progress))
    text = prepare(encoded, tokenizer, settings.evaluate.context, settings.evaluate.max_tokens)
    return adapters, manifest, tokenizer, text


def _note(home: Home, version: int, scores: dict[str, Score | None], elsewhere: Elsewhere | None) -> None:
    """Keeps with the version what `models list` shows of it."""
    bits = {name: score.bits_per_byte for name, score in scores.items() if score is not None}
    note_measured(home.adapters, version, {"bits_per_byte": bits} | ({"elsewhere": elsewhere._asdict()} if elsewhere else {}))


def share_of_learned(home: Home, settings: Config) -> float:
    """The share of the test text that is not measured: passages that stand in learned text as well."""
    from comigs_edge.data.passages import share_of_passages

    documents = corpus(home, settings)
    return share_of_passages(documents.read("test"), documents.learned_runs("test"))


def find_elsewhere(opened: Opened, tokenizer: Tokenizer, may_write: bool) -> Elsewhere | None:
    """What the personal model has lost on the base's own answers; without them None, unless the base `may_write` them."""
    from comigs_edge.inference.elsewhere import measure_elsewhere
    from comigs_edge.training.text import open_part

    ordinary = open_part(opened.home, opened.settings, "test", tokenizer)
    if not ordinary.is_complete and not may_write:
        return None
    if not ordinary.is_complete:
        with bar("the base writes answers to measure on") as progress:
            ordinary.make(opened.base, progress)
    with bar("measuring what is lost elsewhere") as progress:
        return measure_elsewhere(opened.model(), ordinary.answers, count_up(progress, ordinary.num_tokens))


def open_base_to_measure(home: Home, settings: Config) -> Base:
    """The home's base in torch, in memory where that has room."""
    from comigs_edge.nn.weights import open_base

    # Dequantised, a base takes five to eight times its file; where that is not free it stays in the file.
    free = usable_memory(Path("/"))
    return open_base(home.base_file, settings.threads("train"), keep=free is None or free > 10 * home.base_file.stat().st_size)


def _score(
    name: str, opened: Opened, text: TestText, engine: Engine, gpu_layers: int | None, advance: Advance
) -> Score | None:  # fmt: skip
    from comigs_edge.export import folder as models
    from comigs_edge.export.current import find_current
    from comigs_edge.inference.evaluate import in_llama_cpp, in_torch
    from comigs_edge.planning import offload

    home, settings = opened.home, opened.settings

    def in_gguf(path: Path, adapters: tuple[Path, ...] = ()) -> Score:
        size = sum(each.stat().st_size for each in (path, *adapters))
        layers = offload.gpu_layers(home.base_file, settings.evaluate.context, size=size, wanted=gpu_layers)
        return in_llama_cpp(path, text, settings.threads("chat"), advance, adapters, layers)

    if engine == Engine.llama_cpp and name == "base":
        return in_gguf(home.base_file)
    if engine == Engine.llama_cpp and name == "mixture":
        storage = settings.storage()
        personal = find_current(home, settings, storage, warn) or models.export_newest(home, settings, storage)
        return in_gguf(personal.path, personal.adapters)
    others = tuple(range(1, opened.adapters.layout.num_experts))
    if name == "specialists" and not others:
        return None
    only = {"generalist": (0,), "specialists": others}.get(name)
    return in_torch(opened.model(name == "base", only), text, advance)


def _report(
    scores: dict[str, Score | None], text: TestText, learned: float, engine: Engine, elsewhere: Elsewhere | None, as_json: bool
) -> None:
    engines = {name: engine.value if name in ("base", "mixture") else "torch" for name in MODELS}
    if as_json:
        print_json({
            "test_bytes": text.num_bytes,
            "test_tokens": text.num_tokens,
            "learned_share": learned,
            "bits_per_byte": {name: score and score.bits_per_byte for name, score in scores.items()},
            "perplexity": {name: score and score.perplexity for name, score in scores.items()},
            "engine": engines,
            **({} if elsewhere is None else {"elsewhere": elsewhere._asdict()}),
        })  # fmt: skip
        return
    rows = []
    base = scores["base"]
    for name, score in scores.items():
        if score is not None and base is not None:
            change = f"{score.bits_per_byte / base.bits_per_byte - 1:+.1%}" if name != "base" else ""
            label = "mixture (your model)" if name == "mixture" else name
            rows.append((label, f"{score.bits_per_byte:.4f}", change, f"{score.perplexity:.2f}", engines[name]))
    out.print(f"{size(text.num_bytes)} of test text ({text.num_tokens:,} tokens) that nothing was trained on:")
    if learned:
        out.print(f"  not measured: {learned:.1%} more, passages that stand in learned text as well", soft_wrap=True)
    show_table(("model", "bits per byte", "against the base", "perplexity", "measured in"), rows, long="model")
    if elsewhere is not None:
        out.print(f"elsewhere, on answers of the base itself: {elsewhere}", soft_wrap=True)
    else:
        out.print(
            "elsewhere, on answers of the base itself, which it writes once: comigs-edge evaluate --elsewhere", soft_wrap=True
        )
    next_command("comigs-edge chat")
