"""Rules that decide whether an answer states the ground truth (section 5.1), and the dense reward of needle tasks.

Rules err on the side of 0: an answer commits to one thing. What hedges, enumerates or pastes gets nothing.
"""

import re
import unicodedata
from difflib import SequenceMatcher

from qwenlong_jax.rewards import numbers
from qwenlong_jax.rewards.answers import plain, statements, trimmed
from qwenlong_jax.types import Score

LETTERS = "ABCDEFGHIJ"
EXTRA_WORDS = 16  # how much longer than the ground truth the stated answer may be, in words (not in the report)
LONGEST_RATIO = 40  # a needle's answer this many times longer than the needle gets 0: its ratio is below 0.05

_LETTER = rf"[\(\[{{]?(?P<letter>[{LETTERS}])[\)\]}}]?(?![\w'’])"
_COMMITTED = re.compile(
  rf"\W{{0,9}}(?:option\s|choice\s|letter\s)?\W{{0,9}}{_LETTER}(?P<rest>.*)", re.DOTALL | re.IGNORECASE
)
_ANOTHER = re.compile(rf"\W{{0,9}}(?:(?:or|and)\b)?\W{{0,9}}(?:option\s|choice\s)?\W{{0,9}}[{LETTERS}](?![\w'’])")
_FORMS = (
  re.compile(rf"[\(\[]([{LETTERS}])[\)\]]", re.IGNORECASE),  # (B)
  re.compile(rf"^[^\w\n]{{0,9}}([{LETTERS}])[.):](?=\s|$)", re.MULTILINE),  # B. B) B: at the start of a line
  re.compile(rf"\b(?:[Oo]ption|[Cc]hoice|[Ll]etter)\s+[\"'“]?([{LETTERS}])(?![\w'’])"),  # option B
)
# A bare capital; neither the article, nor the pronoun, nor a part of a word or name.
_BARE = re.compile(
  r"(?<![\w'’.-])(?:[B-HJ](?!\w|['’.-]\w)|A(?!\w|['’.-]\w|\s+(?!(?:or|and|as|is|because|since)\b)[a-z]))"
)
_DENIED = re.compile(
  rf"(?:\b(?:not|nor|neither|except|excludes?|rules? out)|n['’]t)\s+(?:be\s+)?(?:option\s+|choice\s+)?"
  rf"[\(\[]?[{LETTERS}][\)\]]?(?![\w'’])|"
  rf"(?:[\(\[]?\b[{LETTERS}][\)\]]?\s+(?:and|or)\s+)?[\(\[]?\b[{LETTERS}][\)\]]?\s+(?:is|are)\s+(?:wrong|incorrect|false|not)\b"
)

_TOKEN = re.compile(
  r"[\u3040-\u30ff\u3400-\u9fff]|(?<![\w)])-?\d+(?:[.,:/]\d+)*(?![^\W_])%?|(?:(?![\u3040-\u30ff\u3400-\u9fff])[^\W_])+[+#]*"
)
_NEGATIONS = {"not", "never", "neither", "nor", "cannot", "except"}
_SEPARATORS = re.compile(r"[;\n\t|•]|,(?!\d)|\s[-–—→/]\s|(?<=\w{3})[.!?](?=\s)|\bor\b|\band\b", re.IGNORECASE)
_DECISIONS = ({"yes", "no"}, {"true", "false"})


def rule(gold: str, answer: str, *, choices: bool = False, extra_words: int = EXTRA_WORDS) -> Score:
  """1 if `answer` (the text after the thought) states `gold`, else 0, with a failure where it commits to no one thing.

  With `choices`, gold is an option's letter: `chosen_letter`. A gold quantity is compared as one: `states_quantity`.
  Anything else must be contained: `states_text`. Raises ValueError if gold is empty or, with `choices`, no letter A-J.
  """
  if not gold.strip():
    raise ValueError("the ground truth is empty; an example needs an answer to be scored against")
  if choices:
    wanted = gold.strip().strip("().[]").upper()
    if len(wanted) != 1 or wanted not in LETTERS:
      raise ValueError(f"the ground truth of a multiple choice question is {gold!r}; give one letter of {LETTERS}")
    letter, failure = chosen_letter(answer)
    return Score(float(letter == wanted), letter or answer, failure)
  stated = stated_answer(answer)
  quantity = numbers.quantity(gold)
  right, failure = states_text(gold, stated, extra_words) if quantity is None else states_quantity(quantity, answer)
  return Score(float(right), stated, failure)


def stated_answer(answer: str) -> str:
  """The last explicit statement in an answer, or all of it where it has none."""
  return (statements(answer) or [trimmed(plain(answer))])[-1]


def chosen_letter(answer: str) -> tuple[str, str]:
  """The one option that an answer chooses, and the failure if that is not exactly one: "no_choice", "many_choices".

  Read from its statements ("The correct answer is (B)", boxed) if it makes any: the letter that a statement opens with,
  unless others adjoin it. Else every letter counts that stands as "(B)", as "B." or "B)" at the start of a line, as
  "option B", or bare, the words A and I excepted. Options that are ruled out ("not (A)", "B is wrong") do not count.
  """
  stated = statements(answer)
  sets = [_letters(_DENIED.sub(" ", s), committed=True) for s in stated] or [_letters(_DENIED.sub(" ", plain(answer)))]
  letters = set().union(*sets)
  if len(letters) == 1:
    return letters.pop(), ""
  return "", "many_choices" if letters else "no_choice"


def states_quantity(gold: numbers.Quantity, answer: str) -> tuple[bool, str]:
  """Whether the one quantity that an answer commits to is `gold`, and a failure ("no_number", "hedged").

  That is the first number of its last statement or of an answer which begins with it, the last number of any other
  answer, in both cases the first behind the last "=". A list of guesses therefore counts as one guess.
  """
  explicit = bool(statements(answer))
  stated = stated_answer(answer)
  result = stated.rpartition("=")[2]
  found = numbers.quantities(result)
  if not found:
    return False, "no_number"
  first = explicit or result != stated or not found[0].before.strip(" ~≈:(")
  given = found[0] if first else found[-1]
  if _negated(tokens(given.before)) or _alternatives(found, result):
    return False, "hedged"
  return numbers.same(gold, given), ""


def states_text(gold: str, stated: str, extra_words: int = EXTRA_WORDS) -> tuple[bool, str]:
  """Whether `stated`, or its first sentence, holds the words of `gold` in a row, and a failure where it does in vain.

  Case, accents, punctuation and an article in front of gold do not count; signs, decimals, "+" and "#" behind a word
  do. "too_long": over `extra_words` more words than gold. "hedged": gold is negated, stands beside an "or" that it does
  not hold, is one of three or more short items or not the first of two, unless it is itself a list of as many; or gold
  is yes or no (true or false), and both are stated. A gold of symbols only must be all that is stated.
  """
  opening = re.split(r"(?<=\w[.!?])\s", stated, maxsplit=1)[0]
  if opening != stated and states_text(gold, opening, extra_words)[0]:
    return True, ""
  wanted, words = tokens(gold), tokens(stated)
  if not wanted:
    return gold.strip() == trimmed(stated).strip("`") or gold.strip() == stated.strip(), ""
  wanted = wanted[1:] if len(wanted) > 1 and wanted[0] in ("the", "a", "an") else wanted
  places = [i for i in range(len(words) - len(wanted) + 1) if words[i : i + len(wanted)] == wanted]
  if not places:
    return False, ""
  if len(words) > len(wanted) + extra_words:
    return False, "too_long"
  torn = {"or", "either"} & set(words) - set(wanted) or any(set(wanted) < pair <= set(words) for pair in _DECISIONS)
  negated = any(_negated(words[:i]) for i in places) and not _NEGATIONS & set(wanted)
  return (False, "hedged") if torn or negated or _enumerates(gold, wanted, stated) else (True, "")


def sequence_ratio(gold: str, answer: str) -> float:
  """The dense reward of needle tasks: `SequenceMatcher(None, answer, gold).ratio()`, 0 to 1; 1 only for the same text.

  White space around both is taken off. An answer over 40 times as long as gold gets 0 without being compared.
  """
  gold, answer = gold.strip(), answer.strip()
  if len(answer) > LONGEST_RATIO * len(gold):
    return 0.0
  return SequenceMatcher(None, answer, gold).ratio()


def tokens(text: str) -> list[str]:
  """The words and numbers of a text, folded: compatibility forms, case, accents, n't, acronym points, thousands."""
  text = unicodedata.normalize("NFKD", text.replace("−", "-").replace("’", "'")).casefold()
  text = "".join(c for c in text if not unicodedata.combining(c))
  text = re.sub(r"n't\b", " not", text)
  text = re.sub(r"(?<=\b\w)\.(?=\w\b)", "", text)
  return [re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", token) for token in _TOKEN.findall(text)]


def _letters(text: str, committed: bool = False) -> set[str]:
  """The options named in a text. A statement (`committed`) that opens with one names that one, unless others adjoin."""
  opening = _COMMITTED.match(text) if committed else None
  if opening and _is_choice(opening) and not _ANOTHER.match(opening["rest"]):
    return {opening["letter"].upper()}
  if len(text.strip(" .()[]")) == 1:
    return set(text.strip(" .()[]").upper()) & set(LETTERS)
  found = {letter.upper() for form in _FORMS for letter in form.findall(text)}
  bare = {match[0] for match in _BARE.finditer(text)}
  return found | bare


def _is_choice(opening: re.Match[str]) -> bool:
  """Whether the letter that opens a statement is an option: not the article, the pronoun, or a lower-case word."""
  letter, rest = opening["letter"], opening["rest"]
  if opening.string[opening.start("letter") - 1 : opening.start("letter")] in tuple("([{"):
    return True
  return letter.isupper() and (letter not in "AI" or not re.match(r"\s+(?!because|since|as\b|is\b|which)\w", rest))


def _negated(words: list[str]) -> bool:
  return bool(_NEGATIONS & set(words[-3:]))


def _alternatives(found: list[numbers.Quantity], text: str) -> bool:
  return len({q.value for q in found}) > 1 and bool(re.search(r"\bor\b", text, re.IGNORECASE))


def _enumerates(gold: str, wanted: list[str], stated: str) -> bool:
  items = [words for item in _SEPARATORS.split(stated) if (words := tokens(item))]
  own = sum(1 for item in _SEPARATORS.split(gold) if tokens(item))
  if len(items) <= own or any(len(item) > max(3, len(wanted) + 1) for item in items):
    return False
  return len(items) > 2 or (own == 1 and not set(wanted) <= set(items[0]))
