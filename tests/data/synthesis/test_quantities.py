"""Years and what only tells things apart are numbers, and nothing to be added."""

import pytest

from qwenlong_jax.data.documents import Document, Source
from qwenlong_jax.data.synthesis import corpus as corpora
from qwenlong_jax.data.synthesis import quantities
from qwenlong_jax.data.synthesis.corpus import Corpus
from qwenlong_jax.data.synthesis.graph import Graph, year
from qwenlong_jax.data.synthesis.outline import fact


def corpus_of(texts: list[str]) -> Corpus:
  made = [Document(f"{n}.md", "general", f"T{n}", x, Source("", 0, 1, "0")) for n, x in enumerate(texts)]
  return corpora.make("train", "general", "0", made, lambda texts: list(map(len, texts)))


def test_an_attribute_of_years_is_dated_and_one_of_quantities_numeric() -> None:
  texts = [f"Founded: {1890 + 13 * n}\nHeight: {1890 + 130 * n}\nStation id: {7 * n}\n" for n in range(9)]
  graph = Graph.of(corpus_of(texts))
  assert graph.numeric == ("Height",)
  assert graph.dated == ("Founded",)
  founded = graph.entity(3).facts["Founded"]
  assert (founded.number, year(founded)) == (None, 1929)


def test_a_lonely_year_among_quantities_is_a_number_which_may_be_read_as_a_year() -> None:
  graph = Graph.of(corpus_of([f"Height: {height}" for height in (12, 1850, 40, 77, 90, 150)]))
  height = graph.entity(1).facts["Height"]
  assert (height.number, year(height)) == (1850.0, 1850)
  assert graph.dated == ()


@pytest.mark.parametrize(
  ("attribute", "values", "dated", "numeric"),
  [
    ("First published", "1850; 1912; 1999; 2003; 1788", True, False),
    ("yearID", "1850; 1912; 1999; 2003; 1788", True, False),
    ("Population", "1850; 1912; 1999; 2003; 1788", False, False),  # it may be either
    ("Shares issued", "1850; 1912; 1999; 2003; 1788", False, False),
    ("Population", "1850; 1912; 1,999; 2003; 1788", False, True),
    ("Population", "1850; 1912; 990; 2003; 1788", False, True),
    ("Bridge", "1850; March 1912; c. 1999; 2003; 17 May 1788", True, False),
    ("Bridge", "1850; none; unknown; 2003; 1788", False, False),
  ],
)
def test_numbers_are_years_where_their_name_says_so_or_what_stands_beside_them(
  attribute: str, values: str, dated: bool, numeric: bool
) -> None:
  graph = Graph.of(corpus_of([f"{attribute}: {value}" for value in 3 * values.split("; ")]))
  assert (graph.dated, graph.numeric) == ((attribute,) * dated, (attribute,) * numeric)


@pytest.mark.parametrize(
  ("attribute", "values", "addable"),
  [
    ("column Rooms", ["4", "9", "2", "31"], True),
    ("column Number of rooms", ["4", "9", "2", "31"], True),
    ("column Room number", ["4", "9", "2", "31"], False),
    ("column stationId", ["4", "9", "2", "31"], False),
    ("Place > Latitude", ["4.5", "9.25"], False),
    ("Country code", ["49", "33", "1"], False),
    ("column #", ["11", "12", "14", "13"], False),
    ("column Depth", ["11 m", "12 m", "13 m", "14 m"], True),
  ],
)
def test_codes_coordinates_and_what_counts_through_are_no_quantities(
  attribute: str, values: list[str], addable: bool
) -> None:
  for documents in ([0] * len(values), range(len(values))):
    facts = [(document, fact(attribute, value, 0, 1)) for document, value in zip(documents, values)]
    assert quantities.addable(attribute, facts) == addable


@pytest.mark.parametrize(
  ("attribute", "unit", "sum_means_something"),
  [
    ("Population", "", True),
    ("Shares issued", "", True),
    ("Growth", "%", False),
    ("Debt", "% of GDP", False),
    ("Debt (% of GDP)", "", False),
    ("Speed", "km/h", False),
    ("Crowd", "people per km", False),
    ("Depth", "m", True),
    ("Exchange rate", "", False),
    ("GDP per head", "", False),
    ("Rates > Length", "km", True),  # the column of a table so named
  ],
)
def test_rates_and_averages_are_not_summed(attribute: str, unit: str, sum_means_something: bool) -> None:
  assert quantities.summable(attribute, unit) is sum_means_something
