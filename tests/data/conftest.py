"""A byte-level BPE tokenizer of 512 entries, as the small recipe trains it, to count tokens with."""

from collections.abc import Callable

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from qwenlong_jax.data import sources


@pytest.fixture(scope="session")
def count_tokens() -> Callable[[str], int]:
  tokenizer = Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  tokenizer.train_from_iterator(sources.texts(), trainers.BpeTrainer(vocab_size=512, initial_alphabet=alphabet))
  return lambda text: len(tokenizer.encode(text).ids)
