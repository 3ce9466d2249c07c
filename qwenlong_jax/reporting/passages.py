"""A long context as a page can show it: windows around its evidence, and a strip that maps where it stands."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from qwenlong_jax.types import Span

AROUND = 240  # characters before and after a piece of evidence
LONGEST = 1600  # characters of a piece that are shown: its first and last halves
WINDOWS = 12


@dataclass(frozen=True)
class Piece:
  """A stretch of text: context, evidence, or a gap (what is said instead of text that is left out)."""

  text: str
  kind: Literal["context", "evidence", "gap"]


@dataclass(frozen=True)
class Mark:
  """Evidence on the strip, in percent of the context."""

  left: float
  width: float


def strip(context: str, evidence: Sequence[Span]) -> list[Mark]:
  """Marks wide enough to be seen, within the strip."""
  length, marks = max(len(context), 1), []
  for start, end in _merged(evidence, 0):
    width = min(max(100 * (end - start) / length, 0.5), 100)
    marks.append(Mark(round(min(100 * start / length, 100 - width), 2), round(width, 2)))
  return marks


def passages(context: str, evidence: Sequence[Span]) -> list[Piece]:
  """The windows around the evidence in the order of the context, with what lies between them counted."""
  windows, pieces, shown_to = _merged(evidence, AROUND), list[Piece](), 0
  marked = _merged(evidence, 0)
  for start, end in windows[:WINDOWS]:
    start, end = max(start - AROUND, 0), min(end + AROUND, len(context))
    pieces += _gap(start - shown_to)
    for first, last in [span for span in marked if start <= span[0] < end]:
      pieces += [Piece(context[start:first], "context"), *_evidence(context[first:last])]
      start = last
    pieces.append(Piece(context[start:end], "context"))
    shown_to = end
  left = len(windows) - WINDOWS
  pieces += _gap(len(context) - shown_to, f", {left} more places with evidence among them" if left > 0 else "")
  return [piece for piece in pieces if piece.text]


def _merged(evidence: Sequence[Span], reach: int) -> list[tuple[int, int]]:
  """[start, end) of the evidence in order, as one where less than twice the reach lies between (or they overlap)."""
  merged: list[tuple[int, int]] = []
  for start, end in sorted((span.start, span.end) for span in evidence):
    if merged and start - reach < merged[-1][1] + reach:
      merged[-1] = merged[-1][0], max(end, merged[-1][1])
    else:
      merged.append((start, end))
  return merged


def _evidence(text: str) -> list[Piece]:
  if len(text) <= LONGEST:
    return [Piece(text, "evidence")]
  half = LONGEST // 2
  return [Piece(text[:half], "evidence"), *_gap(len(text) - LONGEST), Piece(text[-half:], "evidence")]


def _gap(characters: int, more: str = "") -> list[Piece]:
  return [Piece(f"\n[… {characters:,} characters{more} …]\n", "gap")] if characters > 0 else []
