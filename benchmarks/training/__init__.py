"""`python -m benchmarks.training`: training beside its peer. See ../README.md.

rows.py         real rows of even and uneven length
learners.py     ours and TRL's trainer as processes that are asked to train
ours_worker.py  ours: the training loop as a job runs it
memory.py       the most memory that a process took above what it began with
weights.py      what the frozen weights of a model take, mapped from their file and beside it
packed.py       the base in 4 bits, as Quantize stores it
estimate.py     how far jobs' own estimates are off
groups.py       the figures
"""
