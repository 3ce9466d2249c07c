"""Tables: which lines they are, what their cells state, that no excerpt shows a row without its header."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenlong_jax.data.documents import Document, Source, clean
from qwenlong_jax.data.formats import page
from qwenlong_jax.data.synthesis import corpus as corpora
from qwenlong_jax.data.synthesis import outline, tables
from qwenlong_jax.data.synthesis.context import render
from qwenlong_jax.data.synthesis.graph import Graph

RIVERS = """# Rivers

## Longest

| River | Length (km) | Mouth | Named in the year |  | Note | Note |
|:---|---:|---|---|---|---|---|
| Nile | 6,650 km | Mediterranean | 1850 | x | a | b |
| Amazon | 6,400 km | – | 1541 (?) | x | a | b |
| Yang\\|tze | 6,300 km | East China Sea | n/a |
| Rhine | 1,230 km | North Sea | NA | x | a | b |

Below the table.
"""


def document(text: str, domain: str = "general") -> Document:
  return Document("a.md", domain, "Rivers", text, Source("a.md", 0, len(text), "0"))


def stated(text: str) -> list[dict[str, str]]:
  return [{a: fact.value for a, fact in entity.facts.items()} for entity in tables.rows(document(text))]


def test_a_row_states_its_filled_cells_under_names_that_are_a_columns_own() -> None:
  assert stated(RIVERS) == [
    {
      "column River": "Nile", "column Length (km)": "6,650 km", "column Mouth": "Mediterranean",
      "column Named in the year": "1850",
    },
    {"column River": "Amazon", "column Length (km)": "6,400 km", "column Named in the year": "1541 (?)"},
    {"column River": "Rhine", "column Length (km)": "1,230 km", "column Mouth": "North Sea"},
  ]  # fmt: skip


def test_a_fact_is_its_cells_characters_a_number_with_unit_or_a_year() -> None:
  nile = next(tables.rows(document(RIVERS)))
  length, year = nile.facts["column Length (km)"], nile.facts["column Named in the year"]
  assert (RIVERS[length.start : length.end], length.number, length.unit) == ("6,650 km", 6650.0, "km")
  assert (RIVERS[year.start : year.end], year.number) == ("1850", None)
  assert nile.scope is not None and RIVERS[slice(*nile.scope)] == "Nile | 6,650 km | Mediterranean | 1850 | x | a | b"


def test_the_key_is_the_first_column_of_different_names() -> None:
  text = "n | day | state | city\n--|--|--|--\n1 | 2001-01-02 | TX | Lima\n2 | 2001-01-03 | TX | Rome\n"
  assert [(entity.key, entity.name) for entity in tables.rows(document(text))] == [
    ("column city", "Lima"),
    ("column city", "Rome"),
  ]
  assert [entity.key for entity in tables.rows(document(text.replace("Rome", "lima")))] == ["", ""]


def test_a_caption_that_looks_like_a_header_is_none() -> None:
  text = "| The longest | |\n|---|---|\n| River | Length |\n|---|---|\n| Nile | 6,650 |\n"
  assert stated(text) == [{"column River": "Nile", "column Length": "6,650"}]


@pytest.mark.parametrize(
  "text", ["| a | b |\n| c | d |\n", "Text\n---\nmore | text\n", "| a | b |\n|---|\n| c | d |\n", "|---|\n| c |\n"]
)
def test_what_has_no_header_of_as_many_cells_is_no_table(text: str) -> None:
  assert stated(text) == []


def test_code_and_dialogue_have_no_tables() -> None:
  for domain in ("code", "dialogue"):
    assert not list(tables.rows(document(RIVERS, domain)))


@given(st.integers(1, 40), st.integers(30, 200))
def test_every_excerpt_shows_the_header_of_its_rows(count: int, longest: int) -> None:
  head = "| name | number |\n|---|---|"
  text = f"# Title\n\n## Part\n\nWords.\n\n{head}\n" + "".join(f"| row {n} | {n} |\n" for n in range(count)) + "\nEnd."
  sections = tables.headed(document(text), outline.sections(document(text), longest))
  assert "".join(text[s.start : s.end] for s in sections) == text
  for section in sections:
    shown = f"{section.heading}\n{text[section.start : section.end]}"
    rows = [row for row in stated(text) if f"| {row['column name']} |" in shown]
    assert stated(shown) == rows
    assert not rows or "## Part" in shown


def test_a_header_is_shown_again_behind_a_gap() -> None:
  text = "Start of it.\n\n| name | number |\n|---|---|\n" + "".join(f"| row {n} | {n} |\n" for n in range(200))
  corpus = corpora.make("train", "general", "0", [document(text)], lambda texts: list(map(len, texts)))
  context = render(corpus, [(0, (0, 2))])
  assert "\n[...]\n\n| name | number |\n|---|---|\n| row" in context.text


def test_a_row_is_named_by_another_through_its_key_and_documents_keep_their_names() -> None:
  cities = "| city | land |\n|---|---|\n| Lima | Peru |\n| Rome | Italy |\n"
  lands = "| name | seat |\n|---|---|\n| Peru | Lima |\n| Chad | Rome |\n"
  made = [Document(n, "general", t, x, Source(n, 0, 1, "0")) for n, t, x in (("a", "Peru", cities), ("b", "B", lands))]
  corpus = corpora.make("train", "general", "0", made, lambda texts: list(map(len, texts)))
  names = [entity.name for _, entity in corpus.entities]
  lima, peru = (corpus.entities[names.index(name)][1] for name in ("Lima", "Peru"))
  assert corpora.linked(corpus, lima, "column land") == names.index("Peru")
  assert corpora.linked(corpus, peru, "column seat") == names.index("Lima")
  assert corpora.linked(corpus, lima, "column city") is None


def test_the_tables_of_a_web_page_state_facts() -> None:
  words = "<p>The rivers of the land are long and slow, and ships go up and down on them in every season.</p>" * 4
  table = "<table><caption>Longest</caption><tr><th>River</th><th>Length</th></tr><tr><td>Nile</td><td>6,650 km</td>"
  _, text = page(f"<html><body><article><h1>Rivers</h1>{words}{table}</tr></table></article></body></html>".encode())
  assert stated(clean(text)) == [{"column River": "Nile", "column Length": "6,650 km"}]


def test_a_few_equal_texts_make_no_column_refer_to_another() -> None:
  towns = "| code | town |\n|---|---|\n" + "".join(f"| C{n} | Town {n} |\n" for n in range(9))
  for equal, refers in ((4, False), (5, True)):
    skies = [f"C{n}" if n < equal else f"sky {n}" for n in range(9)]
    days = "| day | sky |\n|---|---|\n" + "".join(f"| day {n} | {sky} |\n" for n, sky in enumerate(skies))
    made = [Document(n, "general", n, x, Source(n, 0, 1, "0")) for n, x in (("a", towns), ("b", days))]
    corpus = corpora.make("train", "general", "0", made, lambda texts: list(map(len, texts)))
    entities = {entity.name: number for number, (_, entity) in enumerate(corpus.entities)}
    found = corpora.linked(corpus, corpus.entities[entities["day 1"]][1], "column sky")
    assert found == (entities["C1"] if refers else None)


def test_the_many_links_of_rows_do_not_displace_those_of_documents() -> None:
  lands, towns = ([f"{word}{letter}" for letter in "abcdefgh"] for word in ("Land", "Town"))
  texts = {land: f"Nearest: {lands[n - 1]} 5 km\nSize: {n + 1} km\n" for n, land in enumerate(lands)}
  texts["a"] = "name | seat\n---|---\n" + "\n".join(map(" | ".join, zip(lands, towns)))
  texts["b"] = "town | land\n---|---\n" + "\n".join(map(" | ".join, zip([*towns, *"ijklmnopqrst"], lands * 3)))
  made = [Document(n, "general", n, text, Source(n, 0, 1, "0")) for n, text in texts.items()]
  graph = Graph.of(corpora.make("train", "general", "0", made, lambda texts: list(map(len, texts))))
  nouns = [graph.entity(start).noun for start, _, _ in graph.across]
  assert set(nouns[:2]) == {"document", "table row"}
  assert nouns.count("document") == nouns.count("table row") == 28
