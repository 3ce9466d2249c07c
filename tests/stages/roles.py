"""A model that plays the three roles over HTTP, by nothing but what it is told: the same words, the same reply."""

import json
import re
import zlib
from typing import Any

from loopback import Act, prompt_of, says

# What the proposer asks for, by round; the fields are those of the documents of tests/data/synthesis.
FIELDS = ("Capital", "Median age", "Population")
_QUOTED = re.compile(r'<(document-\w+) number="(\d+)">\n(.*?)\n</\1>', re.DOTALL)


def play(body: dict[str, Any], hit: int) -> Act:
  prompt = body["messages"][0]["content"]
  if "Write one question" in prompt:
    return says(propose(prompt))
  if "reference answer" in prompt:
    return says("[[YES]]" if ">\nfound\n<" in prompt else "[[NO]]")
  return says(f"Let me see.\nThe answer is: {'found' if solves(body) else 'nothing'}")


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
