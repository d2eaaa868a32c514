"""FedAvg (McMahan et al. 2017, arXiv:1602.05629) of one low-rank expert of twice the rank: equal parameters.

A and B are averaged separately, as in the CoMiGS paper's baseline; `[exchange] averaging` of a recipe makes it exact.
`fedavg-even` has two experts that weigh the same everywhere, as the paper's code has; see `local.py`. Against it `comigs-2g`
shows what the router alone is worth.
"""

from comigs_edge.simulate.methods.method import Method, all_experts, mixture

METHODS = (
    Method("fedavg", "one expert, averaged every round", shares=all_experts),
    Method("fedavg-even", "two experts with equal weights, averaged every round", mixture, all_experts, router="even"),
)
