"""Completions by a function of the prompt, and documents to ask about."""

import json
from collections.abc import Callable, Sequence

from qwenlong_jax.data.documents import Document, Source
from qwenlong_jax.llm import Reply, Request

Line = Callable[[str, int], str | Reply]  # the prompt and the number of the sample


class Scripted:
  def __init__(self, line: Line, model: str = "scripted"):
    self.line, self.model = line, model
    self.asked: list[Request] = []

  def complete(self, requests: Sequence[Request]) -> list[Reply]:
    self.asked += requests
    said = [self.line(request.messages[-1].content, request.sample) for request in requests]
    return [one if isinstance(one, Reply) else Reply(one, model=self.model) for one in said]


def document(id: str, text: str, title: str = "") -> Document:
  return Document(id, "general", title, text, Source(f"{id}.txt", 0, len(text), "0" * 64))


def proposal(question: str, answer: str, *quotes: tuple[int, str]) -> str:
  evidence = [{"document": number, "quote": quote} for number, quote in quotes]
  return json.dumps({"question": question, "answer": answer, "evidence": evidence})


HARBOUR = document(
  "harbour",
  "The harbour of Vell was dredged in 1911.\n\nIts engineer, Ada Morn, doubted that the\nquay would hold.",
  "On Vell",
)
TOLLS = document("tolls", "Ships over forty tons paid nine crowns.\nSmaller ones paid $$4 or nothing at all.", "Tolls")
ENGINEER = proposal(
  "Who doubted that the quay at Vell would hold?", "Ada Morn", (1, "Ada Morn, doubted that the quay would hold")
)
TONS = proposal(
  "How many crowns did a ship of fifty tons pay at Vell?", "nine", (2, "over forty tons paid nine crowns")
)
