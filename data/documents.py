"""Documents of a folder, one at a time: read, cleaned, judged by rules, given a domain; near-duplicates left out.

A document is a file (text, Markdown, HTML, PDF, source code) or a record of one (JSONL, Parquet, a Hugging Face data
set on disk). What cannot be read or is not wanted comes back as `Rejected`, with the reason, and is counted.
"""

from dataclasses import dataclass

# The report's five kinds of corpora (section 3).
DOMAINS = ("code", "academic", "professional", "general", "dialogue")


@dataclass(frozen=True, slots=True)
class Source:
  """Where a document came from: bytes [start, end) of the file at `path` (relative to its root), and their SHA-256."""

  path: str
  start: int
  end: int
  sha256: str


@dataclass(frozen=True, slots=True)
class Document:
  """`text` is cleaned (NFC, one kind of line break); spans of characters are spans of it. `id`: unique in a corpus."""

  id: str
  domain: str
  title: str
  text: str
  source: Source


@dataclass(frozen=True, slots=True)
class Rejected:
  """A file or record that was left out: where it stands and why, in one word (`reason`) and in a line (`detail`)."""

  path: str
  reason: str
  detail: str = ""
