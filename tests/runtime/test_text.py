"""Streamed text against Python's own decoder, whatever the split into tokens."""

import random

import pytest

from halfbyte import _core

# Bytes near every border of UTF-8: ASCII, continuation, over-long leads, surrogates, above U+10FFFF, whole characters.
UNITS = [
    *(bytes([b]) for b in (0x00, 0x41, 0x42, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF)),
    *(bytes([b]) for b in (0xE0, 0xE1, 0xEC, 0xED, 0xEE, 0xEF, 0xF0, 0xF1, 0xF3, 0xF4, 0xF5, 0xFE, 0xFF)),
    *(s.encode() for s in ("ab", "é", "ß", "€", "日本", "😀", "👩‍👩‍👧", "\ufffd", "\ud7ff", "\U0010ffff")),
    b"\xed\xa0\x80",
    b"\xe0\x80\x80",
    b"\xf0\x80\x80\x80",
    b"\xf4\x90\x80\x80",
]


def split(data: bytes, rng: random.Random, most: int) -> list[bytes]:
    pieces = []
    while data:
        size = rng.randint(0, most)
        pieces.append(data[:size])
        data = data[size:]
    return pieces


def stream(pieces: list[bytes], stop: list[str]) -> tuple[str, bool]:
    text = _core.TextStream(stop)
    shown = ""
    for piece in pieces:
        shown += text.push(piece)
    shown += text.finish()
    return shown, text.stopped


def truncated(text: str, stop: list[str]) -> tuple[str, bool]:
    """Cut before the stop string that is complete first; of several that end together, the longest."""
    hits = [(text.find(s) + len(s), text.find(s)) for s in stop if s in text]
    return (text[: min(hits)[1]], True) if hits else (text, False)


@pytest.mark.parametrize("seed", range(300))
def test_any_split_decodes_as_python_does(seed: int) -> None:
    rng = random.Random(seed)
    data = b"".join(rng.choices(UNITS, k=rng.randint(0, 40)))
    for most in (1, 3, 9):
        assert stream(split(data, rng, most), []) == (data.decode("utf-8", errors="replace"), False)


def test_every_pair_and_triple_of_border_bytes() -> None:
    single = [unit for unit in UNITS if len(unit) == 1]
    for a in single:
        for b in single:
            assert stream([a, b], [])[0] == (a + b).decode("utf-8", errors="replace")
            for c in single:
                assert stream([a + b, c], [])[0] == (a + b + c).decode("utf-8", errors="replace")


@pytest.mark.parametrize("seed", range(300))
def test_any_split_stops_at_the_same_place(seed: int) -> None:
    rng = random.Random(seed)
    letters = ["a", "b", "é", "€", "\ufffd", "😀"]
    stop = ["".join(rng.choices(letters, k=rng.randint(1, 5))) for _ in range(rng.randint(1, 4))]
    data = b"".join(rng.choices([*(s.encode() for s in letters[:4]), b"\xe2\x82", b"\xff", "😀".encode()], k=60))
    expected = truncated(data.decode("utf-8", errors="replace"), stop)
    for most in (1, 2, 5, 200):
        assert stream(split(data, rng, most), stop) == expected


def test_stop_string_over_many_tokens() -> None:
    text = _core.TextStream(["\n\nUser:"])
    shown = [text.push(piece) for piece in (b"Hi.", b"\n", b"\nUs", b"er", b": x")]
    assert shown == ["Hi.", "", "", "", ""]
    assert text.stopped
    assert text.push(b"more") == ""
    assert text.finish() == ""


def test_a_false_start_is_shown_at_once() -> None:
    text = _core.TextStream(["\n\nUser:"])
    assert text.push(b"a\n\nUse") == "a"
    assert text.push(b"d") == "\n\nUsed"
    assert text.push(b"\n") == ""
    assert text.finish() == "\n"


def test_the_least_possible_is_held_back() -> None:
    # The rest of "aaab" may begin at any of the last three a.
    text = _core.TextStream(["aaab"])
    assert [text.push(b"a") for _ in range(6)] == ["", "", "", "a", "a", "a"]
    assert text.push(b"b") == ""
    assert text.stopped


def test_overlapping_stops() -> None:
    assert stream([b"xxabcd"], ["abcd", "bc"]) == ("xxa", True)  # "bc" is complete first
    assert stream([b"xxabcd"], ["bc", "abc"]) == ("xx", True)  # both end at c: the longest
    assert stream([b"xxabd"], ["abc", "bd"]) == ("xxa", True)
    assert stream([b"xx", b"ab"], ["abc", "bd"]) == ("xxab", False)


def test_a_stop_in_the_middle_of_a_push_drops_the_rest() -> None:
    text = _core.TextStream(["END"])
    assert text.push("aéEND more\xff".encode()) == "aé"
    assert text.stopped


def test_incomplete_character_at_the_end() -> None:
    text = _core.TextStream([])
    assert text.push("€".encode()[:2]) == ""
    assert text.finish() == "\ufffd"
    assert text.finish() == ""


def test_empty_stop_string_is_refused() -> None:
    with pytest.raises(_core.InvalidArgumentError, match="stop string 1 is empty"):
        _core.TextStream(["a", ""])


def test_stop_string_must_be_utf8() -> None:
    with pytest.raises(_core.InvalidArgumentError, match="stop string 0 is not UTF-8"):
        _core.TextStream([b"\xff"])
