"""What people write for sizes, times and lists of numbers, read into values."""

from __future__ import annotations

AUTO_WEIGHTS = "auto"


def parse_bytes(text: str) -> int:
    """``8GB``, ``8G``, ``500MB``, ``1.5GiB`` or a plain number of bytes -> bytes.

    Raises:
        ValueError: anything else.
    """
    units = {"": 1, "b": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
    binary = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
    word = text.strip().lower().removesuffix("b")
    number = word.rstrip("kmgti ")
    unit = word[len(number) :].strip()
    factor = {**units, **binary}.get(unit)
    if factor is None or not _is_decimal(number):
        raise ValueError(f"{text!r} is not an amount of memory; write it like 8GB or 500MB")
    value = int(float(number) * factor)
    if value <= 0:
        raise ValueError(f"{text!r} must be more than zero")
    return value


def parse_duration(text: str) -> float:
    """``45m``, ``2h``, ``1h30m``, ``90s`` or a plain number of seconds -> seconds.

    Raises:
        ValueError: anything else.
    """
    word = text.strip().lower()
    seconds, number = 0.0, ""
    factors = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
    for character in word:
        if character.isdigit() or character == ".":
            number += character
        elif character in factors and _is_decimal(number):
            seconds += float(number) * factors[character]
            number = ""
        else:
            raise ValueError(f"{text!r} is not a duration; write it like 30m, 2h or 1h30m")
    # "1h30" might mean minutes or seconds.
    if number and (seconds or not _is_decimal(number)):
        raise ValueError(f"{text!r} is not a duration; write it like 30m, 2h or 1h30m")
    seconds += float(number) if number else 0.0
    if seconds <= 0:
        raise ValueError(f"{text!r} must be more than zero")
    return seconds


def parse_numbers(text: str) -> tuple[float, ...]:
    """``1,0.5,0.5`` or ``1x0.5x0.5`` -> numbers.

    Raises:
        ValueError: anything else.
    """
    parts = text.replace("x", ",").split(",")
    if not all(_is_decimal(part) for part in parts):
        raise ValueError(f"{text!r} is not a list of numbers; write it like 1,0.5,0.5")
    return tuple(float(part) for part in parts)


def parse_integers(text: str) -> tuple[int, ...]:
    """``40,56,40`` or ``40x56x40`` -> integers.

    Raises:
        ValueError: anything else.
    """
    parts = text.replace("x", ",").split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"{text!r} is not a list of whole numbers; write it like 40,56,40")
    return tuple(int(part) for part in parts)


def parse_class_weights(text: str) -> str:
    """``auto`` or ``1,5,5``, checked.

    Raises:
        ValueError: anything else.
    """
    word = text.strip().lower()
    if word != AUTO_WEIGHTS and not (all(map(_is_decimal, word.split(","))) and max(map(float, word.split(",")))):
        raise ValueError(f"{text!r} are not class weights; write auto, or numbers like 1,5,5")
    return word


def _is_decimal(text: str) -> bool:
    return text.strip().replace(".", "", 1).isdecimal()
