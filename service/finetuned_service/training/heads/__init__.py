"""Trains heads over a frozen base that encodes: classes of texts and images, numbers, tags of tokens.

examples.py   rows as the base takes them, with their targets; torch-free
weights.py    how much each label counts
features.py   what the frozen base makes of them, computed once
model.py      the head and its loss
scores.py     figures of a task, by numpy alone
evaluate.py   held-out rows answered by the engine that serves
run.py        one job from its task to its result
"""
