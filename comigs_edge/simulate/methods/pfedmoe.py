"""pFedMoE (Yi et al. 2024, arXiv:2402.01350): router and experts learn together from training text; the generalist is averaged.

As the CoMiGS paper compares it: with the same two experts and linear router as `comigs-1g1s`.
"""

from comigs_edge.simulate.methods.method import Method, mixture
from coordinator.protocol.generalist import may_leave

METHODS = (Method("pfedmoe", "1g1s, router and experts trained jointly", mixture, may_leave, router="jointly"),)
