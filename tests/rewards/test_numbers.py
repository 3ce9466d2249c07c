"""Reading and comparing quantities."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenlong_jax.rewards.numbers import quantities, quantity, same


@pytest.mark.parametrize(
  "text, values",
  [
    ("42", [42]),
    ("1,234,567.5 people", [Fraction("1234567.5")]),
    ("-5 and +7 and −3 and minus 2", [-5, 7, -3, -2]),
    ("2010-2012, pages 5–7", [2010, 2012, 5, 7]),
    ("$-5, -$6, €7", [-5, -6, 7]),
    ("1.2e5, 1.2E-3, 3 × 10^4, 3x10^{-2}, 5 x 3", [120000, Fraction("0.0012"), 30000, Fraction("0.03"), 5, 3]),
    ("5.2 million, 3bn, $4M, $2.5 billion", [5200000, 3 * 10**9, 4 * 10**6, 25 * 10**8]),
    (".5 and 0.5.", [Fraction(1, 2), Fraction(1, 2)]),
    ("12% (12 percent)", [12, 12]),
    ("B52, x2, version 3.11.2, at 12:30 on 1/2/1998, ratio 3/4", []),
    ("1,2,3 and 1,23", []),
    ("three men and twelve", [3, 12]),
    ("three men, 4 women", [4]),
    ("twenty-one, someone, one-off", []),
    ("nothing", []),
    ("1e999999999", []),
    ("7" * 5000, []),
  ],
)
def test_quantities_are_read(text, values):
  assert [q.value for q in quantities(text)] == values


@pytest.mark.parametrize(
  "gold",
  [
    "",
    "Paris",
    "10 Downing Street",
    "15 March 1998",
    "3.11.2",
    "007",
    "4th",
    "7-Eleven",
    "3 or 4 of them",
    "12:30",
    "5-7",
  ],
)
def test_a_name_or_a_code_is_no_quantity(gold):
  assert quantity(gold) is None


@pytest.mark.parametrize(
  "gold, given, equal",
  [
    ("42", "42.0", True),
    ("42", "43", False),
    ("42", "42.3", False),
    ("-5", "5", False),
    ("-5", "−5", True),
    ("1,234", "1234", True),
    ("1000", "100", False),
    ("1000", "10", False),
    ("3.14", "3.14159", True),
    ("3.14", "3.1", False),
    ("3.14", "3.15", False),
    ("3.14", "3.146", False),
    ("0.30", "0.3", True),
    ("3.0", "2.96", True),
    ("120000", "1.2e5", True),
    ("5.2 million", "5,200,000", True),
    ("5.2 million", "5.2", False),
    ("5.2 million", "5,234,567", False),
    ("12.5%", "12.5", True),
    ("12.5%", "12.5 percent", True),
    ("12.5%", "0.125", True),
    ("12.5", "12.5%", True),
    ("0.125", "12.5%", True),
    ("12.5%", "1250", False),
    ("12.5%", "12.5 km", False),
    ("5 km", "5", True),
    ("5", "5 km", True),
    ("5 km", "5000 m", True),
    ("5 km", "5000", False),
    ("5 km", "5 miles", False),
    ("5 km", "5 kg", False),
    ("5 km", "5 in all", True),
    ("2 days", "48 hours", True),
    ("2 years", "24 months", True),
    ("30 days", "1 month", False),
    ("$5", "5 dollars", True),
    ("$5", "€5", False),
    ("$5", "500 cents", True),
    ("$5", "$5M", False),
    ("12 goals", "12", True),
    ("12 goals", "12 goals", True),
    ("1 goal", "1 goals", True),
    ("12 goals", "12 assists", False),
    ("12 goals", "12%", False),
    ("two towers", "2 towers", True),
    ("two towers", "two cities", False),
    ("3", "three", True),
  ],
)
def test_quantities_are_compared(gold, given, equal):
  assert same(quantity(gold), quantities(given)[0]) == equal


@given(st.integers(-(10**15), 10**15), st.integers(0, 6))
def test_every_way_of_writing_a_number_is_the_number(n, places):
  value = Fraction(n, 10**places)
  digits = str(abs(n)).rjust(places + 1, "0")
  whole, decimals = digits[: len(digits) - places], digits[len(digits) - places :]
  sign = "-" if n < 0 else ""
  tail = "." + decimals if decimals else ""
  for text in (f"{sign}{whole}{tail}", f"{sign}{int(whole):,}{tail}", f"so {sign}{whole}{tail}.", f"{n}e-{places}"):
    assert [q.value for q in quantities(text)] == [value], text


@given(st.integers(-10000, 10000), st.integers(-10000, 10000))
def test_integers_are_the_same_exactly_if_equal(a, b):
  assert same(quantity(str(a)), quantities(f"{b:,}")[0]) == (a == b)


@given(st.text(alphabet="0123456789.,-−+$%e ×^{}kKmM:/one", max_size=40) | st.text())
def test_any_text_can_be_read(text):
  for q in quantities(text):
    assert same(q, q)
