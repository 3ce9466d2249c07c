import pytest
from scripted import document

from qwenlong_jax.data.documents import Document
from qwenlong_jax.data.synthesis.triple_graph import TripleGraph, loose, merge, relation_key, stems
from qwenlong_jax.data.synthesis.triples import Triple


def stated(of: Document, head: str, relation: str, tail: str) -> Triple:
  """A triple whose passage is the whole text."""
  return Triple(head, relation, tail, of.id, 0, len(of.text), of.text.find(head), of.text.find(tail))


def graph_of(*facts: tuple[str, str, str, str], texts: dict[str, str] | None = None, synonyms=()) -> TripleGraph:
  """`facts`: (document, head, relation, tail)."""
  named = {name: document(name, (texts or {}).get(name, "")) for name, *_ in facts}
  return merge([stated(named[name], *rest) for name, *rest in facts], list(named.values()), synonyms)


def names(graph: TripleGraph) -> list[tuple[str, ...]]:
  return [node.names for node in graph.nodes]


@pytest.mark.parametrize(
  ("one", "other", "joined"),
  [
    ("Harbour of Vell", "the harbour of Vell", True),
    ("Morn, Ada", "Morn Ada", True),
    ("U.S. Navy", "US navy", True),
    ("O'Brien", "O’Brien", True),
    ("3.5 km", "35 km", False),
    ("1,911", "1.911", False),
    ("Ada Morn", "Ida Morn", False),
    ("The The", "the", True),
    ("A+", "A-", True),
    ("+", "-", False),
  ],
)
def test_a_loose_name_has_no_case_punctuation_or_determiner(one, other, joined):
  assert (loose(one) == loose(other)) is joined


def test_names_of_one_entity_are_one_node_across_documents():
  graph = graph_of(
    ("a", "Ada Morn", "is the engineer of", "The Harbour of Vell"),
    ("b", "the harbour of Vell", "was dredged in", "1911"),
    ("c", "the harbour of Vell", "lies in", "Orm"),
    ("d", "Orm", "was founded in", "1911"),
  )
  assert names(graph) == [
    ("Ada Morn",), ("the harbour of Vell", "The Harbour of Vell"), ("1911",), ("Orm",)
  ]  # fmt: skip
  assert [(edge.head, edge.tail) for edge in graph.edges] == [(0, 1), (1, 2), (1, 3), (3, 2)]


def test_common_nouns_of_different_documents_stay_apart():
  graph = graph_of(("a", "the committee", "meets in", "Vell"), ("b", "The committee", "meets in", "Orm"))
  assert names(graph)[0] == ("the committee",) and len(graph.nodes) == 4


def test_a_capital_at_the_start_of_a_sentence_makes_no_proper_name():
  texts = {"a": "Ships pay tolls. All ships do.", "b": "Ships sail to Orm.", "c": "Orm pays."}
  facts = [("a", "Ships", "pay", "tolls"), ("b", "Ships", "sail to", "Orm"), ("c", "Orm", "pays", "the toll")]
  assert [of for of in names(graph_of(*facts, texts=texts)) if of[0] in ("Ships", "Orm")] == [
    ("Ships",), ("Ships",), ("Orm",)
  ]  # fmt: skip


def test_names_that_one_document_tells_apart_are_never_joined():
  graph = graph_of(
    ("a", "Apple", "makes", "computers"), ("a", "apple", "is", "a fruit"), ("b", "APPLE", "is in", "Cupertino")
  )
  assert sorted(n for of in names(graph) for n in of if loose(n) == "apple") == ["APPLE", "Apple", "apple"]
  assert all(len(of) == 1 for of in names(graph))


def test_an_abbreviation_in_brackets_is_the_full_name_everywhere():
  graph = graph_of(
    ("a", "Union of Vell Ports", "was founded in", "1911"),
    ("b", "UVP", "has its seat in", "Orm"),
    texts={"a": "The Union of Vell Ports (UVP) was founded in 1911.", "b": "UVP has its seat in Orm."},
  )
  assert names(graph)[0] == ("UVP", "Union of Vell Ports") and len(graph.nodes) == 3
  inside = graph_of(("a", "Union of Vell Ports (UVP)", "is in", "Orm"), ("b", "U.V.P.", "is in", "Tarn"))
  assert len(inside.nodes) == 3


@pytest.mark.parametrize(
  "text",
  [
    "Paris Union of Vell Ports (Orm)",  # no initials
    "Union of Vast Plans (UVP)",  # another full name
    "Union of Vell Ports, and the UVP",
  ],
)
def test_what_stands_in_brackets_is_no_abbreviation_unless_it_is(text):
  facts = [("a", "Union of Vell Ports", "was founded in", "1911"), ("b", "UVP", "is in", "Orm")]
  graph = graph_of(*facts, texts={"a": text})
  assert ("UVP",) in names(graph)


def test_an_abbreviation_of_two_things_or_in_one_triple_with_its_full_name_stays_apart():
  texts = {"a": "Union of Vell Ports (UVP)", "b": "Under Vale Post (UVP)"}
  two = graph_of(
    ("a", "Union of Vell Ports", "is in", "Orm"),
    ("b", "Under Vale Post", "is in", "Tarn"),
    ("c", "UVP", "is in", "Ness"),
    texts=texts,
  )
  assert ("UVP",) in names(two)
  joined = graph_of(("a", "UVP", "replaced", "Union of Vell Ports"), texts=texts)
  assert names(joined) == [("UVP",), ("Union of Vell Ports",)] and len(joined.edges) == 1


def test_relations_differ_in_what_they_say():
  assert relation_key("Was the engineer of") == relation_key("is an engineer of") == "engineer of"
  assert relation_key("born in") != relation_key("born of")
  assert relation_key("is") == "is" and not stems("is the")
  assert stems("was engineered by") == stems("is the engineer of") == {"engin"}


def test_the_same_fact_in_two_documents_is_one_edge_and_synonyms_join():
  wordings = {"a": "is the engineer of", "b": "was engineer of", "c": "built"}
  facts = [(name, "Ada", relation, "Vell") for name, relation in wordings.items()]
  assert [len(edge.triples) for edge in graph_of(*facts).edges] == [2, 1]
  (edge,) = graph_of(*facts, synonyms=[("built", "is the engineer of")]).edges
  assert len(edge.triples) == 3 and edge.relation.stems == {"engin", "built"}


def test_counting_takes_for_one_what_could_be_one():
  graph = graph_of(
    ("a", "Ada Morn", "is the engineer of", "the quay"),
    ("b", "Ida Horn", "was first engineer at", "The quay"),
    ("b", "the quay", "is near", "Vell"),
  )
  edge = graph.edges[0]
  assert graph.beyond(edge.tail, edge.relation, forward=False) == {edge.head, graph.edges[1].head}
  assert graph.beyond(edge.head, edge.relation, forward=True) == {edge.tail}
