"""The checker of synthesized data passes what is right and names each kind of error that was put in by hand."""

import hashlib
import json
import re
from pathlib import Path

import check_data
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "experiments"

DOCUMENTS = {
  "alba.md": "# Alba\n\n## Land\n\nCapital: Ort (since 1900)\nNeighbour: Bero 12 km; Ceda 3 km\nArea: 1,250 sq km (x)",
  "bero.md": "# Bero\n\n## Land\n\nCapital: Pell (old town)\nNeighbour: Ceda\nArea: 2.5 thousand sq km",
  "ceda.md": "# Ceda\n\n## Land\n\nCapital: Quill\nNeighbour: none\nArea: 990 sq km",
  "dorn.md": "# Dorn\n\n## Land\n\nCapital: Rast\nNeighbour: Esk\nArea: 12 sq km",
  "esk.md": "# Esk\n\n## Land\n\nCapital: Sund\nNeighbour: Dorn\nArea: 31 sq km",
}
TRAIN, TEST = ("alba.md", "bero.md", "ceda.md"), ("dorn.md", "esk.md")


def sample(split, names, program, question, answer, lines):
  """`lines`: (document, line) that are evidence."""
  context = "".join(f"=== {DOCUMENTS[n][2:].split()[0]} ===\n{DOCUMENTS[n]}\n[...]\n\n\n\n" for n in names)
  evidence, sources = [], []
  for name, line in lines:
    raw, at = DOCUMENTS[name].encode(), DOCUMENTS[name].index(line)
    start = context.index(DOCUMENTS[name]) + at
    evidence.append({"document": name, "start": start, "end": start + len(line)})
    digest = hashlib.sha256(raw).hexdigest()
    place = {"path": name, "start": 0, "end": len(raw), "sha256": digest}
    sources.append({"id": name, "characters": [at, at + len(line)]} | place)
  tokens = len(context) // 4
  provenance = {"kind": program["kind"], "split": split, "target": tokens, "tokens": tokens, "program": program}
  provenance |= {"candidates": [answer, "Ort", "Esk"], "reward": "rule", "documents": sources}
  record = {"id": hashlib.sha256(question.encode()).hexdigest()[:8], "task": "multi_hop", "question": question}
  return record | {"context": context, "answer": answer, "evidence": evidence, "provenance": provenance}


def hop():
  program = {
    "kind": "hop",
    "noun": "document",
    "start": [["Land > Area", "between", [1200.0, 1300.0], "sq km"], ["Land > Capital", "begins", ["Ort"], ""]],
    "link": "Land > Neighbour",
    "answer": "Land > Capital",
  }
  question = 'Whose "Land > Area" is 1,200 sq km to 1,300 sq km, "Land > Capital" Ort? Its "Land > Neighbour"?'
  lines = [("alba.md", line) for line in DOCUMENTS["alba.md"].split("\n")[4:]]
  return sample("train", TRAIN, program, question, "Pell", [*lines, ("bero.md", "Capital: Pell (old town)")])


def total():
  sql = {"kind": "sql", "sql": "SELECT sum(x) FROM facts", "noun": "document", "columns": {"x": "Land > Area"}}
  sql |= {"rows": 2, "decimals": 0, "unit": "sq km"}
  lines = [(name, DOCUMENTS[name].split("\n")[-1]) for name in TEST]
  return sample("test", TEST, sql, 'The sum of "Land > Area" in sq km, to 0 decimals?', "43 sq km", lines)


def write(folder, records):
  from array_record.python.array_record_module import ArrayRecordWriter

  for name, text in DOCUMENTS.items():
    (folder / "documents").mkdir(parents=True, exist_ok=True)
    (folder / "documents" / name).write_text(text)
  for split in ("train", "test"):
    target = folder / "data" / split
    target.mkdir(parents=True)
    writer = ArrayRecordWriter(str(target / "a.array_record"), "group_size:1")
    mine = [json.dumps(r).encode() for where, r in records if where == split]
    for raw in mine:
      writer.write(raw)
    writer.close()
    said = {"examples": len(mine), "bytes": (target / "a.array_record").stat().st_size}
    (target / "manifest.json").write_text(json.dumps({"files": {"a.array_record": said}}))
  return [f"--data={folder / 'data'}", f"--documents={folder / 'documents'}"]


def test_right_data_passes(tmp_path, capsys):
  assert check_data.main(write(tmp_path, [("train", hop()), ("test", total())])) == 0
  assert "| all |  | 2 | 2 | 2 | 2 | 2 | 2 | 2 |" in capsys.readouterr().out


def written():
  """By a model: no program."""
  line = ("alba.md", DOCUMENTS["alba.md"].split("\n")[-1])
  one = sample("train", TRAIN, {"kind": "viewpoint"}, "What does Alba say of itself?", "nothing", [line])
  one["provenance"]["program"] = {}
  return one


def test_of_a_models_question_fields_and_source_are_checked(tmp_path, capsys):
  records = [("train", hop()), ("train", written()), ("test", total())]
  assert check_data.main(write(tmp_path / "right", records)) == 0
  assert "| viewpoint | 1 | 0 | 0 | 0 | 1 | 0 | 1 |" in capsys.readouterr().out
  records[1][1]["provenance"]["documents"][0]["characters"] = [0, 25]
  assert check_data.main(write(tmp_path / "wrong", records)) == 1
  assert "| viewpoint | 1 | 0 | 0 | 0 | 0 | 0 | 1 |" in capsys.readouterr().out


def wrong_answer(one, other):
  one["answer"] = "Ort"


def shifted_span(one, other):
  for end in ("start", "end"):
    one["evidence"][3][end] += 12


def changed_hash(one, other):
  one["provenance"]["documents"][0]["sha256"] = "0" * 64


def second_that_fits(one, other):
  one["context"] = one["context"].replace("Quill\nNeighbour: none\nArea: 990", "Orton\nNeighbour: Bero\nArea: 1,201")


def nothing_fits(one, other):
  one["provenance"]["program"]["start"][0][2] = [1250.5, 1300.0]


def missing_evidence(one, other):
  one["evidence"].pop()
  one["provenance"]["documents"].pop()


def moved_characters(one, other):
  one["provenance"]["documents"][3]["characters"] = [0, 25]


def same_question(one, other):
  other["question"] = one["question"]


def too_long(one, other):
  one["provenance"]["tokens"] *= 3


def other_unit(one, other):
  other["answer"] = "43 km"


@pytest.mark.parametrize(
  ("plant", "said"),
  [
    (wrong_answer, "right: the answer is 'Pell', the sample says 'Ort'"),
    (shifted_span, "source: characters 17 to 41 of bero.md are not"),
    (shifted_span, "evidence: no span holds 'Capital: Pell (old town)'"),
    (changed_hash, "source: alba.md has another SHA-256"),
    (second_that_fits, "unique: 2 entities instead of one to fit"),
    (nothing_fits, "unique: 0 entities instead of one to fit"),
    (missing_evidence, "evidence: no span holds 'Capital: Pell"),
    (missing_evidence, "oracle: from the evidence alone: 0 entities instead of one to be named 'bero'"),
    (moved_characters, "source: characters 0 to 25 of bero.md are not 'Capital: Pell"),
    (same_question, "duplicate: has the question of"),
    (too_long, "fields: "),
    (other_unit, "right: the answer is 43 sq km, the sample says '43 km'"),
  ],
)
def test_a_planted_error_is_found_and_named(tmp_path, capsys, plant, said):
  one, other = hop(), total()
  plant(one, other)
  assert check_data.main(write(tmp_path, [("train", one), ("test", other)])) == 1
  assert said in capsys.readouterr().err


def test_a_document_in_two_splits_is_found_by_evidence_and_by_title(tmp_path, capsys):
  again = hop()
  again["question"], again["id"] = again["question"] + " Tell.", "other"
  again["provenance"]["split"] = "test"
  assert check_data.main(write(tmp_path, [("train", hop()), ("test", again)])) == 1
  said = capsys.readouterr().err
  assert "alba.md: shared: is evidence in test and train" in said
  assert "Ceda: shared: " in said  # stands in both contexts, and is no evidence


def test_equal_titles_of_other_documents_are_not_shared(tmp_path):
  other = total()
  other["context"] = other["context"].replace("=== Esk ===", "=== Ceda ===")
  write(tmp_path, [])
  library = check_data.Library([tmp_path / "documents"])
  assert list(check_data.shared([("train", hop()), ("test", other)], library)) == []


@pytest.mark.parametrize(
  ("name", "found"), [("a.csv", ["0" * 64, "a.csv"]), ("a.parquet", []), ("a.jsonl", ["0" * 64])]
)
def test_parts_of_one_table_stay_in_one_split_and_records_need_not(tmp_path, name, found):
  write(tmp_path, [])
  library = check_data.Library([tmp_path / "documents"])
  one, other = hop(), total()
  for record, part in ((one, 1), (other, 2)):
    record["context"] = ""
    record["provenance"]["documents"] = [{"id": f"{name}#{part}", "path": name, "sha256": "0" * 64}]
  assert [what for what, _, _ in check_data.shared([("train", one), ("test", other)], library)] == found
  other["provenance"]["documents"] = one["provenance"]["documents"]
  assert f"{name}#1" in [what for what, _, _ in check_data.shared([("train", one), ("test", other)], library)]


def test_a_table_in_two_splits_is_found_by_its_rows(tmp_path):
  write(tmp_path, [])
  rows = [f"town {number},{number * 37 % 100}" for number in range(80)]
  (tmp_path / "documents" / "towns.csv").write_text("\n".join(["name,size", *rows]))
  library = check_data.Library([tmp_path / "documents"])
  one, other = hop(), total()
  for record, first, last in ((one, 1, 40), (other, 41, 80)):
    shown = "\n".join(f"| {row.replace(',', ' | ')} |" for row in rows[first - 1 : last])
    page = f"=== towns, rows {first} to {last} ===\n| name | size |\n|---|---|\n{shown}\n\n"
    record["context"], record["provenance"]["documents"] = page, []
  assert [name for name, _, _ in check_data.shared([("train", one), ("test", other)], library)] == ["towns"]


@pytest.mark.parametrize(
  ("encoding", "town"), [("utf-8", "Тверь"), ("cp1251", "Тверь"), ("koi8-r", "Тверь"), ("cp1252", "Lübeck")]
)
def test_a_table_is_read_again_in_whatever_encoding(tmp_path, encoding, town):
  raw = f"name;year\n{town};1135\n".encode(encoding)
  (tmp_path / "towns.csv").write_bytes(raw)
  library, row = check_data.Library([tmp_path]), f"| {town} | 1135 |"
  start = len("| name | year |\n|---|---|\n")
  source = {"id": "towns.csv#1", "path": "towns.csv", "sha256": hashlib.sha256(raw).hexdigest()}
  source |= {"start": 0, "end": len(raw), "characters": [start, start + len(row)]}
  span = {"document": "towns.csv#1", "start": 0, "end": len(row)}
  record = {"context": row, "evidence": [span], "provenance": {"documents": [source]}}
  assert library.unlike(record) == ""
  assert "towns.csv#1 are not" in library.unlike(record | {"context": row.replace("5", "6")})


def test_a_file_that_is_not_what_its_manifest_says_is_refused(tmp_path):
  arguments = write(tmp_path, [("train", hop()), ("test", total())])
  manifest = tmp_path / "data/train/manifest.json"
  manifest.write_text(manifest.read_text().replace('"examples": 1', '"examples": 2'))
  with pytest.raises(ValueError, match=r"1 records of .* write the data anew"):
    check_data.main(arguments)


def test_text_is_cleaned_as_it_was():
  assert check_data.cleaned("\n  a\u200b \r\nb\x0cc\n\n\n\n\ncafe\u0301\n\n") == "  a\nb\nc\n\n\ncaf\u00e9"


def test_no_file_of_the_checker_imports_the_project():
  left, read = ["check_data"], set()
  while left:
    name = left.pop()
    source = (FOLDER / f"{name}.py").read_text()
    assert "qwenlong_jax" not in source
    read.add(name)
    imported = re.findall(r"^\s*(?:from|import) (\w+)", source, re.MULTILINE)
    left += [other for other in imported if other not in read and (FOLDER / f"{other}.py").exists()]
  assert read == {"check_data", "recompute", "recompute_facts", "reread", "reread_code"}


def test_the_parts_of_a_table_file_are_those_that_reading_makes(tmp_path):
  from qwenlong_jax.data.reading import read

  path = tmp_path / "a.csv"
  path.write_text('n;"text; with";c\n' + "".join(f'{n};"two\nlines | bar";\n' for n in range(120)))
  text = next(check_data.decoded(path.read_bytes()))
  assert [document.text for document in read(path, tmp_path)] == check_data.parts(text)
