"""Sections, facts and quantities, by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenlong_jax.data.documents import Document, Source
from qwenlong_jax.data.synthesis import outline

TEXT = """# Uruguay

## Geography

Area > total: 176,215 sq km
- Coastline: 660 km
He said: this is a sentence of a text, not a fact, because it goes on much longer than any value would, {filler}

## Economy

Exports: $23.329 billion (2024 est.)
Exports: $1 billion
Note without a value:
"""


def document(text: str, domain: str = "general", path: str = "a.md") -> Document:
  return Document(path, domain, "Uruguay", text, Source(path, 0, len(text), "0"))


@given(st.lists(st.text(alphabet="ab. \n#", max_size=60), max_size=30), st.integers(5, 80))
def test_sections_are_the_whole_text_in_pieces(lines: list[str], longest: int) -> None:
  text = "\n".join(lines)
  found = outline.sections(document(text), longest)
  assert "".join(text[s.start : s.end] for s in found) == text
  assert all(0 < s.end - s.start <= longest for s in found)


def test_a_section_knows_the_heading_that_it_continues() -> None:
  text = "# Title\n\n## One\n\n" + "\n\n".join(f"Paragraph {n} of many words." for n in range(9)) + "\n\n## Two\n\nEnd."
  found = outline.sections(document(text), longest=60)
  for section in found:
    before = [line for line in text[: section.start].split("\n") if line.startswith("#")]
    opens = text[section.start :].startswith("#")
    assert section.heading == ("" if opens or not before else before[-1])


def test_a_field_is_a_fact_under_its_heading_and_twice_is_none() -> None:
  (entity,) = outline.entities(document(TEXT.format(filler="and on " * 60)))
  assert entity.name == "Uruguay" and entity.noun == "document"
  assert set(entity.facts) == {"Geography > Area > total", "Geography > Coastline"}
  area = entity.facts["Geography > Area > total"]
  assert (area.value, area.number, area.unit) == ("176,215 sq km", 176215.0, "sq km")
  text = TEXT.format(filler="and on " * 60)
  assert text[area.start : area.end] == "Area > total: 176,215 sq km"


@pytest.mark.parametrize(
  ("value", "expected"),
  [
    ("176,215 sq km", (176215.0, "sq km")),
    ("$23.329 billion (2024 est.)", (23_329_000_000.0, "$")),
    ("37.4 years (2025 est.)", (37.4, "years")),
    ("-1.5%", (-1.5, "%")),
    ("1.6% of GDP (2021 est.)", (1.6, "% of GDP")),
    ("65 (2025)", (65.0, "")),
    ("3,449,444", (3449444.0, "")),
    ("25 August 1825 (from Brazil)", None),
    ("1,23 km", None),
    ("about 5 km", None),
    ("0.96 male(s)/female (2024 est.)", None),
    ("65(2025)", None),
    ("none", None),
  ],
)
def test_quantities_are_read_with_scale_and_unit(value: str, expected: tuple[float, str] | None) -> None:
  assert outline.measure(value) == expected


def test_a_class_has_its_base_and_its_methods() -> None:
  text = '''import other


class Base:
  limit = 7

  def __init__(self): ...

  def open(self): ...

  def close(self): ...


class Child(Base):
  """def in_a_text(self): is none."""

  def read(self): ...

  def write(self): ...
'''
  base, child = outline.entities(document(text, "code", "a.py"))
  assert {name: fact.value for name, fact in base.facts.items()} == {
    "first method without double underscores": "open",
    "last method without double underscores": "close",
    "attribute limit": "7",
  }
  assert child.facts["base class"].value == "Base"
  assert text[slice(*child.scope)].startswith("class Child(Base):")
  assert text[slice(*child.scope)].endswith("def write(self): ...\n")


def test_the_end_of_a_class_is_in_sight_with_what_follows() -> None:
  text = "class Last:\n  def read(self): ...\n\n  def write(self): ...\n\n\n# Then:\n@cached\ndef after(): ...\n"
  (entity,) = outline.entities(document(text, "code", "a.py"))
  assert text[slice(*entity.scope)] == text[: text.index("@cached") + len("@cached")]


def test_classes_too_long_or_with_hidden_definitions_count_but_are_not_asked_about() -> None:
  long = "class Long(Base):\n" + "".join(f"  def step{n}(self): ...\n" for n in range(300))
  hidden = "class Hidden:\n  if True:\n    def read(self): ...\n\n\n"
  found = outline.entities(document(hidden + long, "code", "a.py"))
  assert [(entity.name, entity.asked) for entity in found] == [("class Hidden", False), ("class Long", False)]
  assert found[1].facts["base class"].value == "Base"


def test_code_that_does_not_parse_has_no_entities() -> None:
  assert outline.entities(document("class A(:", "code", "a.py")) == []
