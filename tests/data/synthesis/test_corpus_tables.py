import json
from dataclasses import replace

from qwenlong_jax.data.synthesis import generate
from qwenlong_jax.data.synthesis.corpus import Corpus
from qwenlong_jax.data.synthesis.generate import Order
from qwenlong_jax.data.synthesis.paraphrase import reproduced


def test_the_table_of_a_program_gives_the_answer_again(countries: Corpus) -> None:
  orders = [Order("corpus_numeric", n, 0, (3000, 6000)) for n in range(20)]
  found = [generate.sample(countries, order, lambda text: len(text) // 4 + 1)[0] for order in orders]
  made = [example for example in found if example is not None]
  assert len(made) > 10
  for example in made:
    again = replace(example, provenance=json.loads(json.dumps(example.provenance)))
    assert reproduced(again) and not reproduced(replace(again, answer="12,345.67"))
