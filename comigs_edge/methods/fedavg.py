"""FedAvg (McMahan et al. 2017, arXiv:1602.05629) of one low-rank expert of twice the rank: equal parameters.

A and B are averaged separately, as in the CoMiGS paper's baseline; `[exchange] averaging` of a recipe makes it exact.
"""

from comigs_edge.methods.method import Method, all_experts

METHODS = (Method("fedavg", "one expert, averaged every round", shares=all_experts),)
