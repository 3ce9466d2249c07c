"""Quantities in text: numbers with sign, thousands separators, exponent, scale word and unit; exact comparison."""

import re
from dataclasses import dataclass
from fractions import Fraction

_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_SCALES = {"thousand": 3, "million": 6, "mn": 6, "billion": 9, "bn": 9, "trillion": 12}
_LETTER_SCALES = {"k": 3, "m": 6, "b": 9}  # only behind a currency sign: elsewhere "m" is metres
_CURRENCIES = {"$": "dollar", "€": "euro", "£": "gbp", "¥": "yen", "₹": "rupee"}

# name -> (dimension, how many of the dimension's base unit); the comparison converts within a dimension.
_UNITS: dict[str, tuple[str, Fraction]] = {
  name: (dimension, Fraction(factor))
  for dimension, table in {
    "percent": {"% percent pct": "1/100"},
    "length": {
      "m metre metres meter meters": "1",
      "km kilometre kilometres kilometer kilometers": "1000",
      "cm centimetre centimetres centimeter centimeters": "1/100",
      "mm millimetre millimetres millimeter millimeters": "1/1000",
      "mile miles mi": "1609.344",
      "ft foot feet": "0.3048",
      "inch inches": "0.0254",
      "yard yards yd": "0.9144",
    },
    "area": {
      "m² m2": "1",
      "km² km2": "1000000",
      "ha hectare hectares": "10000",
      "acre acres": "4046.8564224",
      "mi²": "2589988.110336",
    },
    "volume": {"l litre litres liter liters": "1", "ml millilitre millilitres milliliter milliliters": "1/1000"},
    "mass": {
      "g gram grams": "1",
      "kg kilogram kilograms": "1000",
      "mg milligram milligrams": "1/1000",
      "tonne tonnes": "1000000",
      "lb lbs": "453.59237",
    },
    "time": {
      "s sec second seconds": "1",
      "ms millisecond milliseconds": "1/1000",
      "min minute minutes": "60",
      "h hour hours": "3600",
      "day days": "86400",
      "week weeks": "604800",
    },
    "months": {"month months": "1", "year years": "12"},
    "data": {
      "byte bytes": "1",
      "kb": "1000",
      "mb": "1000000",
      "gb": "1000000000",
      "kib": "1024",
      "mib": "1048576",
      "gib": "1073741824",
    },
    "kelvin": {"k kelvin": "1"},
    "celsius": {"°c celsius": "1"},
    "fahrenheit": {"°f fahrenheit": "1"},
    "dollar": {"dollar dollars usd": "1", "cent cents": "1/100"},
    "euro": {"euro euros eur": "1"},
    "pound sterling": {"gbp": "1"},
    "yen": {"yen jpy": "1"},
    "rupee": {"rupee rupees inr": "1"},
  }.items()
  for names, factor in table.items()
  for name in names.split()
}

# Neither side may belong to something longer: a word, a version, a date, a time, a fraction.
_NUMBER = re.compile(
  r"(?<![\w.])(?<!\d[:/,])"
  r"(?P<sign>(?<![)\]%])[-−–+](?=[\d.$€£¥₹])|(?:minus|negative)\s+)?"
  r"(?P<currency>[$€£¥₹]\s?)?(?P<sign2>[-−–](?=[\d.]))?"
  r"(?P<whole>\d{1,3}(?:[,\u00a0\u2009\u202f]\d{3})+(?!\d)|\d+)?(?P<decimals>\.\d+)?(?<=\d)(?![.,:/]?\d)"
  r"(?:(?:[eE]|\s*[×x·]\s*10\s*(?:\^|\*\*)\s*\{?)(?P<exponent>[-−+]?\d+)\}?)?"
  r"(?:\s?(?P<scale>thousand|million|billion|trillion|bn|mn)\b)?"
  r"(?:\s?(?P<unit>%|per ?cent\b|pct\b|°?[^\W\d_]+[²2]?(?![\w²])))?",
  re.IGNORECASE,
)
_WORD_NUMBER = re.compile(
  rf"(?<![\w-])(?P<word>{'|'.join(_WORDS)})(?![\w-])(?:\s(?P<unit>%|per ?cent\b|[^\W\d_]+\b))?", re.IGNORECASE
)
_BEFORE = 80
_LONGEST = 300  # digits or decimal exponent: what is longer is no quantity, and expensive to compare


@dataclass(frozen=True)
class Quantity:
  """`value` in the written unit, scale word included; `step` is one unit of the last decimal written (0: no decimals).

  `unit` is the word behind the number in lower case, `dimension` what it measures in multiples of `factor`: "" without
  such a word, "?" where it is no unit we know. `before` holds the (up to) 80 characters in front.
  """

  value: Fraction
  step: Fraction
  unit: str
  dimension: str
  factor: Fraction
  before: str


def quantities(text: str) -> list[Quantity]:
  """Every quantity of `text` in order; number words (zero to twelve) only where there are no digits.

  Not taken for quantities: parts of words, versions, dates, times and fractions, and numbers of over 300 digits.
  """
  found = [q for m in _NUMBER.finditer(text) if (q := _read(m, text)) is not None]
  return found or [_worded(m, text) for m in _WORD_NUMBER.finditer(text)]


def quantity(text: str) -> Quantity | None:
  """The quantity that the whole of `text` is: a number, perhaps with a unit or one or two lower-case words behind.

  None for anything else, and for a code with leading zeros ("007").
  """
  text = text.strip()
  if re.match(r"0\d", text):
    return None
  for match in [m for m in (_NUMBER.match(text), _WORD_NUMBER.match(text)) if m]:
    rest = text[match.start("unit") if match["unit"] else match.end() :].strip()
    known = rest.lower().replace("per cent", "percent") in _UNITS
    if known or re.fullmatch(r"(?:[a-zà-ÿ]+(?: [a-zà-ÿ]+)?)?", rest):
      # A lower-case word glued to the digits is a name ("4th", "3x"), unless it is a unit ("5km").
      if rest and not known and text[len(text) - len(rest) - 1] != " ":
        return None
      return _read(match, text) if match.re is _NUMBER else _worded(match, text)
  return None


def same(gold: Quantity, given: Quantity) -> bool:
  """Whether `given` states `gold`: equal values, signs and units heeded, compared exactly.

  Units of one dimension are converted, units of two are unequal, a unit left out on either side is forgiven (any word
  may follow a number whose unit we do not ask for); so are the two readings of a missing percent sign (12.5 and 0.125
  for 12.5%). A gold answer with decimals also accepts a more precise value that rounds to it.
  """
  if gold.dimension == "?":
    return given.unit.rstrip("s") in ("", gold.unit.rstrip("s")) and _close(gold, given, Fraction(1), Fraction(1))
  known = {gold.dimension, given.dimension} - {"", "?"}
  if len(known) == 2:
    return False
  if gold.dimension == given.dimension or "percent" in known:
    converted = _close(gold, given, gold.factor, given.factor)
    return converted or (gold.dimension != given.dimension and _close(gold, given, Fraction(1), Fraction(1)))
  return _close(gold, given, Fraction(1), Fraction(1))


def _close(gold: Quantity, given: Quantity, gold_factor: Fraction, given_factor: Fraction) -> bool:
  a, b = gold.value * gold_factor, given.value * given_factor
  gold_step, given_step = gold.step * gold_factor, given.step * given_factor
  return a == b or (0 < given_step < gold_step and abs(a - b) <= gold_step / 2)


def _read(match: re.Match[str], text: str) -> Quantity | None:
  whole = re.sub(r"\D", "", match["whole"] or "")
  decimals = (match["decimals"] or ".")[1:]
  exponent = int((match["exponent"] or "0").replace("−", "-")[:6])
  exponent += _SCALES.get((match["scale"] or "").lower(), 0)
  currency, unit = (match["currency"] or "").strip(), (match["unit"] or "").lower()
  if currency:
    exponent += _LETTER_SCALES.get(unit, 0)
    unit = _CURRENCIES[currency]
  if len(whole) + len(decimals) > _LONGEST or abs(exponent) > _LONGEST:
    return None
  negative = any(sign and sign[0].lower() in "-−–mn" for sign in (match["sign"], match["sign2"]))
  last_place = Fraction(10) ** (exponent - len(decimals))
  value = int(whole + decimals) * last_place * (-1 if negative else 1)
  return Quantity(
    value,
    last_place if decimals else Fraction(0),
    unit,
    *_dimension(unit),
    text[max(0, match.start() - _BEFORE) : match.start()],
  )


def _worded(match: re.Match[str], text: str) -> Quantity:
  unit = (match["unit"] or "").lower()
  value = Fraction(_WORDS.index(match["word"].lower()))
  return Quantity(value, Fraction(0), unit, *_dimension(unit), text[max(0, match.start() - _BEFORE) : match.start()])


def _dimension(unit: str) -> tuple[str, Fraction]:
  return _UNITS.get(unit.replace("per cent", "percent"), ("?", Fraction(1))) if unit else ("", Fraction(1))
