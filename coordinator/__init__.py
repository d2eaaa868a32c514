"""The coordinator's room: what devices and coordinator send each other, without torch.

wire.py   arrays <-> bytes, checked before they are parsed
"""
