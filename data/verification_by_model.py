"""Checks that take a model, for examples of any task: can it be solved, without the documents, with distractors?

A solver draws several answers to each example. Quantities and letters of options are judged by the rule that gives the
reward; of other answers a verifier says which mean the same as the ground truth, unless they are its very words. Two
screens of section 3 rest on that: `grounded` drops what is answered without documents (the model knew it), `robust`
what is never answered from the full context (pass@k = 0), or never in words that the rule would reward. Whoever passes
says so in `provenance["checks"]`.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qwenlong_jax.data.prompts import Prompts
from qwenlong_jax.llm import Completion, Reply, Request, Sampling, ask, fenced, samples
from qwenlong_jax.rewards.numbers import quantity
from qwenlong_jax.rewards.rules import rule, stated_answer, tokens
from qwenlong_jax.types import Example

_VERDICT = re.compile(r"\[\[\s*(YES|NO)\s*\]\]", re.IGNORECASE)
_LONGEST_ANSWER = 2000
# Failures that are the model's answer: it does not know. Any other leaves the question open.
_GAVE_UP = ("refusal", "empty", "length")
_USUAL = Sampling()
GREEDY = Sampling(temperature=0.0, top_p=None, max_tokens=512)


@dataclass(frozen=True)
class Rejection:
  """What did not become an example, and why: in one word (`reason`) and in a line (`detail`)."""

  id: str
  reason: str
  detail: str = ""


@dataclass(frozen=True)
class Checked:
  """`kept` in their order, with the check's result in their provenance."""

  kept: tuple[Example, ...]
  rejected: tuple[Rejection, ...]


@dataclass(frozen=True)
class Panel:
  """Who answers and who judges. Without a verifier the rule judges all. `samples` answers are drawn for each."""

  solver: Completion
  verifier: Completion | None
  prompts: Prompts
  samples: int = 4
  sampling: Sampling = _USUAL
  judging: Sampling = GREEDY


@dataclass(frozen=True)
class Tally:
  """How the answers to one example came out; `failures` counts those without an answer or without a verdict, `rewarded`
  the right ones that the rule calls right too.
  """

  right: int
  rewarded: int
  samples: int
  failures: dict[str, int]
  solver: str = ""
  verifier: str = ""

  @property
  def open(self) -> str:
    """Why nothing is known: nobody answered, or nobody judged; "" if something is."""
    lost = {name: count for name, count in self.failures.items() if name not in _GAVE_UP}
    return ", ".join(sorted(lost)) if sum(lost.values()) == self.samples else ""

  @property
  def useless(self) -> str:
    """Why there is nothing to learn from it: "unchecked", "never_solved", "never_rewarded"; "" if there is."""
    if self.open:
      return "unchecked"
    return "never_solved" if not self.right else "" if self.rewarded else "never_rewarded"

  def record(self, *prompts: str) -> dict[str, Any]:
    """Plain values for the provenance."""
    models = {"solver": self.solver, "verifier": self.verifier}
    counts = {"right": self.right, "rewarded": self.rewarded, "samples": self.samples, "failures": self.failures}
    return {**counts, **models, "prompts": list(prompts)}


def grounded(examples: Sequence[Example], panel: Panel, most: int = 0) -> Checked:
  """Drops what the solver gets right more than `most` times without the documents ("known").

  A guess among four options is right every fourth time: allow `most` for multiple choice. "unchecked": no attempt came
  to a verdict.
  """
  words = panel.prompts
  tallies = tally(examples, panel, lambda example: words.blind.fill(question=example.question))
  versions = (words.blind.version, words.verify.version)
  return _sorted(examples, tallies, "grounded", versions, lambda one: "known" if one.right > most else "")


def robust(examples: Sequence[Example], panel: Panel) -> Checked:
  """Drops what the solver never gets right from the whole context, distractors included ("never_solved"), or never in
  words that the rule would reward ("never_rewarded").
  """
  words = panel.prompts
  versions = (words.solve.version, words.verify.version)
  tallies = tally(examples, panel, lambda example: solving(example, words))
  return _sorted(examples, tallies, "robust", versions, lambda one: one.useless)


def solving(example: Example, words: Prompts) -> str:
  """The prompt of a solver who sees the whole context and nothing else."""
  return words.solve.fill(documents=fenced([example.context]), question=example.question)


def tally(examples: Sequence[Example], panel: Panel, prompt: Callable[[Example], str]) -> list[Tally]:
  """Asks the solver about every example, then the verifier about the answers that no rule settles; one batch each."""
  asked = [samples(ask(prompt(example), sampling=panel.sampling), panel.samples) for example in examples]
  replies = _dealt(panel.solver, asked)
  answers = [
    [_attempted(example, reply, panel) for reply in of_one] for example, of_one in zip(examples, replies)
  ]
  doubtful = [
    [_question_of(example, one.answer, panel) for one in of_one if one.doubtful]
    for example, of_one in zip(examples, answers)
  ]
  verdicts = _dealt(panel.verifier, doubtful) if panel.verifier else [[] for _ in examples]
  return [_tallied(*each) for each in zip(replies, answers, verdicts)]


def verdict(text: str) -> bool | None:
  """What the verifier decides; None unless it says exactly one of [[YES]] and [[NO]]."""
  said = {word.upper() for word in _VERDICT.findall(text)}
  return said == {"YES"} if len(said) == 1 else None


def has_verdict(text: str) -> bool:
  """Whether a text tries to speak for the verifier."""
  return bool(_VERDICT.search(text))


@dataclass(frozen=True)
class _Attempt:
  """The answer that a reply commits to, or why there is none; what is `doubtful` the verifier has to judge."""

  answer: str
  failure: str = ""
  right: bool = False
  rewarded: bool = False
  doubtful: bool = False


def _attempted(example: Example, reply: Reply, panel: Panel) -> _Attempt:
  if reply.failure:
    return _Attempt("", reply.failure)
  answer = stated_answer(reply.text)[-_LONGEST_ANSWER:]
  if has_verdict(answer) or not answer:
    return _Attempt("", "verdict_in_answer" if answer else "empty")
  choices = example.task == "multiple_choice"
  rewarded = rule(example.answer, reply.text, choices=choices).reward == 1.0
  settled = panel.verifier is None or choices or quantity(example.answer) is not None
  same = _words(answer) == _words(example.answer) != []
  return _Attempt(answer, "", rewarded if settled else same, rewarded, not (settled or same))


def _words(text: str) -> list[str]:
  found = tokens(text)
  return found[1:] if found[:1] in (["the"], ["a"], ["an"]) else found


def _question_of(example: Example, answer: str, panel: Panel) -> Request:
  texts = fenced([example.question, example.answer, answer], "text")
  return ask(panel.prompts.verify.fill(texts=texts), sampling=panel.judging)


def _tallied(replies: Sequence[Reply], answers: Sequence[_Attempt], verdicts: Sequence[Reply]) -> Tally:
  """`verdicts` of the doubtful answers, in their order."""
  failures = Counter(one.failure for one in answers if one.failure)
  right = [one for one in answers if one.right]
  for one, reply in zip([one for one in answers if one.doubtful], verdicts, strict=True):
    said = None if reply.failure else verdict(reply.text)
    right += [one] if said else []
    failures.update([f"verifier_{reply.failure or 'undecided'}"] if said is None else [])
  judges = {reply.model for reply in verdicts if reply.model}
  settled = any(not one.failure and not one.doubtful for one in answers)
  return Tally(
    right=len(right),
    rewarded=sum(one.rewarded for one in right),
    samples=len(replies),
    failures=dict(sorted(failures.items())),
    solver=", ".join(sorted({reply.model for reply in replies if reply.model})),
    verifier=", ".join(sorted(judges | ({"rule"} if settled else set()))),
  )


def _sorted(
  examples: Sequence[Example],
  tallies: Sequence[Tally],
  check: str,
  versions: Sequence[str],
  fails: Callable[[Tally], str],
) -> Checked:
  kept, rejected = [], []
  for example, one in zip(examples, tallies):
    reason = "unchecked" if one.open else fails(one)
    if reason:
      rejected.append(Rejection(example.id, reason, one.open or f"right {one.right} of {one.samples} times"))
    else:
      kept.append(with_check(example, check, one.record(*versions)))
  return Checked(tuple(kept), tuple(rejected))


def with_check(example: Example, name: str, result: Any) -> Example:
  """The example with one more result under `provenance["checks"]`."""
  checks = {**example.provenance.get("checks", {}), name: result}
  return replace(example, provenance={**example.provenance, "checks": checks})


def _dealt(engine: Completion, groups: Sequence[Sequence[Request]]) -> list[list[Reply]]:
  """Completes all groups in one batch; the replies in groups again."""
  replies = iter(engine.complete([request for group in groups for request in group]))
  return [[next(replies) for _ in group] for group in groups]
