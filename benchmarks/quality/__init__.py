"""`python -m benchmarks.quality`: what training makes, beside the references. See ../README.md.

studies.py           tasks on real rows, methods, settings
rows.py, bases.py    what they are made of
order.py             what a learner is asked and answers
alone.py             a run in a forked process, and its memory
ours_*.py            ours: a TrainJob as its process runs it, rows answered by the engine that serves
reference*           the other side; reference/__init__.py says what is in it
scores.py            one scorer for both
compare.py           medians, ratios, curves, verdicts
learners.py          both as processes that take turns, and the files of their runs
groups.py            the figures
report.py            the table
"""
