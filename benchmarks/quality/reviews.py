"""What guests say of a stay, with the stars that they give: from 1 to 5, the mean of two things that they judge.

Seeded. Sentences, things and words of judgement of the test rows are others than those of the training rows.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Part = Literal["train", "test"]


@dataclass(frozen=True, slots=True)
class _Language:
    """What the rows of a part are made of."""

    rows: int
    sentences: Sequence[str]
    """With two things and a judgement of each."""
    things: Sequence[str]
    words: Mapping[int, Sequence[str]]
    """By the stars they stand for."""


_LANGUAGE: Mapping[Part, _Language] = {
    "train": _Language(
        300,
        (
            "The {0} was {1} and the {2} was {3}.",
            "We found the {0} {1}; the {2} we found {3}.",
            "{1}: that is all I can say of the {0}. As for the {2}: {3}.",
            "Our {0} turned out to be {1}, and the {2} {3}.",
            "If you ask me, the {0} is {1}, the {2} {3}.",
        ),
        ("room", "breakfast", "bed", "view", "bathroom", "pool", "garden", "parking", "music", "lift"),
        {
            1: ("awful", "disgusting", "a disgrace", "unbearable"),
            2: ("disappointing", "rather poor", "below what we paid for", "a bit shabby"),
            3: ("average", "all right", "neither good nor bad", "acceptable"),
            4: ("good", "very pleasant", "better than we hoped", "nicely done"),
            5: ("superb", "perfect", "the best I have known", "breathtaking"),
        },
    ),
    "test": _Language(
        72,
        (
            "Let me start with the {0}, which I would call {1}, before I come to the {2}: {3}.",
            "About the {0} my wife says {1}, about the {2} {3}.",
            "I had read about their {0} ({1}) and {2} ({3}), and it is true.",
        ),
        ("balcony", "dinner", "sauna", "wardrobe", "terrace", "reception"),
        {
            1: ("horrible", "terrible", "appalling"),
            2: ("mediocre", "somewhat worn", "not quite what we expected"),
            3: ("ordinary", "fair enough", "so-so"),
            4: ("nice", "really enjoyable", "well kept"),
            5: ("fantastic", "flawless", "absolutely wonderful"),
        },
    ),
}


def reviews(part: Part) -> list[dict[str, Any]]:
    """Rows with `text` and `score`."""
    language, draw = _LANGUAGE[part], random.Random(f"ratings:{part}")
    made: list[dict[str, Any]] = []
    for _ in range(language.rows):
        things, stars = draw.sample(language.things, 2), draw.choices(range(1, 6), k=2)
        words = [draw.choice(language.words[star]) for star in stars]
        text = draw.choice(language.sentences).format(things[0], words[0], things[1], words[1])
        made.append({"text": text[0].upper() + text[1:], "score": sum(stars) / 2})
    return made
