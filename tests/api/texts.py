"""Texts that tokenizers get wrong."""

import random

TEXTS = [
    "Hello world",
    "  leading, trailing  ",
    "a\n\n\nb \n c\r\n\td",
    "def f(x):\n    return x**2  # ok\n\n",
    "naïve café — “quotes”…",
    "日本語のテキストと中文",
    "😀👩‍👩‍👧‍👦 emoji 🇫🇷",
    "I'm you're HE'S they'LL don't",
    "مرحبا بالعالم",
    "no\u00a0break\u3000wide\u200bzero",
    "tabs\t\tand   spaces",
    "!!!???...---",
    "e\u0301 decomposed",
    "control \x01\x7f",
    "",
    " ",
    "\n",
]
DIGITS = ["The year 1234567 and 3.14159", "x²½ ⅣⅤ ①②", "हिन्दी १२३", "v1.2.3-rc4", "0 00 000 0000"]


def random_texts(seed: int, count: int, digits: bool = True) -> list[str]:
    """Random mixtures of ASCII, spaces, words and characters of many scripts."""
    rng = random.Random(seed)
    ascii_characters = [chr(c) for c in range(32, 127) if digits or not chr(c).isdigit()]
    words = ["the", " and", "é", "'s", "12" if digits else "twelve"]
    draws = [
        lambda: rng.choice(ascii_characters),
        lambda: rng.choice(" \n\t  \r"),
        lambda: chr(rng.randint(0xA1, 0x24F)),
        lambda: chr(rng.randint(0x400, 0x4FF)),
        lambda: chr(rng.randint(0x3041, 0x30FE)),
        lambda: chr(rng.randint(0x4E00, 0x9FFF)),
        lambda: chr(rng.randint(0x1F300, 0x1FAFF)),
        lambda: rng.choice(words),
    ]
    texts = ("".join(rng.choice(draws)() for _ in range(rng.randint(1, 50))) for _ in range(count))
    return [t for t in texts if digits or not any(c.isnumeric() for c in t)]
