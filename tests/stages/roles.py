"""A model that plays all roles over HTTP, by nothing but what it is told: the same words, the same reply."""

import json
import re
import zlib
from typing import Any

from loopback import Act, prompt_of, says

# What the proposer asks for, by round; the fields are those of the documents of tests/data/synthesis.
FIELDS = ("Capital", "Median age", "Population")
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


def play(body: dict[str, Any], hit: int) -> Act:
  prompt = body["messages"][0]["content"]
  for task, said in WRITERS.items():
    if task in prompt:
      return says(said(prompt))
  if "reference answer" in prompt:
    return says("[[YES]]" if ">\nfound\n<" in prompt else "[[NO]]")
  return says(f"Let me see.\nThe answer is: {'found' if solves(body) else 'nothing'}")


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
  return json.dumps({"groups": [[n for n, said in enumerate(quoted(prompt), start=1) if "trade" in said]]})


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
  question = prompt.rpartition("Question: ")[2].partition("\n\nThink first")[0]
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
}
