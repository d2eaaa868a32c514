"""Settings: defaults < profile < config.toml < flags of a command.

Frozen dataclasses, one for each section of the file: type, bounds, default and the file's comment stand at the field. After
planning, `planning.plan.Resolved` has these settings with the plan; what computes takes plain parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

import profiles
from comigs_edge.nn.experts import FORMS, Form
from comigs_edge.nn.form import OptimiserName
from coordinator.protocol.settings import setting
from profiles import DeviceProfile
from profiles.chat import Cache
from profiles.cost import Checkpointing, Precision

Course = Literal["cosine", "wsd"]
ExportLayout = Literal["merged", "hot"]
Format = Literal["Q8_0", "F16", "F32", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"]
LAYOUTS: tuple[str, ...] = get_args(ExportLayout)
FORMATS_TO_EXPORT: tuple[str, ...] = get_args(Format)
DEFAULT_FORMAT: Format = "Q8_0"
TRAINABLE = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")  # formats that training can compute in
HOME_FORMAT = 1  # of the folder that this version makes and reads


@dataclass(frozen=True)
class BaseConfig:
    """The base model that the home was made for."""

    name: str
    sha256: str
    size: int  # bytes


def has_zero_by_default(form: Form) -> bool:
    """Whether a training ends with a zero expert where nobody says: beside small experts it costs next to nothing."""
    return not FORMS[form].is_low_rank


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The experts; defaults are the paper's (arXiv:2409.13931, appendix B.1)."""

    specialists: Annotated[int, setting("local experts beside the generalist; default: planned", 0, 63, 1)] | None = None
    expert_form: Annotated[  # `init` writes "parallel" wherever the base allows it
        Form, setting("lora: low-rank updates in the MLP; parallel: small MLPs beside it, a compact file")
    ] = "lora"
    rank: Annotated[int, setting("of each low-rank update", 1, 1024)] = 8
    expert_width: (
        Annotated[int, setting("of a parallel expert; default: as many weights as LoRA of this rank", 1, 1 << 16, 32)] | None
    ) = None
    blocks: Annotated[int, setting("number of final blocks that have experts, 0: all; default: planned", 0, 1024, 0)] | None = (
        None
    )
    alpha: Annotated[float, setting("updates are scaled by alpha / sqrt(rank)", 1e-3, 1e4)] = 16.0
    experts_per_token: Annotated[int, setting("default: 2, or 1 for one expert alone", 1, 64, 2)] | None = None
    zero_expert: Annotated[bool, setting("also one that adds nothing; default: if parallel", example=True)] | None = None
    attention: Annotated[bool, setting("also one shared low-rank update of the attention; it is part of the generalist")] = False
    thinking: Annotated[bool, setting("a thinking base thinks aloud before it answers, in training as in chat")] = False


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The bi-level schedule; defaults are the paper's unless a comment says otherwise."""

    steps: Annotated[int, setting("expert steps of one training, at most", 1, 10**9)] = 200
    passes: Annotated[
        float, setting("... which read text no more often (10 at least, unless only new text is left)", 0.01, 1e9)
    ] = 2.0
    patience: Annotated[
        int, setting("... and end after so many periods without a better validation loss; 0: never", 0, 10**6)
    ] = 0
    schedule: Annotated[Course, setting("of the experts' rate; wsd: constant, and it falls once the end is decided")] = "cosine"
    batch: (
        Annotated[int, setting("rows in a step; default: this and the next five are planned, see: comigs-edge plan", 1, 4096, 8)]
        | None
    ) = None
    context: Annotated[int, setting("tokens in a row", 8, 1 << 20, 128)] | None = None
    threads: Annotated[int, setting("", 1, 1024, 2)] | None = None
    precision: Annotated[Precision, setting("of the products: or bfloat16", example="float32")] | None = None
    base: (
        Annotated[
            Literal["dequantised", "quantised"],
            setting(
                "ahead, in memory; or quantised: it stays in its file, and a block is dequantised for its turn",
                example="dequantised",
            ),
        ]
        | None
    ) = None
    checkpointing: (
        Annotated[
            Checkpointing, setting("what is computed again for the backward pass: block, attention or none", example="none")
        ]
        | None
    ) = None
    cache_mb: (
        Annotated[
            int,
            setting(
                "of disk for the outputs of blocks without experts, 0: none; default: a quarter of what is free", 0, 10**9, 2000
            ),
        ]
        | None
    ) = None
    optimiser: Annotated[
        OptimiserName | None, setting("of the experts; default: this for parallel experts, adamw for LoRA", example="muon")
    ] = None
    # The paper's experts learn at 2e-3; its final rate is a tenth of the first.
    expert_learning_rate: Annotated[float, setting("default: this for LoRA, 0.012 for parallel experts", 0, 10, 4e-3)] | None = (
        None
    )
    final_learning_rate: Annotated[float, setting("default: a tenth of it", 0, 10, 4e-4)] | None = None
    router_learning_rate: Annotated[float, setting("", 0, 10)] = 2e-2  # ours, measured; the paper's is 2e-3
    router_offset_rate: Annotated[  # ours, measured; the paper has none
        float, setting("learning rate of the per-expert logit offsets; 0 turns them off", 0, 10)
    ] = 0.2
    rates_by_weight: Annotated[  # ours
        bool, setting("an expert learns in proportion to the weight that the router gives it on validation text")
    ] = True
    warmup_steps: Annotated[int, setting("", 0, 10**9)] = 0
    router_period: Annotated[int, setting("expert steps on training text, then ...", 1, 10**9)] = 30
    router_steps: Annotated[int, setting("... router steps on validation text", 0, 10**9)] = 10
    closing_steps: Annotated[  # ours, measured
        int, setting("router steps of 8 rows at the end with the zero expert, on both texts: a tenth of steps, or 10", 1, 10**6)
    ] = 20
    ordinary_tokens: Annotated[  # ours, measured: what those steps read
        int, setting("of ordinary text for them: the base's own answers, made once", 128, 10**8)
    ] = 12_000
    balance_weight: Annotated[float, setting("of the load-balance loss, where it is not constant", 0, 1e3)] = 0.01
    weight_decay: Annotated[float, setting("", 0, 1)] = 0.01
    validation_rows: Annotated[  # ours
        int,
        setting("rows of validation text that choose the state, half of it at most; the router learns from the rest", 1, 10**6),
    ] = 32
    checkpoint_minutes: Annotated[float, setting("", 0, 1e6)] = 15.0  # ours: at 50 MB each, 4.6 GB a day on an SD card
    seed: Annotated[int, setting("", 0, 2**63 - 1)] = 42


@dataclass(frozen=True, kw_only=True)
class PauseConfig:
    """When a training waits; reasons and sources are in `profiles.watch`."""

    enabled: bool = True
    temperature: (
        Annotated[float, setting("... the device is hotter, in degrees Celsius; default: 80 on a Raspberry Pi", 30, 150, 95.0)]
        | None
    ) = None
    battery: Annotated[int, setting("... its battery holds less, in percent, and it is not plugged in", 0, 100)] = 30
    memory_mb: Annotated[int, setting("... less memory is left, on the device or in the container", 0, 10**6)] = 100
    load: Annotated[float, setting("... other programs use more than this share of the cores", 0.01, 1)] = 0.4


@dataclass(frozen=True)
class DataConfig:
    """Shares of the documents; the rest is test text."""

    training: Annotated[float, setting("share of the documents; the rest is test text", 0.01, 0.98)] = 0.8
    validation: Annotated[float, setting("", 0.01, 0.98)] = 0.1


@dataclass(frozen=True)
class EvaluateConfig:
    """How the test text is measured."""

    context: Annotated[int, setting("tokens", 8, 1 << 20)] = 512
    max_tokens: Annotated[int, setting("of test text that are measured", 1, 10**9)] = 16384


@dataclass(frozen=True)
class QuantizeConfig:
    """In which block format the exported file holds what training changes, and when training begins to compute in it."""

    format: (  # None: by form and layout, see `Config.storage`
        Annotated[Format, setting("block format in which the exported file holds what was trained", example="Q8_0")] | None
    ) = None
    start: (
        Annotated[
            float,
            setting(
                "share of the steps before training computes in it; default: 0.65 for LoRA at 4 and 5 bits, 0 for parallel "
                "experts, else 1 (never)",
                0, 1, 1.0,
            ),
        ]
        | None
    ) = None  # fmt: skip


@dataclass(frozen=True)
class ExportConfig:
    """The files that chat runs."""

    layout: Annotated[ExportLayout, setting("or hot: LoRA experts as files that llama.cpp swaps while it runs")] = "merged"


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


@dataclass(frozen=True, kw_only=True)
class ChatConfig:
    """How answers are drawn."""

    system: Annotated[str, setting("system prompt; empty: the model's own")] = ""
    temperature: Annotated[float, setting("this and the next two: default as the model's file says, else", 0, 10, 0.8)] | None = (
        None
    )
    top_p: Annotated[float, setting("", 0, 1, 0.95)] | None = None
    repeat_penalty: Annotated[float, setting("of the last 64 tokens; 1: none", 1, 10, 1.1)] | None = None
    context: Annotated[int, setting("tokens", 64, 1 << 20)] = 2048
    max_tokens: Annotated[int, setting("of one answer", 1, 1 << 20)] = 512
    threads: Annotated[int, setting("this and the next four are planned, see: comigs-edge plan", 1, 1024, 2)] | None = None
    mmap: Annotated[bool, setting("the model's file is mapped and not read into memory", example=True)] | None = None
    cache: (
        Annotated[Cache, setting("how keys and values are kept: or Q8_0, half the memory and slower", example="F16")] | None
    ) = None
    batch: Annotated[int, setting("tokens of a prompt that are computed together", 1, 1 << 16, 512)] | None = None
    gpu_layers: Annotated[int, setting("that a GPU computes, 0: none", 0, 10_000, 0)] | None = None


@dataclass(frozen=True)
class FleetConfig:
    """What a device that joined a fleet does with it."""

    sync: Annotated[bool, setting("exchange generalists while training")] = True
    gate: Annotated[
        float, setting("a new generalist that makes the validation text worse by more nats a token is not taken over", 0, 100)
    ] = 0.1
    report_loss: Annotated[
        bool, setting("tell the coordinator the validation losses, also of refusals: shown on its status page")
    ] = False


@dataclass(frozen=True, kw_only=True)
class Config:
    """All of config.toml."""

    format: Annotated[int, setting("of this folder; leave it")] = HOME_FORMAT
    profile: Annotated[str, setting(f"what the device can carry: {', '.join(profiles.names())}")] = "auto"
    base: Annotated[BaseConfig, setting("the model that everything here belongs to; leave it")]
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    pause: Annotated[PauseConfig, setting("training waits, and resumes by itself, while ...")] = field(
        default_factory=PauseConfig
    )
    data: DataConfig = field(default_factory=DataConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    quantize: QuantizeConfig = field(default_factory=QuantizeConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    chat: ChatConfig = field(default_factory=ChatConfig)
    fleet: Annotated[FleetConfig, setting("once the device has joined a coordinator")] = field(default_factory=FleetConfig)

    def device(self, profile: str | None = None) -> DeviceProfile:
        """The profile named on the command line, or else the file's."""
        return profiles.load(profile or self.profile)

    def threads(self, section: Literal["train", "chat"]) -> int:
        """Threads of work that no plan is made for: the section's, or else the profile's."""
        chosen = self.train.threads if section == "train" else self.chat.threads
        return chosen or self.device().usable_threads

    def learning_rates(self) -> tuple[float, float]:
        """The experts' first and final learning rate."""
        rate, final = self.train.expert_learning_rate, self.train.final_learning_rate
        first = FORMS[self.model.expert_form].learning_rate if rate is None else rate
        return first, first / 10 if final is None else final

    @property
    def has_zero_expert(self) -> bool:
        """Whether a training ends with a zero expert."""
        return has_zero_by_default(self.model.expert_form) if self.model.zero_expert is None else self.model.zero_expert

    def storage(self, layout: str | None = None, format_name: str | None = None) -> Storage:
        """How the exported file holds what training changes; arguments go before the file's settings.

        Defaults, by measurement (docs/decisions.md): F16 for the small files of the layout hot, else `DEFAULT_FORMAT`. Fake
        quantisation is free for parallel experts and on from the first step; a LoRA step costs 1.6 times as much, so it is
        on for the last third, and never at Q8_0, where it changes nothing.
        """
        layout = layout or self.export.layout
        name = (format_name or self.quantize.format or ("F16" if layout == "hot" else DEFAULT_FORMAT)).upper()
        start = FORMS[self.model.expert_form].quantise_start(name in TRAINABLE and name != "Q8_0")
        return Storage(layout, name, start if self.quantize.start is None else self.quantize.start)
