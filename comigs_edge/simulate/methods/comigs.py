"""CoMiGS (Fan et al. 2025, arXiv:2409.13931): the router learns from validation text, experts from training text.

comigs-1g1s   a generalist that is averaged and a specialist that stays
comigs-2g     two generalists: both are averaged, the router is the device's own
comigs-2s     two specialists: nothing passes
comigs-1gNs   a generalist and N specialists (1 to 7); comigs-1gxs: as many as the recipe gives the device
comigs-tr     1g1s whose router learns from training text
comigs-edge   1gxs as this project trains it, at the recipe's rate for experts: the router learns ten times as fast, its logit
              offsets faster still, and from the generalist that the exchange has brought (in the paper's
              algorithm it learns before the exchange, from one that the own text alone has shaped); each expert learns in
              proportion to the weight that the router gives it on validation text
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
        "comigs-edge", "1gxs as this project trains it", with_specialists, may_leave, router_learning_rate=2e-2,
        router_offset_rate=0.2, rates_by_weight=True, exchanges_first=True,
    ),
    Method("comigs-tr", "1g1s, the router on training text", mixture, may_leave, router="training"),
)  # fmt: skip
