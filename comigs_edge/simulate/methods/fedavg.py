"""FedAvg (McMahan et al. 2017, arXiv:1602.05629) of one low-rank expert of twice the rank: equal parameters.

A and B are averaged separately, as in the CoMiGS paper's baseline; `[exchange] averaging` of a recipe makes it exact.
`fedavg-r8` has the rank of one expert of a mixture, and the bytes of its generalist; `fedavg-train-valid` also trains on half
of the validation text, as `local-train-valid` does. `fedavg-even` has two experts that weigh the same everywhere, as
the paper's code has; see `local.py`. Against it `comigs-2g` shows what the router alone is worth.
"""

from comigs_edge.simulate.methods.method import Method, all_experts, mixture, one_expert

METHODS = (
    Method("fedavg", "one expert, averaged every round", shares=all_experts),
    Method("fedavg-r8", "one expert of the recipe's rank, averaged every round", one_expert, all_experts),
    Method(
        "fedavg-train-valid", "fedavg, trained on training text and half of the validation text", shares=all_experts, text="both"
    ),
    Method("fedavg-even", "two experts with equal weights, averaged every round", mixture, all_experts, router="even"),
)
