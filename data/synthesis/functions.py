"""The functions at the top of a Python module, as the parser knows them: parameters, defaults, decorators, calls."""

import ast
from collections.abc import Iterable, Iterator

from qwenlong_jax.data.documents import Document
from qwenlong_jax.data.synthesis.modules import dotted, imports, line_starts, meant, parsed
from qwenlong_jax.data.synthesis.outline import Entity, Fact

NOUN = "top-level function"
CALL = "first function that its body calls"
_LONGEST_VALUE = 40

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(document: Document) -> Iterator[Entity]:
  """What is judged of a function, its head and the first call, is what must be in sight of it."""
  tree = parsed(document.text) if document.source.path.endswith(".py") else None
  if tree is None:
    return
  starts = line_starts(document.text)
  known = imports(tree, document.source.path)
  for node in tree.body:
    if isinstance(node, Function):
      facts = {fact.attribute: fact for fact in _facts(document.text, node, starts, known)}
      first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
      ends = [_head(node, starts)[1], *(fact.end for fact in facts.values())]
      yield Entity(node.name, NOUN, facts, (starts[first - 1], max(ends)))


def _head(node: Function, starts: list[int]) -> tuple[int, int]:
  """Characters from `def` to the line before the body, or to the end of the line where they share it."""
  start = starts[node.lineno - 1]
  return start, starts[max(node.body[0].lineno - 1, node.lineno)] - 1


def _facts(text: str, node: Function, starts: list[int], known: dict[str, str]) -> Iterator[Fact]:
  head = _head(node, starts)
  given = node.args
  if given.args and not (given.posonlyargs or given.vararg or given.kwonlyargs or given.kwarg):
    names = [argument.arg for argument in given.args]
    yield Fact("number of parameters", str(len(names)), *head)
    yield Fact("first parameter", names[0], *head)
    if len(names) > 1:
      yield Fact("last parameter", names[-1], *head)
    for name, default in zip(names[len(names) - len(given.defaults) :], given.defaults):
      if isinstance(default, ast.Constant) and isinstance(default.value, int | str | None):
        value = str(default.value)
        plain = value.isprintable() and "\\" not in value
        if plain and 0 < len(value) < _LONGEST_VALUE and value in text[slice(*head)]:
          yield Fact(f"default of {name}", value, *head)
  if len(node.decorator_list) == 1 and node.decorator_list[0].lineno == node.lineno - 1:
    decorator = node.decorator_list[0]
    name = dotted(decorator.func if isinstance(decorator, ast.Call) else decorator)
    if name:
      yield Fact("decorator", name, starts[decorator.lineno - 1], starts[decorator.lineno] - 1)
  yield from _first_call(text, node, starts, known)


def _first_call(text: str, node: Function, starts: list[int], known: dict[str, str]) -> Iterator[Fact]:
  calls = [(call.func.lineno, call.func.col_offset, name) for call in _calls(node.body) if (name := dotted(call.func))]
  if calls:
    line, column, name = min(calls)
    # The parser counts bytes.
    start = starts[line - 1] + len(text[starts[line - 1] : starts[line]].encode()[:column].decode())
    if text.startswith(f"{name}(", start):
      yield Fact(CALL, name, start, start + len(name), meant=meant(name, known))


def _calls(body: Iterable[ast.AST]) -> Iterator[ast.Call]:
  """In no order; what stands in a text is none to every reader."""
  left = list(body)
  while left:
    node = left.pop()
    if not isinstance(node, ast.JoinedStr):
      left += ast.iter_child_nodes(node)
      if isinstance(node, ast.Call):
        yield node
