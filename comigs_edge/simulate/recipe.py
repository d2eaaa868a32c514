"""What is simulated, from a TOML file: devices and their text, sizes, experts and rates. Without torch.

Unknown keys, wrong types and impossible values are refused by name, in one sentence.
"""

from __future__ import annotations

import difflib
import sys
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from comigs_edge.errors import ComigsError
from comigs_edge.nn.experts import FORMS
from coordinator.protocol.rounds import AVERAGING, WEIGHTS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SHIPPED = Path(__file__).parent / "recipes"
TARGETS = ("own", "mix")
UPDATE_FORMATS = ("float32", "float16")  # int8 needs error feedback, which is not simulated
Section = TypeVar("Section")


@dataclass(frozen=True)
class DeviceRecipe:
    """One virtual device."""

    text: str  # its text is in the file TEXT.jsonl
    specialists: int = 1  # of the methods whose devices may differ
    share: float = 1.0  # of the size's training tokens


@dataclass(frozen=True)
class Size:
    """How much is trained and measured; tokens are of one device."""

    rounds: int
    local_steps: int  # expert steps of a round
    router_period: int  # expert steps between the router's turns
    router_steps: int  # of each turn
    batch: int  # rows
    context: int  # tokens of a row
    training_tokens: int
    validation_tokens: int
    test_tokens: int
    validation_rows: int = 16  # on which the validation loss is taken, once in a router period
    measured_rounds: tuple[int, ...] = ()  # after which the test text is measured; it always is after the last one


@dataclass(frozen=True)
class ExpertRecipe:
    """The experts; defaults are the paper's (arXiv:2409.13931, appendix B.1)."""

    form: str = "lora"
    rank: int = 8
    width: int = 32  # of parallel experts
    alpha: float = 16.0
    attention: bool = False
    blocks: int = 0  # experts are in so many last blocks; 0: in all


@dataclass(frozen=True)
class TrainingRecipe:
    """Rates and weights; the paper's."""

    expert_learning_rate: float = 2e-3
    final_learning_rate: float = 2e-4
    router_learning_rate: float = 2e-3
    warmup_steps: int = 0
    balance_weight: float = 0.01
    weight_decay: float = 0.01


@dataclass(frozen=True)
class ExchangeRecipe:
    """What the coordinator of a real fleet is told."""

    weights: str = "uniform"
    averaging: str = "separate"
    update_format: str = "float16"


@dataclass(frozen=True)
class Recipe:
    """A whole recipe. `target` says what validation and test text is: a device's own, or an equal mix of all devices'."""

    about: str
    devices: dict[str, DeviceRecipe]
    sizes: dict[str, Size]
    target: str = "own"
    experts: ExpertRecipe = field(default_factory=ExpertRecipe)
    training: TrainingRecipe = field(default_factory=TrainingRecipe)
    exchange: ExchangeRecipe = field(default_factory=ExchangeRecipe)

    def size(self, name: str) -> Size:
        """The size with that name."""
        if name not in self.sizes:
            raise ComigsError(f"the recipe has no size {name!r}; it has {', '.join(self.sizes)}")
        return self.sizes[name]


def shipped() -> list[str]:
    """Names of the recipes that come along."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def find(name_or_file: str) -> Path:
    """The file of a recipe; raises `ComigsError` if there is none."""
    path = Path(name_or_file)
    if path.suffix != ".toml":
        path = SHIPPED / f"{name_or_file}.toml"
    if not path.is_file():
        raise ComigsError(f"there is no recipe {name_or_file}; name a TOML file or one of {', '.join(shipped())}")
    return path


def read(path: Path) -> Recipe:
    """The recipe in `path`; raises `ComigsError` for what cannot be read, is unknown or impossible."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ComigsError(f"{path} cannot be read ({error}); see the recipes in {SHIPPED}") from error
    recipe = _section(Recipe, table, path.name, "")
    _check(recipe, path.name)
    return recipe


def _section(cls: type[Section], table: Any, file: str, name: str) -> Section:
    where = f"in [{name}]" if name else "at the top"
    if not isinstance(table, dict):
        raise ComigsError(f"{file}: {name} must be a section, [{name}]")
    hints = get_type_hints(cls)
    for key in table:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(hints)}"
            raise ComigsError(f"{file}: unknown key {key!r} {where}; {hint}")
    required = [f for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]  # type: ignore[arg-type]
    if missing := [f.name for f in required if f.name not in table]:
        raise ComigsError(f"{file}: {', '.join(missing)} missing {where}")
    values = {key: _value(hints[key], value, file, f"{name}.{key}".strip(".")) for key, value in table.items()}
    return cls(**values)


def _value(hint: Any, value: Any, file: str, name: str) -> Any:
    if isinstance(hint, type) and hint.__module__ == __name__:
        return _section(hint, value, file, name)
    if hint == tuple[int, ...]:
        if not isinstance(value, list) or not all(type(each) is int for each in value):
            raise ComigsError(f"{file}: {name} = {value!r} must be a list of numbers of rounds")
        return tuple(value)
    if getattr(hint, "__origin__", None) is dict:
        if not isinstance(value, dict) or not value:
            raise ComigsError(f"{file}: {name} must have sections, [{name}.NAME]")
        return {key: _section(hint.__args__[1], each, file, f"{name}.{key}") for key, each in value.items()}
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ComigsError(f"{file}: {name} = {value!r} must be {hint.__name__}")
    return value


def _check(recipe: Recipe, file: str) -> None:
    experts, training, exchange = recipe.experts, recipe.training, recipe.exchange
    rules: list[tuple[str, float, float, float]] = [
        ("experts.rank", experts.rank, 1, 1024),
        ("experts.width", experts.width, 1, 1 << 16),
        ("experts.alpha", experts.alpha, 1e-3, 1e4),
        ("experts.blocks", experts.blocks, 0, 1024),
        ("training.expert_learning_rate", training.expert_learning_rate, 0, 10),
        ("training.final_learning_rate", training.final_learning_rate, 0, 10),
        ("training.router_learning_rate", training.router_learning_rate, 0, 10),
        ("training.warmup_steps", training.warmup_steps, 0, 10**9),
        ("training.balance_weight", training.balance_weight, 0, 1e3),
        ("training.weight_decay", training.weight_decay, 0, 1),
    ]
    for name, device in recipe.devices.items():
        rules += [
            (f"devices.{name}.specialists", device.specialists, 0, 63),
            (f"devices.{name}.share", device.share, 1e-3, 1),
        ]
    for name, size in recipe.sizes.items():
        least = {"context": 8, "router_steps": 0}
        rules += [
            (f"sizes.{name}.{key}", value, least.get(key, 1), 10**9)
            for key, value in vars(size).items() if key != "measured_rounds"
        ]  # fmt: skip
        rules += [(f"sizes.{name}.measured_rounds", number, 1, size.rounds) for number in size.measured_rounds]
    for where, number, low, high in rules:
        if not low <= number <= high:
            raise ComigsError(f"{file}: {where} = {number} must be between {low:g} and {high:g}")
    choices = (
        ("target", recipe.target, TARGETS),
        ("experts.form", experts.form, tuple(FORMS)),
        ("exchange.weights", exchange.weights, WEIGHTS),
        ("exchange.averaging", exchange.averaging, AVERAGING),
        ("exchange.update_format", exchange.update_format, UPDATE_FORMATS),
    )
    for where, chosen, known in choices:
        if chosen not in known:
            raise ComigsError(f"{file}: {where} = {chosen!r} must be one of {', '.join(known)}")
