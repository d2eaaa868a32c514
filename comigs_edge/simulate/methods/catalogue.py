"""All methods by name."""

from __future__ import annotations

from comigs_edge.errors import ComigsError
from comigs_edge.simulate.methods import (
    centralized,
    comigs,
    fdlora,
    fedalt,
    fedavg,
    fedex_lora,
    fedsa_lora,
    ffa_lora,
    flexlora,
    hetlora,
    local,
    pcl,
    pfedmoe,
)  # fmt: skip
from comigs_edge.simulate.methods.method import Method

CORE = ("local", "fedavg", "comigs-1g1s", "comigs-2g", "comigs-2s")
METHODS: dict[str, Method] = {
    method.name: method
    for module in (
        local,
        fedavg,
        comigs,
        pfedmoe,
        centralized,
        ffa_lora,
        fedsa_lora,
        fedex_lora,
        fedalt,
        hetlora,
        flexlora,
        pcl,
        fdlora,
    )
    for method in module.METHODS
}


def find_method(name: str) -> Method:
    """The method with that name; raises `ComigsError` if it is unknown."""
    if name not in METHODS:
        raise ComigsError(f"there is no method {name!r}; the methods are {', '.join(METHODS)}")
    return METHODS[name]
