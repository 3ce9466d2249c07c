"""Near-duplicates are found, and only they: beside a brute-force oracle of its own."""

import multiprocessing
import random
import re
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest

from qwenlong_jax.data import deduplication
from qwenlong_jax.data.deduplication import Duplicates, signature

WORDS = [a + b + c for a in ("ba", "co", "di", "fu", "ge", "ka", "li", "mo") for b in "aeiourst" for c in "lmnprt"]


def grams(text):
  words = re.findall(r"\w+", text.lower())
  return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}


def truth(a, b):
  """Jaccard similarity of the sets of 5-grams, as tuples of words."""
  a, b = grams(a), grams(b)
  return len(a & b) / len(a | b)


def text(rng, length=300):
  return " ".join(rng.choices(WORDS, k=length))


def changed(rng, original, edits):
  """The text with some words in other words' place."""
  words = original.split()
  for i in rng.sample(range(len(words)), edits):
    words[i] = "changed"
  return " ".join(words)


def test_planted_near_duplicates_are_found_and_what_is_less_alike_stays():
  rng = random.Random(0)
  originals = [text(rng) for _ in range(40)]
  stream = originals + [changed(rng, original, edits) for edits in (1, 3, 5, 8, 12, 30) for original in originals]
  found, kept, planted, missed = Duplicates(threshold=0.8), {}, 0, 0
  for i, one in enumerate(stream):
    match, mine = found.match(str(i), signature(one)), grams(one)
    similar = {name: len(mine & other) / len(mine | other) for name, other in kept.items()}
    wanted = next((name for name, similarity in similar.items() if similarity >= 0.8), None)
    planted += wanted is not None
    if match is None:
      kept[str(i)] = mine
      missed += wanted is not None
    else:
      assert match.first == wanted
      assert match.jaccard == pytest.approx(similar[wanted])
  assert planted > 100
  assert missed <= 0.02 * planted


@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.95, 1.0])
def test_the_threshold_is_a_similarity_not_a_guess(threshold):
  rng = random.Random(1)
  for edits in (0, 1, 2, 4, 8, 16, 32, 64):
    original = text(rng)
    other = changed(rng, original, edits) + "."
    found = Duplicates(threshold)
    found.match("original", signature(original))
    similarity = truth(original, other)
    assert abs(similarity - threshold) < 0.03 or (found.match("other", signature(other)) is not None) == (
      similarity > threshold
    )


def test_the_similarity_is_that_of_the_sets_of_5_grams():
  rng = random.Random(2)
  texts = [text(rng, rng.randrange(5, 80)) for _ in range(20)]
  texts += [changed(rng, one, 2) for one in texts]
  signed = [signature(one).shingles for one in texts]
  for i in range(len(texts)):
    for j in range(i):
      assert deduplication.jaccard(signed[i], signed[j]) == pytest.approx(truth(texts[i], texts[j]))


def test_the_first_in_order_stays_and_the_first_of_several_is_named():
  rng = random.Random(3)
  original = text(rng)
  found = Duplicates()
  assert found.match("a", signature(original)) is None
  assert found.match("b", signature(text(rng))) is None
  match = found.match("c", signature(changed(rng, original, 1)))
  assert (match.first, match.exact) == ("a", False)
  assert found.match("d", signature(original)) == deduplication.Match("a", 1.0, True)


def test_texts_that_differ_in_case_and_signs_only_are_the_same_words():
  found = Duplicates()
  found.match("a", signature("The harbour was closed, for three days!"))
  match = found.match("b", signature("the harbour was closed for THREE days"))
  assert (match.jaccard, match.exact) == (1.0, False)


def test_a_script_without_spaces_is_compared_by_its_characters():
  rng = random.Random(4)
  characters = [chr(0x4E00 + i) for i in range(2000)]
  original = rng.choices(characters, k=300)
  other = [*original[:150], "改", *original[151:]]
  found = Duplicates()
  found.match("a", signature("".join(original)))
  assert found.match("b", signature("".join(other))).jaccard == pytest.approx(291 / 301)
  assert found.match("c", signature("".join(rng.choices(characters, k=300)))) is None


@pytest.mark.parametrize("short", ["", "...", "one", "four words and no"])
def test_a_text_shorter_than_a_shingle_is_compared_whole(short):
  found = Duplicates()
  assert found.match("a", signature(short)) is None
  assert found.match("b", signature("quite another text of many words")) is None
  assert found.match("c", signature(short)).first == "a"


def test_a_signature_is_the_same_in_another_process():
  texts = [text(random.Random(i)) for i in range(3)]
  with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
    for here, there in zip(map(signature, texts), pool.map(signature, texts), strict=True):
      assert here.digest == there.digest
      np.testing.assert_array_equal(here.shingles, there.shingles)
      np.testing.assert_array_equal(here.minhash, there.minhash)


@pytest.mark.parametrize("threshold", [0, 1.2, 80])
def test_a_threshold_that_is_no_similarity_is_refused(threshold):
  with pytest.raises(ValueError, match=f"threshold={threshold}"):
    Duplicates(threshold)
