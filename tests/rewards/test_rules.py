"""What counts as stating the ground truth, and what is only an attempt to be paid for it."""

import string
import time

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from qwenlong_jax.rewards.rules import EXTRA_WORDS, LETTERS, chosen_letter, rule, sequence_ratio, tokens

WORDS = st.text(string.ascii_lowercase, min_size=3, max_size=8).filter(lambda w: not set(tokens(w)) & RESERVED)
RESERVED = {"the", "and", "not", "never", "nor", "neither", "cannot", "except", "either", "one", "two", "six", "ten"}
RESERVED |= {"three", "four", "five", "seven", "eight", "nine", "zero", "eleven", "twelve", "yes", "true", "false"}


@pytest.mark.parametrize(
  "answer, letter",
  [
    ("B", "B"),
    ("(B)", "B"),
    ("[B]", "B"),
    ("b", "B"),
    ("**B**", "B"),
    ("B.", "B"),
    ("B. Paris", "B"),
    ("B) Paris", "B"),
    ("B: Paris", "B"),
    ("(b) Paris", "B"),
    ("The correct answer is B", "B"),
    ("The correct answer is (B)", "B"),
    ("*The correct answer is* (B).", "B"),
    ("The correct answer is (B) Paris, since A man came from there.", "B"),
    ("The answer is B because option A leaves out the river.", "B"),
    ("Answer: A", "A"),
    ("Answer: A. Paris", "A"),
    ("Answer: A because it is", "A"),
    ("The answer is option A", "A"),
    ("The correct choice is: I", "I"),
    (r"\boxed{B}", "B"),
    (r"\boxed{\text{(B)}}", "B"),
    ("The correct answer is not (A) but (B)", "B"),
    ("(A) is wrong. The correct answer is (C)", "C"),
    ("Option D fits best.", "D"),
    ("I would choose C", "C"),
    ("In the end, C is right; A and B are wrong", "C"),
    ("A passage on page 3 supports (C).", "C"),
    ("The text mentions vitamin-C and J.K. Rowling; I take D", "D"),
  ],
)
def test_the_chosen_letter_is_read(answer, letter):
  assert chosen_letter(answer) == (letter, "")


@pytest.mark.parametrize(
  "answer, failure",
  [
    ("A man went home.", "no_choice"),
    ("The answer is A man of the sea", "no_choice"),
    ("I do not know.", "no_choice"),
    ("I think that I know", "no_choice"),
    ("None of the above", "no_choice"),
    ("The answer is not A", "no_choice"),
    ("Paris", "no_choice"),
    ("The answer is a or b", "no_choice"),
    ("A, B, C, D", "many_choices"),
    ("A or B", "many_choices"),
    ("ABCD", "no_choice"),
    ("(A)(B)(C)(D)", "many_choices"),
    ("A. Paris\nB. Rome\nC. Bonn", "many_choices"),
    ("The correct answer is (A) or (B)", "many_choices"),
    ("The correct answer is A/B", "many_choices"),
    ("The correct answer is A, B, C and D", "many_choices"),
    ("The correct answer is A. B. C. D.", "many_choices"),
    ("The correct answer is (A). The correct answer is (B).", "many_choices"),
    (r"\boxed{A} \boxed{B}", "many_choices"),
    ("Option A and option B", "many_choices"),
  ],
)
def test_what_is_not_exactly_one_choice_is_none(answer, failure):
  assert chosen_letter(answer) == ("", failure)
  assert all(rule(letter, answer, choices=True).reward == 0 for letter in LETTERS)


@given(st.sets(st.sampled_from(LETTERS[:5]), min_size=2), st.sampled_from(["({})", "{}.", "{}", "The answer is ({})"]))
def test_listing_several_options_never_pays(letters, form):
  for separator in (" ", ", ", "\n", " or ", " and "):
    answer = separator.join(form.format(letter) for letter in sorted(letters))
    assert max(rule(letter, answer, choices=True).reward for letter in letters) == 0, answer


@given(st.text())
def test_no_text_earns_two_letters(text):
  assert sum(rule(letter, text, choices=True).reward for letter in LETTERS) <= 1


@pytest.mark.parametrize("gold", ["B", "(B)", "b.", " B "])
def test_a_gold_letter_may_be_written_in_any_way(gold):
  assert rule(gold, "The correct answer is (B)", choices=True).reward == 1
  assert rule(gold, "The correct answer is (C)", choices=True).reward == 0


@pytest.mark.parametrize(
  "gold, answer, reward, failure",
  [
    ("Paris", "Paris", 1, ""),
    ("Paris", "paris.", 1, ""),
    ("Paris", "The answer is **Paris**.", 1, ""),
    ("Paris", "It is Paris, the capital of France.", 1, ""),
    ("Paris", "Long ago, Rome and Athens and Bonn were great.\n\nThe answer is Paris", 1, ""),
    ("The Hague", "Hague", 1, ""),
    ("Eiffel Tower", "the Eiffel-Tower", 1, ""),
    ("Zürich", "Zurich", 1, ""),
    ("U.S.", "the US", 1, ""),
    ("O'Brien", "O’Brien", 1, ""),
    ("北京", "答案是北京。", 1, ""),
    ("Don't Look Up", "Don't Look Up", 1, ""),
    ("red, green and blue", "Red, green and blue.", 1, ""),
    ("10 Downing Street", "10 Downing Street", 1, ""),
    ("3.11.2", "version 3.11.2", 1, ""),
    ("C++", "C++", 1, ""),
    ("==", "`==`", 1, ""),
    ("yes", "Yes, the treaty was signed.", 1, ""),
    ("Paris", "Parish", 0, ""),
    ("Paris", "London", 0, ""),
    ("New York", "York, New", 0, ""),
    ("C", "C++", 0, ""),
    ("==", "!=", 0, ""),
    ("==", "== != < >", 0, ""),
    ("3.11.2", "3.11.20", 0, ""),
    ("version 5", "version -5", 0, ""),
    ("no", "Not at all", 0, ""),
    ("Paris", "The answer is Paris. The answer is London.", 0, ""),
    ("yes", "yes and no", 0, "hedged"),
    ("Paris", "not Paris", 0, "hedged"),
    ("Paris", "It isn't in Paris", 0, "hedged"),
    ("Paris", "Paris or London", 0, "hedged"),
    ("Paris", "either Paris / London", 0, "hedged"),
    ("Paris", "London, Paris, Rome", 0, "hedged"),
    ("Paris", "London\nParis\nRome", 0, "hedged"),
    ("Paris", "1; London; Paris", 0, "hedged"),
    ("Paris", "London. Paris. Rome", 0, "hedged"),
    ("Paris", "London - Paris - Rome", 0, "hedged"),
    ("Paris", "London, Paris", 0, "hedged"),
    ("New York", "New Delhi, New York", 0, "hedged"),
    ("The Hague", "Hague, Netherlands", 1, ""),
    ("Paris", "Paris, France", 1, ""),  # of two the first is a commitment, the second may be an explanation
    (
      "Paris",
      "The answer is Paris. The other towns, or what is left of them, are in the north and never " + "saw it " * 9,
      1,
      "",
    ),
    ("St. Louis", "The answer is St. Louis. It is far away.", 1, ""),
    ("red, green and blue", "red, green and blue, white, black", 0, "hedged"),
  ],
)
def test_texts_are_judged(gold, answer, reward, failure):
  score = rule(gold, answer)
  assert (score.reward, score.failure) == (reward, failure)


@pytest.mark.parametrize(
  "gold, answer, reward, failure",
  [
    ("42", "42", 1, ""),
    ("42", "The answer is 42 medals in 3 games.", 1, ""),
    ("42", "42 (page 7)", 1, ""),
    ("42", "Adding 12 and 30 gives 42.", 1, ""),
    ("42", "The answer is 12 + 30 = 42", 1, ""),
    ("42", r"12 + 30 = \boxed{42}", 1, ""),
    ("1998", "in the year 1998", 1, ""),
    ("1,234 km", "about 1234 kilometres", 1, ""),
    ("12.5%", r"\boxed{12.5\%}", 1, ""),
    ("$1.5 million", "$1,500,000", 1, ""),
    ("-3.5", "The answer is −3.5", 1, ""),
    ("-3.5", "The answer is 3.5", 0, ""),
    ("42", "The answer is 41", 0, ""),
    ("42", "142", 0, ""),
    ("42", "41 or 42", 0, "hedged"),
    ("42", "The answer is 42 or 43", 0, "hedged"),
    ("42", "The answer is not 42", 0, "hedged"),
    ("42", "The answer is unknown", 0, "no_number"),
    ("42", "forty-two", 0, "no_number"),
  ],
)
def test_numbers_are_judged(gold, answer, reward, failure):
  score = rule(gold, answer)
  assert (score.reward, score.failure) == (reward, failure)


@given(st.lists(st.integers(0, 99), min_size=2, max_size=12, unique=True), st.sampled_from([" ", ", ", "; ", "\n"]))
def test_a_list_of_guesses_is_one_guess(guesses, separator):
  for form in ("{}", "The answer is {}"):
    answer = form.format(separator.join(map(str, guesses)))
    assert sum(rule(str(n), answer).reward for n in guesses) <= 1


@given(st.lists(WORDS, min_size=1, max_size=4), st.lists(WORDS, max_size=EXTRA_WORDS // 2))
def test_the_truth_counts_in_a_short_sentence_and_not_in_a_pasted_text(gold, around):
  truth = " ".join(gold)
  short = rule(truth, f"{' '.join(around)} {truth}")
  assert (short.reward, short.failure) == (1, "")
  pasted = rule(truth, f"{truth} {' '.join(['filler'] * (EXTRA_WORDS + 1))}")
  assert (pasted.reward, pasted.failure) == (0, "too_long")
  assert rule(truth, f"{truth} {' '.join(['filler'] * 99)}", extra_words=99).reward == 1


@given(
  st.lists(WORDS, min_size=3, max_size=8, unique=True), st.sampled_from([", ", "; ", "\n", " or ", " and ", " - "])
)
def test_no_item_of_a_list_is_an_answer(words, separator):
  assert [rule(word, separator.join(words)).reward for word in words] == [0] * len(words)


@given(st.text(min_size=1), st.text())
def test_only_a_text_with_the_words_of_the_truth_earns_it(gold, answer):
  assume(gold.strip())
  score = rule(gold, answer)
  assert score.reward in (0, 1)
  if score.reward and tokens(gold) and not any(c.isnumeric() for c in gold + answer):
    words = tokens(gold)
    words = words[1:] if len(words) > 1 and words[0] in ("the", "a", "an") else words
    assert " ".join(words) in " ".join(tokens(answer))


@given(st.text(string.ascii_letters + " ", min_size=1).filter(str.strip))
def test_case_and_white_space_around_do_not_matter(gold):
  assume(len(tokens(gold)) <= EXTRA_WORDS)
  assert rule(gold, gold) == rule(gold, gold) and rule(gold, gold).reward == rule(gold.upper(), f" {gold} ").reward


LOOPS = [
  "12,345 ",
  r"\boxed{",
  r"\boxed{} ",
  "best ",
  "the answer is ",
  "(A) ",
  "7",
  "option ",
  "not ",
  "Paris ",
  "1 x 10 ",
]


@pytest.mark.parametrize("loop", [*LOOPS, ",", "}", "(", "\n", " ", "A ", "\nB. "])
def test_a_response_that_runs_in_circles_is_judged_in_time(loop):
  start = time.process_time()
  for answer in (loop * (40_000 // len(loop)), "The answer is " + loop * (40_000 // len(loop)) + "."):
    assert rule("Rome", answer).reward == rule("42", answer).reward == rule("D", answer, choices=True).reward == 0
  assert time.process_time() - start < 5  # takes under 1 s; a step of quadratic cost takes a minute


def test_unusable_truths_are_refused():
  with pytest.raises(ValueError, match="empty"):
    rule(" ", "Paris")
  for gold in ("Paris", "AB", "K", "(AB)", "."):
    with pytest.raises(ValueError, match="letter"):
      rule(gold, "A", choices=True)


@pytest.mark.parametrize(
  "gold, answer, ratio",
  [
    ("abcd", "abcd", 1.0),
    ("abcd", " abcd\n", 1.0),
    ("abcd", "bcde", 0.75),  # 2 * 3 / 8
    ("abcd", "xyz", 0.0),
    ("ab", "ab" * 40, 2 * 2 / 82),
    ("ab", "ab" * 41, 0.0),  # pasting the haystack is not even compared
  ],
)
def test_the_needle_ratio(gold, answer, ratio):
  assert sequence_ratio(gold, answer) == pytest.approx(ratio, abs=1e-15)


@given(st.text("abc ", max_size=20), st.text("abc ", min_size=1, max_size=20).filter(str.strip))
def test_the_needle_ratio_is_1_for_the_needle_only(answer, gold):
  assert (sequence_ratio(gold, answer) == 1.0) == (gold.strip() == answer.strip())
