import json
import re

import pytest
from loopback import Loopback, prompt_of, says
from scripted import Scripted, document

from qwenlong_jax.data.prompts import Prompts
from qwenlong_jax.data.synthesis.synonyms import synonyms
from qwenlong_jax.data.synthesis.triple_graph import merge
from qwenlong_jax.data.synthesis.triples import Triple
from qwenlong_jax.llm import Reply
from qwenlong_jax.llm.endpoint import Endpoint
from qwenlong_jax.llm.wire import Settings

WORDS = Prompts.load()
# In the alphabet: 1 built, 2 constructed, 3 was born in, 4 was erected by, 5 was the builder of
FACTS = [
  ("a", "Ada Morn", "built", "Vell Quay"),
  ("b", "Ada Morn", "was the builder of", "Orm Quay"),
  ("c", "Ida Horn", "constructed", "Vell Quay"),
  ("d", "Orm Quay", "was erected by", "Ada Morn"),
  ("d", "Ada Morn", "was born in", "Orm"),
  ("d", "Ada Morn", "constructed", "Tarn Quay"),
  ("e", "Ada Morn", "Built", "Ness Quay"),
]
TRIPLES = [Triple(head, relation, tail, of, 0, 1, 0, 0) for of, head, relation, tail in FACTS]


def engine(groups: list[list[int]], *, refuses: str = "nothing") -> Scripted:
  def line(prompt: str, sample: int) -> str:
    return json.dumps({"groups": groups}) if "groups" in prompt else "[[NO]]" if refuses in prompt else "[[YES]]"

  return Scripted(line)


def test_a_group_is_what_the_model_says_and_confirms_pair_by_pair():
  asked = engine([[1, 2, 5]])
  done = synonyms(TRIPLES, asked, WORDS)
  assert done.groups == (("built", "constructed", "was the builder of"),) and not done.rejected
  shown = re.findall(r"^\d\. (.*)$", asked.asked[0].messages[-1].content, re.MULTILINE)
  assert shown == ["built", "constructed", "was born in", "was erected by", "was the builder of"]
  assert len(asked.asked) == 3 and "built" in asked.asked[1].messages[-1].content
  graph = merge(TRIPLES, [document(name, "") for name in "abcde"], done.groups)
  builds = {edge.relation for edge in graph.edges if "built" in edge.relation.wordings}
  assert len(builds) == 1 and builds.pop().stems == {"built", "const", "build"}


@pytest.mark.parametrize(
  ("groups", "refuses", "left", "reasons"),
  [
    ([[1, 5, 2]], "constructed", (("built", "was the builder of"),), ["different"]),
    ([[1, 2], [2, 5]], "nothing", (("built", "constructed"),), ["repeated"]),
    ([[1, 0, 6]], "nothing", (), ["unknown", "unknown"]),
    # Document d says of Ada Morn that she constructed one thing and was born in another.
    ([[2, 3]], "nothing", (), ["told_apart"]),
    ([[4]], "nothing", (), []),
    ([], "nothing", (), []),
  ],
)
def test_what_is_not_confirmed_or_told_apart_is_no_synonym(groups, refuses, left, reasons):
  done = synonyms(TRIPLES, engine(groups, refuses=refuses), WORDS)
  assert done.groups == left and [one.reason for one in done.rejected] == reasons


def test_replies_that_cannot_be_used_join_nothing():
  silent = Scripted(lambda prompt, sample: Reply("", "timeout"))
  assert [one.reason for one in synonyms(TRIPLES, silent, WORDS).rejected] == ["grouper_timeout"]
  unsure = Scripted(lambda prompt, sample: '{"groups": [[1, 2]]}' if "groups" in prompt else "perhaps")
  assert [one.reason for one in synonyms(TRIPLES, unsure, WORDS).rejected] == ["verifier_undecided"]


def test_over_http(tmp_path):
  with Loopback(lambda body, hit: says('{"groups": [[1, 2]]}' if "groups" in prompt_of(body) else "[[YES]]")) as server:
    done = synonyms(TRIPLES, Endpoint(Settings(server.url, "served", tmp_path)), WORDS)
  assert done.groups == (("built", "constructed"),)
