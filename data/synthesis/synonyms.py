"""Relations of one meaning in different words: a model groups them, facts and a second question decide (section 3)."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from qwenlong_jax.data.prompts import Prompts
from qwenlong_jax.data.synthesis.triple_graph import loose, relation_key
from qwenlong_jax.data.synthesis.triples import Triple
from qwenlong_jax.data.verification_by_model import Rejection, verdict
from qwenlong_jax.llm import Completion, Sampling, ask, fenced
from qwenlong_jax.llm.structured import Schema, ask_json

_GREEDY = Sampling(temperature=0.0, top_p=None)
_BATCH = 80  # relations shown at once: each is compared with those beside it in the alphabet


class Grouping(Schema):
  groups: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Synonyms:
  """Wordings of one relation, as `triple_graph.merge` takes them; `rejected` names pairs that were proposed in vain."""

  groups: tuple[tuple[str, ...], ...]
  rejected: tuple[Rejection, ...]


def synonyms(triples: Sequence[Triple], engine: Completion, prompts: Prompts, sampling: Sampling = _GREEDY) -> Synonyms:
  """Groups of relations that say the same; of relations of one wording the first stands for all.

  Each member is compared with the first of its group. Reasons for a rejection: "grouper_" and a failure of the reply
  or of its JSON (a whole batch), "unknown" (no such relation), "repeated" (it is in a group already), "told_apart" (a
  document states both of one entity, with different ends), "verifier_" and a failure or "undecided", "different".
  """
  wordings = sorted({relation_key(one.relation): one.relation for one in reversed(triples)}.values())
  batches = [wordings[start : start + _BATCH] for start in range(0, len(wordings), _BATCH)]
  told = [ask(prompts.synonyms.fill(texts=fenced([_listed(batch)], "text")), sampling=sampling) for batch in batches]
  apart, pairs = _told_apart(triples), list[tuple[str, str]]()
  rejected: list[Rejection] = []
  for number, (batch, reply) in enumerate(zip(batches, ask_json(engine, told, Grouping))):
    if reply.value is None:
      rejected.append(Rejection(f"relations {number}", f"grouper_{reply.failure}", reply.detail))
      continue
    good, bad = _pairs(batch, reply.value.groups, apart)
    pairs += good
    rejected += bad
  judged = [ask(prompts.same_relation.fill(texts=fenced(pair, "text")), sampling=sampling) for pair in pairs]
  groups: dict[str, list[str]] = defaultdict(list)
  for (first, other), answer in zip(pairs, engine.complete(judged)):
    said = None if answer.failure else verdict(answer.text)
    if said:
      groups[first].append(other)
    else:
      reason = "different" if said is False else f"verifier_{answer.failure or 'undecided'}"
      rejected.append(Rejection(f"{first} | {other}", reason))
  return Synonyms(tuple((first, *others) for first, others in groups.items()), tuple(rejected))


def _listed(relations: Sequence[str]) -> str:
  return "\n".join(f"{number}. {' '.join(one.split())}" for number, one in enumerate(relations, start=1))


def _pairs(
  batch: Sequence[str], groups: Sequence[Sequence[int]], told_apart: set[frozenset[str]]
) -> tuple[list[tuple[str, str]], list[Rejection]]:
  """(the first of a group, another one), for all groups."""
  good, bad, taken = [], [], set[int]()
  for group in groups:
    known = []
    for number in group:
      reason = "unknown" if not 1 <= number <= len(batch) else "repeated" if number in taken else ""
      if reason:
        bad.append(Rejection(f"relation {number}", reason))
      else:
        taken.add(number)
        known.append(batch[number - 1])
    for place, other in enumerate(known[1:], start=1):
      if any(frozenset(map(relation_key, (one, other))) in told_apart for one in known[:place]):
        bad.append(Rejection(f"{known[0]} | {other}", "told_apart"))
      else:
        good.append((known[0], other))
  return good, bad


def _told_apart(triples: Sequence[Triple]) -> set[frozenset[str]]:
  """Pairs of relations that one document states of one head with different tails, or of one tail with other heads."""
  found = set()
  ends: dict[tuple[str, str, bool], dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
  for one in triples:
    head, relation, tail = loose(one.head), relation_key(one.relation), loose(one.tail)
    ends[one.document, head, True][relation].add(tail)
    ends[one.document, tail, False][relation].add(head)
  for of in ends.values():
    for relation, far in of.items():
      found |= {frozenset((relation, other)) for other, beyond in of.items() if far.isdisjoint(beyond)}
  return {pair for pair in found if len(pair) == 2}
