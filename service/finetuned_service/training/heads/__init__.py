"""Trains heads over a base that encodes, frozen or with a method on it: classes of texts and images, numbers, tags of tokens.

examples.py   rows as the base takes them, with their targets; torch-free
weights.py    how much each label counts
features.py   what the frozen base makes of them, computed once
model.py      the head over them and its loss
adapted.py    the head over a base that trains with it
scores.py     figures of a task, by numpy alone
confusion.py  which labels were taken for which
evaluate.py   held-out rows answered by the engine that serves
run.py        one job from its task to its result
"""
