"""Two small texts to measure a model's output on: one to choose by, one to check the choice with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .errors import NotFoundError, UnsupportedError
from .model import Model

LONGEST = 128  # tokens of a sequence
MOST = 512  # tokens in all
_RANDOM = 3  # sequences, where there is no tokenizer

CALIBRATION = (
    "The lighthouse had stood on the cape for a hundred and forty years before anyone thought of measuring how "
    "far its light could be seen. In the spring a surveyor came by boat with two assistants, a brass telescope "
    "and a notebook, and every evening for three weeks they rowed a little farther out to sea. On the last "
    "night the keeper, who had said nothing all that time, asked why they had not simply read the figure "
    "painted above the door.",
    "To make the dough, mix 500 g of flour with 10 g of salt and 7 g of dry yeast. Add 320 ml of lukewarm "
    "water and knead for ten minutes, until it is smooth. Let it rise under a cloth for an hour. Heat the oven "
    "to 230 degrees, shape two loaves, and bake them for 25 to 30 minutes. They are done when they sound "
    "hollow.",
    'def mean(values):\n    """The arithmetic mean of a list of numbers."""\n    if not values:\n        raise '
    'ValueError("mean() of an empty list")\n    total = 0.0\n    for value in values:\n        total += '
    "value\n    return total / len(values)\n",
    '"Did you finish the report?" asked Maria.\n"Almost," he said. "The numbers for March are still missing. '
    'Could you send them to me before noon?"\n"I sent them on Tuesday. Look in the folder that we share, not '
    'in your mail."',
    "Question: Which planet of the solar system has the most moons?\nAnswer: Saturn. Astronomers have "
    "confirmed more than one hundred and forty moons around it; Jupiter, which is larger, comes second.",
)
"""What a choice is made by, where the user gives no text."""

HELD_OUT = (
    "Rivers carry more than water. Every year they bring some twenty thousand million tonnes of sand, clay and "
    "dissolved minerals from the mountains to the sea. Where the current slows down, the coarse grains sink "
    "first and the fine ones last, so that a delta is sorted like the shelves of a shop. Dams hold much of "
    "this load back, and coasts that were once fed by a river begin to wear away.",
    "Dear Mr. Okafor,\n\nthank you for your letter of 3 May. We are sorry that the parcel arrived late and "
    "that one of the four cups was broken. A new cup was sent today at no cost; you need not return the old "
    "one. If it has not reached you within a week, please call us.\n\nYours sincerely,\nHelen Brandt",
    "SELECT name, COUNT(*) AS orders FROM customers JOIN orders ON orders.customer_id = customers.id WHERE "
    "year = 2023 GROUP BY name HAVING COUNT(*) > 5 ORDER BY orders DESC;",
    "A train leaves at 9:15 and travels 180 kilometres at 90 kilometres an hour. It stops for 20 minutes and "
    "then travels another 60 kilometres at the same speed. When does it arrive? The first part takes two "
    "hours, the second forty minutes, so with the stop the journey takes three hours: it arrives at 12:15.",
)
"""What the choice is checked with: nothing of it was seen."""


def sequences(model: Model, texts: Sequence[str]) -> tuple[list[list[int]], bool]:
    """Token ids of ``texts``, at most LONGEST each and MOST in all; random ones, and False, without a tokenizer."""
    longest = min(LONGEST, model.info["max_positions"])
    try:
        tokenizer = model.tokenizer
    except (NotFoundError, UnsupportedError):
        numbers = np.random.default_rng(len(texts[0]))  # another for each text, and always the same
        vocabulary = model.info["vocab_size"]
        return [[int(i) for i in numbers.integers(0, vocabulary, longest)] for _ in range(_RANDOM)], False
    found: list[list[int]] = []
    room = MOST
    for text in texts:
        ids = list(tokenizer.encode(text))
        for first in range(0, len(ids), longest):
            piece = ids[first : first + longest][:room]
            if len(piece) > 1:
                found.append(piece)
                room -= len(piece)
    return found, True
