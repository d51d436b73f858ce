"""Preference training: the chosen answer of each pair is made likelier than the rejected one (DPO).

    Rafailov et al. 2023, "Direct Preference Optimization", https://arxiv.org/abs/2305.18290

`pairs.py` reads them, `loss.py` says what is minimised, `model.py` computes it, `reference.py` keeps what the model
said before it was trained, `scoring.py` measures what the engine serves.
"""
