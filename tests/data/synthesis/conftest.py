"""A small corpus of real and made documents: countries with fields and links, modules of Python, plays."""

import shutil
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from qwenlong_jax.data.documents import Document, Source
from qwenlong_jax.data.synthesis import corpus as corpora
from qwenlong_jax.data.synthesis.corpus import Corpus

COUNTRIES = 120
MODULES = ("asyncio", "email", "json", "http", "logging", "unittest")
_SYLLABLES = ("ba", "ko", "ri", "du", "sel", "mon", "ta", "ven", "or", "lim")


def names(count: int) -> list[str]:
  rng = np.random.default_rng(5)
  found: dict[str, None] = {}
  while len(found) < count:
    found["".join(rng.choice(_SYLLABLES, 3)).capitalize()] = None
  return list(found)


def country(name: str, others: list[str], rng: np.random.Generator) -> str:
  """Facts under headings, prose of rare words between them, links to other countries."""
  area, people = int(rng.integers(1_000, 900_000)), int(rng.integers(50_000, 90_000_000))
  words = names(400)
  prose = lambda: " ".join(f"The {rng.choice(words).lower()}ian people speak." for _ in range(24))  # noqa: E731
  first, second = rng.choice([other for other in others if other != name], 2, replace=False)
  return f"""# {name}

## Geography

Area > total: {area:,} sq km
Coastline: {int(rng.integers(10, 9_000)):,} km
Border countries: {first} {int(rng.integers(5, 900))} km; {second} {int(rng.integers(5, 900))} km
Climate: {rng.choice(["temperate", "tropical", "arid"])}

{prose()}

## People

Population: {people:,} (2025 est.)
Median age: {rng.integers(150, 490) / 10} years
Capital: {rng.choice(words)} {rng.choice(["City", "Town", "Port"])}

{prose()}

## Government

Independence: {int(rng.integers(1, 28))} May {int(rng.integers(1700, 1999))} (from {second})
Currency: {rng.choice(words).lower()}
Exports > total: ${rng.integers(10, 9_000) / 10} billion (2024 est.)

{prose()}
"""


def play(title: str, rng: np.random.Generator) -> str:
  words = names(300)
  speech = lambda: " ".join(rng.choice(words).lower() for _ in range(int(rng.integers(8, 60))))  # noqa: E731
  scenes = [
    f"SCENE {scene}.\n\n" + "\n\n".join(f"{rng.choice(['ALBA', 'BRUN', 'CORA'])}.\n{speech()}." for _ in range(12))
    for scene in range(1, 6)
  ]
  return f"{title}\n\n" + "\n\n".join(scenes) + "\n"


def write_documents(folder: Path) -> Path:
  rng = np.random.default_rng(11)
  (folder / "general").mkdir(parents=True)
  others = names(COUNTRIES)
  for name in others:
    (folder / "general" / f"{name.lower()}.md").write_text(country(name, others, rng))
  (folder / "dialogue").mkdir()
  for number in range(8):
    (folder / "dialogue" / f"play{number}.txt").write_text(play(f"The play of {names(20)[number]}", rng))
  library = Path(sysconfig.get_paths()["stdlib"])
  for module in MODULES:
    for path in sorted((library / module).glob("*.py")):
      target = folder / "code" / module / path.name
      target.parent.mkdir(parents=True, exist_ok=True)
      shutil.copyfile(path, target)
  return folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
  return write_documents(tmp_path_factory.mktemp("documents") / "all")


def count(texts: list[str]) -> list[int]:
  return [len(text) // 4 + 1 for text in texts]


def read(folder: Path, domain: str) -> list[Document]:
  found = []
  for path in sorted((folder / domain).rglob("*.*")):
    text = path.read_text().strip("\n")
    name = path.relative_to(folder).as_posix()
    title = path.name if domain == "code" else text.partition("\n")[0].lstrip("# ")
    found.append(Document(name, domain, title, text, Source(name, 0, len(text.encode()), "0")))
  return found


@pytest.fixture(scope="session")
def countries(folder: Path) -> Corpus:
  return corpora.make("train", "general", "0000", read(folder, "general"), count)


@pytest.fixture(scope="session")
def modules(folder: Path) -> Corpus:
  return corpora.make("train", "code", "0000", read(folder, "code"), count)


@pytest.fixture(scope="session")
def plays(folder: Path) -> Corpus:
  return corpora.make("train", "dialogue", "0000", read(folder, "dialogue"), count)
