"""What can be read off a document without a model: its sections, and its facts, each with the characters that state it.

A fact is a line `Key: value` (under a heading, `Heading > Key`), or, in source code, something that the parser knows of
a class. It belongs to an entity: the document itself, named by its title, or a class. (`tables` and `functions` find
more.)
"""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from qwenlong_jax.data.documents import Document
from qwenlong_jax.data.synthesis.modules import dotted, imports, line_starts, meant, parsed

LONGEST_CLASS = 6000
LONGEST = 1000  # characters of a section: some 250 tokens of English

_HEADING = re.compile(r"(#{1,6}) +(.+?)[ #]*$")
_FIELD = re.compile(r"(?:[-*] )?(?P<key>[^\W\d_][^:\n]{0,70}?): (?P<value>\S.{0,300}?)\s*$")
_BLOCK = re.compile(r"\n\s*\n(?=\S)")
# A bracket cuts no unit off: "0.96 male(s)/female" is no number.
_NUMBER = re.compile(
  r"(?P<currency>\$)?(?P<digits>-?\d{1,3}(?:,\d{3})+(?:\.\d+)?|-?\d+(?:\.\d+)?)"
  r"(?: (?P<scale>thousand|million|billion|trillion))?"
  r"(?P<unit>%(?: of [A-Za-z][A-Za-z -]{0,30}?)?| [A-Za-z][A-Za-z/%. ]{0,30}?)?(?= \(| ?;|, |$)"
)
_DEF = re.compile(r"^ +(?:async )?def ", re.MULTILINE)
_SCALES = {None: 1, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}


@dataclass(frozen=True, slots=True)
class Section:
  """Characters [start, end) of a document's text; `heading`: the lines of the heading and the table's header that it
  continues, if any."""

  start: int
  end: int
  heading: str = ""


@dataclass(frozen=True, slots=True)
class Fact:
  """`attribute` of an entity is `value`; characters [start, end) of its document say so. `number` in `unit` if it is
  one ("$" and "%" are units, "" is a count); `meant`: the full name of what code imports under this value."""

  attribute: str
  value: str
  start: int
  end: int
  number: float | None = None
  unit: str = ""
  meant: str = ""


@dataclass(frozen=True, slots=True)
class Entity:
  """`noun` says what it is; of each attribute it has one fact. Who judges it must see characters `scope`, if any.

  Not `asked`: it counts where another shall be the only one, and no question is about it.
  """

  name: str
  noun: str
  facts: dict[str, Fact]
  scope: tuple[int, int] | None = None
  key: str = ""  # the attribute that gives the name, if it is one
  asked: bool = True


def sections(document: Document, longest: int = LONGEST) -> list[Section]:
  """The text in pieces of at most `longest` characters, cut at headings, else at empty lines, line ends, sentences.

  Together they are the whole text.
  """
  text, found = document.text, list[Section]()
  start = 0
  for end in _blocks(text):
    if found and end - found[-1].start <= longest and not _HEADING.match(_line_at(text, start)):
      found[-1] = Section(found[-1].start, end)
    else:
      found += _pieces(text, start, end, longest)
    start = end
  return found if document.domain == "code" else _headed(text, found)


def _headed(text: str, found: list[Section]) -> list[Section]:
  heading, headed = "", []
  for section in found:
    lines = text[section.start : section.end].split("\n")
    headed.append(Section(section.start, section.end, "" if _HEADING.match(lines[0]) else heading))
    heading = next((line for line in reversed(lines) if _HEADING.match(line)), heading)
  return headed


def _blocks(text: str) -> Iterator[int]:
  """Where blocks end: at empty lines before text that is not indented."""
  for match in _BLOCK.finditer(text):
    yield match.end()
  if text:
    yield len(text)


def _pieces(text: str, start: int, end: int, longest: int) -> Iterator[Section]:
  while end - start > longest:
    for mark in ("\n", ". ", " "):
      cut = text.rfind(mark, start + longest // 2, start + longest) + len(mark)
      if cut >= len(mark):
        break
    else:
      cut = start + longest
    yield Section(start, cut)
    start = cut
  if start < end:
    yield Section(start, end)


def _line_at(text: str, start: int) -> str:
  end = text.find("\n", start)
  return text[start : end if end >= 0 else len(text)]


def entities(document: Document) -> list[Entity]:
  """The entities of which a document states facts. Source code that does not parse has none."""
  if document.domain == "code":
    return list(_classes(document)) if document.source.path.endswith(".py") else []
  if document.domain == "dialogue":
    return []
  facts = _unambiguous(_fields(document.text))
  return [Entity(document.title, "document", facts)] if facts else []


def _fields(text: str) -> Iterator[Fact]:
  heading, start = "", 0
  for line in text.split("\n"):
    if title := _HEADING.match(line):
      heading = title[2] if len(title[1]) > 1 else ""
    elif field := _FIELD.match(line):
      attribute = f"{heading} > {field['key']}" if heading else field["key"]
      yield fact(attribute, field["value"], start, start + len(line))
    start += len(line) + 1


def fact(attribute: str, value: str, start: int, end: int) -> Fact:
  number, unit = measure(value) or (None, "")
  return Fact(attribute, value, start, end, number, unit)


def measure(value: str) -> tuple[float, str] | None:
  """(number, unit) of a value that begins with a quantity, scale words multiplied out; None for any other."""
  match = _NUMBER.match(value)
  if match is None or (match["currency"] and match["unit"]):
    return None
  number = float(match["digits"].replace(",", "")) * _SCALES[match["scale"]]
  return number, match["currency"] or (match["unit"] or "").strip()


def _unambiguous(facts: Iterator[Fact]) -> dict[str, Fact]:
  """By attribute, without those that are stated twice."""
  found = list(facts)
  times = Counter(fact.attribute for fact in found)
  return {fact.attribute: fact for fact in found if times[fact.attribute] == 1}


def _classes(document: Document) -> Iterator[Entity]:
  """Classes at the top of a Python module; asked about if they are not too long to be read as a whole."""
  tree = parsed(document.text)
  if tree is None:
    return
  starts, known = line_starts(document.text), imports(tree, document.source.path)
  for node, after in zip(tree.body, [*tree.body[1:], None]):
    if isinstance(node, ast.ClassDef):
      start, end = starts[node.lineno - 1], starts[node.end_lineno or node.lineno] - 1
      methods = [item for item in node.body if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)]
      # Definitions under a condition, or in a text, would be counted by some readers and not by others.
      plain = end - start <= LONGEST_CLASS and len(_DEF.findall(document.text[start:end])) == len(methods)
      facts = _unambiguous(_class_facts(document.text, node, methods, starts, known))
      # Only what follows shows that a class has ended, and which method is its last.
      scope = start, starts[_first_line(after)] - 1 if after else len(document.text)
      yield Entity(f"class {node.name}", "class", facts, scope, asked=plain)


def _first_line(node: ast.stmt) -> int:
  """From 1 on, that of its decorators if it has any."""
  return min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", ()))])


def _class_facts(
  text: str, node: ast.ClassDef, methods: list, starts: list[int], known: dict[str, str]
) -> Iterator[Fact]:
  def said(attribute: str, value: str, at: int) -> Iterator[Fact]:
    start, end = starts[at - 1], starts[at] - 1
    if value in text[start:end]:
      yield fact(attribute, value, start, end)

  if len(node.bases) == 1 and (base := dotted(node.bases[0])):
    for stated in said("base class", base, node.lineno):
      yield replace(stated, meant=meant(base, known))
  own = [method for method in methods if not method.name.startswith("__")]
  if len(own) > 1:
    yield from said("first method without double underscores", own[0].name, own[0].lineno)
    yield from said("last method without double underscores", own[-1].name, own[-1].lineno)
  for item in node.body:
    if isinstance(item, ast.Assign) and len(item.targets) == 1 and isinstance(item.targets[0], ast.Name):
      value = item.value
      if isinstance(value, ast.Constant) and isinstance(value.value, int | str) and 0 < len(str(value.value)) < 40:
        yield from said(f"attribute {item.targets[0].id}", str(value.value), item.lineno)
