"""The answer a response commits to: what follows its last thought, and the statement in it that names the answer."""

import re

THINK_START, THINK_END = "<think>", "</think>"

_HEAD = re.compile(
  r"\b(?:(?:the|my) )?"
  r"(?:(?:(?:final|correct|right|best) ){1,3}(?:answer|option|choice)|(?<!wrong )(?<!incorrect )answer)"
  r"(?: to (?:the|this|your) question)?\s*(?:\bis\b\s*:?|:|=)",
  re.IGNORECASE,
)
_LATEX = (
  (re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}"), r"\1"),
  (re.compile(r"\\[!,;: ]|\\boxed\s*\{\s*\}"), ""),
)


def extract(response: str) -> tuple[str, str]:
  """The text after the last `</think>`, stripped, and why there is none ("" if there is).

  Failures: "no_think_end" if the response holds no `</think>`, or opens another thought after the last one and never
  ends it; "empty_answer" if only white space follows.
  """
  _, end, answer = response.rpartition(THINK_END)
  if not end or THINK_START in answer:
    return "", "no_think_end"
  answer = answer.strip()
  return answer, "" if answer else "empty_answer"


def statements(answer: str) -> list[str]:
  r"""What an answer explicitly states, in order: the contents of every \boxed{}, or else what follows each
  "(The) answer is", "Answer:", "The correct option is" and the like, to the end of that line (of the next line that
  holds text, if that one holds none) or to the next such phrase. Emphasis, LaTeX text commands and the punctuation
  around are taken off. Empty if the answer states nothing in these ways.
  """
  text = plain(answer)
  return [s for s in map(trimmed, _boxed(text) or _phrases(text)) if s]


def plain(text: str) -> str:
  """`text` without emphasis marks and the commonest LaTeX."""
  text = text.replace("*", "").replace(r"\%", "%").replace(r"\$", "$").replace(r"\times", "×")
  for pattern, replacement in _LATEX:
    text = pattern.sub(replacement, text)
  return text


def trimmed(text: str) -> str:
  """`text` without white space, quotes and sentence punctuation around it."""
  return text.strip(" \t\r\n\"'`“”‘’«»,;:!?").rstrip(" .\"'`“”‘’«»,;:!?")


def _boxed(text: str) -> list[str]:
  r"""The contents of every \boxed{} whose braces close, in order; of nested ones the innermost."""
  found: list[tuple[int, int]] = []
  opened: list[int | None] = []  # where the contents of each open brace's box begin, None for a brace of its own
  for brace in re.finditer(r"\\boxed\s{0,9}\{|[{}]", text):
    if brace[0] != "}":
      opened.append(brace.end() if len(brace[0]) > 1 else None)
    elif opened and (start := opened.pop()) is not None and not (found and found[-1][0] > start):
      found.append((start, brace.start()))
  return [text[start:end] for start, end in found]


def _phrases(text: str) -> list[str]:
  heads = list(_HEAD.finditer(text))
  ends = [head.start() for head in heads[1:]] + [len(text)]
  rests = (text[head.end() : end].strip() for head, end in zip(heads, ends))
  return [rest.split("\n", 1)[0] for rest in rests]
