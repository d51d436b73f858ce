"""Trains a method on a base that encodes so that texts which belong together have like vectors.

pairs.py      rows as the base takes them; torch-free
loss.py       in-batch negatives, and cosines of scored pairs
model.py      the base with a method on it, and its loss
in_parts.py   vectors of many texts, some of them in memory at once
figures.py    similarity and retrieval, by numpy alone
evaluate.py   held-out rows answered by the engine that serves
run.py        one job from its task to its result
"""
