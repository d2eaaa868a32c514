"""What is simulated, from a TOML file: devices and their text, sizes, experts and rates. Without torch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from comigs_edge.errors import ComigsError
from comigs_edge.nn.experts import Form
from coordinator.protocol import settings
from coordinator.protocol.rounds import Averaging, Weights
from coordinator.protocol.settings import SettingsError, setting

SHIPPED = Path(__file__).parent / "recipes"
Count = Annotated[int, setting("", 1, 10**9)]
Rate = Annotated[float, setting("", 0, 10)]


@dataclass(frozen=True)
class DeviceRecipe:
    """One virtual device."""

    text: str  # its text is in the file TEXT.jsonl
    specialists: Annotated[int, setting("", 0, 63)] = 1  # of the methods whose devices may differ
    share: Annotated[float, setting("", 1e-3, 1)] = 1.0  # of the size's training tokens


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is trained and measured; tokens are of one device."""

    rounds: Count
    local_steps: Count  # expert steps of a round
    router_period: Count  # expert steps between the router's turns
    router_steps: Annotated[int, setting("", 0, 10**9)]  # of each turn
    batch: Count  # rows
    context: Annotated[int, setting("", 8, 10**9)]  # tokens of a row
    training_tokens: Count
    validation_tokens: Count
    test_tokens: Count
    validation_rows: Count = 16  # on which the validation loss is taken, once in a router period
    measured_rounds: tuple[Count, ...] = ()  # after which the test text is measured; it always is after the last one


@dataclass(frozen=True, kw_only=True)
class ExpertRecipe:
    """The experts; defaults are the paper's (arXiv:2409.13931, appendix B.1)."""

    form: Form | None = None  # None: LoRA, and for comigs-edge the one that `comigs-edge init` chooses
    rank: Annotated[int, setting("", 1, 1024)] = 8
    width: Annotated[int, setting("", 1, 1 << 16)] = 32  # of parallel experts
    alpha: Annotated[float, setting("", 1e-3, 1e4)] = 16.0
    attention: bool = False
    blocks: Annotated[int, setting("", 0, 1024)] = 0  # number of final blocks that have experts; 0: all


@dataclass(frozen=True, kw_only=True)
class TrainingRecipe:
    """Rates and weights; defaults are the paper's. `comigs-edge` takes the experts' rates from here where they are given."""

    expert_learning_rate: Rate | None = None  # None: 2e-3, and for comigs-edge the product's
    final_learning_rate: Rate | None = None  # None: a tenth of it
    router_learning_rate: Rate = 2e-3
    warmup_steps: Annotated[int, setting("", 0, 10**9)] = 0
    balance_weight: Annotated[float, setting("", 0, 1e3)] = 0.01
    weight_decay: Annotated[float, setting("", 0, 1)] = 0.01


@dataclass(frozen=True)
class ExchangeRecipe:
    """What the coordinator of a real fleet is set to."""

    weights: Weights = "uniform"
    averaging: Averaging = "separate"
    update_format: Literal["float32", "float16"] = "float16"  # int8 needs error feedback, which is not simulated


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole recipe. `target` says what validation and test text is: a device's own, or an equal mix of all devices'.

    What it does not name is as in the shipped recipe `like`. Text of a recipe for `judging` is read with --judge alone.
    """

    about: str
    devices: dict[str, DeviceRecipe]
    sizes: dict[str, Size]
    like: str = ""
    judging: bool = False
    target: Literal["own", "mix"] = "own"
    experts: ExpertRecipe = field(default_factory=ExpertRecipe)
    training: TrainingRecipe = field(default_factory=TrainingRecipe)
    exchange: ExchangeRecipe = field(default_factory=ExchangeRecipe)

    def first(self, count: int | None) -> Recipe:
        """The recipe with its first `count` devices; None: with all."""
        if count is not None and count > len(self.devices):
            raise ComigsError(f"the recipe has {len(self.devices)} devices, not {count}; leave --devices out for all of them")
        return self if count is None else replace(self, devices=dict(list(self.devices.items())[:count]))

    def size(self, name: str) -> Size:
        """The size with that name."""
        if name not in self.sizes:
            raise ComigsError(f"the recipe has no size {name!r}; it has {', '.join(self.sizes)}")
        return self.sizes[name]


def shipped_names() -> list[str]:
    """Names of the recipes that come along."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def find(name_or_file: str) -> Path:
    """The file of a recipe; raises `ComigsError` if missing."""
    path = Path(name_or_file)
    if path.suffix != ".toml":
        path = SHIPPED / f"{name_or_file}.toml"
    if not path.is_file():
        raise ComigsError(f"there is no recipe {name_or_file}; name a TOML file or one of {', '.join(shipped_names())}")
    return path


def read(path: Path) -> Recipe:
    """The recipe in `path`; raises `ComigsError` for what cannot be read, is unknown or impossible."""
    try:
        table = settings.load(path)
        if like := table.get("like"):
            table = settings.load(find(str(like))) | table
    except (OSError, ValueError) as error:
        raise ComigsError(f"{path} cannot be read ({error}); see the recipes in {SHIPPED}") from error
    try:
        recipe = settings.read(Recipe, table)
    except SettingsError as error:
        raise ComigsError(f"{path.name}: {error}; see the recipes in {SHIPPED}") from None
    for name, size in recipe.sizes.items():
        for number in size.measured_rounds:
            if number > size.rounds:
                raise ComigsError(f"{path.name}: sizes.{name}.measured_rounds = {number} must be between 1 and {size.rounds}")
    return recipe
