"""The other side of the comparison: transformers' Trainer with PEFT, or a plain PyTorch loop, and scikit-learn.

rows.py        rows as transformers' own tokenizer makes them
model.py       transformers' model of a base with a method on it
bottleneck.py  bottlenecks by their papers' formula, which PEFT has not
labels.py      tasks whose rows have labels: pooling, head, cross-entropy
texts.py       vectors of texts
answers.py     answers and preferences of causal language models
loops.py       transformers' Trainer, and a plain loop, with batches and rates as they are told
tuned.py       transformers' Trainer as its users call it; scikit-learn's logistic regression for heads

Of our code it has rows as ids of language models, the order of batches and the rates of a run that it repeats.
"""
