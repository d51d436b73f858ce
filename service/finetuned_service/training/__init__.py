"""Runs one TrainJob in a process of its own: `python -m finetuned_service.training TASK.json`.

    run.py          the whole job: data, baseline, training, evaluation, result
    data.py         rows to ids, long rows, held-out rows
    preview.py      the same reading for a job that is being submitted
    order.py        which rows each step takes, and in which parts they run
    packing.py      rows of a step as one packed sequence
    model.py        the base, mapped from its file, with a method on it
    methods/        which parameters each method trains, how they begin, how their files look
    norm.py         RMS norm with a frozen weight
    fused.py        a whole Llama-like layer in bfloat16 as one function, forward and backward
    activations.py  layers that keep their input alone, and what others keep
    native/         its passes in C++, compiled for the machine
    attention.py    attention within each row of a packed sequence
    loss.py         cross-entropy of supervised tokens only, without all logits in memory
    schedule.py     learning rates, and when to evaluate and to write a checkpoint
    loop.py         the training loop
    trainable.py    what it needs of what it trains
    heads/          the same for heads over bases that encode
    checkpoint.py   what a killed process needs to go on exactly
    questions.py    held-out rows as questions, with and without the baseline's prompt
    evaluate.py     answers of the base and the adapter to held-out rows, by the serving engine
    adapter.py      the result as files

Knows no database and no gRPC; what it is given and what it says is in `jobs/task.py`.
"""
