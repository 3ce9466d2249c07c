"""The self-evolving trio (section 3): questions that get harder from round to round because their writer sees the last.

For each cluster of documents and each round: a proposer writes a question and its answer, from the second round on with
the history before its eyes (to be harder and different); a solver answers several times from the documents alone; a
verifier says which answers mean the same. What was solved at least once goes into the history, and into the data unless
it was solved every time.

Everything is a function of the replies: with replies that are kept on disk, a rerun pays nothing and ends the same.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from qwenlong_jax.data.documents import Document
from qwenlong_jax.data.prompts import Prompts
from qwenlong_jax.data.synthesis.course import Course, Evolved, Past, Round, Trio, check, key_of
from qwenlong_jax.data.synthesis.proposals import Proposal, laid_out, ruled
from qwenlong_jax.data.verification_by_model import Panel, Rejection, Tally, solving, tally
from qwenlong_jax.llm import Request, ask, fenced
from qwenlong_jax.llm.structured import Parsed, ask_json
from qwenlong_jax.types import Example

VERSION = 1


@dataclass
class _Cluster:
  """Documents, and what was asked about them: `history` is shown to the proposer, `asked` must not be repeated."""

  key: str
  documents: tuple[Document, ...]
  history: list[Past] = field(default_factory=list)
  asked: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Turn:
  """One request to the proposer."""

  id: str
  cluster: _Cluster
  kind: str
  round: int
  version: str
  request: Request


def evolve(clusters: Sequence[Sequence[Document]], trio: Trio, course: Course, prompts: Prompts) -> Evolved:
  """Runs the course over clusters of documents; a cluster's documents are its examples' context, in their order.

  Reasons for a rejection, beside those of `proposals`: "proposer_" and a failure of the reply or of its JSON,
  "never_solved", "always_solved", "unchecked". Raises ValueError for a course that can keep nothing, and for two
  clusters of the same documents.
  """
  check(clusters, course)
  states = [_Cluster(key_of(documents), tuple(documents)) for documents in clusters]
  sampling = replace(course.solving, seed=course.seed)
  panel = Panel(trio.solver, trio.verifier, prompts, course.samples, sampling, course.judging)
  examples: list[Example] = []
  rejected: list[Rejection] = []
  rounds: list[Round] = []
  for number in range(1, course.rounds + 1):
    turns = [turn for place, state in enumerate(states) for turn in _turns(state, place, number, course, prompts)]
    parsed = ask_json(trio.proposer, [turn.request for turn in turns], Proposal)
    drafts, refused = _drafts(turns, parsed, course)
    tallies = tally([draft for _, draft in drafts], panel, lambda example: solving(example, prompts))
    kept, failed = _decided(drafts, tallies, course, prompts)
    examples += kept
    rejected += refused + failed
    rounds.append(_round(number, len(turns), tallies, len(kept), refused + failed))
  return Evolved(tuple(examples), tuple(rejected), tuple(rounds))


def _turns(state: _Cluster, place: int, number: int, course: Course, prompts: Prompts) -> list[_Turn]:
  """The requests of one cluster and round; kinds take turns over clusters, rounds and proposals."""
  turns = []
  for index in range(course.proposals):
    at = (number - 1) * course.proposals + index
    kind = course.kinds[(place + at) % len(course.kinds)]
    prompt = prompts.harder if state.history else prompts.propose
    values: dict[str, object] = {
      "documents": fenced([f"{document.title}\n\n{document.text}".strip() for document in state.documents]),
      "kind": getattr(prompts, kind).text,
      "words": course.rules.longest_answer,
    }
    if state.history:
      values["history"] = fenced([_told(past) for past in state.history[-course.remembered :]], "question")
    # The sample's number sets rounds apart that would send the same words.
    request = ask(prompt.fill(**values), sampling=replace(course.proposing, seed=course.seed), sample=at)
    id = f"self_evolving/{course.seed}/{state.key}/{number}/{index}"
    turns.append(_Turn(id, state, kind, number, f"{prompt.version} {getattr(prompts, kind).version}", request))
  return turns


def _drafts(
  turns: Sequence[_Turn], parsed: Sequence[Parsed[Proposal]], course: Course
) -> tuple[list[tuple[_Turn, Example]], list[Rejection]]:
  """What passes the rules, as examples that nobody has tried yet."""
  drafts, rejected = [], []
  for turn, reply in zip(turns, parsed):
    if reply.value is None:
      rejected.append(Rejection(turn.id, f"proposer_{reply.failure}", reply.detail))
      continue
    passed = ruled(reply.value, turn.cluster.documents, turn.cluster.asked, course.rules)
    if passed.reason:
      rejected.append(Rejection(turn.id, passed.reason, passed.detail))
      continue
    turn.cluster.asked.append(reply.value.question.strip())
    example = Example(
      id=turn.id,
      task="reading_comprehension",
      context=laid_out(turn.cluster.documents)[0],
      question=reply.value.question.strip(),
      answer=reply.value.answer.strip(),
      evidence=passed.evidence,
      provenance=_provenance(turn, reply.model, course),
    )
    drafts.append((turn, example))
  return drafts, rejected


def _decided(
  drafts: Sequence[tuple[_Turn, Example]], tallies: Sequence[Tally], course: Course, prompts: Prompts
) -> tuple[list[Example], list[Rejection]]:
  """Sorts by how often the solver was right, and writes the history."""
  kept, rejected = [], []
  for (turn, example), one in zip(drafts, tallies):
    if one.right:
      turn.cluster.history.append(Past(example.question, example.answer, one.right, one.samples))
    always = one.right == one.samples and not course.keep_always_solved
    reason = "unchecked" if one.open else "never_solved" if not one.right else "always_solved" if always else ""
    if reason:
      detail = one.open or f"right {one.right} of {one.samples} times: {example.question} ({example.answer})"
      rejected.append(Rejection(example.id, reason, detail))
    else:
      kept.append(_judged(example, one, prompts))
  return kept, rejected


def _provenance(turn: _Turn, model: str, course: Course) -> dict[str, Any]:
  documents = [
    {"document": document.id, "domain": document.domain, "source": asdict(document.source)}
    for document in turn.cluster.documents
  ]
  return {
    "generator": f"self_evolving/{VERSION}",
    "reward": "rule",
    "documents": documents,
    "kind": turn.kind,
    "round": turn.round,
    "seed": course.seed,
    "models": {"proposer": model},
    "prompts": {"proposer": turn.version},
    "checks": {"rules": asdict(course.rules)},
  }


def _judged(example: Example, one: Tally, prompts: Prompts) -> Example:
  past = example.provenance
  solved = {"right": one.right, "samples": one.samples, "failures": one.failures}
  versions = {"solver": prompts.solve.version, "verifier": prompts.verify.version}
  provenance = {
    **past,
    "models": {**past["models"], "solver": one.solver, "verifier": one.verifier},
    "prompts": {**past["prompts"], **versions},
    "checks": {**past["checks"], "solved": solved},
  }
  return replace(example, provenance=provenance)


def _round(number: int, proposed: int, tallies: Sequence[Tally], kept: int, rejected: Sequence[Rejection]) -> Round:
  rates = [one.right / one.samples for one in tallies if not one.open]
  reasons = dict(sorted(Counter(one.reason for one in rejected).items()))
  return Round(number, proposed, len(tallies), kept, sum(rates) / len(rates) if rates else None, reasons)


def _told(past: Past) -> str:
  return f"{past.question}\nAnswer: {past.answer}\nAnswered right {past.right} of {past.samples} times."
