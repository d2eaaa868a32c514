"""FedSA-LoRA (Guo et al. 2025, arXiv:2410.01463): A is averaged, B stays on its device.

(The CoMiGS paper's second code names a strategy that averages A, B and the router, which is FedAvg.)
"""

from comigs_edge.simulate.methods.method import Method, all_experts


def in_side(name: str) -> bool:
    """A of every low-rank update."""
    return all_experts(name) and name.endswith(".lora_a")


METHODS = (Method("fedsa-lora", "FedAvg of A alone, B stays", shares=in_side, lora_only=True),)
