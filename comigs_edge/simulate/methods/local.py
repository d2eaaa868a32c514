"""Every device for itself: one expert of twice the rank (or width), no exchange.

`local-train-valid` also trains on the half of the validation text that a router learns from, and chooses its state by the other
half, as a mixture does: the honest baseline for methods whose router sees that text.
`local-even` has two experts that weigh the same everywhere, which is what the CoMiGS paper's code runs as its baseline: under
equal rates it learns more slowly than one expert of twice the rank, whose update is scaled by alpha / sqrt(2 R) and not halved.
"""

from comigs_edge.simulate.methods.method import Method, mixture

METHODS = (
    Method("local", "each device alone"),
    Method("local-train-valid", "each device alone, trained on its training text and half of its validation text", text="both"),
    Method("local-even", "each device alone, two experts with equal weights", mixture, router="even"),
)
