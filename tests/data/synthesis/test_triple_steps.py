"""Which documents are read for triples, and how many samples a cluster is to give: worked out by hand."""

import json
from pathlib import Path

import pytest

from qwenlong_jax.data.synthesis import steps
from qwenlong_jax.data.synthesis.parts import Block, Cluster, Settings, cut
from qwenlong_jax.data.synthesis.triple_steps import DOCUMENTS, reading
from qwenlong_jax.files import write_text

CLUSTER = Cluster("train", "general", 0)


def settings(folder: Path) -> Settings:
  wanted = (("train", 10), ("test", 2))
  return Settings(str(folder), (), 0, (), 0.8, 10, (("train", 50), ("test", 50)), wanted, (4096,), "none", 512)


@pytest.fixture
def surveyed(tmp_path: Path) -> Settings:
  """70 documents, of which numbers 3 and 50 are too long for 100 tokens."""
  found = settings(tmp_path)
  tokens = [[60, 41] if number in (3, 50) else [60, 40] for number in range(70)]
  write_text(CLUSTER.part(found), json.dumps({"tokens": tokens}))
  return found


def test_neighbours_that_are_short_enough_are_read_together(surveyed: Settings) -> None:
  every = reading(surveyed, CLUSTER, 100, 1000)
  read = [number for portion in sorted(every.portions, key=lambda one: one.number) for number in portion.documents]
  assert read == [number for number in range(70) if number not in (3, 50)] and every.count == 68
  assert sorted(portion.count for portion in every.portions) == [4, DOCUMENTS, DOCUMENTS]
  assert len({portion.part(surveyed) for portion in every.portions}) == 3


def test_no_more_documents_are_read_than_may_be(surveyed: Settings) -> None:
  some = reading(surveyed, CLUSTER, 100, 40)
  assert some.count == 40 and some == reading(surveyed, CLUSTER, 100, 40)
  for portion in some.portions:
    assert portion.documents == tuple(n for n in range(portion.documents[0], 70) if n not in (3, 50))[: portion.count]
  assert reading(surveyed, CLUSTER, 100, 0).portions == reading(surveyed, CLUSTER, 99, 40).portions == ()


def test_clusters_give_equal_parts_of_what_a_split_wants(tmp_path: Path) -> None:
  more, none, other = Cluster("train", "code", 0), Cluster("train", "code", 1), Cluster("test", "code", 0)
  most = {CLUSTER: 8, more: 2, none: 0, other: 8}

  def counts(brings: int) -> list[tuple[Cluster, int]]:
    found = list(steps.planned(settings(tmp_path), most, "multi_hop", "triples", brings))
    assert {(block.task, block.first, block.maker) for block in found} == {("multi_hop", 0, "triples")}
    return [(block.cluster, block.count) for block in found]

  assert counts(1) == [(CLUSTER, 5), (more, 2), (other, 2)]
  assert counts(3) == [(CLUSTER, 2), (more, 2), (other, 1)]


def test_blocks_are_cut_to_a_size() -> None:
  blocks = list(cut(Block(CLUSTER, "multi_hop", 7, 45, "triples")))
  assert [(block.first, block.count, block.maker) for block in blocks] == [
    (7, 20, "triples"),
    (27, 20, "triples"),
    (47, 5, "triples"),
  ]
