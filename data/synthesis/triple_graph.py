"""Triples of many documents as one graph: names of one entity joined, relations of one wording joined (section 3).

Joining is cautious: names become one entity where they differ in case, punctuation or a determiner only, or where a
document puts an abbreviation in brackets behind the full name; never where one document tells them apart, and across
documents only if they are proper names or hold a digit ("the committee" is another one in another document). Counting
is not cautious: whatever could be the same name or the same relation counts against an answer (`beyond`).
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from qwenlong_jax.data.documents import Document
from qwenlong_jax.data.synthesis.triples import Triple

_DETERMINERS = {"the", "a", "an", "this", "that", "these", "those", "its", "their", "our"}
_SMALL = {"of", "and", "the", "for", "in", "on", "at", "de"}  # words that abbreviations skip
_BEING = {"is", "was", "were", "are", "be", "been", "being", "the", "a", "an"}
_EMPTY = _BEING | {"has", "have", "had", "do", "does", "did", "by", "of", "in", "on", "at", "to", "for", "with"}
_STEM = 5  # letters
_BRACKETED = re.compile(r"\s*\(([A-Z][A-Za-z.&-]{1,9})\)")
_LOWER = re.compile(r"\b[^\W\d_A-Z]\w*")
Key = tuple[str, str]  # the loose name; what keeps it apart from others of that name


@dataclass(frozen=True)
class Node:
  """An entity by all its names, the most frequent first; `loose` are those names without what may differ."""

  names: tuple[str, ...]
  loose: frozenset[str]

  @property
  def proper(self) -> bool:
    return any(letter.isupper() for name in self.names for letter in _strict(name))


@dataclass(frozen=True)
class Relation:
  """All wordings of a relation; `stems` are the first letters of their words, without those that say little."""

  wordings: tuple[str, ...]
  stems: frozenset[str]


@dataclass(frozen=True)
class Edge:
  """`head`, `tail`: numbers of nodes; `triples`: all that state it."""

  head: int
  relation: Relation
  tail: int
  triples: tuple[Triple, ...]


@dataclass(frozen=True)
class TripleGraph:
  nodes: tuple[Node, ...]
  edges: tuple[Edge, ...]

  @cached_property
  def at(self) -> dict[int, list[Edge]]:
    """The edges of each node."""
    found = defaultdict(list)
    for edge in self.edges:
      found[edge.head].append(edge)
      found[edge.tail].append(edge)
    return dict(found)

  def beyond(self, node: int, relation: Relation, forward: bool) -> set[int]:
    """The tails (with `forward`; else the heads) of all edges that may be of this relation and of this entity: a name
    and a stem in common suffice.
    """
    named = {n for n, other in enumerate(self.nodes) if other.loose & self.nodes[node].loose}
    ends = [
      (edge.head, edge.tail) if forward else (edge.tail, edge.head)
      for edge in self.edges
      if edge.relation.stems & relation.stems
    ]
    return {far for near, far in ends if near in named}


def merge(
  triples: Sequence[Triple], documents: Sequence[Document], synonyms: Iterable[Sequence[str]] = ()
) -> TripleGraph:
  """The graph of what was extracted from `documents`; each of `synonyms` are wordings of one relation."""
  keys = _keys(triples, documents)
  nodes: dict[Key, int] = {}
  names: dict[int, Counter[str]] = defaultdict(Counter)
  stated: dict[tuple[int, str, int], list[Triple]] = defaultdict(list)
  same = {relation_key(one): relation_key(group[0]) for group in synonyms for one in group}
  wordings: dict[str, dict[str, None]] = defaultdict(dict)
  for triple in triples:
    ends = []
    for name in (triple.head, triple.tail):
      number = nodes.setdefault(keys[triple.document, name], len(nodes))
      names[number][name] += 1
      ends.append(number)
    relation = relation_key(triple.relation)
    relation = same.get(relation, relation)
    wordings[relation][triple.relation] = None
    if ends[0] != ends[1]:
      stated[ends[0], relation, ends[1]].append(triple)
  relations = {key: Relation(tuple(said), frozenset().union(*map(stems, said))) for key, said in wordings.items()}
  return TripleGraph(
    nodes=tuple(_node(names[number]) for number in range(len(nodes))),
    edges=tuple(Edge(head, relations[key], tail, tuple(found)) for (head, key, tail), found in stated.items()),
  )


def loose(name: str) -> str:
  """A name without case, punctuation and a determiner in front; as it is if nothing else is left."""
  return _strict(name).casefold() or name.casefold()


def relation_key(relation: str) -> str:
  """A relation without case, punctuation, articles and forms of "to be"; prepositions stay: born in, born of."""
  words = loose(relation).split()
  kept = [word for word in words if word not in _BEING]
  return " ".join(kept or words)


def stems(text: str) -> frozenset[str]:
  """The first letters of the words that say something."""
  return frozenset(word[:_STEM] for word in loose(text).split() if word not in _EMPTY and len(word) > 2)


def _node(names: Counter[str]) -> Node:
  ordered = sorted(names, key=lambda name: (-names[name], name))
  every = {part for name in ordered for part in (name, *_parted(name)) if part}
  return Node(tuple(ordered), frozenset(map(loose, every)))


def _strict(name: str) -> str:
  """Without punctuation, except between digits, and without a determiner in front."""
  text = re.sub(r"(?<!\d)[.,]|[.,](?!\d)|['’]", "", unicodedata.normalize("NFKC", name))
  words = re.findall(r"\w+(?:[.,]\w+)*", text)
  while len(words) > 1 and words[0].casefold() in _DETERMINERS:
    words = words[1:]
  return " ".join(words)


def _parted(name: str) -> tuple[str, str]:
  """(full name, abbreviation in brackets behind it); ("", "") if there is none."""
  match = re.fullmatch(rf"(.+?){_BRACKETED.pattern}", name)
  return (match[1], match[2]) if match and _abbreviates(match[2], match[1]) else ("", "")


def _abbreviates(short: str, full: str) -> bool:
  letters = "".join(letter for letter in short.casefold() if letter.isalpha())
  words = loose(full).split()
  initials = {"".join(word[0] for word in kept) for kept in (words, [w for w in words if w not in _SMALL])}
  return len(letters) > 1 and letters in initials


def _keys(triples: Sequence[Triple], documents: Sequence[Document]) -> dict[tuple[str, str], Key]:
  """By document and name, what all names of one entity share."""
  names: dict[str, set[str]] = defaultdict(set)
  for triple in triples:
    names[triple.document] |= {triple.head, triple.tail}
  told_apart, lower = _told_apart(names), {word for one in documents for word in _LOWER.findall(one.text)}

  def key_of(name: str, document: str) -> Key:
    full = _parted(name)[0] or name
    scope = "" if _shared(full, lower) else document
    return loose(full), f"{scope}\0{_strict(full)}" if loose(full) in told_apart else scope

  full_names = _abbreviations(names, documents, key_of)
  apart = {frozenset(key_of(name, one.document) for name in (one.head, one.tail)) for one in triples}
  keys = {}
  for document, found in names.items():
    for name in found:
      key = key_of(name, document)
      full = full_names.get(key, key)
      keys[document, name] = key if {key, full} in apart and key != full else full
  return keys


def _told_apart(names: Mapping[str, set[str]]) -> set[str]:
  """Loose names that a document writes in ways that differ in more than a determiner and punctuation."""
  found = set()
  for of in names.values():
    forms: dict[str, set[str]] = defaultdict(set)
    for name in (_parted(name)[0] or name for name in of):
      forms[loose(name)].add(_strict(name))
    found |= {name for name, several in forms.items() if len(several) > 1}
  return found


def _shared(name: str, lower: set[str]) -> bool:
  """Whether a name is the same in any document: a digit or a capital is in it, and not only the first letter of a word
  that stands there in `lower` case as well, like those that begin a sentence."""
  strict = _strict(name)
  if any(letter.isupper() or letter.isdigit() for letter in strict[1:]):
    return True
  return strict[:1].isdigit() or (strict[:1].isupper() and strict.split()[0].casefold() not in lower)


def _abbreviations(
  names: Mapping[str, set[str]], documents: Sequence[Document], key_of: Callable[[str, str], Key]
) -> dict[Key, Key]:
  """Abbreviation -> full name, where all documents that spell it out agree."""
  found: dict[Key, set[Key]] = defaultdict(set)
  for document in documents:
    of = names.get(document.id, set())
    spelt = [_parted(name) for name in of]
    for match in _BRACKETED.finditer(document.text):
      before = f" {loose(document.text[max(0, match.start() - 200) : match.start()])}"
      spelt += [(one, match[1]) for one in of if _abbreviates(match[1], one) and before.endswith(f" {loose(one)}")]
    for full, short in spelt:
      if full:
        found[key_of(short, document.id)].add(key_of(full, document.id))
  return {short: fulls.pop() for short, fulls in found.items() if len(fulls) == 1}
