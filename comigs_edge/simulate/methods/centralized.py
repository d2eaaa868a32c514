"""All text in one place: one expert of twice the rank, as many steps, each with the batches of all devices."""

from comigs_edge.simulate.methods.method import Method

METHODS = (Method("centralized", "one model on the text of all devices", text="pooled"),)
