"""Samples of every kind, their answers found again by other means than the generators'."""

import dataclasses
import itertools
import re
import statistics

import numpy as np
import pytest

from qwenlong_jax.data import verification
from qwenlong_jax.data.documents import Document, Source
from qwenlong_jax.data.synthesis import corpus as corpora
from qwenlong_jax.data.synthesis import dialogue, generate, reading, table_templates
from qwenlong_jax.data.synthesis.context import compose
from qwenlong_jax.data.synthesis.corpus import Corpus
from qwenlong_jax.data.synthesis.generate import KINDS, Order
from qwenlong_jax.types import Example

TARGETS = (3000, 6000)


def length(text: str) -> int:
  return len(text) // 4 + 1


def samples(corpus: Corpus, task: str, count: int, seed: int = 0) -> list[Example]:
  found = [generate.sample(corpus, Order(task, n, seed, TARGETS), length)[0] for n in range(count)]
  kept = [example for example in found if example is not None]
  assert len(kept) > count // 2
  return kept


def pages(context: str) -> dict[str, str]:
  parts = re.split(r"(?m)^=== (.+) ===\n", context)
  return dict(zip(parts[1::2], parts[2::2], strict=True))


def facts(page: str) -> dict[str, str]:
  """Heading > key -> value, as a reader sees them."""
  heading, found = "", {}
  for line in page.split("\n"):
    if line.startswith("## "):
      heading = line[3:]
    elif ": " in line and len(line) < 200:
      key, value = line.split(": ", 1)
      found[f"{heading} > {key}"] = value
  return found


def number(value: str) -> float:
  digits = re.match(r"\$?([\d,.]+)", value)
  assert digits is not None
  return float(digits[1].replace(",", "")) * (1e9 if " billion" in value else 1)


def holds(constraint: list, stated: dict[str, str]) -> bool:
  attribute, test, values, _ = constraint
  if attribute not in stated:
    return False
  value = stated[attribute]
  match test:
    case "is":
      return value == values[0]
    case "begins":
      return value.startswith(values[0])
    case "between":
      return values[0] <= number(value) < values[1]
    case "year":
      return values[0] <= int(re.findall(r"\b\d{4}\b", value)[0]) < values[1]
  raise AssertionError(test)


def the_one(constraints: list, stated: dict[str, dict[str, str]]) -> str:
  """The only page of which all constraints are true."""
  found = [name for name, page in stated.items() if all(holds(c, page) for c in constraints)]
  assert len(found) == 1, (constraints, found)
  return found[0]


def plain(value: str) -> str:
  return re.sub(r" \([^)]*\)$", "", value)


def test_multi_hop_answers_follow_from_the_context_alone(countries: Corpus) -> None:
  for example in samples(countries, "multi_hop", 24):
    stated = {name: facts(page) for name, page in pages(example.context).items()}
    program = example.provenance["program"]
    match program["kind"]:
      case "hop":
        start = the_one(program["start"], stated)
        end = re.split(r" \d", stated[start][program["link"]])[0].capitalize()
        assert plain(stated[end][program["answer"]]) == example.answer
      case "inverse":
        named = the_one(program["start"], stated)
        first = {n: re.split(r" \d", page.get(program["link"], ""))[0] for n, page in stated.items()}
        naming = [name for name, value in first.items() if value.lower() == named.lower()]
        assert len(naming) == 1
        assert plain(stated[naming[0]][program["answer"]]) == example.answer
      case "years":
        years = [re.findall(r"\d{4}", stated[the_one(c, stated)][program["attribute"]])[0] for c in program["of"]]
        assert int(example.answer) == abs(int(years[0]) - int(years[1]))
      case "suppose":
        x, y = (number(stated[the_one(c, stated)][program["attribute"]]) for c in program["of"])
        value = x * (1 + program["percent"] / 100) - y
        given = float(re.sub(r"[^\d.-]", "", example.answer.split(" ")[0]))
        assert given == pytest.approx(value, abs=0.51 if program["decimals"] == 0 else 0.0051)


def test_multi_hop_evidence_lies_in_several_documents(countries: Corpus) -> None:
  for example in samples(countries, "multi_hop", 24):
    assert len({span.document for span in example.evidence}) > 1


def test_tables_have_exactly_the_rows_that_the_context_states(countries: Corpus) -> None:
  checked = 0
  for example in samples(countries, "corpus_numeric", 30):
    program = example.provenance["program"]
    stated = [facts(page) for page in pages(example.context).values()]
    rows = [page for page in stated if all(a in page for a in program["columns"].values())]
    assert len(rows) == program["rows"]
    xs = [number(row[program["columns"]["x"]]) for row in rows]
    by_hand = {
      "SELECT median(x) FROM facts": statistics.median(xs),
      "SELECT avg(x) FROM facts": statistics.fmean(xs),
      "SELECT max(x) - min(x) FROM facts": max(xs) - min(xs),
    }
    if program["sql"] in by_hand:
      checked += 1
      given = float(re.sub(r"[^\d.-]", "", example.answer.split(" ")[0]))
      assert given == pytest.approx(by_hand[program["sql"]], abs=0.51 * 10.0 ** -program["decimals"])
  assert checked > 4


def test_tables_are_asked_about_in_english() -> None:
  columns = {"x": "limit", "y": "Area"}
  assert table_templates.opening("class", columns) == 'Consider all classes above that state "limit" and "Area"'
  assert table_templates.opening("table row", columns).startswith("Consider all table rows above")
  assert table_templates.rounding("%", 1).endswith("rounded to 1 decimal.")
  plain = "as a plain number without words such as million, rounded to 2 decimals."
  assert table_templates.rounding("km", 2) == f"Give it in km, {plain}"
  assert table_templates.rounding("", 2) == f"Give it {plain}"


def test_a_limit_has_the_unit_of_its_column() -> None:
  rows = [(f"d{n}", float(n * n), 100.0 * n, None) for n in range(1, 9)]
  columns, units = {"x": "Area", "y": "Coast"}, {"x": "sq km", "y": "km"}
  (template,) = [one for one in table_templates.TEMPLATES["aggregation"] if "{y}" in one[0]]
  asked = table_templates.fill(np.random.default_rng(0), template, columns, rows, units, "document")
  assert asked is not None and re.search(r'whose "Coast" is above \d{3} km\? Give it in sq km, as', asked.question)


@pytest.mark.parametrize(
  ("words", "step", "decimals"),
  [("sum of the {k}", 1.0, 0), ("sum of the {k}", 0.1, 2), ("mean of {x}", 1.0, 2), ("percentage", 1.0, 1)],
)
def test_a_sum_of_whole_numbers_is_whole(words: str, step: float, decimals: int) -> None:
  rows = [(f"d{n}", 7 + n * n * step, None, None) for n in range(1, 9)]
  every = (template for of in table_templates.TEMPLATES.values() for template in of)
  template = next(one for one in every if words in one[0] and "{y}" not in one[0])
  asked = table_templates.fill(np.random.default_rng(0), template, {"x": "Ports"}, rows, {"x": ""}, "document")
  assert asked is not None and asked.program["decimals"] == decimals
  assert f"rounded to {decimals} decimal" in asked.question


@pytest.mark.parametrize("domain", ["countries", "modules"])
def test_readings_are_true_of_the_excerpts(domain: str, request: pytest.FixtureRequest) -> None:
  for example in samples(request.getfixturevalue(domain), "reading_comprehension", 18):
    found = pages(example.context)
    program = example.provenance["program"]
    has, loose = ([set(re.findall(word, page.lower())) for page in found.values()] for word in (r"\w+", r"[^\W\d_]+"))
    one, other = program["words"]
    # Parts of names with digits and underscores are words to some readers: they must find the same.
    assert [words & {one, other} for words in has] == [words & {one, other} for words in loose]
    assert not any(word in title.lower() for title in found for word in (one, other))
    both = [n for n, words in enumerate(has) if one in words and other in words]
    assert len(both) == 1
    if program["kind"] == "count":
      assert int(example.answer) == sum(one in words and other not in words for words in has)
    elif program["kind"] == "both":
      assert list(found)[both[0] + 1] == example.answer
      assert example.provenance["candidates"] == list(found)[1:]
    else:
      assert re.findall(r"\w+", list(found.values())[both[0]])[:6] == example.answer.split()
      # A heading that says the title once more is the title to some readers.
      title = re.findall(r"\w+", list(found)[both[0]])
      assert example.answer.split()[: len(title)] != title[:6]


@pytest.mark.parametrize(
  ("page", "title", "is_headed"),
  [
    ("# Message to Congress, 1999, W. J. Clinton\n\nMr Speaker, ...", "Message to Congress, 1999, W. J. Clinton", True),
    ("Mali\n\nThe Sudanese Republic and Senegal became", "Mali", True),
    ("Malian peasants sow millet and sorghum", "Mali", False),
    ("[...]\n\nThe message to Congress of 1999 says", "Message to Congress, 1999, W. J. Clinton", False),
  ],
)
def test_an_excerpt_that_begins_with_its_title_is_not_asked_how_it_begins(
  page: str, title: str, is_headed: bool
) -> None:
  assert reading.headed(reading.opening(page), title) is is_headed


@pytest.mark.parametrize("domain", ["countries", "modules"])
def test_the_evidence_of_readings_is_all_that_their_answers_rest_on(
  domain: str, request: pytest.FixtureRequest
) -> None:
  kinds = set()
  for example in samples(request.getfixturevalue(domain), "reading_comprehension", 18):
    one, other = example.provenance["program"]["words"]
    titles = [match.start() for match in re.finditer(r"(?m)^=== .+ ===$", example.context)]
    by_page: dict[int, list[str]] = {}
    for span in example.evidence:
      page = sum(start <= span.start for start in titles)
      by_page.setdefault(page, []).append(example.context[span.start : span.end])
    said = {page: " ".join(texts).lower().split() for page, texts in by_page.items()}
    both = [page for page, words in said.items() if one in words and other in words]
    assert len(both) == 1
    kinds.add(kind := example.provenance["kind"])
    if kind == "count":
      assert [words for page, words in said.items() if page != both[0]] == [[one]] * int(example.answer)
    elif kind == "both":
      assert by_page[both[0] + 1] == [f"=== {example.answer} ==="]
    else:
      assert example.answer in " ".join(re.findall(r"\w+", " ".join(by_page[both[0]])))
  assert kinds == {"opening", "count", "both"}


def test_each_count_is_asked_for_equally_often_and_kept_when_a_draft_fails(modules: Corpus) -> None:
  counts, turns = [], set()
  for example in samples(modules, "reading_comprehension", 240):
    if example.provenance["kind"] == "count":
      counts.append(int(example.answer))
      turns.add((counts[-1] - example.provenance["seed"][1] // 3) % 5)
  assert len(turns) == 1
  assert len(counts) > 40
  assert min(counts.count(count) for count in range(2, 7)) > 0.13 * len(counts)


def test_the_first_counts_of_corpora_differ(countries: Corpus) -> None:
  first = set()
  for name in map(str, range(12)):
    corpus = dataclasses.replace(countries, name=name)
    found = (reading.draft(np.random.default_rng(n), corpus, "count", 1) for n in range(9))
    draft = next(draft for draft in found if draft)
    word = draft.query.split()[0]
    first.add(sum(word in corpus.text(place).lower() for place in draft.decoys))
  assert len(first) > 2


def test_the_figure_in_force_is_what_the_conversation_agreed(plays: Corpus, countries: Corpus) -> None:
  checked = 0
  for corpus in (plays, countries):
    for example in samples(corpus, "dialogue_memory", 20):
      program = example.provenance["program"]
      if program["kind"] == "needle":
        speeches = re.findall(
          rf"(?m)^{program['speaker']}\.\n((?:.+\n?)+)", pages(example.context)[program["title"]]
        )
        assert speeches[program["number"]].strip() == example.answer
        continue
      if program["kind"] == "request":
        continue
      agreed: list[str] = []
      for said, reply in re.findall(r"(?m)^[A-Z]\w+: (.*)\n[A-Z]\w+: (.*)$", example.context):
        if program["subject"] in said and not reply.startswith("No"):
          agreed.append(agreed[-2] if "go back" in said else re.findall(r"\d+", said)[-1])
      assert agreed[program["number"]] == example.answer
      checked += 1
  assert checked > 15


@pytest.fixture(scope="module")
def letters() -> Corpus:
  """Sentences of one line, in each of them two of a few long words."""
  nouns = ["harbour", "captain", "lantern", "country", "village", "teacher", "library", "journey", "message", "weather"]
  rng = np.random.default_rng(3)
  documents = []
  for n in range(40):
    lines = []
    for m in range(12):
      one, other = (nouns[k] for k in rng.permutation(len(nouns))[:2])
      lines.append(f"In year {n} of the {one} they wrote about a {other} and its number {m}.")
    text = "\n\n".join(lines) + "\n"
    documents.append(Document(f"{n}.txt", "general", f"Letter {n}", text, Source(f"{n}.txt", 0, len(text), "0" * 64)))
  return corpora.make("train", "general", "0000", documents, lambda texts: list(map(length, texts)))


def test_a_reply_is_the_one_that_this_person_got_for_this_word_and_stands_in_a_document(letters: Corpus) -> None:
  places = []
  for number in range(60):
    draft = dialogue.draft(np.random.default_rng(number), letters, "request")
    assert draft is not None
    order = Order("dialogue_memory", number, 0, (3000,))
    example = generate.finish(letters, np.random.default_rng(number), order, draft, 3000, length)
    assert isinstance(example, Example)
    asked = re.findall(r'(?m)^(\w+): Quote me a sentence with the word "(\w+)"\.\nArchivist: (.+)$', example.context)
    ((person, word),) = re.findall(r'above, (\w+) asks several times .* with the word "(\w+)"', example.question)
    (which,) = re.findall(r"gets the (\w+) time", example.question)
    replies = [reply for who, of, reply in asked if (who, of) == (person, word)]
    place = ("first", "second", "third", "fourth", "fifth").index(which)
    assert replies[place] == example.answer and f" {word} " in example.answer
    assert len({who for who, of, _ in asked if of == word}) == len({of for who, of, _ in asked if who == person}) == 2
    assert sorted(example.provenance["candidates"]) == sorted(reply for _, of, reply in asked if of == word)
    assert example.provenance["reward"] == "sequence"
    quoted = [span for span in example.evidence if span.document != generate.CONVERSATION]
    assert [example.context[span.start : span.end] for span in quoted] == replies
    texts = {document.id: document.text for document in letters.documents}
    for span, source in zip(quoted, example.provenance["documents"], strict=True):
      first, last = source["characters"]
      assert texts[span.document][first:last] == example.context[span.start : span.end]
    places.append(place / (len(replies) - 1))
  assert 0.4 < np.mean(places) < 0.6


def test_nobody_goes_back_twice_in_a_row_and_a_refused_figure_is_said_as_often_as_one_agreed_on(plays: Corpus) -> None:
  for number in range(200):
    draft = dialogue.draft(np.random.default_rng(number), plays, "agreement")
    if draft is None:
      continue
    talk = "\n\n".join(draft.talk)
    asked = draft.ask(compose(plays, np.random.default_rng(number), draft, 6000))  # type: ignore[arg-type]
    assert asked is not None
    assert {talk.count(candidate) for candidate in asked.candidates} == {2}
    subject = asked.program["subject"]
    backs = ["go back" in said for said in draft.talk if subject in said and "No, not" not in said]
    assert not any(one and other for one, other in itertools.pairwise(backs))


def test_no_figure_is_right_for_being_said_last(plays: Corpus) -> None:
  last: dict[bool, list[float]] = {True: [], False: []}
  for number in range(3000):
    draft = dialogue.draft(np.random.default_rng(number), plays, "agreement")
    asked = draft and draft.ask(None)  # type: ignore[arg-type]
    if draft is None or asked is None:
      continue
    talk = "\n\n".join(draft.talk)
    said_last = max(asked.candidates, key=talk.rfind)
    last["at the end" in asked.question].append((said_last == asked.answer) - 1 / len(asked.candidates))
  for found in last.values():
    assert len(found) > 300
    assert np.mean(found) < 3 * np.std(found) / len(found) ** 0.5


def test_a_short_line_within_a_speech_names_no_speaker() -> None:
  text = "ANNA.\nI go.\nGood night.\nWhich must decide it.\n\nBEN.\nStay.\nAnna: No.\n"
  assert [(name, text[start:end]) for name, start, end in dialogue.turns(text)] == [
    ("ANNA", "I go.\nGood night.\nWhich must decide it."),
    ("BEN", "Stay."),
    ("Anna", "No."),
  ]


@pytest.mark.parametrize("task", list(KINDS))
def test_no_candidate_is_there_twice(countries: Corpus, task: str) -> None:
  for example in samples(countries, task, 30):
    candidates = example.provenance["candidates"]
    assert len(set(candidates)) == len(candidates)


def test_one_option_is_right_and_the_letters_are_used_evenly(countries: Corpus, modules: Corpus) -> None:
  letters = []
  for corpus in (countries, modules):
    for example in samples(corpus, "multiple_choice", 40):
      options = dict(re.findall(r"(?m)^\((\w)\) (.+)$", example.question))
      assert len(set(options.values())) == 4
      assert example.answer in options
      letters.append(example.answer)
  assert min(letters.count(letter) for letter in "ABCD") > len(letters) // 10


@pytest.mark.parametrize("task", list(KINDS))
def test_a_sample_is_a_function_of_its_number(countries: Corpus, task: str) -> None:
  one, other = samples(countries, task, 6), samples(countries, task, 6)
  assert one == other
  assert samples(countries, task, 6, seed=1) != one


@pytest.mark.parametrize("task", list(KINDS))
def test_evidence_stands_in_the_context_as_in_its_document(countries: Corpus, task: str) -> None:
  texts = {document.id: document.text for document in countries.documents}
  for example in samples(countries, task, 10):
    sources = example.provenance["documents"]
    for span, source in zip(example.evidence, sources, strict=False):
      assert example.context[span.start : span.end] == texts[source["id"]][slice(*source["characters"])]
    assert length(example.context) <= max(TARGETS)


def test_evidence_is_found_at_all_depths(countries: Corpus) -> None:
  found = samples(countries, "reading_comprehension", 60)
  depths = [example.evidence[0].start / len(example.context) for example in found]
  quarters = np.histogram(depths, bins=4, range=(0, 1))[0]
  assert quarters.min() >= len(depths) // 12


def test_the_first_samples_of_a_kind_have_their_evidence_at_all_depths_too(countries: Corpus) -> None:
  # Of many corpora few samples of a kind are kept, the same numbers of each.
  orders = [Order("multiple_choice", number, seed, TARGETS) for seed in range(30) for number in (3, 7)]
  found = [example for order in orders if (example := generate.sample(countries, order, length)[0]) is not None]
  both = [example for example in found if example.provenance["kind"] == "both"]
  depths = [example.evidence[0].start / len(example.context) for example in both]
  assert len(depths) > 30
  assert np.histogram(depths, bins=4, range=(0, 1))[0].min() >= len(depths) // 8


def test_a_sample_is_hardly_longer_than_its_own_target_be_another_target_long(plays: Corpus) -> None:
  orders = [Order("dialogue_memory", number, 0, (2000, 6000)) for number in range(0, 60, 2)]
  # More tokens than the sections' counts, as what is said between them may have.
  found = [generate.sample(plays, order, lambda text: len(text) // 3)[0] for order in orders]
  kept = [example.provenance for example in found if example is not None]
  assert len(kept) > 10
  assert all(said["target"] / 2 <= said["tokens"] <= 1.25 * said["target"] <= 2500 for said in kept)


def test_an_answer_in_the_question_is_dropped(countries: Corpus) -> None:
  example = samples(countries, "multi_hop", 4)[0]
  told = Example(**{**vars(example), "question": f"{example.question} Is it {example.answer}?"})
  assert verification.reason_to_drop(example) == ""
  assert verification.reason_to_drop(told) == "answer_in_question"
  assert verification.reason_to_drop(Example(**{**vars(example), "answer": " "})) == "empty"
  assert verification.reason_to_drop(Example(**{**vars(example), "evidence": ()})) == "evidence"


def test_a_context_is_as_long_as_it_should_be(countries: Corpus) -> None:
  rng = np.random.default_rng(0)
  draft = generate.make(rng, countries, "reading_comprehension", "both", 6000, 0)
  assert draft is not None
  context = compose(countries, rng, draft, 6000)
  assert context is not None
  assert 5000 < length(context.text) <= 6000
