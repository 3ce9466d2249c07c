"""Samples of multi_hop from a model's triples: extracted, merged to a graph per cluster, whose paths are asked for."""

from collections import Counter
from collections.abc import Sequence
from functools import partial

from ml_collections import ConfigDict

from qwenlong_jax.data.synthesis import steps, triple_steps
from qwenlong_jax.data.synthesis.parts import Block, Settings
from qwenlong_jax.data.synthesis.synonyms import synonyms
from qwenlong_jax.data.synthesis.triple_steps import MAKER, Portion, Reading
from qwenlong_jax.data.synthesis.triples import extract
from qwenlong_jax.stages.synthesis_progress import each
from qwenlong_jax.stages.synthesis_roles import Models


def blocks(settings: Settings, config: ConfigDict, models: Models) -> list[Block]:
  """The blocks that the graphs bear; the graphs are there then."""
  longest, most = models.longest(config.triples.longest), config.triples.documents
  found = (triple_steps.reading(settings, cluster, longest, most) for cluster in steps.clusters(settings))
  every = [reading for reading in found if reading.count]
  portions = [portion for reading in every for portion in reading.portions]
  each("extracting", settings, models, portions, Portion.part, partial(_extract, settings, config, models))
  each("merging", settings, models, every, Reading.part, partial(_merge, settings, config, models))
  bearing = [reading.cluster for reading in every if triple_steps.edges(settings, reading.cluster)]
  return list(steps.planned(settings, dict.fromkeys(bearing, config.triples.samples), "multi_hop", MAKER))


def _extract(settings: Settings, config: ConfigDict, models: Models, portions: Sequence[Portion]) -> None:
  for portion in portions:
    documents, trio = triple_steps.documents(settings, portion), models.trio
    count, judging = config.triples.count, models.course.judging
    found = extract(documents, trio.proposer, trio.verifier, models.prompts, count, judging)
    triple_steps.keep_extracted(settings, portion, found)


def _merge(settings: Settings, config: ConfigDict, models: Models, readings: Sequence[Reading]) -> None:
  for reading in readings:
    triples = triple_steps.extracted(settings, reading)
    if not config.triples.synonyms:
      triple_steps.keep_merged(settings, reading, (), Counter())
      continue
    found = synonyms(triples, models.trio.proposer, models.prompts, models.course.judging)
    reasons = Counter(one.reason for one in found.rejected)
    triple_steps.keep_merged(settings, reading, found.groups, reasons)
