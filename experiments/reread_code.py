"""Classes and functions that a context's source code shows, by regular expressions where the generator has a parser.

Part of `check_data.py`, which shares no code with the generator.
"""

import keyword
import re
from collections import Counter
from collections.abc import Iterator

from reread import GAP, Entity, Excerpt, Fact, Place

_LONG = r"'''.*?(?:'''|\Z)|\"\"\".*?(?:\"\"\"|\Z)"
_TOKENS = re.compile(_LONG + r"|'(?:\\.|[^'\\\n])*'|\"(?:\\.|[^\"\\\n])*\"|#[^\n]*", re.DOTALL)
_LITERAL = re.compile(r"[ru]?(?:'([^'\n]*)'|\"([^\"\n]*)\"|(-?\d+|True|False|None))[ \t]*(?:#.*)?$", re.MULTILINE)


def _blanked(source: str) -> str:
  """Comments blank, strings of underscores: only code can match."""
  return _TOKENS.sub(lambda m: re.sub(r"[^\n]", " " if m[0][0] == "#" else "\x00", m[0]), source)


# --- classes


def classes(excerpt: Excerpt) -> Iterator[Entity]:
  """Those at the top of a module. The last method is sure only where the class's end is in sight."""
  for head in re.finditer(r"^class (\w+)", excerpt.body, re.MULTILINE):
    gap = excerpt.body.find(f"\n{GAP}\n", head.start())
    source = excerpt.body[head.start() : gap if gap >= 0 else len(excerpt.body)]
    code = _blanked(source)
    header = re.match(r"class \w+\s*(?:\((?P<bases>(?:[^()]|\([^()]*\))*)\))?\s*:", code)
    if header is None:
      continue
    # A line at the margin ends it, if it does not close a bracket.
    end = re.search(r"^[^\s)\]}\x00]", code[header.end() :], re.MULTILINE)
    whole = end is not None or gap < 0
    body = header.end(), header.end() + end.start() if end else len(code)
    at = excerpt.start + head.start()
    facts = {
      name: Fact(value, (at + s, at + e), whole or not name.startswith("last "))
      for name, (value, s, e) in _class_facts(source, code, header, body).items()
    }
    yield Entity(head[1], facts)


def _class_facts(source: str, code: str, header: re.Match[str], body: Place) -> dict[str, tuple[str, int, int]]:
  found: dict[str, tuple[str, int, int]] = {}
  bases = [part.strip() for part in (header["bases"] or "").split(",") if part.strip() and "=" not in part]
  if len(bases) == 1 and re.fullmatch(r"[\w.]+", bases[0]):
    at = code.index(bases[0], header.start("bases"))
    found["base class"] = bases[0], at, at + len(bases[0])
  first = re.search(r"\n([ \t]+)[^\s]", code[slice(*body)])
  if first is None:
    return found
  inside = re.escape(first[1])
  methods = list(re.compile(rf"^{inside}(?:async )?def +(?!__)(\w+)", re.MULTILINE).finditer(code, *body))
  for which, method in (("first", methods[0]), ("last", methods[-1])) if methods else ():
    found[f"{which} method without double underscores"] = method[1], method.start(1), method.end(1)
  assigned = list(re.compile(rf"^{inside}(\w+) *= *(?!=)", re.MULTILINE).finditer(code, *body))
  times = Counter(match[1] for match in assigned)
  for match in assigned:
    value = _LITERAL.match(source, match.end())
    if value and times[match[1]] == 1:
      group = value.lastindex or 0
      found[f"attribute {match[1]}"] = value[group], match.start(1), value.end(group)
  return found


# --- functions

_HEAD = re.compile(r"^(?:@([\w.]+).*\n)?(?:async )?def (\w+)\s*\(", re.MULTILINE)


def functions(excerpt: Excerpt) -> Iterator[Entity]:
  """Those at the top of a module whose head is in sight; to a gap, or to the line at the margin that ends them."""
  for head in _HEAD.finditer(excerpt.body):
    gap = excerpt.body.find(f"\n{GAP}\n", head.start())
    source = excerpt.body[head.start(2) : gap if gap >= 0 else len(excerpt.body)]
    code = _blanked(source)
    close = _closing(code, code.index("("))
    colon = re.compile(r"\s*(?:->[^:]*)?:").match(code, close + 1)
    if colon is None:
      continue
    at = excerpt.start + head.start(2)
    facts = {name: Fact(value, (at, at + close)) for name, value in _parameters(source, code, close)}
    above = excerpt.body[: head.start()].rsplit("\n", 2)[-2:-1]
    if head[1] and not (above and re.match(r"[@)\]]", above[0])):
      facts["decorator"] = Fact(head[1], (excerpt.start + head.start(1), excerpt.start + head.end(1)))
    end = re.compile(r"^[^\s)\]}\x00]", re.MULTILINE).search(code, colon.end())
    for call in _CALL.finditer(code, colon.end(), end.start() if end else len(code)):
      if not keyword.iskeyword(call[1]):
        facts["first function that its body calls"] = Fact(call[1], (at + call.start(1), at + call.end(1)))
        break
    yield Entity(head[2], facts)


# What `def` or `class` introduces is no call, nor is what follows a dot behind a bracket.
_CALL = re.compile(r"(?<![\w.\x00])(?<!def )(?<!class )([A-Za-z_][\w.]*)\(")


def _closing(code: str, opening: int) -> int:
  depth = 0
  for at in range(opening, len(code)):
    depth += (code[at] in "([{") - (code[at] in ")]}")
    if not depth:
      return at
  return len(code)


def _parameters(source: str, code: str, close: int) -> Iterator[tuple[str, str]]:
  """Of a head without stars and slashes: how many, the first and the last, plain defaults."""
  start = code.index("(") + 1
  found, depth, at = [], 0, start
  for n in range(start, close + 1):
    depth += (code[n] in "([{") - (code[n] in ")]}") if n < len(code) else 0
    if n == close or (code[n] == "," and not depth):
      found += [(at, n)] if code[at:n].strip() else []
      at = n + 1
  names = [re.match(r"\s*(\w+)", code[slice(*span)]) for span in found]
  if not found or not all(names):
    return
  plain_names = [name[1] for name in names if name]
  yield "number of parameters", str(len(plain_names))
  yield "first parameter", plain_names[0]
  if len(plain_names) > 1:
    yield "last parameter", plain_names[-1]
  for name, (s, e) in zip(plain_names, found):
    default = re.compile(r"\s*\w+\s*(?::[^=]*)?=\s*").match(code, s, e)
    value = _LITERAL.match(source[:e].rstrip(), default.end()) if default else None
    if value:
      yield f"default of {name}", value[value.lastindex or 0]
