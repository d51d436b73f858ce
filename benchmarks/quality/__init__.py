"""`python -m benchmarks.quality`: what training makes, beside the references. See ../README.md.

studies.py           tasks on real rows, methods, settings
rows.py, reviews.py  rows of every study
bases.py             bases that they are trained over
encoded.py           rows of language models as ids, alike for all sides
order.py             what a learner is asked and answers
alone.py             a run in a forked process, and its memory
ours_*.py            ours: a TrainJob as its process runs it, rows answered by the engine that serves
reference_worker.py  transformers' Trainer, plain PyTorch, scikit-learn
trl_worker.py        TRL's trainers, in an environment of their own
reference/           what both are made of
scores.py            one scorer for all
compare.py           medians, ratios, curves, verdicts
nudge.py             beginnings a bit apart: what the last bit of a float32 does to a run
learners.py          all as processes that take turns, and the files of their runs
sources.py           which code a run is of
groups.py            the figures
report.py            the table
"""
