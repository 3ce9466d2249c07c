"""Triples as steps of a synthesis, the first two of which take a model (the stages have it); parts as in `steps`.

  extract  a few documents           -> parts/triples/   triples, and why others were rejected
  merge    a cluster's triples       -> parts/graphs/    all of them, groups of synonymous relations
  write    some samples of its graph -> parts/samples/   examples, and why drafts were dropped
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from qwenlong_jax.data.documents import Document
from qwenlong_jax.data.synthesis import steps, triple_paths
from qwenlong_jax.data.synthesis.parts import Block, Cluster, Settings
from qwenlong_jax.data.synthesis.triple_graph import merge
from qwenlong_jax.data.synthesis.triple_paths import Ground
from qwenlong_jax.data.synthesis.triples import Extracted, Triple
from qwenlong_jax.files import write_text

MAKER = "triples"
DOCUMENTS = 32  # of a portion


@dataclass(frozen=True)
class Portion:
  """Documents of a cluster, by their numbers, that are read for triples at once."""

  cluster: Cluster
  number: int
  documents: tuple[int, ...]

  @property
  def count(self) -> int:
    return len(self.documents)

  def part(self, settings: Settings) -> Path:
    return settings.parts("triples") / f"{self.cluster.name}-{self.number:04d}.json"


@dataclass(frozen=True)
class Reading:
  """All that is read of a cluster."""

  cluster: Cluster
  portions: tuple[Portion, ...]

  @property
  def count(self) -> int:
    return sum(portion.count for portion in self.portions)

  def part(self, settings: Settings) -> Path:
    return settings.parts("graphs") / f"{self.cluster.name}.json"


def reading(settings: Settings, cluster: Cluster, longest: int, most: int) -> Reading:
  """At most `most` documents of at most `longest` tokens: runs of neighbours, drawn by chance."""
  tokens = json.loads(cluster.part(settings).read_text(encoding="utf-8"))["tokens"]
  short = [number for number, of_one in enumerate(tokens) if sum(of_one) <= longest]
  runs = [short[first : first + DOCUMENTS] for first in range(0, len(short), DOCUMENTS)]
  portions, left = [], most
  for run in np.random.default_rng([settings.seed, len(runs)]).permutation(len(runs)):
    if chosen := tuple(runs[run][:left]):
      portions.append(Portion(cluster, int(run), chosen))
      left -= len(chosen)
  return Reading(cluster, tuple(portions))


def documents(settings: Settings, portion: Portion) -> list[Document]:
  every = steps.load(settings, portion.cluster).documents
  return [every[number] for number in portion.documents]


def keep_extracted(settings: Settings, portion: Portion, found: Extracted) -> None:
  told = {"triples": [asdict(one) for one in found.triples], "rejected": found.reasons, "documents": portion.count}
  write_text(portion.part(settings), json.dumps(told, ensure_ascii=False))


def extracted(settings: Settings, of: Reading) -> list[Triple]:
  parts = (json.loads(portion.part(settings).read_text(encoding="utf-8")) for portion in of.portions)
  return [Triple(**one) for part in parts for one in part["triples"]]


def keep_merged(settings: Settings, of: Reading, groups: Sequence[Sequence[str]], rejected: Counter[str]) -> None:
  """The cluster's graph, as what it is merged from; its size tells how many samples it may bear."""
  read = [number for portion in of.portions for number in portion.documents]
  triples = extracted(settings, of)
  graph = merge(triples, [steps.load(settings, of.cluster).documents[number] for number in read], groups)
  told = {
    "documents": read,
    "triples": [asdict(one) for one in triples],
    "groups": [list(group) for group in groups],
    "rejected": dict(sorted(rejected.items())),
    "entities": len(graph.nodes),
    "edges": len(graph.edges),
  }
  write_text(of.part(settings), json.dumps(told, ensure_ascii=False))


def edges(settings: Settings, cluster: Cluster) -> int:
  return int(json.loads(Reading(cluster, ()).part(settings).read_text(encoding="utf-8"))["edges"])


@lru_cache(maxsize=2)
def ground(settings: Settings, cluster: Cluster) -> Ground:
  corpus = steps.load(settings, cluster)
  told = json.loads(Reading(cluster, ()).part(settings).read_text(encoding="utf-8"))
  triples = [Triple(**one) for one in told["triples"]]
  return Ground(corpus, merge(triples, [corpus.documents[number] for number in told["documents"]], told["groups"]))


def write_block(settings: Settings, block: Block) -> None:
  here, length = ground(settings, block.cluster), steps.counter(settings.tokenizer)
  steps.write_samples(settings, block, lambda order: triple_paths.sample(here, order, length))
