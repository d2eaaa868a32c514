"""FFA-LoRA (Sun et al. 2024, arXiv:2403.12313): A stays as it was drawn, B is trained and averaged.

As A is the same everywhere, the mean of B is the mean of the products: exact, and updates are half as large. (The CoMiGS
paper's first code names a strategy that trains and averages A as well, which is FedAvg.) With the rank of `fedavg` only half as
many weights learn; `ffa-lora-r32` has twice its rank, so that as many do.
"""

from functools import partial

from comigs_edge.simulate.methods.method import Method, all_experts, four_times_the_rank

_ffa = partial(Method, shares=all_experts, averaging="freeze-a", lora_only=True)

METHODS = (
    _ffa("ffa-lora", "FedAvg of B alone, A frozen"),
    _ffa("ffa-lora-r32", "the same with as many weights that learn as fedavg has", four_times_the_rank),
)
