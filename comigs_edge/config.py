"""Settings: defaults < profile < config.toml < flags of a command.

Frozen dataclasses, one for each section of the file; unknown keys and wrong types are refused by name. Modules take
plain parameters, never these classes.
"""

from __future__ import annotations

import difflib
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import profiles
from comigs_edge.errors import ComigsError
from profiles import DeviceProfile

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LAYOUTS = ("merged", "hot")
FORMS = ("lora", "parallel")
FORMATS_TO_EXPORT = (
    "Q8_0", "F16", "F32", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS",
)  # fmt: skip
TRAINABLE = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")  # formats that training can compute in
HOME_FORMAT = 1  # of the folder that this version makes and reads
Section = TypeVar("Section")


@dataclass(frozen=True)
class BaseConfig:
    """The base model that the home was made for."""

    name: str
    sha256: str
    size: int  # bytes


@dataclass(frozen=True)
class ModelConfig:
    """The experts; defaults are the paper's (arXiv:2409.13931, appendix B.1)."""

    specialists: int | None = None  # None: the profile's
    rank: int = 8
    alpha: float = 16.0
    experts_per_token: int | None = None  # None: 2, or 1 for one expert alone
    attention: bool = False
    expert_form: str = "lora"  # `init` writes "parallel" wherever the base allows it
    expert_width: int | None = None  # None: as many weights as LoRA of this rank
    blocks: int | None = None  # experts in so many last blocks, 0: in all; None: the plan's


@dataclass(frozen=True)
class TrainConfig:
    """The bi-level schedule; defaults are the paper's unless a comment says otherwise."""

    steps: int = 200
    batch: int | None = None  # rows; None: the profile's
    context: int | None = None  # tokens; None: the profile's
    threads: int | None = None  # this and the next three: None: the plan's
    precision: str | None = None
    base: str | None = None
    checkpointing: str | None = None
    cache_mb: int | None = None  # of disk for the outputs of blocks without experts; None: a quarter of what is free
    expert_learning_rate: float | None = None  # None: the paper's 2e-3 for LoRA, 1.2e-2 (measured) for parallel experts
    final_learning_rate: float | None = None  # None: a tenth of it, as in the paper
    router_learning_rate: float = 2e-3
    warmup_steps: int = 0
    router_period: int = 30  # expert steps
    router_steps: int = 10
    balance_weight: float = 0.01
    weight_decay: float = 0.01
    validation_rows: int = 32  # ours: fixed rows that the best state is chosen on
    checkpoint_minutes: float = 15.0  # ours: at 50 MB each, 4.6 GB a day on an SD card
    seed: int = 42


@dataclass(frozen=True)
class PauseConfig:
    """When a training waits; reasons and sources are in `profiles.watch`."""

    enabled: bool = True
    temperature: float | None = None  # °C; None: the device's
    battery: int = 30  # percent, where it is not plugged in
    memory_mb: int = 100  # left on the device or in the container
    load: float = 0.4  # of other programs, as a share of the cores


@dataclass(frozen=True)
class DataConfig:
    """Shares of the documents; the rest is test text."""

    training: float = 0.8
    validation: float = 0.1


@dataclass(frozen=True)
class EvaluateConfig:
    """How the test text is measured."""

    context: int = 512  # tokens
    max_tokens: int = 16384


@dataclass(frozen=True)
class QuantizeConfig:
    """In which block format the exported file holds what training changes, and when training begins to compute in it."""

    format: str | None = None  # None: by form and layout, see `Config.storage`
    start: float | None = None  # share of the expert steps before fake quantisation; 1: never; None: by format


@dataclass(frozen=True)
class ExportConfig:
    """The files that chat runs."""

    layout: str = "merged"  # or hot


@dataclass(frozen=True)
class Storage:
    """How the exported file will hold what training changes."""

    layout: str
    format: str
    start: float  # as in [quantize]

    @property
    def fake_format(self) -> str | None:
        """The format to fake in training; None where it is not worth it or not possible."""
        return self.format if self.start < 1 and self.format in TRAINABLE else None


@dataclass(frozen=True)
class ChatConfig:
    """How answers are drawn."""

    system: str = ""
    temperature: float = 0.7
    top_p: float = 0.9
    context: int = 2048  # tokens
    max_tokens: int = 512


@dataclass(frozen=True)
class Config:
    """All of config.toml."""

    base: BaseConfig
    format: int = HOME_FORMAT
    profile: str = "auto"
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    pause: PauseConfig = field(default_factory=PauseConfig)
    data: DataConfig = field(default_factory=DataConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    quantize: QuantizeConfig = field(default_factory=QuantizeConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    chat: ChatConfig = field(default_factory=ChatConfig)

    def device(self, profile: str | None = None) -> DeviceProfile:
        """The profile named on the command line, or else the file's."""
        return profiles.load(profile or self.profile)

    def learning_rates(self) -> tuple[float, float]:
        """The experts' first and final learning rate."""
        first = self.train.expert_learning_rate
        if first is None:
            first = 2e-3 if self.model.expert_form == "lora" else 1.2e-2
        final = self.train.final_learning_rate
        return first, first / 10 if final is None else final

    def storage(self, layout: str | None = None, format_name: str | None = None) -> Storage:
        """How the exported file holds what training changes; arguments go before the file's settings.

        Defaults, by measurement (README, decisions): F16 for the small files of the layout hot, else Q8_0. Fake
        quantisation is free for parallel experts and on from the first step; a LoRA step costs 1.6 times as much, so it is
        on for the last third, and never at Q8_0, where it changes nothing.
        """
        layout = layout or self.export.layout
        name = (format_name or self.quantize.format or ("F16" if layout == "hot" else "Q8_0")).upper()
        start = self.quantize.start
        if start is None:
            few_bits = name in TRAINABLE and name != "Q8_0"
            start = 0.0 if self.model.expert_form == "parallel" else 0.65 if few_bits else 1.0
        return Storage(layout, name, start)


def read(path: Path) -> Config:
    """The settings in `path`; raises `ComigsError` for what cannot be read, is unknown or has the wrong type."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ComigsError(
            f"{path} cannot be read ({error}); mend it, or start over with: comigs-edge init --force"
        ) from error
    if isinstance(table.get("export"), dict) and "format" in table["export"]:  # where it stood at first
        table.setdefault("quantize", {}).setdefault("format", table["export"].pop("format"))
    found = table.get("format", HOME_FORMAT)
    if isinstance(found, int) and found > HOME_FORMAT:
        raise ComigsError(
            f"{path.parent} was made by a newer comigs-edge (home format {found}; this one reads {HOME_FORMAT}); "
            "upgrade comigs-edge"
        )
    config = _section(Config, table, path, "")
    _check(config, path)
    return config


def _section(cls: type[Section], table: dict[str, Any], path: Path, name: str) -> Section:
    hints = get_type_hints(cls)
    where = f"in [{name}]" if name else "at the top"
    for key in table:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(hints)}"
            raise ComigsError(f"{path}: unknown key {key!r} {where}{hint}")
    values = {key: _value(hints[key], value, path, f"{name}.{key}".strip(".")) for key, value in table.items()}
    try:
        return cls(**values)
    except TypeError:
        missing = [f.name for f in fields(cls) if f.name not in values]  # type: ignore[arg-type]
        raise ComigsError(f"{path}: {', '.join(missing)} missing {where}; run: comigs-edge init --force") from None


def _value(hint: Any, value: Any, path: Path, name: str) -> Any:
    if isinstance(hint, type) and hint.__module__ == __name__:
        if not isinstance(value, dict):
            raise ComigsError(f"{path}: {name} must be a section, [{name}]")
        return _section(hint, value, path, name)
    kinds = getattr(hint, "__args__", (hint,))
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) not in kinds:
        wanted = " or ".join(kind.__name__ for kind in kinds if kind is not type(None))
        raise ComigsError(f"{path}: {name} = {value!r} must be {wanted}")
    return value


def _check(config: Config, path: Path) -> None:
    """Bounds that would otherwise end in a wrong result or a traceback."""
    model, train, data = config.model, config.train, config.data
    rules = (
        ("model.specialists", model.specialists, 0, 63),
        ("model.rank", model.rank, 1, 1024),
        ("model.blocks", model.blocks, 0, 1024),
        ("train.steps", train.steps, 1, 10**9),
        ("train.batch", train.batch, 1, 4096),
        ("train.context", train.context, 8, 1 << 20),
        ("train.threads", train.threads, 1, 1024),
        ("train.cache_mb", train.cache_mb, 0, 10**9),
        ("train.router_period", train.router_period, 1, 10**9),
        ("train.router_steps", train.router_steps, 0, 10**9),
        ("train.expert_learning_rate", train.expert_learning_rate, 0, 10),
        ("train.final_learning_rate", train.final_learning_rate, 0, 10),
        ("train.router_learning_rate", train.router_learning_rate, 0, 10),
        ("train.validation_rows", train.validation_rows, 1, 10**6),
        ("pause.temperature", config.pause.temperature, 30, 150),
        ("pause.battery", config.pause.battery, 0, 100),
        ("pause.memory_mb", config.pause.memory_mb, 0, 10**6),
        ("pause.load", config.pause.load, 0.01, 1),
        ("quantize.start", config.quantize.start, 0, 1),
        ("model.expert_width", model.expert_width, 1, 1 << 16),
        ("data.training", data.training, 0.01, 0.98),
        ("data.validation", data.validation, 0.01, 0.99 - data.training),
        ("evaluate.context", config.evaluate.context, 8, 1 << 20),
        ("chat.context", config.chat.context, 64, 1 << 20),
    )
    for name, value, low, high in rules:
        if value is not None and not low <= value <= high:
            raise ComigsError(f"{path}: {name} = {value} must be between {low} and {high:g}")
    choices: tuple[tuple[str, str | None, tuple[str, ...]], ...] = (
        ("model.expert_form", model.expert_form, FORMS),
        ("export.layout", config.export.layout, LAYOUTS),
        ("train.precision", train.precision, ("float32", "bfloat16")),
        ("train.base", train.base, ("dequantised", "quantised")),
        ("train.checkpointing", train.checkpointing, ("block", "attention", "none")),
        ("quantize.format", config.quantize.format and config.quantize.format.upper(), FORMATS_TO_EXPORT),
    )
    for name, chosen, known in choices:
        if chosen is not None and chosen not in known:
            raise ComigsError(f"{path}: {name} = {chosen!r} must be one of {', '.join(known)}")
    stored, parallel = config.storage(), model.expert_form == "parallel"
    if stored.layout == "hot" and (parallel or stored.format not in ("F16", "F32")):
        raise ComigsError(
            f'{path}: export.layout = "hot" is for LoRA experts in F16 or F32, not for {model.expert_form} experts in '
            f'{stored.format}; use layout = "merged"'
        )
    if parallel and stored.format not in ("F16", "F32") and (model.expert_width or 0) % 32:
        raise ComigsError(
            f"{path}: model.expert_width = {model.expert_width} is not a multiple of 32, the block of {stored.format}; use one, "
            'or format = "F16" in [quantize]'
        )
    profiles.load(config.profile)
