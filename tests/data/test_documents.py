"""Files of every kind, whole and broken, become documents or are refused with a reason."""

import gzip
import json
import os
import random
import sys
import unicodedata

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenlong_jax.data import documents, folders, formats, reading
from qwenlong_jax.data.documents import Document, Rejected, Source, clean

PROSE = """Harbour report

The harbour of Valparaíso was closed for three days in March, after the storm had torn two cranes from the quay.
Ships waited in the bay, and the price of bread rose in the town until the first grain was unloaded on the fourth day.
"""


def one(path, root=None):
  (found,) = reading.read(path, root or path.parent)
  return found


def refused(path):
  found = one(path)
  assert isinstance(found, Rejected), found
  return found.reason


def written(folder, name, content):
  path = folder / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return path


def pdf(lines, title="Harbour"):
  """A PDF of one page, by hand: objects, their offsets, a trailer."""
  shown = "".join(f"({line}) Tj 0 -14 Td\n" for line in lines)
  stream = f"BT /F1 12 Tf 50 750 Td\n{shown}ET"
  objects = [
    "<< /Type /Catalog /Pages 2 0 R >>",
    "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
    "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> >>",
    f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream",
    "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    f"<< /Title ({title}) >>",
  ]
  body, offsets = "%PDF-1.4\n", []
  for number, content in enumerate(objects, 1):
    offsets.append(len(body))
    body += f"{number} 0 obj\n{content}\nendobj\n"
  table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
  size = len(objects) + 1
  trailer = f"trailer << /Size {size} /Root 1 0 R /Info 6 0 R >>\nstartxref\n{len(body)}\n%%EOF\n"
  return (body + f"xref\n0 {size}\n0000000000 65535 f \n{table}" + trailer).encode()


def arrow(path, records):
  table = pyarrow.Table.from_pylist(records)
  with path.open("wb") as file, pyarrow.ipc.new_stream(file, table.schema) as stream:
    stream.write_table(table, max_chunksize=2)
  return path


def test_a_text_is_cleaned_and_its_source_names_every_byte(tmp_path):
  raw = PROSE.replace("\n", "\r\n").encode("utf-8-sig")
  document = one(written(tmp_path, "notes/harbour.txt", raw), tmp_path)
  assert document.text == PROSE.strip()
  assert (document.id, document.title, document.domain) == ("notes/harbour.txt", "Harbour report", "general")
  assert (document.source.path, document.source.start, document.source.end) == ("notes/harbour.txt", 0, len(raw))


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-32", "utf-8-sig"])
def test_every_usual_encoding_is_understood(tmp_path, encoding):
  assert one(written(tmp_path, "a.txt", PROSE.encode(encoding))).text == PROSE.strip()


WESTERN = {
  "german_table": "Stadt;Gründung;Fläche\nKöln;38;405\nMünchen;1158;310\n",
  "german_names": "Name;Größe;Straße\nMüller;1;Königstraße\nSchröder;3;Jägerweg\n",
  "french_table": "Région;Préfecture;Créée\nÎle-de-France;Paris;1976\nRhône;Évry;1968\n",
  "german": "Die Gründung fällt in das Jahr 1158; ihre Größe übertrifft heute viele Städte. ",
  "french": "Où est passé l'été ? Les élèves français ont mangé près du château, « déjà » sans façon. ",
  "swedish": "Stockholm är Sveriges huvudstad och säte för dess regering, riksdag och högsta förvaltning. ",
  "prices": "city,price\nMontréal,£5\nZürich,20 °C\n",
}
OTHER_SCRIPTS = {
  "koi8-r": "Москва является столицей России и крупнейшим по численности населения городом страны. ",
  "cp1251": "Москва является столицей России и крупнейшим по численности населения городом страны. ",
  "shift-jis": "日本語の文章をここに書きます。東京は日本の首都であり、最大の都市である。",
  "gb18030": "北京是中华人民共和国的首都,也是全国的政治中心和文化中心。",
  "iso8859-7": "Η Αθήνα είναι η πρωτεύουσα της Ελλάδας και η μεγαλύτερη πόλη της χώρας. ",
}


@pytest.mark.parametrize("times", [1, 20])
@pytest.mark.parametrize("name", WESTERN)
def test_western_text_that_declares_nothing_is_no_other_alphabet(name, times):
  text = WESTERN[name] * times
  assert formats.decode(text.encode("cp1252")) == text
  assert formats.decode(text.encode("latin-1")) == text


TABLES = {
  "Russian": ("Имя;Год\nИван;1980\nОльга;1991\n", ("cp1251", "koi8-r", "iso8859-5", "cp866")),
  "Russian, one row": ("город,год\nМосква,1147\n", ("cp1251", "koi8-r", "iso8859-5")),
  "Ukrainian": ("Місто;Населення\nКиїв;2952301\nЛьвів;717273\n", ("cp1251", "koi8-u")),
  "Greek": ("Πόλη;Πληθυσμός;Έκταση\nΑθήνα;643452;38\nΠάτρα;168034;125\n", ("cp1253", "iso8859-7")),
  "Greek, names": ("Όνομα;Έτος\nΜαρία;1980\nΝίκος;1991\n", ("cp1253", "iso8859-7")),
  "Arabic": ("المدينة;السكان\nالقاهرة;9539673\nالجيزة;4146340\n", ("cp1256", "iso8859-6")),
  "half Russian": ("name;город\nMoscow;Москва\nKazan;Казань\n", ("cp1251", "koi8-r")),
}


@pytest.mark.parametrize("times", [1, 20])
@pytest.mark.parametrize("name", TABLES)
def test_short_tables_in_other_scripts_are_read(name, times):
  text, encodings = TABLES[name]
  for encoding in encodings:
    assert formats.decode((text * times).encode(encoding)) == text * times, encoding


def test_bytes_of_no_encoding_are_refused_also_where_all_of_them_are_letters_somewhere():
  rng = random.Random(0)
  bytes_above = [*range(128, 256), *b" \n"]
  for alphabet in (range(1, 256), bytes_above):
    refused = 0
    for _ in range(50):
      try:
        formats.decode(bytes(rng.choices(alphabet, k=300)))
      except formats.Unreadable:
        refused += 1
    assert refused >= 40
  with pytest.raises(formats.Unreadable, match="binary"):
    formats.decode(gzip.compress(PROSE.encode() * 50).replace(b"\0", b""))


@pytest.mark.parametrize("encoding", OTHER_SCRIPTS)
def test_other_scripts_are_still_detected(encoding):
  text = OTHER_SCRIPTS[encoding] * 20
  assert formats.decode(text.encode(encoding)) == text


def test_polish_is_read_as_such_where_cp1252_makes_no_text_of_it():
  text = "Warszawa jest stolicą Polski i największym miastem w kraju, położonym nad Wisłą. "
  assert formats.decode(text.encode("cp1250")) == text


def test_a_letter_behind_what_detection_looks_at_is_read():
  assert formats.decode(b"plain " * 60_000 + "Gründung".encode("cp1252")).endswith("plain Gründung")


def test_a_source_file_is_read_in_the_encoding_that_it_declares(tmp_path):
  code = "# -*- coding: iso8859-5 -*-\nname = 'Москва'\n"
  assert one(written(tmp_path, "a.py", code.encode("iso8859-5"))).text == code.strip()


def test_code_keeps_its_indentation(tmp_path):
  code = "  def first():\n\n\n\n\n\treturn 1  \n"
  document = one(written(tmp_path, "a.py", code))
  assert document.text == "  def first():\n\n\n\treturn 1"
  assert (document.domain, document.title) == ("code", "a.py")


def test_a_web_page_gives_its_title_text_and_tables_but_not_its_menu(tmp_path):
  body = "<article><h1>Harbours</h1>" + f"<p>{PROSE}</p>" * 3 + "<table><tr><th>Port</th><th>Ships</th></tr>"
  body += "<tr><td>Valparaíso</td><td>1,204</td></tr></table></article>"
  source = (
    f"<html><head><title>Ports &amp; ships</title></head><body><nav><a href='/'>Home</a></nav>{body}</body></html>"
  )
  document = one(written(tmp_path, "a.html", source))
  assert document.title == "Ports & ships"
  assert "two cranes" in document.text
  assert "| Valparaíso | 1,204 |" in document.text
  assert "Home" not in document.text
  assert "<" not in document.text


def test_a_pdf_gives_its_title_and_text(tmp_path):
  document = one(written(tmp_path, "a.pdf", pdf(["The harbour was closed", "for three days in March."])))
  assert document.title == "Harbour"
  assert document.text == "The harbour was closed\nfor three days in March."


def test_a_line_of_jsonl_is_a_document_and_its_span_holds_the_text(tmp_path):
  records = [{"text": PROSE + str(i), "title": f"Täles {i}", "domain": "academic"} for i in range(3)]
  raw = b"\n".join(json.dumps(record, ensure_ascii=False).encode() for record in records)
  found = list(reading.read(written(tmp_path, "a.jsonl", raw), tmp_path))
  assert [document.title for document in found] == [record["title"] for record in records]
  assert {document.domain for document in found} == {"academic"}
  for document, record in zip(found, records, strict=True):
    span = raw[document.source.start : document.source.end]
    assert clean(json.loads(span)["text"]) == document.text == clean(record["text"])


def test_a_table_file_becomes_documents_of_some_rows_each_below_the_header(tmp_path):
  rows = [["town", "people", "1990"], ['"Ort; old"', "1,250", "7"], ["Pell | new", "", "8"], ["Quill\nhill", "3", "9"]]
  content = "\n".join(";".join(f'"{cell}"' if "\n" in cell else cell for cell in row) for row in rows)
  found = one(written(tmp_path, "towns.csv", content))
  assert (found.id, found.title, found.source.path) == ("towns.csv#1", "towns", "towns.csv")
  assert found.text.split("\n") == [
    "| town | people | 1990 |",
    "|---|---|---|",
    "| Ort; old | 1,250 | 7 |",
    "| Pell \\| new |  | 8 |",
    "| Quill hill | 3 | 9 |",
  ]
  many = "name\tsize\n" + "".join(f"n{number}\t{number}\n" for number in range(120))
  parts = list(reading.read(written(tmp_path, "long.tsv", many), tmp_path))
  assert [part.title for part in parts] == ["long, rows 1 to 40", "long, rows 41 to 80", "long, rows 81 to 120"]
  assert parts[1].text.split("\n")[:3] == ["| name | size |", "|---|---|", "| n40 | 40 |"]


def test_a_table_of_figures_alone_is_a_document(tmp_path):
  figures = "year,size\n" + "".join(f"{1900 + n},{n * 37 % 1000}\n" for n in range(60))
  (first, _) = reading.read(written(tmp_path, "a.csv", figures), tmp_path)
  assert documents.judge(first, ("en",)) is None


def test_a_bad_line_of_jsonl_costs_no_other(tmp_path):
  lines = ['{"text": "first"}', "{broken", "", '{"title": "no text"}', '{"text": 3}', '{"text": "a\\ud800b"}', '{"te']
  found = list(reading.read(written(tmp_path, "a.jsonl", "\n".join(lines)), tmp_path))
  assert [one.text if isinstance(one, Document) else one.reason for one in found] == [
    "first", "damaged", "empty", "no_text", "no_text", "ab", "truncated"
  ]  # fmt: skip
  assert found[1].path == "a.jsonl#2"


def test_a_line_that_would_fill_the_memory_is_refused_and_the_next_is_read(tmp_path, monkeypatch):
  monkeypatch.setattr(reading, "LARGEST", 50)
  path = written(tmp_path, "a.jsonl", json.dumps({"text": "x" * 200}) + '\n{"text": "second"}\n')
  first, second = reading.read(path, tmp_path)
  assert first.reason == "too_large"
  assert second.text == "second"
  assert path.read_bytes()[second.source.start : second.source.end] == b'{"text": "second"}'


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_columnar_files_give_a_document_per_row(tmp_path, kind):
  records = [{"text": f"{PROSE}{i}", "title": f"No. {i}", "domain": "dialogue", "other": i} for i in range(5)]
  records[3]["text"] = None
  path = tmp_path / f"a.{kind}"
  if kind == "parquet":
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path, row_group_size=2)
  else:
    arrow(path, records)
  found = list(reading.read(path, tmp_path))
  assert [getattr(one, "reason", None) or one.title for one in found] == ["No. 0", "No. 1", "No. 2", "no_text", "No. 4"]
  assert found[4].text == clean(f"{PROSE}4")
  assert found[4].id == f"a.{kind}#5"


def test_a_data_set_on_disk_is_its_arrow_files(tmp_path):
  folder = tmp_path / "train"
  folder.mkdir()
  arrow(folder / "data-00000-of-00001.arrow", [{"text": PROSE}])
  for name in ("dataset_info.json", "state.json", "../dataset_dict.json"):
    written(folder, name, "{}")
  (found,) = folders.gather([tmp_path])
  assert found.text == PROSE.strip()


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_cut_columnar_file_is_refused_and_no_record_invented(tmp_path, kind):
  path = tmp_path / f"a.{kind}"
  records = [{"text": f"{PROSE}{i}"} for i in range(5)]
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path) if kind == "parquet" else arrow(path, records)
  whole = path.read_bytes()
  for length in range(1, len(whole), 97):
    path.write_bytes(whole[:length])
    *before, last = reading.read(path, tmp_path)
    assert isinstance(last, Rejected)
    assert [document.text for document in before] == [clean(record["text"]) for record in records[: len(before)]]


def test_a_stream_cut_between_two_batches_is_refused_too(tmp_path):
  path = arrow(tmp_path / "a.arrow", [{"text": PROSE}])
  path.write_bytes(path.read_bytes()[:-8])
  document, last = reading.read(path, tmp_path)
  assert document.text == PROSE.strip()
  assert last.reason == "truncated"


def test_a_column_that_is_not_utf8_costs_one_record(tmp_path):
  column = pyarrow.array([b"good", b"\xff\xfe\xfa", b"better"], pyarrow.binary()).cast(pyarrow.string(), safe=False)
  pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
  found = list(reading.read(tmp_path / "a.parquet", tmp_path))
  assert [getattr(one, "reason", None) or one.text for one in found] == ["good", "damaged", "better"]


@pytest.mark.parametrize(
  ("name", "content", "reason"),
  [
    ("a.txt", b"", "empty"),
    ("a.txt", b" \r\n\t ", "empty"),
    ("a.txt", "\u200b\ufeff\n".encode(), "empty"),
    ("a.md", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "binary"),
    ("a.txt", b"\xffber " + "Größe und Maß".encode(), "damaged"),
    ("a.txt", "Größe und Maß".encode()[:-1], "truncated"),
    ("a.txt", b"\xff\xfeh\0a\0r", "damaged"),
    ("a.html", b"<html><body></body></html>", "empty"),
    ("a.pdf", b"", "empty"),
    ("a.pdf", pdf(["harbour"])[:-40], "truncated"),
    ("a.pdf", b"%PDF-1.4\ngarbage\n%%EOF", "damaged"),
    ("a.pdf", pdf([]), "empty"),
    ("a.jsonl", b"", "empty"),
    ("a.parquet", b"", "damaged"),
    ("a.parquet", b"PAR1 is not enough", "damaged"),
    ("a.arrow", b"", "damaged"),
    ("a.docx", b"PK", "unknown_format"),
    ("LICENCE", b"text", "unknown_format"),
    ("a.csv", b"", "empty"),
    ("a.csv", b"name,size\n", "empty"),
    ("a.csv", b"name\nAlba\n", "no_table"),
    ("a.csv", b"Alba,12\nBero,7\n", "no_header"),
    ("a.csv", b"name,size\n\"" + b"x" * 200_000, "damaged"),
  ],
)
def test_what_is_no_document_is_refused_with_a_reason(tmp_path, name, content, reason):
  assert refused(written(tmp_path, name, content)) == reason


@pytest.mark.parametrize("name", ["a.pdf", "a.html", "a.txt", "a.jsonl", "a.parquet", "a.arrow", "a.py", "a.csv"])
def test_no_bytes_raise(tmp_path, name):
  for seed in range(20):
    path = written(
      tmp_path, name, b"%PDF-1.4 " * (name == "a.pdf") + bytes((i * i * (seed + 7) >> 3) % 256 for i in range(400))
    )
    assert all(isinstance(found, Document | Rejected) for found in reading.read(path, tmp_path))


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_refused(tmp_path):
  written(tmp_path, "file.txt", PROSE).chmod(0)
  written(tmp_path, "folder/file.txt", PROSE).parent.chmod(0)
  assert [found.reason for found in folders.gather([tmp_path])] == ["unreadable", "unreadable"]
  (tmp_path / "folder").chmod(0o700)


def test_what_fails_on_the_disk_is_refused(tmp_path):
  (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
  assert refused(tmp_path / "gone.txt") == "unreadable"


def test_an_absent_root_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
    list(folders.gather([tmp_path / "nowhere"]))


def test_files_are_found_in_order_without_hidden_ones(tmp_path):
  for name in ("b/1.txt", "a.txt", "a/2.txt", ".git/config.txt", "b/.hidden.txt"):
    written(tmp_path, name, PROSE)
  (tmp_path / "b" / "circle").symlink_to(tmp_path)
  found = [path.relative_to(tmp_path).as_posix() for path in reading.find([tmp_path, tmp_path / "a.txt"])]
  assert found == sorted(found, key=lambda name: name.split("/")) == ["a/2.txt", "a.txt", "b/1.txt"]


def test_a_missing_library_says_what_to_install(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "pypdf", None)
  with pytest.raises(ImportError, match=r"pip install 'qwenlong_jax\[synthesis\]'"):
    one(written(tmp_path, "a.pdf", pdf(["harbour"])))


# Characters that cleaning treats, and others, mixed so that they meet.
TREATED = st.text(
  st.sampled_from(
    "ab e\u0301\u0308 \t\n\r\x0b\x0c\x85\x00\x1b\u200b\u200d\ufeff\u2028\u00ad\ud800\u1100\u1161\u2000\u3000"
  )
)


@given(st.one_of(st.text(), TREATED))
def test_cleaning_twice_is_cleaning_once(text):
  cleaned = clean(text)
  assert clean(cleaned) == cleaned
  assert unicodedata.is_normalized("NFC", cleaned)
  cleaned.encode()


@given(TREATED)
def test_cleaning_loses_nothing_that_can_be_seen(text):
  kept = "".join(
    c for c in text if not c.isspace() and unicodedata.category(c) not in ("Cc", "Cs") and c not in "\u200b\ufeff\u00ad"
  )
  assert "".join(clean(text).split()) == "".join(unicodedata.normalize("NFC", kept).split())


def judged(text, domain="general", languages=()):
  rejected = documents.judge(Document("a", domain, "", clean(text), Source("a", 0, 0, "")), languages)
  return rejected and rejected.reason


@pytest.mark.parametrize(
  ("text", "reason"),
  [
    (PROSE, None),
    ("A short note.", "too_short"),
    ("+--=--+ 12 .. 34 " * 20, "not_text"),
    ("Accept all cookies to go on\n" * 20, "repeated_lines"),
    (PROSE + "QUJD" * 300, "long_lines"),
    ("海港因风暴关闭了三天。" * 200, None),
  ],
)
def test_each_rule_refuses_what_it_is_for(text, reason):
  assert judged(text) == reason


def test_encoded_data_is_allowed_in_code():
  assert judged(PROSE + "QUJD" * 300, domain="code") is None


def test_only_the_languages_that_are_wanted_stay_and_code_speaks_none():
  german = "Der Hafen war im März drei Tage lang geschlossen, nachdem der Sturm zwei Kräne vom Kai gerissen hatte. " * 3
  assert judged(german, languages=("en", "de")) is None
  assert judged(german, languages=("en",)) == "language"
  assert judged(german, domain="code", languages=("en",)) is None


def test_a_language_that_nobody_could_find_is_an_error():
  with pytest.raises(ValueError, match=r"\['english'\].* de .* en "):
    documents.check(("english",))


DIALOGUE = "\n".join(f"Alice: is it line {i}?\nBob: it is, and a long line it is." for i in range(9))
PLAY = "\n\n".join(
  f"{name}.\nLine {i} of the play\ngoes on like this." for i, name in enumerate(["HAMLET", "HORATIO"] * 9)
)
PAPER = f"On harbours\n\nAbstract. We close them.\n\n{PROSE}\n\n5. References\n[1] A. Author, 1999."


@pytest.mark.parametrize(
  ("path", "text", "domain"),
  [
    ("academic/a.txt", DIALOGUE, "academic"),
    ("other/a.rs", PROSE, "code"),
    ("a.txt", DIALOGUE, "dialogue"),
    ("a.txt", PLAY, "dialogue"),
    ("a.txt", PAPER, "academic"),
    ("a.md", "\n".join(f"Berth {i}: {i * 20} m, rented" for i in range(9)), "professional"),
    ("a.md", "\n".join(f"| {i} | ship {i} |" for i in range(9)), "professional"),
    ("a.txt", "\n\n".join(f"{i}.1 Safety at the quay\n{PROSE}" for i in range(6)), "professional"),
    ("a.txt", PROSE, "general"),
    ("general", DIALOGUE, "dialogue"),
  ],
)
def test_the_folder_or_else_the_look_of_a_text_gives_its_domain(path, text, domain):
  assert documents.domain_of(text, path) == domain


@pytest.mark.parametrize(
  ("path", "text", "title"),
  [
    ("a.md", "\n## Harbours of Chile ##\n\ntext", "Harbours of Chile"),
    ("b/notes.txt", PROSE, "Harbour report"),
    ("b/notes.txt", "long " * 100, "notes"),
    ("b/notes.txt", "--------\nx", "notes"),
    ("b/notes.py", "import os", "notes.py"),
  ],
)
def test_a_title_is_found(path, text, title):
  assert documents.title_of(text, path) == title


def test_a_corpus_comes_in_one_order_with_names_of_its_own(tmp_path):
  for root in ("x/texts", "y/texts"):
    for i in range(4):
      written(tmp_path, f"{root}/{i}.txt", f"{root} {i} " * (60 + i))
  roots = [tmp_path / "y" / "texts", tmp_path / "x" / "texts"]
  found = list(folders.gather(roots))
  assert found == list(folders.gather(roots))
  assert [document.id for document in found] == [f"{name}/{i}.txt" for name in ("texts", "texts-2") for i in range(4)]
  assert found[0].source.path == "0.txt"
