"""The other side of the comparison: TRL, transformers' Trainer with PEFT, or a plain PyTorch loop, and scikit-learn.

batches.py     rows of ids side by side
rows.py        rows as transformers' own tokenizer makes them
model.py       transformers' model of a base with a method on it
bottleneck.py  bottlenecks by their papers' formula, which PEFT has not
labels.py      tasks whose rows have labels or numbers: pooling, head, loss
texts.py       vectors of texts
answers.py     answers of causal language models, and preferences between them
loops.py       transformers' Trainer, and a plain loop, with batches and rates as they are told
trained.py     what was seen of a run, and what it comes to
tuned.py       trainers as their users call them
linear.py      scikit-learn's linear models for heads

Nothing here imports the service: rows of language models come as ids in a file, batches and rates in the order.
"""
