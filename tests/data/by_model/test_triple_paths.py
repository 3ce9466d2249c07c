import json
import re
from dataclasses import asdict, replace

import numpy as np
import pytest
from loopback import Loopback, prompt_of, says
from recompute import agree, solve
from recompute import says as unsaid
from reread import Unclear
from scripted import Scripted, document

from qwenlong_jax.data.prompts import Prompts
from qwenlong_jax.data.synthesis import corpus as corpora
from qwenlong_jax.data.synthesis.context import Draft, render
from qwenlong_jax.data.synthesis.generate import Order
from qwenlong_jax.data.synthesis.triple_graph import merge
from qwenlong_jax.data.synthesis.triple_paths import Ground, draft, sample
from qwenlong_jax.data.synthesis.triples import Triple, extract
from qwenlong_jax.llm import Completion
from qwenlong_jax.llm.endpoint import Endpoint
from qwenlong_jax.llm.wire import Settings

SYLLABLES = ("ba", "ko", "ri", "du", "sel", "mon", "ta", "ven", "or", "lim")
COUNT = 30
FACT = re.compile(
  r"(The port of \w+|\w+ \w+|\w+) (is the engineer of|engineered|lies beside|was chartered in) ([\w ]+)\."
)


OF_FIRST = re.compile(r"(Ada \w+) is the engineer of the (port of \w+)")


def length(text: str) -> int:
  return len(text) // 4 + 1


def named(kind: str) -> list[str]:
  rng = np.random.default_rng(len(kind))
  return list(dict.fromkeys("".join(rng.choice(SYLLABLES, 3)).capitalize() + kind for _ in range(2 * COUNT)))[:COUNT]


def world() -> list:
  """Engineers of ports, ports beside towns, towns with a year: a fact a document, among paragraphs that say nothing."""
  people, ports, towns = ([f"Ada {name}" for name in named("son")], named("aven"), named("ton"))
  rng = np.random.default_rng(3)
  talk = lambda: " ".join("".join(rng.choice(SYLLABLES, 3)) for _ in range(60)) + "."  # noqa: E731
  told = [f"{person} is the engineer of the port of {port}." for person, port in zip(people, ports)]
  told += [f"The port of {port} lies beside {town}." for port, town in zip(ports, towns)]
  told += [f"{town} was chartered in {1200 + 7 * n}." for n, town in enumerate(towns)]
  return [document(f"d{n}", "\n\n".join([talk(), one, talk(), talk()]), f"Page {n}") for n, one in enumerate(told)]


def reads(prompt: str, sample: int) -> str:
  """An extractor that finds all facts, and agrees to them."""
  if "Which passages do not make" in prompt:
    return '{"unstated": [], "shared": []}'
  found = [match for match in FACT.finditer(prompt) if "\n\n" not in match[0]]
  triples = [{"head": m[1], "relation": m[2], "tail": m[3], "quote": m[0]} for m in found]
  return json.dumps({"triples": triples})


EXTRACTOR = Scripted(reads, "extractor")


def ground(documents: list, engine: Completion = EXTRACTOR) -> Ground:
  done = extract(documents, engine, engine, Prompts.load())
  assert not done.rejected
  corpus = corpora.make("train", "general", "0000", documents, lambda texts: [length(text) for text in texts])
  return Ground(corpus, merge(done.triples, documents))


@pytest.fixture(scope="module")
def found() -> Ground:
  return ground(world())


def samples(ground: Ground, count: int) -> list:
  return [sample(ground, Order("multi_hop", n, 0, (2500,)), length)[0] for n in range(count)]


def solved(question: str, context: str) -> set[str]:
  """All values of the last unknown, by a search over the sentences of the context alone."""
  facts = [(m[1].casefold(), m[2], m[3].casefold()) for m in FACT.finditer(context)]
  bindings: list[dict[str, str]] = [{}]
  for head, relation, tail in re.findall(rf'"(\S.*?) ({"|".join({r for _, r, _ in facts})}) (.*?)"', question):
    bindings = [
      {**known, **{end: value for end, value in ((head, h), (tail, t)) if end in "XYZ"}}
      for known in bindings
      for h, r, t in facts
      if r == relation and all(known.get(e, v if e in "XYZ" else e.casefold()) == v for e, v in ((head, h), (tail, t)))
    ]
  return {known[max(known)] for known in bindings}


def test_the_only_answer_that_a_search_of_the_context_finds_is_the_answer(found):
  made = samples(found, 12)
  assert None not in made and len({one.question for one in made}) == 12
  for one in made:
    assert solved(one.question, one.context) == {one.answer.casefold()}
    program = json.loads(json.dumps(asdict(one)))["provenance"]["program"]
    assert agree(one.answer, solve(program, one.context).value) and not unsaid(one.question, program)
    assert one.answer in one.provenance["candidates"] and len(set(one.provenance["candidates"])) > 2
  assert {len(one.provenance["program"]["steps"]) for one in made} == {2, 3}


def test_a_path_crosses_documents_and_says_where_it_comes_from(found):
  for one in samples(found, 6):
    steps = one.provenance["program"]["steps"]
    assert len({span.document for span in one.evidence}) == len(steps)
    for span, step in zip(one.evidence, steps):
      assert one.context[span.start : span.end] == step["quote"]
    assert one.provenance["model"] == "extractor"
    assert one.provenance["program"]["prompts"] == [Prompts.load().triples.version]
    hidden = [name for names in one.provenance["program"]["names"][1:] for name in names]
    assert not any(name.casefold() in one.question.casefold() for name in hidden)
  assert samples(found, 2) == samples(found, 2)


def test_the_checker_sees_a_broken_path(found):
  one = samples(found, 1)[0]
  program = one.provenance["program"]
  cut = one.context.replace(program["steps"][1]["quote"], "")
  elsewhere = program | {"anchor": "Nobody"}
  with pytest.raises(Unclear, match="no excerpt says"):
    solve(program, cut)
  with pytest.raises(Unclear, match="breaks off"):
    solve(elsewhere, one.context)


def test_a_fact_whose_sentence_goes_on_to_another_end_is_no_step(found):
  one = samples(found, 1)[0].provenance["program"]["steps"][1]
  assert about(found, "X " + one["relation"] + " Y") is not None
  edges = [
    replace(edge, triples=tuple(replace(t, shared=t.relation == one["relation"]) for t in edge.triples))
    for edge in found.graph.edges
  ]
  assert about(Ground(found.corpus, replace(found.graph, edges=tuple(edges))), "X " + one["relation"] + " Y") is None


def test_a_path_whose_answer_stands_in_an_earlier_passage_is_not_asked_about():
  named = [("Ada Morn", "heads", "Partisans"), ("Ada Morn", "is called", "Tira")]
  texts = ["The Partisans were headed by Ada Morn (aka Tira).", "Ada Morn was called Tira."]
  for text in (texts[0], texts[0].replace(" (aka Tira)", "")):
    documents = [document("a", text), document("b", texts[1])]
    triples = [
      Triple(*one, of.id, 0, len(of.text), of.text.index(one[0]), of.text.index(one[2]))
      for one, of in zip(named, documents)
    ]
    corpus = corpora.make("train", "general", "0000", documents, lambda texts: [length(text) for text in texts])
    of = Ground(corpus, merge(triples, documents))
    drafts = (draft(np.random.default_rng(n), of, 0) for n in range(20))
    asked = [found for found in drafts if found and '"X heads Partisans"; "X is called Y"' in found.query]
    assert bool(asked) is ("aka" not in text)


def about(of: Ground, statement: str) -> Draft | None:
  """A draft with this statement in it, if one of many has it."""
  drafts = (draft(np.random.default_rng(n), of, 0) for n in range(60))
  return next((found for found in drafts if found and f'"{statement}"' in found.query), None)


@pytest.mark.parametrize(
  ("text", "asked"),
  [
    ("{person} is the engineer of the port of Nowhere.", False),
    # The same relation by a stem, and the same name in another case.
    ("{shouted} engineered the port of Nowhere.", False),
    ("{person} is the engineer of the {port}.", True),
    ("Ida Horn is the engineer of the port of Nowhere.", True),
  ],
)
def test_a_step_with_two_ends_in_the_graph_is_not_asked_about(text, asked):
  documents = world()
  person, port = OF_FIRST.match(documents[0].text.split("\n\n")[1]).groups()
  text = text.format(person=person, shouted=person.upper(), port=port)
  of = ground([*documents, document("other", f"Something.\n\n{text}", "Another")])
  assert (about(of, f"{person} is the engineer of X") is not None) is asked


@pytest.mark.parametrize(
  ("text", "title", "bears"),
  [
    ("Nothing of note.", "Elsewhere", True),
    ("{person} had been the first engineer at Tarn.", "Elsewhere", False),
    ("The engineers of Tarn\nadmired {shouted}.", "Elsewhere", False),
    ("So did the engineer.", "The life of {person}", False),
    ("So did the engineer.", "Elsewhere", True),
    ("{person} went home.", "Elsewhere", True),
    ("{person} is the engineer of the {port}.", "Elsewhere", True),
    # Behind a pronoun it is not seen, as the module says.
    ("{person} went home.\n\nThe engineer of Tarn was the same.", "Elsewhere", True),
  ],
)
def test_a_context_that_may_state_another_end_is_refused(found, text, title, bears):
  documents = found.corpus.documents
  person, port = OF_FIRST.match(documents[0].text.split("\n\n")[1]).groups()
  filled = [one.format(person=person, shouted=person.upper(), port=port) for one in (text, title)]
  wider = corpora.make("train", "general", "0000", [*documents, document("extra", *filled)], lambda t: [1] * len(t))
  asked = about(Ground(wider, found.graph), f"{person} is the engineer of X")
  assert asked is not None
  shown = sorted({number for number, *_ in asked.evidence} | {COUNT - 1, 2 * COUNT - 1})
  pages = [(number, tuple(range(len(wider.sections[number])))) for number in [*shown, len(documents)]]
  assert (asked.ask(render(wider, pages)) is not None) is bears
  assert asked.accept(*pages[-1]) is bears


def test_over_http_the_same_questions_come_out(found, tmp_path):
  with Loopback(lambda body, hit: says(reads(prompt_of(body), 0))) as server:
    again = ground(world(), Endpoint(Settings(server.url, "served", tmp_path)))
  assert [one.question for one in samples(again, 2)] == [one.question for one in samples(found, 2)]
  assert samples(again, 1)[0].provenance["model"] == "served"
