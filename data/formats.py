"""The title and text of a file's bytes: plain text in any encoding, HTML, PDF; tables of separated values by rows.

What has none raises `Unreadable`.
"""

import codecs
import csv
import html
import io
import re
from collections.abc import Sequence

from qwenlong_jax.data.documents import needed

SEPARATORS = ",;\t|"
DETECTED = 2**18  # bytes that the detection of an encoding looks at
LEAST_CONFIDENCE = 0.03  # chardet's; random bytes stay below, and tables of two lines in Cyrillic or Greek above

_DECLARED = re.compile(rb"""(?:charset|coding|encoding)\s*[:=]\s*["']?([-\w.]+)""")
_WORD = re.compile(rb"[A-Za-z\x80-\xff]+")
# But for what may stand there: a soft hyphen, and the dot of "col·lecció".
_SIGN_IN_WORD = re.compile(r"[^\W\d_][\xa1-\xa9\xab\xac\xae-\xb6\xb8-\xbf][^\W\d_]")
_TITLE = re.compile(r"<title[^>]*>(.*?)</title", re.IGNORECASE | re.DOTALL)
_NUMBER = re.compile(r"[-+]?\d[\d.,]*(?:e[-+]?\d+)?%?", re.IGNORECASE)
_YEAR = re.compile(r"(?:1\d|20)\d\d")
_ASCII = set(map(chr, range(128)))
_MARKS = (
  (codecs.BOM_UTF8, "utf-8-sig"),
  (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16: it starts as that does
  (codecs.BOM_UTF32_BE, "utf-32"),
  (codecs.BOM_UTF16_LE, "utf-16"),
  (codecs.BOM_UTF16_BE, "utf-16"),
)


class Unreadable(Exception):
  """Why a file or record is no document: `reason` in one word, `detail` in a line."""

  def __init__(self, reason: str, detail: str):
    super().__init__(reason, detail)
    self.reason, self.detail = reason, detail


def plain(raw: bytes) -> tuple[str, str]:
  return "", decode(raw)


def page(raw: bytes) -> tuple[str, str]:
  """Its title, and its main text and tables as Markdown, without menus."""
  source = decode(raw)
  trafilatura = needed("trafilatura")
  try:
    # fast: without the opinions of other extractors. Of all that is done to a page this takes most, by far.
    text = trafilatura.extract(
      source, output_format="markdown", include_tables=True, include_comments=False, favor_recall=True, fast=True
    )
  # A parser may give up on any markup, with an error of its own or of the stack.
  except Exception as error:
    raise Unreadable("damaged", f"{type(error).__name__}: {error}"[:200]) from error
  title = _TITLE.search(source)
  return html.unescape(title[1]) if title else "", text or ""


def pdf(raw: bytes) -> tuple[str, str]:
  """Its title, and the text of its pages; scanned pages have none."""
  pypdf = needed("pypdf")
  if b"%%EOF" not in raw[-2048:]:
    raise Unreadable("truncated", "a PDF without its end")
  try:
    reader = pypdf.PdfReader(io.BytesIO(raw))
    if reader.is_encrypted and not reader.decrypt(""):
      raise Unreadable("encrypted", "it asks for a password")
    text = "\n\n".join(page.extract_text() for page in reader.pages)
    title = reader.metadata.title if reader.metadata else ""
  except Unreadable:
    raise
  # A damaged PDF makes pypdf raise whatever its bytes lead to: KeyError, RecursionError, zlib.error, ...
  except Exception as error:
    raise Unreadable("damaged", f"{type(error).__name__}: {error}"[:200]) from error
  if not text.strip():
    raise Unreadable("empty", f"{len(reader.pages)} pages without text; recognise scanned ones first")
  return title if isinstance(title, str) else "", text


def separated(raw: bytes) -> list[list[str]]:
  """The rows of a table of separated values, the header first; each cell on one line."""
  text = decode(raw).lstrip("\n\r")
  first = text.partition("\n")[0]
  try:
    rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=max(SEPARATORS, key=first.count)))
  except csv.Error as error:
    raise Unreadable("damaged", f"no table of separated values: {error}") from error
  rows = [[" ".join(cell.split()) for cell in row] for row in rows if any(map(str.strip, row))]
  header = rows[0] if rows else []
  if len(header) < 2:
    raise Unreadable("no_table", f"one column; wanted a line of names, parted by one of {SEPARATORS!r}")
  if numbers := [cell for cell in header if _NUMBER.fullmatch(cell) and not _YEAR.fullmatch(cell)]:
    raise Unreadable("no_header", f"{numbers[0]} in the first line is no name of a column; put a line of names there")
  return rows


def as_markdown(rows: Sequence[Sequence[str]]) -> str:
  """A table; the first row is the header."""
  lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
  return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def decode(raw: bytes) -> str:
  """By its mark, as UTF-8, as it declares itself, as it looks like (cp1252 before its neighbours): what fits first."""
  for mark, encoding in _MARKS:
    if raw.startswith(mark):
      return _decoded(raw, encoding)
  if b"\0" in raw:
    raise Unreadable("binary", f"a NUL at byte {raw.index(0)}")
  try:
    return raw.decode()
  except UnicodeDecodeError as error:
    # Mostly real sequences of UTF-8: no other encoding, but a damaged or cut file.
    real = raw.decode(errors="ignore")
    if sum(map(real.count, set(real) - _ASCII)) > len(raw) - len(real.encode()):
      cut = error.reason == "unexpected end of data"
      raise Unreadable("truncated" if cut else "damaged", f"UTF-8 until byte {error.start}: {error.reason}") from error
  return _decoded(raw, _declared(raw) or _looks_like(raw))


def _decoded(raw: bytes, encoding: str) -> str:
  try:
    return raw.decode(encoding)
  except (UnicodeDecodeError, LookupError) as error:
    raise Unreadable("damaged", f"not {encoding}: {error}") from error


def _declared(raw: bytes) -> str:
  """What a web page or a Python source says at its start, unless that is wrong."""
  found = _DECLARED.search(raw[:2048])
  try:
    encoding = codecs.lookup(found[1].decode()).name if found else ""
    return encoding if encoding and raw.decode(encoding) else ""
  except (LookupError, UnicodeError):
    return ""


def _looks_like(raw: bytes) -> str:
  """Of Western scripts cp1252 unless that leaves signs within words: what tells its neighbours apart is a letter here
  and there, which detection guesses."""
  chardet, start = needed("chardet"), raw[:DETECTED]
  eras = chardet.EncodingEra.ALL & ~chardet.EncodingEra.MAINFRAME
  found = chardet.detect(start, encoding_era=eras, compat_names=False)
  other = _another_script(start)
  if found["encoding"] is None or (other and found["confidence"] < LEAST_CONFIDENCE):
    raise Unreadable("binary", "no encoding makes a text of it")
  western = "cp1252" if _decodes(raw, "cp1252") else "latin-1"
  return found["encoding"] if other or _SIGN_IN_WORD.search(start.decode(western)) else western


def _decodes(raw: bytes, encoding: str) -> bool:
  try:
    return raw.decode(encoding) != ""
  except UnicodeDecodeError:
    return False


def _another_script(raw: bytes) -> bool:
  """Whether most words beyond ASCII are so mostly: in Latin script only some of a word's letters are."""
  words = [word for word in _WORD.findall(raw) if not word.isascii() and len(word) > 1]
  return 2 * sum(2 * sum(byte > 127 for byte in word) > len(word) for word in words) > len(words)
