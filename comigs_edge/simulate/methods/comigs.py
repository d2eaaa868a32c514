"""CoMiGS (Fan et al. 2025, arXiv:2409.13931): the router learns from validation text, experts from training text.

comigs-1g1s   a generalist that is averaged and a specialist that stays
comigs-2g     two generalists: both are averaged, the router is the device's own
comigs-2s     two specialists: nothing passes
comigs-1gNs   a generalist and N specialists (1 to 7); comigs-1gxs: as many as the recipe gives the device
comigs-tr     1g1s whose router learns from training text
comigs-edge   1gxs as `comigs-edge train` trains it: form, rates, turns and the rest come from the settings of a new home, and
              the recipe says only how many steps of how many rows, and where it names one a form or a rate for the experts;
              the router learns from the generalist that the exchange has brought (in the paper's algorithm it learns
              before the exchange, from one that the own text alone has shaped)
"""

from functools import partial

from comigs_edge.nn.experts import ExpertsConfig
from comigs_edge.simulate.methods.method import Method, all_experts, mixture, with_specialists
from coordinator.protocol.generalist import may_leave


def _fixed(count: int, plain: ExpertsConfig, specialists: int) -> ExpertsConfig:
    return with_specialists(plain, count)


METHODS = (
    Method("comigs-1g1s", "a generalist and a specialist", mixture, may_leave),
    Method("comigs-2g", "two generalists", mixture, all_experts),
    Method("comigs-2s", "two specialists", mixture),
    Method("comigs-1gxs", "a generalist and each device's specialists", with_specialists, may_leave),
    *(
        Method(f"comigs-1g{count}s", f"a generalist and {count} specialists", partial(_fixed, count), may_leave)
        for count in range(2, 8)
    ),
    Method(
        "comigs-edge", "1gxs as `comigs-edge train` trains it", with_specialists, may_leave, is_product=True,
        exchanges_first=True,
    ),
    Method("comigs-tr", "1g1s, the router on training text", mixture, may_leave, router="training"),
)  # fmt: skip
