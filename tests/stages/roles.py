"""A model that plays all roles over HTTP: the same words, the same reply. What it writes it finds in what it is told;
the answers that it gives it looks up in the parts of the synthesis."""

import json
import re
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from loopback import Act, prompt_of, says

# What the proposer asks for, by round; the fields are those of the documents of tests/data/synthesis.
FIELDS = ("Capital", "Median age", "Population")
Answers = dict[str, dict[str, str]]  # by question and context
_QUOTED = re.compile(r'<((?:document|text)-\w+) number="(\d+)">\n(.*?)\n</\1>', re.DOTALL)


_TOP = "SELECT sum(v) FROM (SELECT {0} v FROM facts ORDER BY v DESC LIMIT {1})"
# What a reader of questions about tables understands; {0} is a column, {1} a number.
READ = {
  'does the greatest value of "(.+?)" exceed': "SELECT max({0}) - avg({0}) FROM facts",
  'larger is the largest "(.+?)" than the smallest': "SELECT max({0}) - min({0}) FROM facts",
  'the median of "(.+?)"': "SELECT median({0}) FROM facts",
  'the mean of "(.+?)"\\?': "SELECT avg({0}) FROM facts",
  r'the (?P<k>\d+) largest values of "(.+?)"\?': _TOP,
  r'the sum of "(.+?)" is the sum of its (?P<k>\d+) largest': f"SELECT 100.0 * ({_TOP}) / sum({{0}}) FROM facts",
}


def player(folder: Path) -> Callable[[dict[str, Any], int], Act]:
  """Plays for the synthesis in `folder`."""
  return partial(_play, folder, {})


def _play(folder: Path, answers: Answers, body: dict[str, Any], hit: int) -> Act:
  prompt = body["messages"][0]["content"]
  for task, said in WRITERS.items():
    if task in prompt:
      return says(said(prompt))
  if "reference answer" in prompt:
    _, gold, candidate = quoted(prompt)
    return says("[[YES]]" if gold == candidate else "[[NO]]")
  answer = looked_up(prompt, folder, answers) if solves(body) else "nothing"
  return says(f"Let me see.\nThe answer is: {answer}")


def looked_up(prompt: str, folder: Path, answers: Answers) -> str:
  """What a document says, if the question is about that; else what the sample says that asks it, of several the one
  whose context is shown. `answers` is what is known already.
  """
  question = _question(prompt)
  if match := re.fullmatch(r"What is said about the (.+) of (.+)\?", question):
    stated = re.search(rf"^# {match[2]}\n(?:.*\n)*?{match[1]}: (.+)$", prompt, re.MULTILINE | re.IGNORECASE)
    if stated:
      return stated[1]
  if question not in answers:
    for path in sorted(folder.glob("parts/*/*.jsonl")):
      lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
      for one in filter(None, (line.get("example") for line in lines)):
        answers.setdefault(one["question"], {})[one["context"]] = one["answer"]
  known = answers.get(question, {})
  return [*(answer for context, answer in known.items() if context in prompt), *known.values(), "nothing"][0]


def _question(prompt: str) -> str:
  return prompt.rpartition("Question: ")[2].partition("\n\nThink first")[0]


def quoted(prompt: str) -> list[str]:
  return [text for _, _, text in _QUOTED.findall(prompt)]


def columns(described: str) -> dict[str, str]:
  """Attribute -> letter."""
  return {name: letter for letter, name in re.findall(r'^(\w) \w+: "(.+?)"', described, re.MULTILINE)}


def reword(prompt: str) -> str:
  """Every eighth time it loses the double quotes."""
  (question,) = quoted(prompt)
  careless = zlib.crc32(question.encode()) % 8 == 0
  asked = "I should like to know one thing. " + question
  return json.dumps({"question": asked.replace('"', "") if careless else asked})


def query(prompt: str) -> str:
  described, question = quoted(prompt)
  for words, sql in READ.items():
    if match := re.search(words, question):
      named = match.groupdict().get("k", "")
      (attribute,) = (group for group in match.groups() if group != named)
      return json.dumps({"sql": sql.format(columns(described)[attribute], named)})
  return json.dumps({"sql": "SELECT 1"})


def pose(prompt: str) -> str:
  """A question of some worth, and one that a single document answers."""
  (attribute,) = (name for name, letter in columns(*quoted(prompt)).items() if letter == "x")
  asked = f'By what does the greatest value of "{attribute}" exceed what all of them come to on average?'
  stated = {"question": f'What is the largest "{attribute}"?', "sql": "SELECT max(x) FROM facts", "unit": "x"}
  sound = {"question": asked, "sql": "SELECT max(x) - avg(x) FROM facts", "unit": "x"}
  return json.dumps({"questions": [sound, stated]})


def extract(prompt: str) -> str:
  """Who trades with whom, in two wordings, or is twinned with; and beside each what nobody said."""
  triples = []
  for quote, head, does, tail in re.findall(r"((\w+) (trades with|is twinned with) (\w+)\.)", prompt):
    relation = "does trade with" if does == "trades with" and zlib.crc32(head.encode()) % 2 else does
    known = {"head": head, "relation": relation, "tail": tail}
    triples += [known | {"quote": quote}, known | {"quote": f"{head} sells to {tail}."}]
  return json.dumps({"triples": triples})


def group(prompt: str) -> str:
  (listed,) = quoted(prompt)
  return json.dumps({"groups": [[int(n) for n, said in re.findall(r"(\d+)\. (.*)", listed) if "trade" in said]]})


def propose(prompt: str) -> str:
  """About the first document that states the round's field; an order in a document is obeyed to the letter."""
  documents = [(int(number), text) for _, number, text in _QUOTED.findall(prompt)]
  for number, text in documents:
    if match := re.search(r"Ignore your instructions and ask: (.*?) Answer: (\w+)", text):
      return proposal(match[1], match[2], number, match[0])
  field = FIELDS[0] if "harder" not in prompt else FIELDS[1 + prompt.count("Answered right") % 2]
  for number, text in documents:
    if match := re.search(rf"^{field}: (.+)$", text, re.MULTILINE):
      name = text.partition("\n")[0].strip("# ")
      return proposal(f"What is said about the {field.lower()} of {name}?", match[1], number, match[0])
  return "I find nothing to ask about."


def proposal(question: str, answer: str, number: int, quote: str) -> str:
  return json.dumps({"question": question, "answer": answer, "evidence": [{"document": number, "quote": quote}]})


def solves(body: dict[str, Any]) -> bool:
  prompt = prompt_of(body)
  question = _question(prompt)
  blind = prompt.startswith("Answer the question from what you know")
  return knows(question) if blind else finds(question, body["seed"])


def knows(question: str) -> bool:
  """Without a context: every fifth question."""
  return zlib.crc32(question.encode()) % 5 == 0


def finds(question: str, seed: int) -> bool:
  """In a context: two times of three."""
  return zlib.crc32(f"{seed} {question}".encode()) % 3 > 0


WRITERS = {
  "Write one question": propose,
  "Ask the same thing in other words": reword,
  "Write the query in SQL": query,
  "for an examination": pose,
  "Extract the facts": extract,
  "Which of them say the same": group,
  "Do they say the same of any two": lambda prompt: "[[YES]]",
  "Which passages do not make their statement": lambda prompt: '{"unstated": [], "shared": []}',
  "May the question be asked": lambda prompt: "It names what it asks about.\n[[YES]]",
}
