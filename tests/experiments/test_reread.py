"""What the checker of synthesized data reads out of excerpts by its own rules: quantities, facts, rows, code."""

import pytest
from reread import document, excerpts, named_first, quantity, rows, year
from reread_code import classes, functions


@pytest.mark.parametrize(
  ("value", "number", "unit"),
  [
    ("$1.5 billion (2020 est.)", 1.5e9, "$"),
    ("-2.5% of GDP (2020 est.)", -2.5, "% of GDP"),
    ("1.284 million sq km", 1.284e6, "sq km"),
    ("12,300; note - rising", 12300, ""),
    ("7 years, 3 months", 7, "years"),
  ],
)
def test_quantities_are_read_with_scale_and_unit(value, number, unit):
  found = quantity(value)
  assert (found.number, found.unit) == (pytest.approx(number), unit)


@pytest.mark.parametrize(
  "value",
  ["2019-02-05", "22 December 1990 (free)", "about 7", "3.1.2", "0.9 male(s)/female", "65(x)", "15 00 N, 19 00 E"],
)
def test_other_values_are_no_quantities(value):
  assert quantity(value) is None


@pytest.mark.parametrize(("value", "when"), [("1850", 1850), ("May 1850 (or 1851)", 1850), ("1850 km", None)])
def test_a_bare_year_is_a_year_and_a_quantity_is_none(value, when):
  assert year(value) == when


@pytest.mark.parametrize(
  ("value", "name"), [("Apollo 11", "apollo 11"), ("Peru 1,047 km; Chile 6 km", "peru"), ("Fiji 12.5%, Oman", "fiji")]
)
def test_a_number_belongs_to_a_name_and_a_quantity_behind_it_does_not(value, name):
  assert named_first(value) == name


def test_a_fact_stated_twice_is_none_and_belongs_to_its_heading():
  (excerpt,) = excerpts("=== A ===\n# A\nTop: 1\n\n## B\n- Key: x\nKey: y\n\n[...]\n\n## C\nKey: z\n")
  assert {name: fact.value for name, fact in document(excerpt).facts.items()} == {"Top": "1", "C > Key": "z"}


CLASS = '''=== a.py ===
class Reader(Base, metaclass=M):
  """Text
at the margin, def nothing(self):
  def neither(self):
  """
  limit = 12  # lines
  name = "def said(self)"
  name = 'again'

  def __init__(self):
    def inner(): pass

  async def read(self):
    return 1

  @property
  def close(self): ...
'''


def test_a_class_is_read_past_its_strings():
  (found,) = classes(excerpts(CLASS + "\nafter = 1\n")[0])
  assert {name: fact.value for name, fact in found.facts.items()} == {
    "base class": "Base",
    "first method without double underscores": "read",
    "last method without double underscores": "close",
    "attribute limit": "12",
  }


def test_the_last_method_of_a_class_without_its_end_is_not_sure():
  (found,) = classes(excerpts(CLASS + "\n[...]\n\n")[0])
  assert [name for name, fact in found.facts.items() if not fact.sure] == ["last method without double underscores"]


TABLE = """=== Rivers ===
# Rivers
Source: a book

| Long ones | |
|---|---|
| River | Length |
|:--|--:|
| Ni\\|le | 6,650 km |
| Loire | – |
| torn

[...]

## Others

River | Founded year | River
--- | --- | ---
Rhine | 1850 | x
Elbe | 1,850 | y
"""


def test_rows_of_tables_are_read_below_their_names():
  (excerpt,) = excerpts(TABLE)
  nile, loire, rhine, elbe = rows(excerpt)
  values = {name: fact.value for name, fact in nile.facts.items()}
  assert values == {"column River": "Ni|le", "column Length": "6,650 km"}
  assert [TABLE[slice(*fact.place)] for fact in nile.facts.values()] == ["Ni\\|le", "6,650 km"]
  assert list(loire.facts) == ["column River"]
  founded = [entity.facts["column Founded year"] for entity in (rhine, elbe)]
  assert [fact.year for fact in founded] == [1850, None]
  assert [fact.quantity and fact.quantity.number for fact in founded] == [None, 1850]


FUNCTIONS = '''=== a.py ===
@cached
def first(one, two: "a, b" = (1, 2), three='x'):
  """Calls nothing(here)."""
  def inner(): pass
  if(one):
    return other.second(two)


@a
@b
async def second (path=None, *, key=1):
  return f"{third(key)}" + fourth (1) + fifth(2)

[...]

def third(x) -> dict[str, int]:
  y = x

[...]
  return first(y)
'''


def test_a_function_is_read_by_its_head_and_first_call():
  first, second, third = functions(excerpts(FUNCTIONS)[0])
  values = lambda entity: {name: fact.value for name, fact in entity.facts.items()}  # noqa: E731
  assert values(first) == {
    "number of parameters": "3",
    "first parameter": "one",
    "last parameter": "three",
    "default of three": "x",
    "decorator": "cached",
    "first function that its body calls": "other.second",
  }
  call = first.facts["first function that its body calls"]
  assert FUNCTIONS[slice(*call.place)] == "other.second"
  assert values(second) == {"first function that its body calls": "fifth"}
  assert values(third) == {"number of parameters": "1", "first parameter": "x"}
