"""Questions of templates in a model's words, kept where they lead back to the template's result (section 3).

One model rewrites the question; rules see to what may not change; then a model that sees the new question alone writes
a query for it, and its result must be the template's. Where anything fails, the template's wording stays.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from qwenlong_jax.data.prompts import Prompts
from qwenlong_jax.data.synthesis.graph import rounded
from qwenlong_jax.data.synthesis.proposals import Rules, find, wording
from qwenlong_jax.data.synthesis.sql import run
from qwenlong_jax.data.synthesis.table_templates import facts
from qwenlong_jax.data.synthesis.text_to_sql import GREEDY, Sheet, Written, same, write_queries
from qwenlong_jax.data.verification_by_model import Rejection, with_check
from qwenlong_jax.llm import Completion, Sampling, ask, fenced
from qwenlong_jax.llm.structured import Parsed, Schema, ask_json
from qwenlong_jax.types import Example

_VARIED = Sampling(max_tokens=1024)
_RULES = Rules(longest_question=160, longest_answer=20)
_QUOTED = re.compile(r'"[^"]*"')
_NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?")
_FORM = ("percent", "negative", "decimal", "round")


class Rewritten(Schema):
  question: str


@dataclass(frozen=True)
class Paraphrased:
  """All examples in their order, reworded where that succeeded; `unchanged` says of the others why not."""

  examples: tuple[Example, ...]
  unchanged: tuple[Rejection, ...]

  @property
  def reasons(self) -> dict[str, int]:
    return dict(sorted(Counter(one.reason for one in self.unchanged).items()))


def paraphrase(
  examples: Sequence[Example],
  writer: Completion,
  reader: Completion,
  prompts: Prompts,
  sampling: Sampling = _VARIED,
  reading: Sampling = GREEDY,
) -> Paraphrased:
  """Rewords the questions of corpus_numeric that a query answers; other examples pass as they are.

  Reasons for the template's wording: "no_table" (the query does not give the answer on the program's table), "writer_"
  and a failure of the reply or of its JSON, those of `changed` and of `text_to_sql.write_queries`, "other_result".
  """
  asked = [one for one in examples if one.task == "corpus_numeric" and one.provenance["program"]["kind"] == "sql"]
  sound = [one for one in asked if reproduced(one)]
  lost = [Rejection(one.id, "no_table") for one in asked if one not in sound]
  told = [ask(prompts.paraphrase.fill(texts=fenced([one.question], "text")), sampling=sampling) for one in sound]
  drafts = [_draft(*pair) for pair in zip(sound, ask_json(writer, told, Rewritten))]
  good = [(one, draft) for one, draft in zip(sound, drafts) if isinstance(draft, _Draft)]
  queries = write_queries([(draft.question, sheet(one)) for one, draft in good], reader, prompts, reading)
  outcomes = [_decided(one, draft, query, prompts) for (one, draft), query in zip(good, queries)]
  reworded = {one.id: one for one in outcomes if isinstance(one, Example)}
  failed = [one for one in (*lost, *drafts, *outcomes) if isinstance(one, Rejection)]
  return Paraphrased(tuple(reworded.get(one.id, one) for one in examples), tuple(failed))


def sheet(example: Example) -> Sheet:
  """The table of the example's program, its columns by the names of their attributes."""
  program = example.provenance["program"]
  attributes = {letter: f'"{attribute}"' for letter, attribute in program["columns"].items()}
  if program["unit"] not in ("", "%"):
    attributes["x"] += f" in {program['unit']}"
  return Sheet(facts(program["table"]), {"name": "the title of the document that states it", **attributes})


def reproduced(example: Example) -> bool:
  """Whether the program's query gives the answer on the program's table."""
  program = example.provenance["program"]
  if "table" not in program:
    return False
  value = run(program["sql"], [facts(program["table"])]).cell
  if value is None:
    return False
  decimals, unit = program["decimals"], program["unit"]
  return example.answer == (value if decimals < 0 else rounded(float(value), decimals, unit))


def changed(question: str, example: Example) -> tuple[str, str]:
  """What a paraphrase lost or added that it may not, and a line on it; ("", "") if nothing.

  Reasons: those of `proposals.wording`, "unchanged", "number", "name" (in double quotes), "unit", "form" (how to
  round, percent, negative).
  """
  original, program = example.question, example.provenance["program"]
  if (found := wording(question, example.answer, _RULES))[0]:
    return found
  if question.casefold() == original.casefold():
    return "unchanged", question[:200]
  names = set(_QUOTED.findall(original)), set(_QUOTED.findall(question))
  if names[0] != names[1]:
    return "name", ", ".join(sorted(names[0] ^ names[1]))[:200]
  counts = _numbers(original), _numbers(question)
  if counts[0] != counts[1]:
    return "number", ", ".join(sorted((counts[0] - counts[1]) + (counts[1] - counts[0])))
  if program["unit"] not in ("", "%") and find(question, program["unit"], whole=program["unit"].isalpha()) is None:
    return "unit", program["unit"]
  form = [*_FORM, f"{program['decimals']} decimal"]
  missing = [word for word in form if word in original.casefold() and word not in question.casefold()]
  return ("form", ", ".join(missing)) if missing else ("", "")


@dataclass(frozen=True)
class _Draft:
  question: str
  model: str


def _draft(example: Example, reply: Parsed[Rewritten]) -> _Draft | Rejection:
  if reply.value is None:
    return Rejection(example.id, f"writer_{reply.failure}", reply.detail)
  question = straight(reply.value.question, example.question)
  reason, detail = changed(question, example)
  return Rejection(example.id, reason, detail) if reason else _Draft(question, reply.model)


def straight(question: str, known: str) -> str:
  """A question on one line, with straight double quotes for curly ones unless what is `known` has such itself."""
  line = " ".join(question.split())
  return line if set(known) & set("“”") else line.replace("“", '"').replace("”", '"')


def astray(example: Example, question: str, query: Written) -> Rejection | None:
  """Why a reader's query for a question does not come to what the example's own comes to; None if it does."""
  program = example.provenance["program"]
  if query.reason:
    return Rejection(example.id, query.reason, f"{query.detail} | {question}"[:400])
  if not same(program["sql"], query.sql, facts(program["table"]), program["decimals"]):
    return Rejection(example.id, "other_result", f"{query.value!r} by {query.sql} | {question}"[:400])
  return None


def _decided(example: Example, draft: _Draft, query: Written, prompts: Prompts) -> Example | Rejection:
  if lost := astray(example, draft.question, query):
    return lost
  record = {
    "original": example.question,
    "sql": query.sql,
    "models": {"writer": draft.model, "reader": query.model},
    "prompts": [prompts.paraphrase.version, prompts.query.version],
  }
  known = example.provenance | {"model": example.provenance.get("model") or draft.model}
  return with_check(replace(example, question=draft.question, provenance=known), "paraphrase", record)


def _numbers(question: str) -> Counter[str]:
  """How often each number stands outside of double quotes."""
  return Counter(number.replace(",", "") for number in _NUMBER.findall(_QUOTED.sub(" ", question)))
