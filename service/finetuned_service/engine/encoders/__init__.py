"""Bases that encode: text encoders and vision models. An input is computed in one step and told whole.

text.py       the packed forward of a text encoder
attention.py  attention of every token to its whole input, inputs packed
vision.py     the batched forward of a vision model
pooling.py    one vector of many
adapted.py    which rows belong to which adapter
model.py      the base in memory, and its runner
"""
