"""Numbers in words, English and German: a translation task whose every answer can be scored exactly."""

LIMIT = 10_000

_TABLE = """
0 zero null, 1 one eins, 2 two zwei, 3 three drei, 4 four vier, 5 five fünf, 6 six sechs, 7 seven sieben, 8 eight acht,
9 nine neun, 10 ten zehn, 11 eleven elf, 12 twelve zwölf, 13 thirteen dreizehn, 14 fourteen vierzehn,
15 fifteen fünfzehn, 16 sixteen sechzehn, 17 seventeen siebzehn, 18 eighteen achtzehn, 19 nineteen neunzehn,
20 twenty zwanzig, 30 thirty dreißig, 40 forty vierzig, 50 fifty fünfzig, 60 sixty sechzig, 70 seventy siebzig,
80 eighty achtzig, 90 ninety neunzig, 100 hundred hundert, 1000 thousand tausend"""
_ROWS = [row.split() for row in _TABLE.split(",")]
_ENGLISH = {int(number): word for number, word, _ in _ROWS}
_GERMAN = {int(number): word for number, _, word in _ROWS}


def english(number: int) -> str:
    """342 -> "three hundred forty-two". Raises ValueError outside 0..9999."""
    _check(number)
    if scale := _scale(number):
        count, rest = divmod(number, scale)
        return f"{_ENGLISH[count]} {_ENGLISH[scale]}" + (f" {english(rest)}" if rest else "")
    unit = number % 10
    return _ENGLISH.get(number) or f"{_ENGLISH[number - unit]}-{_ENGLISH[unit]}"


def german(number: int) -> str:
    """342 -> "drei hundert zwei und vierzig". Raises ValueError outside 0..9999.

    German puts the unit before the ten and writes one word; the spaces are ours, so that an attention map between
    words shows the two crossing.
    """
    _check(number)
    if scale := _scale(number):
        count, rest = divmod(number, scale)
        return f"{_stem(count)} {_GERMAN[scale]}" + (f" {german(rest)}" if rest else "")
    unit = number % 10
    return _GERMAN.get(number) or f"{_stem(unit)} und {_GERMAN[number - unit]}"


def _scale(number: int) -> int:
    return 1000 if number >= 1000 else 100 if number >= 100 else 0


def _stem(digit: int) -> str:
    """One is "eins" alone or at the end, "ein" before another word."""
    return "ein" if digit == 1 else _GERMAN[digit]


def _check(number: int) -> None:
    if not 0 <= number < LIMIT:
        raise ValueError(f"number is {number}; give one from 0 to {LIMIT - 1}.")
