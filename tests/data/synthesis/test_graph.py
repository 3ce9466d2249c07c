"""Who names whom: what is left out of the questions counts all the same."""

import numpy as np
import pytest

from qwenlong_jax.data.documents import Document, Source
from qwenlong_jax.data.synthesis import corpus as corpora
from qwenlong_jax.data.synthesis import knowledge_graph
from qwenlong_jax.data.synthesis.corpus import Corpus
from qwenlong_jax.data.synthesis.graph import Graph, vague
from qwenlong_jax.data.synthesis.outline import Fact

BASES = 8
LONG = "class {name}({base}):\n" + "".join(f"  def step{n}(self): ...\n" for n in range(300))


def module(name: str, base: str, number: int) -> str:
  return f"""class {name}{f"({base})" if base else ""}:
  limit = {100 + 7 * number}
  title = "the {name}"

  def open{number}(self): ...

  def close{number}(self): ...


"""


def corpus_of(also: str) -> Corpus:
  """Bases, each with a class that names it from another document; `also` stands in the first base's document."""
  texts = {f"base{n}.py": module(f"Base{n}", "", n) + (also if n == 0 else "") for n in range(BASES)}
  texts |= {f"child{n}.py": module(f"Child{n}", f"Base{n}", 50 + n) for n in range(BASES)}
  read = [
    Document(name, "code", name, text, Source(name, 0, len(text), "0")) for name, text in sorted(texts.items())
  ]
  return corpora.make("train", "code", "0000", read, lambda texts: [len(text) // 4 for text in texts])


def asked(corpus: Corpus, kind: str) -> set[str]:
  """Documents that questions are about."""
  drafts = [knowledge_graph.draft(np.random.default_rng(n), corpus, kind, n) for n in range(64)]
  return {corpus.names[document] for draft in drafts if draft for document, _, _ in draft.evidence}


@pytest.mark.parametrize("also", [module("Sibling", "Base0", 90), LONG.format(name="Sibling", base="Base0")])
def test_a_base_that_is_named_in_its_own_document_too_is_not_named_once(also: str) -> None:
  assert {"base0.py", "child0.py"} <= asked(corpus_of(""), "causal")
  found = asked(corpus_of(also), "causal")
  assert {"base1.py", "child1.py"} <= found
  assert not {"base0.py", "child0.py"} & found


def test_a_name_that_a_class_too_long_to_ask_about_bears_is_ambiguous() -> None:
  corpus = corpus_of(LONG.format(name="Base3", base="Base0"))
  assert "Base3" not in corpus.by_name and "Base4" in corpus.by_name
  assert not {"base3.py", "child3.py"} & asked(corpus, "multi_fact")


def test_links_within_a_document_are_counted_and_not_followed() -> None:
  graph = Graph.of(corpus_of(module("Sibling", "Base0", 90)))
  assert len(graph.links) == BASES + 1
  assert len(graph.across) == BASES


def test_a_number_belongs_to_a_name_and_a_quantity_behind_it_does_not() -> None:
  texts = {f"Place {n}": f"Next: Place {(n + 1) % 8} 1,200 km; Place 3\nSize: {n} km" for n in range(8)}
  made = [Document(name, "general", name, text, Source(name, 0, 1, "0")) for name, text in texts.items()]
  graph = Graph.of(corpora.make("train", "general", "0000", made, lambda texts: list(map(len, texts))))
  assert {(start, end) for start, _, end in graph.links} == {(n, (n + 1) % 8) for n in range(8)}


@pytest.mark.parametrize(
  "number, interval",
  [
    (57, (55, 60)),
    (3, (0, 5)),
    (0, (0, 5)),
    (-3, (-5, 0)),
    (120, (120, 130)),
    (18_400_000, (18_000_000, 19_000_000)),
    (-442, (-450, -440)),
    (5.75, (5.7, 5.8)),
    (0.0123, (0.012, 0.013)),
  ],
)
def test_a_range_holds_more_than_its_number(number: float, interval: tuple[float, float]) -> None:
  constraint = vague(np.random.default_rng(0), Fact("depth", str(number), 0, 9, number, "m"))
  assert constraint is not None and constraint.values == interval
