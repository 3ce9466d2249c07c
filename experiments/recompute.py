"""The answer to a sample's program, from its context alone, and whether a stated one agrees with it.

Part of `check_data.py`. It shares no code with the generator: what both get wrong alike would pass.
"""

import re
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import recompute_facts as facts
from reread import Answer, Excerpt, Place, Quantity, Unclear, excerpts, held, quantity, speeches

# A word beside a digit or an underscore is one for some readers and not for others: both must come to the same.
_BESIDE = (r"[^\W\d_]", r"\w")


def _words(program: dict[str, Any], found: Sequence[Excerpt], context: str) -> Answer:
  if titled := [e.title for e in found if any(word in e.title.lower() for word in program["words"])]:
    raise Unclear(f"a word stands in the title {titled[0]!r}, which may be counted to its excerpt or not")
  loose = _held(program, found, context, _BESIDE[0])
  try:
    same = _held(program, found, context, _BESIDE[1]).value == loose.value
  except Unclear:
    same = False
  if not same:
    raise Unclear(f"it depends on whether {' and '.join(program['words'])} may be parts of names with _ or digits")
  return loose


def _held(program: dict[str, Any], found: Sequence[Excerpt], context: str, beside: str) -> Answer:
  places = [held(excerpt, program["words"], beside) for excerpt in found]
  both = [n for n, (one, other) in enumerate(places) if one and other]
  if len(both) != 1:
    raise Unclear(f"{len(both)} excerpts hold both of {program['words']}")
  needs = places[both[0]]
  if program["kind"] == "count":
    counted = [one for one, other in places if one and not other]
    return Answer(Quantity(len(counted), ""), [*needs, *counted])
  if program["kind"] == "opening":
    words = opening(found[both[0]])
    return Answer(" ".join(context[slice(*place)] for place in words), [*needs, *([place] for place in words)])
  if both[0] + 1 == len(found):
    raise Unclear("no excerpt follows")
  following = found[both[0] + 1]
  return Answer(following.title, [*needs, [following.head]])


def opening(excerpt: Excerpt) -> list[Place]:
  """Where its first words stand."""
  words = re.finditer(r"\w+", excerpt.body)
  return [(excerpt.start + word.start(), excerpt.start + word.end()) for word in islice(words, 6)]


def _needle(program: dict[str, Any], found: Sequence[Excerpt], context: str) -> Answer:
  held = [e for e in found if e.title == program["title"]]
  if len(held) != 1:
    raise Unclear(f"{len(held)} excerpts are titled {program['title']!r}")
  said = [place for name, place in speeches(held[0]) if name == program["speaker"]]
  if not program["number"] < len(said):
    raise Unclear(f"{program['speaker']} speaks {len(said)} times")
  start, end = said[program["number"]]
  text = context[start:end]
  start += len(text) - len(text.lstrip())  # the first line may be set in
  return Answer(text.strip(), [[(start, start + len(text.strip()))]])


def _agreement(program: dict[str, Any], found: Sequence[Excerpt], context: str) -> Answer:
  """The figures in the order in which they came into force. To go back twice is to undo two changes, or the first going
  back: both must come to the same."""
  as_change: list[str] = []
  as_undoing: list[str] = []
  left: list[str] = []
  needs: list[list[Place]] = []
  for match in re.finditer(r"^\w+: (.*)\n\w+: (.*)$", context, re.MULTILINE):
    if not re.search(rf"\b{re.escape(program['subject'])}\b", match[1]):
      continue
    needs.append([match.span()])
    if match[2].startswith("No,"):
      continue
    if "go back" in match[1]:
      left = left[:-1]
      as_change.append(as_change[-2] if len(as_change) > 1 else "none")
    else:
      left.append(re.findall(r"\d+", match[1].split(program["subject"])[1])[0])
      as_change.append(left[-1])
    as_undoing.append(left[-1] if left else "none")
  number = program["number"]
  if number >= len(as_change):
    raise Unclear(f"{len(as_change)} figures came into force")
  if as_change[number] != as_undoing[number]:
    raise Unclear(f"going back twice leads to {as_change[number]} or to {as_undoing[number]}")
  return Answer(as_change[number], needs)


def _request(program: dict[str, Any], found: Sequence[Excerpt], context: str) -> Answer:
  requests = re.finditer(r'^(\w+): Quote me a sentence with the word "(\w+)"\.\n\w+: (.+)$', context, re.MULTILINE)
  heard = [request for request in requests if (request[1], request[2]) == (program["person"], program["word"])]
  if not program["number"] < len(heard):
    raise Unclear(f"{program['person']} asks {len(heard)} times for {program['word']!r}")
  if unfit := [request[3] for request in heard if program["word"] not in request[3].lower()]:
    raise Unclear(f"{unfit[0]!r} does not hold {program['word']!r}")
  needs = [[place] for request in heard for place in ((request.start(), request.start(3)), request.span(3))]
  return Answer(heard[program["number"]][3], needs)


def _triples(program: dict[str, Any], found: Sequence[Excerpt], context: str) -> Answer:
  """That the passages stand here, hold both ends and make a chain; what they say of them, the program's word is taken
  for."""
  needs, chain = [], [[program["anchor"]], *program["names"][1:]]
  for step, nears, fars in zip(program["steps"], chain, chain[1:]):
    quote, ends = step["quote"], [step["head"], step["tail"]]
    near, end = ends if step["forward"] else ends[::-1]
    places = [(e.start + m.start(), e.start + m.end()) for e in found for m in re.finditer(re.escape(quote), e.body)]
    if not places or any(" ".join(one.split()) not in " ".join(quote.split()) for one in ends):
      raise Unclear(f"no excerpt says {quote!r}, or that does not hold {near!r} and {end!r}")
    if near not in nears or end not in fars:
      raise Unclear(f"the path breaks off between {near!r} and {end!r}")
    needs.append(places)
  return Answer(end, needs)


_SOLVE: dict[str, Callable[[dict[str, Any], Sequence[Excerpt], str], Answer]] = {
  "hop": facts.hop, "inverse": facts.inverse, "years": facts.years, "suppose": facts.suppose, "sql": facts.sql,
  "opening": _words, "count": _words, "both": _words, "needle": _needle, "agreement": _agreement, "request": _request,
  "triples": _triples,
}  # fmt: skip


def solve(program: dict[str, Any], context: str, found: Sequence[Excerpt] | None = None) -> Answer:
  """The program's answer, by all excerpts of the context or by `found`."""
  if program["kind"] not in _SOLVE:
    raise ValueError(f"a program of kind {program['kind']!r} is unknown; known: {', '.join(_SOLVE)}")
  return _SOLVE[program["kind"]](program, excerpts(context) if found is None else found, context)


def agree(stated: str, value: str | Quantity) -> bool:
  """Whether a stated answer has the value: as text, or as quantities where it is nothing else; of a value that was
  computed the last decimal decides."""
  if isinstance(value, str):
    if " ".join(stated.split()) == " ".join(value.split()):
      return True
    if re.search(r"[(;]|,\s", stated + value):
      return False
  mine, right = (v if isinstance(v, Quantity) else quantity(v) for v in (stated, value))
  if mine is None or right is None or mine.unit != right.unit:
    return False
  decimals = value.decimals if isinstance(value, Quantity) and value.decimals is not None else 9
  return abs(mine.number - right.number) <= 10**-decimals / 100 + 1e-12 * abs(right.number)


def says(question: str, program: dict[str, Any]) -> list[str]:
  """What of the program the question does not say."""
  numbers = {float(n.replace(",", "")) for n in re.findall(r"\d[\d,]*(?:\.\d+)?", question)}
  keys = ("link", "answer", "key", "attribute", "subject", "title", "speaker", "person", "word", "anchor")
  texts = [program[key] for key in keys if key in program]
  texts += [step["relation"] for step in program.get("steps", ())]
  texts += [*program.get("words", ()), *program.get("columns", {}).values(), *program.get("options", ())]
  wanted = [program["percent"]] if "percent" in program else []
  wanted += [program["decimals"]] if program.get("decimals", -1) >= 0 else []
  for attribute, test, values, unit in [*program.get("start", ()), *(c for of in program.get("of", ()) for c in of)]:
    texts += [attribute, unit, *(values if test in ("is", "begins") else ())]
    wanted += [values[0], values[1] - 1] if test == "year" else values if test == "between" else []
  wanted += [float(n) for n in re.findall(r"(?:[<>]=?|LIMIT|OFFSET) (-?[\d.]+)", program.get("sql", "")) if n != "1"]
  return [t for t in texts if t not in question] + [str(n) for n in wanted if abs(float(n)) not in numbers]
