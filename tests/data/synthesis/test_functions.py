"""Functions and the names of other modules: what the parser knows, what imports mean, who names whom."""

import reread
import reread_code

from qwenlong_jax.data.documents import Document, Source
from qwenlong_jax.data.synthesis import corpus as corpora
from qwenlong_jax.data.synthesis.corpus import Corpus
from qwenlong_jax.data.synthesis.functions import CALL, functions
from qwenlong_jax.data.synthesis.modules import imports, is_of, parsed

TEXT = '''from .tools import cut as shorten
from tools import cut
import paper.press
import sheet as s


@cached
def first(one, two=3, three="é"):
  """Calls nothing(here)."""
  return f"{none(one)}" + "é" + cut(two)


def second(*every): paper.press.fold(s.fold(1))


def third(mode=0o17): return cut
'''


def document(text: str, path: str = "code/a/main.py") -> Document:
  return Document(path, "code", path.rpartition("/")[2], text, Source(path, 0, len(text), "0"))


def test_a_function_states_its_head_and_its_first_call() -> None:
  first, second, third = functions(document(TEXT))
  assert {name: fact.value for name, fact in first.facts.items()} == {
    "number of parameters": "3",
    "first parameter": "one",
    "last parameter": "three",
    "default of two": "3",
    "default of three": "é",
    "decorator": "cached",
    CALL: "cut",
  }
  call, head = first.facts[CALL], first.facts["first parameter"]
  assert TEXT[call.start : call.end + 1] == "cut("
  assert TEXT[head.start : head.end] == 'def first(one, two=3, three="é"):'
  assert first.scope is not None and TEXT[slice(*first.scope)].startswith("@cached")
  assert TEXT[slice(*first.scope)].endswith('"é" + cut')
  assert {name: fact.value for name, fact in second.facts.items()} == {CALL: "paper.press.fold"}
  # 0o17 is 15, which stands nowhere.
  assert set(third.facts) == {"number of parameters", "first parameter"}


def test_imports_mean_full_names() -> None:
  tree = parsed(TEXT)
  assert tree is not None
  assert imports(tree, "code/a/main.py") == {
    "shorten": "code.a.tools.cut", "cut": "tools.cut", "paper": "paper", "s": "sheet",
  }  # fmt: skip
  assert is_of("tools.cut", "code/tools.py") and is_of("tools.cut", "code/tools/__init__.py")
  assert not is_of("tools.cut", "code/a/other.py") and not is_of("cut", "code/cut.py")


def named(asking: str, path: str = "code/tools.py") -> str | None:
  """Whom the last entity of a module names, beside one of a class Knife and a function cut."""
  tools = document("class Knife:\n  edge = 1\n\n\ndef cut(one): return one\n", path)
  made = corpora.make("train", "code", "0", [tools, document(asking)], lambda texts: list(map(len, texts)))
  entity = made.entities[-1][1]
  link = CALL if CALL in entity.facts else "base class"
  found = corpora.linked(made, entity, link)
  return None if found is None else made.entities[found][1].name


def test_code_names_what_it_imports() -> None:
  assert named("from tools import cut\ndef f(): cut(1)\n") == "cut"
  assert named("import tools\ndef f(): tools.cut(1)\n") == "cut"
  assert named("from . import tools\ndef f(): tools.cut(1)\n", "code/a/tools.py") == "cut"
  assert named("import tools\nclass Saw(tools.Knife): pass\n") == "class Knife"
  assert named("class Saw(Knife): pass\n") == "class Knife"


def test_a_like_name_of_another_module_or_of_an_argument_is_not_named() -> None:
  assert named("def f(cut): cut(1)\n") is None
  assert named("import tools\ndef f(tool): tool.cut(1)\n") is None
  assert named("import tools as t\ndef f(): t.cut(1)\n") is None
  assert named("from other import cut\ndef f(): cut(1)\n") is None
  assert named("import other\nclass Saw(other.Knife): pass\n") is None


def test_the_checker_reads_the_same_functions_in_real_modules(modules: Corpus) -> None:
  missed = total = 0
  for module in modules.documents:
    (excerpt,) = reread.excerpts(f"=== {module.title} ===\n{module.text}\n")
    read = {(e.name, a, fact.value) for e in reread_code.functions(excerpt) for a, fact in e.facts.items()}
    stated = {(e.name, a, fact.value) for e in functions(module) for a, fact in e.facts.items()}
    missed, total = missed + len(stated - read), total + len(stated)
  assert total > 300 and missed == 0
