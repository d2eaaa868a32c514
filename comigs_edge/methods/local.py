"""Every device for itself: one expert of twice the rank (or width), no exchange.

`local-train-valid` also trains on the validation text: the honest baseline for methods whose router sees that text.
"""

from comigs_edge.methods.method import Method

METHODS = (
    Method("local", "each device alone"),
    Method("local-train-valid", "each device alone, trained on its training and validation text", text="both"),
)
