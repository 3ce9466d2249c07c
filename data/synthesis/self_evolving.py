"""The self-evolving trio (section 3): questions that get harder from round to round because their writer sees the last.

For each cluster of documents and each round: a proposer writes a question and its answer, from the second round on with
the history before its eyes (to be harder and different); a solver answers several times from the documents alone; a
verifier says which answers mean the same. What was solved at least once goes into the history, and into the data unless
it was solved every time, or the verifier, with the documents before its eyes, finds that it has another answer too: who
keeps what is solved sometimes, keeps what is ambiguous.

Everything is a function of the replies: with replies that are kept on disk, a rerun pays nothing and ends the same.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from qwenlong_jax.data.documents import Document
from qwenlong_jax.data.prompts import Prompts
from qwenlong_jax.data.synthesis.course import Course, Evolved, Past, Round, Trio, check, key_of
from qwenlong_jax.data.synthesis.proposals import Proposal, laid_out, ruled, told
from qwenlong_jax.data.verification_by_model import Panel, Rejection, Tally, solving, tally, verdict
from qwenlong_jax.llm import Completion, Request, ask, fenced
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
  "never_solved", "never_rewarded", "always_solved", "unchecked", "unsound". Raises ValueError for a course that can
  keep nothing, and for two clusters of the same documents.
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
    promising, failed = _decided(drafts, tallies, course)
    kept, unsound = _sound(promising, trio.verifier, prompts, course)
    examples += kept
    rejected += refused + failed + unsound
    rounds.append(_round(number, len(turns), tallies, len(kept), refused + failed + unsound))
  return Evolved(tuple(examples), tuple(rejected), tuple(rounds))


def _turns(state: _Cluster, place: int, number: int, course: Course, prompts: Prompts) -> list[_Turn]:
  """The requests of one cluster and round; kinds take turns over clusters, rounds and proposals."""
  turns = []
  for index in range(course.proposals):
    at = (number - 1) * course.proposals + index
    kind = course.kinds[(place + at) % len(course.kinds)]
    prompt = prompts.harder if state.history else prompts.propose
    values: dict[str, object] = {
      "documents": fenced(list(map(told, state.documents))),
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
      provenance=_provenance(turn, reply.model, course, reply.value.fits),
    )
    drafts.append((turn, example))
  return drafts, rejected


def _decided(
  drafts: Sequence[tuple[_Turn, Example]], tallies: Sequence[Tally], course: Course
) -> tuple[list[tuple[_Turn, Example, Tally]], list[Rejection]]:
  """Sorts by how often the solver was right; what it always was goes into the history at once."""
  promising, rejected = [], []
  for (turn, example), one in zip(drafts, tallies):
    always = one.right == one.samples and not course.keep_always_solved
    if always:
      turn.cluster.history.append(_past(example, one))
    if reason := one.useless or ("always_solved" if always else ""):
      detail = one.open or f"right {one.right} of {one.samples} times: {example.question} ({example.answer})"
      rejected.append(Rejection(example.id, reason, detail))
    else:
      promising.append((turn, example, one))
  return promising, rejected


def _sound(
  promising: Sequence[tuple[_Turn, Example, Tally]], verifier: Completion, prompts: Prompts, course: Course
) -> tuple[list[Example], list[Rejection]]:
  """What the verifier finds to have no other answer, with its checks; it goes into the history."""
  asked = [_checking(turn, example, prompts, course) for turn, example, _ in promising]
  kept, rejected = [], []
  for (turn, example, one), reply in zip(promising, verifier.complete(asked)):
    said = None if reply.failure else verdict(reply.text)
    if said:
      turn.cluster.history.append(_past(example, one))
      kept.append(_judged(example, one, prompts, reply.model))
    else:
      detail = f"{example.question} ({example.answer}): {reply.failure or reply.text}"[:400]
      rejected.append(Rejection(example.id, "unchecked" if said is None else "unsound", detail))
  return kept, rejected


def _checking(turn: _Turn, example: Example, prompts: Prompts, course: Course) -> Request:
  documents = fenced(list(map(told, turn.cluster.documents)))
  texts = fenced([example.question, example.answer], "text")
  return ask(prompts.sound.fill(documents=documents, texts=texts), sampling=course.judging)


def _past(example: Example, one: Tally) -> Past:
  return Past(example.question, example.answer, one.right, one.samples)


def _provenance(turn: _Turn, model: str, course: Course, fits: bool) -> dict[str, Any]:
  """What is of no kind that was asked for, is of the general one."""
  documents = [
    {"document": document.id, "domain": document.domain, "source": asdict(document.source)}
    for document in turn.cluster.documents
  ]
  return {
    "generator": f"self_evolving/{VERSION}",
    "reward": "rule",
    "documents": documents,
    "kind": turn.kind if fits else "reading",
    "round": turn.round,
    "seed": course.seed,
    "models": {"proposer": model},
    "prompts": {"proposer": turn.version},
    "checks": {"rules": asdict(course.rules)},
  }


def _judged(example: Example, one: Tally, prompts: Prompts, judge: str) -> Example:
  past = example.provenance
  counts = {"right": one.right, "rewarded": one.rewarded, "samples": one.samples, "failures": one.failures}
  versions = {"solver": prompts.solve.version, "verifier": prompts.verify.version, "sound": prompts.sound.version}
  provenance = {
    **past,
    "models": {**past["models"], "solver": one.solver, "verifier": one.verifier, "sound": judge},
    "prompts": {**past["prompts"], **versions},
    "checks": {**past["checks"], "solved": counts},
  }
  return replace(example, provenance=provenance)


def _round(number: int, proposed: int, tallies: Sequence[Tally], kept: int, rejected: Sequence[Rejection]) -> Round:
  rates = [one.right / one.samples for one in tallies if not one.open]
  reasons = dict(sorted(Counter(one.reason for one in rejected).items()))
  return Round(number, proposed, len(tallies), kept, sum(rates) / len(rates) if rates else None, reasons)


def _told(past: Past) -> str:
  return f"{past.question}\nAnswer: {past.answer}\nAnswered right {past.right} of {past.samples} times."
