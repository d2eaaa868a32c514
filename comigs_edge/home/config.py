"""Settings: defaults < profile < config.toml < flags of a command.

Frozen dataclasses, one for each section of the file, which `config_file.py` reads. Modules take plain parameters, never these
classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import profiles
from comigs_edge.nn.experts import FORMS
from profiles import DeviceProfile

LAYOUTS = ("merged", "hot")
FORMATS_TO_EXPORT = (
    "Q8_0", "F16", "F32", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS",
)  # fmt: skip
TRAINABLE = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")  # formats that training can compute in
HOME_FORMAT = 1  # of the folder that this version makes and reads


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
    expert_learning_rate: float | None = None  # None: 4e-3 for LoRA (the paper's: 2e-3), 1.2e-2 for parallel experts
    final_learning_rate: float | None = None  # None: a tenth of it, as in the paper
    router_learning_rate: float = 2e-2  # ours, measured; the paper's is 2e-3
    router_offset_rate: float = 0.2  # ours, measured: of offsets (`router_optimiser.py`); the paper has none
    rates_by_weight: bool = True  # ours: an expert learns in proportion to its mean weight on the validation text
    warmup_steps: int = 0
    router_period: int = 30  # expert steps
    router_steps: int = 10
    balance_weight: float = 0.01
    weight_decay: float = 0.01
    validation_rows: int = 32  # ours: fixed rows that the best state is chosen on; the router learns from the rest
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
    threads: int | None = None  # this and the next three: None: the plan's
    mmap: bool | None = None
    cache: str | None = None
    batch: int | None = None  # tokens


@dataclass(frozen=True)
class FleetConfig:
    """What a device that joined a fleet does with it."""

    sync: bool = True  # exchange generalists while training
    gate: float = 0.1  # nats a token that a new generalist may make the validation text worse
    report_loss: bool = False  # tell the coordinator the validation loss, for its status page


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
    fleet: FleetConfig = field(default_factory=FleetConfig)

    def device(self, profile: str | None = None) -> DeviceProfile:
        """The profile named on the command line, or else the file's."""
        return profiles.load(profile or self.profile)

    def learning_rates(self) -> tuple[float, float]:
        """The experts' first and final learning rate."""
        first = self.train.expert_learning_rate
        if first is None:
            first = FORMS[self.model.expert_form].learning_rate
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
            start = FORMS[self.model.expert_form].quantise_start(name in TRAINABLE and name != "Q8_0")
        return Storage(layout, name, start)
