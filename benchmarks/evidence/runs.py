"""The list: which runs there are, in the order in which they are worth their time.

Every method learns at up to four rates with one seed, and then with two more seeds at the rate that had the fewest bits. That is
done on tuning text, on which settings may be chosen. What judges is another list: every method at its best rate alone, on text
that is split otherwise or of other files; docs/results.md says which of it served a choice all the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from comigs_edge.home.config import has_zero_by_default
from comigs_edge.nn.experts import FORMS, Form

RECIPES = ("multilingual", "domains", "topics-ood", "chat")
SEED, MORE_SEEDS = 42, (45, 47)
RATES = (4e-3, 2e-3, 8e-3, 1e-3)  # of experts, the likeliest first
FACTORS = (1.0, 0.5, 0.25, 2.0)  # of the product's rate for parallel experts
ROUTER_RATE = 2e-2  # the product's; the paper's is a tenth of it


@dataclass(frozen=True)
class Run:
    """One run: `rate` is that of the experts at first, `router_rate` replaces the paper's 2e-3.

    Of the recipe's devices the first `devices` take part, or all.
    """

    block: str = field(compare=False)
    recipe: str
    method: str  # as the catalogue of methods has it
    rate: float
    form: Form = "lora"
    router_rate: float | None = None
    seed: int = SEED
    zero_expert: bool = False
    judged: bool = False
    devices: int | None = None
    steps: int | None = None  # of the experts, in place of equal tokens

    @property
    def label(self) -> str:
        """The method as the table names it."""
        ends = {"parallel": self.form == "parallel", "zero": self.zero_expert, "fast-router": self.router_rate}
        return "-".join([self.method, *(end for end, is_there in ends.items() if is_there)])

    def name(self, size: str) -> str:
        """Of its record, without suffix."""
        text = ("judged-" if self.judged else "") + self.recipe + (f".{self.devices}" if self.devices else "")
        steps = f"-{self.steps}-steps" if self.steps else ""
        return f"{text}-{size}-{self.label}-{self.rate:g}-{self.seed}{steps}"


# Does the mixture lose nothing? Rivals of as many weights, then of its bytes, then those that learn its router's text too.
METHODS = ("comigs-edge", "local", "fedavg", "fedavg-r8", "local-train-valid", "fedavg-train-valid")
PAPERS = ("comigs-1g1s", "pfedmoe", "comigs-2g", "comigs-2s", "comigs-tr")  # the last three for the paper's own claims
RIVALS = ("fedalt", "fedsa-lora", "fedex-lora", "flexlora", "ffa-lora", "ffa-lora-r32", "fdlora", "pcl", "hetlora")


def size_label(size: str, rounds: int | None) -> str:
    """The size in the names of records; `rounds` in place of its own."""
    return size if rounds is None else f"{size}.{rounds}"


def no_regret(recipes: Iterable[str]) -> list[Run]:
    """Is the mixture as good as the better of learning alone and FedAvg? Every method at every rate.

    With parallel experts every method learns by the product's optimiser, with LoRA by the paper's.
    """
    recipes = tuple(recipes)
    block = "no regret" if recipes == RECIPES[:3] else f"no regret, {', '.join(recipes)}"
    runs = []
    for rate, factor in zip(RATES, FACTORS, strict=True):
        # The default form first: what is installed.
        other = factor * FORMS["parallel"].learning_rate
        runs += [_parallel(block, recipe, method, other) for method in METHODS for recipe in recipes]
        runs += [Run(block, recipe, method, rate) for method in METHODS for recipe in recipes]
    return runs


def _parallel(block: str, recipe: str, method: str, rate: float, zero: bool = has_zero_by_default("parallel")) -> Run:
    """A run of parallel experts; the product's ends with a zero expert where a new home's does."""
    return Run(block, recipe, method, rate, "parallel", zero_expert=zero and method == "comigs-edge")


def fast_routers(recipes: Iterable[str]) -> list[Run]:
    """The paper's method and its nearest rival, with a router that has time to learn."""
    return [
        Run("fast routers", recipe, method, rate, router_rate=ROUTER_RATE)
        for rate in RATES[:2] for method in PAPERS for recipe in recipes
    ]  # fmt: skip


def rivals(recipes: Iterable[str]) -> list[Run]:
    """Later methods that are personal, or whose mean is exact."""
    return [Run("rivals", recipe, method, rate) for rate in RATES for method in RIVALS for recipe in recipes]


def first_seed(recipes: tuple[str, ...]) -> list[Run]:
    """All runs of the first seed."""
    first = tuple(each for each in recipes if each in RECIPES[:3])
    rest = tuple(each for each in recipes if each not in RECIPES[:3])
    return [*no_regret(first), *(no_regret(rest) if rest else ()), *fast_routers(recipes), *rivals(recipes)]


def all_runs(recipes: tuple[str, ...], bits: dict[Run, float]) -> list[Run]:
    """The list as far as it is known: `bits` has the bits per byte of runs that are done."""
    best = best_rates(recipes, bits)
    return first_seed(recipes) + [replace(run, block="seeds", seed=seed) for seed in MORE_SEEDS for run in best]


def best_rates(recipes: tuple[str, ...], bits: dict[Run, float]) -> list[Run]:
    """The best run of each method and recipe of which all rates are done."""
    by_method: dict[tuple[str, str], list[Run]] = {}
    for run in first_seed(recipes):
        by_method.setdefault((run.label, run.recipe), []).append(run)
    return [min(each, key=bits.__getitem__) for each in by_method.values() if all(run in bits for run in each)]


def one_rate(runs: Iterable[Run]) -> None:
    """Raises `SystemExit` where runs that judge have two rates of one method, of which the better would be chosen by them."""
    rates: dict[tuple[str, str], float] = {}
    for run in runs:
        if run.judged and (rate := rates.setdefault((run.recipe, run.label), run.rate)) != run.rate:
            raise SystemExit(
                f"{run.recipe} is judged with {run.label} at {rate:g} and at {run.rate:g}, and no rate is chosen there; "
                "keep the records of one of them in a folder"
            )


def with_judged(recipes: tuple[str, ...]) -> tuple[str, ...]:
    """The recipes, and those of the same kind whose files are read to judge alone."""
    return (*recipes, *(f"{recipe}-judged" for recipe in recipes))


def judged_runs(recipes: tuple[str, ...], bits: dict[Run, float]) -> list[Run]:
    """What judges: each method at the rate that was best on tuning text, one seed after the other; no rate is chosen there."""
    best = best_rates(recipes, bits)
    return [
        replace(run, block="judged", recipe=recipe, seed=seed, judged=True)
        for seed in (SEED, *MORE_SEEDS) for run in best for recipe in with_judged((run.recipe,))
    ]  # fmt: skip


def length(recipes: tuple[str, ...], judged: bool = False) -> int:
    """Runs of the whole list, those that are not known yet among them."""
    runs = first_seed(recipes)
    methods = len({(run.label, run.recipe) for run in runs})
    return 2 * (1 + len(MORE_SEEDS)) * methods if judged else len(runs) + len(MORE_SEEDS) * methods
