"""What models are told, in text files: ours here, a user's own in a folder of the same names.

A prompt's version is a hash of its text, so that every sample can say which words it came from.
"""

import hashlib
from dataclasses import dataclass, fields
from pathlib import Path
from string import Template
from typing import Self


@dataclass(frozen=True)
class Prompt:
  """A text with `$names` to fill in. What is filled in is not looked at: a document may hold dollars."""

  name: str
  text: str

  @property
  def version(self) -> str:
    return f"{self.name}/{hashlib.sha256(self.text.encode()).hexdigest()[:12]}"

  def fill(self, **values: object) -> str:
    return Template(self.text).substitute(values)


@dataclass(frozen=True)
class Prompts:
  """One for each file: what the three roles are told, and the kinds of questions."""

  propose: Prompt
  harder: Prompt
  viewpoint: Prompt
  in_context: Prompt
  reading: Prompt
  solve: Prompt
  blind: Prompt
  verify: Prompt
  sound: Prompt
  triples: Prompt
  stated: Prompt
  query: Prompt
  paraphrase: Prompt
  table_questions: Prompt
  synonyms: Prompt
  same_relation: Prompt

  @classmethod
  def load(cls, folder: Path | str | None = None) -> Self:
    """Those in `folder`, ours for what it does not hold. Raises ValueError for a file of another name or other names
    to fill in.
    """
    names = [field.name for field in fields(cls)]
    found = {path.stem: path for path in sorted(Path(folder).glob("*.txt"))} if folder else {}
    if strange := sorted(found.keys() - set(names)):
      raise ValueError(f"{folder} holds prompts {strange}, which nobody reads; the names are {names}")
    return cls(**{name: _read(name, found.get(name)) for name in names})


def _read(name: str, path: Path | None) -> Prompt:
  ours = (Path(__file__).parent / f"{name}.txt").read_text("utf-8").strip()
  if path is None:
    return Prompt(name, ours)
  text = path.read_text("utf-8").strip()
  wanted, given = sorted(Template(ours).get_identifiers()), sorted(Template(text).get_identifiers())
  if wanted != given or not Template(text).is_valid():
    raise ValueError(f"{path} fills in {given}, but {name} needs {wanted}; write $$ for a dollar")
  return Prompt(name, text)
