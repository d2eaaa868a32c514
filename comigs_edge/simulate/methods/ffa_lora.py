"""FFA-LoRA (Sun et al. 2024, arXiv:2403.12313): A stays as it was drawn, B is trained and averaged.

As A is the same everywhere, the mean of B is the mean of the products: exact, and updates are half as large. (The CoMiGS
paper's first code names a strategy that trains and averages A as well, which is FedAvg.)
"""

from comigs_edge.simulate.methods.method import Method, all_experts

METHODS = (Method("ffa-lora", "FedAvg of B alone, A frozen", shares=all_experts, averaging="freeze-a", lora_only=True),)
