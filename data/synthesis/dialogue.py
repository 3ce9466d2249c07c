"""Dialogue memory: what was said how often in long dialogues, and what was agreed, changed and taken back in them.

Three kinds. `needle`: the n-th of several speeches of one person in real dialogues (plays, transcripts, chats), to be
given word for word (dense reward). `request`: the n-th reply to one of several people who ask again and again for much
the same, likewise (as in MRCR). `agreement`: figures are agreed upon, changed and restored. The conversations of the
latter two are ours, turn by turn between passages of documents.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from qwenlong_jax.data.synthesis.context import Asked, Context, Draft
from qwenlong_jax.data.synthesis.corpus import Corpus
from qwenlong_jax.data.synthesis.graph import pick

KINDS = ("needle", "agreement", "request")
DENSE = ("needle", "request")  # the reward is how like the answer is
_NAME = r"[A-Z][\w'’]*(?: [A-Za-z][\w'’]*){0,3}"
# Without an empty line above it, a short sentence on a line of its own belongs to a speech.
_LABEL = re.compile(rf"^(?P<before>{_NAME}):[ \t]+(?=\S)|(?:\A|(?<=\n\n))(?P<above>{_NAME})\.[ \t]*$", re.MULTILINE)
_SPEECH = range(60, 700)  # characters of a speech worth asking for
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")


def turns(text: str) -> list[tuple[str, int, int]]:
  """(speaker, start, end) of every speech: behind `Name: `, or below a line `NAME.` that has an empty one above it, to
  the next empty line or label."""
  labels = list(_LABEL.finditer(text))
  found = []
  for label, after in zip(labels, [*(label.start() for label in labels[1:]), len(text)]):
    start = label.end() + (text[label.end() : label.end() + 1] == "\n")
    blank = text.find("\n\n", start, after)
    end = blank if blank >= 0 else after
    speech = text[start:end]
    start += len(speech) - len(speech.lstrip())
    found.append((label["before"] or label["above"], start, start + len(speech.strip())))
  return found


def draft(rng: np.random.Generator, corpus: Corpus, kind: str) -> Draft | None:
  return {"needle": _needle, "agreement": _agreement, "request": _request}[kind](rng, corpus)


def _needle(rng: np.random.Generator, corpus: Corpus) -> Draft | None:
  """A run of sections of one document in which somebody speaks three to ten times."""
  document = int(rng.random() * len(corpus.documents))
  text, cut = corpus.documents[document].text, corpus.sections[document]
  length = 3 + int(rng.random() * 6)
  first = int(rng.random() * max(len(cut) - length, 1))
  run = cut[first : first + length]
  if len(run) < 3:
    return None
  by: dict[str, list[tuple[int, int]]] = defaultdict(list)
  for name, start, end in turns(text[run[0].start : run[-1].end]):
    by[name].append((start + run[0].start, end + run[0].start))
  able = sorted(name for name, said in by.items() if 3 <= len(said) <= len(_ORDINALS))
  if not able:
    return None
  name = able[int(rng.random() * len(able))]
  said = by[name]
  place = int(rng.random() * len(said))
  speeches = [text[start:end] for start, end in said]
  if len(speeches[place]) not in _SPEECH or len(set(speeches)) < len(speeches):
    return None
  title = corpus.names[document]
  question = (
    f'In the excerpt "{title}", take the speeches of {name} in their order. Give the {_ORDINALS[place]} of them word '
    "for word, without the name and without anything else."
  )
  program = {"kind": "needle", "title": title, "speaker": name, "number": place}

  def ask(context: Context) -> Asked | None:
    page = context.page(document)
    excerpt = "" if page is None else context.page_text(page)
    seen = [excerpt[start:end] for who, start, end in turns(excerpt) if who == name]
    return Asked(question, speeches[place], tuple(dict.fromkeys(speeches)), program) if seen == speeches else None

  return Draft("needle", [(document, *said[place])], ask, question, scopes=[(document, run[0].start, run[-1].end)])


_MOST_ASKED = 9  # sentences with one word, by two people
_NO_NOUN = ("ly", "ing", "ed")


def _request(rng: np.random.Generator, corpus: Corpus) -> Draft | None:
  """Two people ask for sentences with one of two words, the same word several times each; documents are quoted."""
  known = [word for word in _called(corpus) if len(corpus.sentences.get(word, ())) >= _MOST_ASKED]
  if len(known) < 2:
    return None
  one, other = (_PEOPLE[n] for n in rng.permutation(len(_PEOPLE))[:2])
  wanted, also = (known[n] for n in rng.permutation(len(known))[:2])
  both = set(corpus.sentences[wanted]) & set(corpus.sentences[also])
  holding = {word: [place for place in corpus.sentences[word] if place not in both] for word in (wanted, also)}
  if min(map(len, holding.values())) < _MOST_ASKED:
    return None
  times = {(one, wanted): 3 + int(rng.random() * 3)}
  times |= {pair: 2 + int(rng.random() * 3) for pair in ((other, wanted), (one, also), (other, also))}
  asking = [pair for pair, count in times.items() for _ in range(count)]
  asking = [asking[n] for n in rng.permutation(len(asking))]
  left = {word: [sentences[n] for n in rng.permutation(len(sentences))] for word, sentences in holding.items()}
  quoted = [left[word].pop() for _, word in asking]
  replies = [corpus.documents[document].text[start:end] for document, start, end in quoted]
  heard = [n for n, pair in enumerate(asking) if pair == (one, wanted)]
  number = int(rng.random() * len(heard))
  question = (
    f'In the conversation above, {one} asks several times for a sentence with the word "{wanted}". Give the sentence '
    f"that {one} gets the {_ORDINALS[number]} time, word for word and without anything else."
  )
  talk = [
    f'{person}: Quote me a sentence with the word "{word}".\nArchivist: {reply}'
    for (person, word), reply in zip(asking, replies)
  ]
  candidates = tuple(reply for (_, word), reply in zip(asking, replies) if word == wanted)
  program = {"kind": "request", "person": one, "word": wanted, "number": number}
  asked = Asked(question, replies[heard[number]], candidates, program)
  return Draft("request", [], lambda context: asked, wanted, talk=talk, heard=heard, quoted=quoted)


def _called(corpus: Corpus) -> list[str]:
  """Words that several documents hold, long, and such that may be nouns."""
  return [word for word in corpus.words if len(word) > 6 and not word.endswith(_NO_NOUN)]


_PEOPLE = ("Ana", "Ben", "Chidi", "Dora", "Emil", "Farah", "Goran", "Hana")
_THINGS = ("budget", "deadline number", "room number", "quota", "reference number", "reserve")


def _agreement(rng: np.random.Generator, corpus: Corpus) -> Draft | None:
  """Several subjects, each agreed on, changed, proposed in vain and restored; one is asked about."""
  words = _called(corpus)
  if len(words) < 20:
    return None
  subjects = [f"{pick(rng, _THINGS)} of the {pick(rng, words)} group" for _ in range(3 + int(rng.random() * 3))]
  people = [_PEOPLE[n] for n in rng.permutation(len(_PEOPLE))[:3]]
  figures = iter(rng.permutation(9000)[:80] + 1000)
  history: dict[str, list[int]] = {subject: [] for subject in subjects}
  stated: dict[str, list[int]] = {subject: [] for subject in subjects}
  talk: list[str] = []
  of: list[str] = []
  events = [subject for subject in history for _ in range(4 + int(rng.random() * 3))]
  for subject in (events[n] for n in rng.permutation(len(events))):
    talk.append(_event(rng, people, subject, history[subject], stated[subject], figures))
    of.append(subject)
  ends = rng.random() < 0.2
  # At the end, what was said last shall be in force no more often than what was said before.
  for subject in subjects if ends else ():
    if rng.random() < 0.7:
      talk.append(_turned_down(rng, people, subject, stated[subject], figures))
      of.append(subject)
  subject = subjects[int(rng.random() * len(subjects))]
  agreed = history[subject]
  if len(history) < len(subjects) or len(set(agreed)) < 3:
    return None
  place = len(agreed) - 1 if ends else int(rng.random() * len(agreed))
  if ends:
    question = f"In the conversation above, which figure for the {subject} is in force at the end?"
  else:
    question = (
      f"In the conversation above, figures for the {subject} come into force several times; going back to an earlier "
      f"figure counts as another time. Which figure came into force the {_ORDINALS[place]} time?"
    )
  program = {"kind": "agreement", "subject": subject, "number": place}
  asked = Asked(question, str(agreed[place]), tuple(map(str, dict.fromkeys(stated[subject]))), program)
  heard = [n for n, about in enumerate(of) if about == subject]
  return Draft("agreement", [], lambda context: asked, subject, talk=talk, heard=heard)


def _event(
  rng: np.random.Generator,
  people: Sequence[str],
  subject: str,
  agreed: list[int],
  stated: list[int],
  figures: Iterator[int],
) -> str:
  """A few turns about a subject: its figure is set, changed, restored, or a proposal is turned down."""
  one, other = (people[n] for n in rng.permutation(len(people))[:2])
  chance = rng.random()
  # Going back twice in a row would undo two changes to some, and the first going back to others.
  if len(agreed) > 1 and agreed[-1] not in agreed[:-1] and chance < 0.2:
    agreed.append(agreed[-2])
    return (
      f"{one}: The last change to the {subject} was a mistake. Let us go back to the figure before it.\n"
      f"{other}: Agreed, we go back."
    )
  if agreed and chance < 0.4:
    return _turned_down(rng, people, subject, stated, figures)
  figure = int(next(figures))
  stated.append(figure)
  agreed.append(figure)
  if len(agreed) == 1:
    return f"{one}: Let us set the {subject} to {figure}.\n{other}: Agreed, {figure}."
  return f"{one}: I would like to change the {subject} to {figure}.\n{other}: Agreed, {figure} it is."


def _turned_down(
  rng: np.random.Generator, people: Sequence[str], subject: str, stated: list[int], figures: Iterator[int]
) -> str:
  one, other = (people[n] for n in rng.permutation(len(people))[:2])
  stated.append(int(next(figures)))
  # The figure twice, as it is said of one that is agreed on.
  return f"{one}: What if we made the {subject} {stated[-1]}?\n{other}: No, not {stated[-1]}; it stays as it is."
