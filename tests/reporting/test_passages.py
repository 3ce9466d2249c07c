import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenlong_jax.reporting.passages import AROUND, LONGEST, WINDOWS, passages, strip
from qwenlong_jax.types import Span

CONTEXT = "".join(f"{n:05d} " for n in range(2000))  # 12,000 characters, none like another


def spans(*pairs):
  return [Span("a", start, end) for start, end in pairs]


def marked(pieces):
  return [piece.text for piece in pieces if piece.kind == "evidence"]


def test_evidence_is_marked_in_its_window_and_the_rest_is_counted():
  before, context, evidence, after, rest = passages(CONTEXT, spans((6000, 6005)))
  assert (before.kind, before.text.strip()) == ("gap", f"[… {6000 - AROUND:,} characters …]")
  assert context.text == CONTEXT[6000 - AROUND : 6000] and evidence.text == CONTEXT[6000:6005] == "01000"
  assert after.text == CONTEXT[6005 : 6005 + AROUND]
  assert rest.text.strip() == f"[… {12000 - 6005 - AROUND:,} characters …]"


def test_evidence_at_both_ends_has_no_gap_outside():
  pieces = passages(CONTEXT, spans((11995, 12000), (0, 5)))
  assert [piece.kind for piece in pieces] == ["evidence", "context", "gap", "context", "evidence"]


def test_near_and_overlapping_evidence_shares_a_window():
  pieces = passages(CONTEXT, spans((3000, 3010), (3005, 3020), (3300, 3306)))
  assert marked(pieces) == [CONTEXT[3000:3020], CONTEXT[3300:3306]]
  assert sum(piece.kind == "gap" for piece in pieces) == 2


def test_a_long_piece_is_cut_in_its_middle():
  pieces = passages(CONTEXT, spans((100, 9000)))
  assert marked(pieces) == [CONTEXT[100 : 100 + LONGEST // 2], CONTEXT[9000 - LONGEST // 2 : 9000]]
  assert f"{8900 - LONGEST:,} characters" in "".join(piece.text for piece in pieces)


def test_many_windows_are_cut_short_and_the_others_counted():
  pieces = passages(CONTEXT, spans(*((n, n + 5) for n in range(0, 12000, 600))))
  assert len(marked(pieces)) == WINDOWS and "8 more places with evidence" in pieces[-1].text


@given(st.lists(st.tuples(st.integers(0, 11999), st.integers(1, 3000)), max_size=12))
def test_what_is_shown_and_what_is_counted_is_the_whole_context(pairs):
  evidence = spans(*((start, min(start + size, 12000)) for start, size in pairs))
  pieces = passages(CONTEXT, evidence)
  counted = sum(int(p.text.split()[1].replace(",", "")) for p in pieces if p.kind == "gap")
  assert counted + sum(len(piece.text) for piece in pieces if piece.kind != "gap") == len(CONTEXT)
  at = 0
  for piece in pieces:
    if piece.kind == "gap":
      at += int(piece.text.split()[1].replace(",", ""))
    else:
      assert CONTEXT[at : at + len(piece.text)] == piece.text
      at += len(piece.text)


def test_the_strip_marks_the_evidence_and_nothing_beyond_its_ends():
  left, right = strip(CONTEXT, spans((11999, 12000), (3000, 6000)))
  assert (left.left, left.width) == (25, 25)
  assert right.width >= 0.5 and right.left + right.width == pytest.approx(100)
  assert strip("", []) == []
