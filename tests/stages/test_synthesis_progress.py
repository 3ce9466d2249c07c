from qwenlong_jax.data.synthesis.parts import Block, Cluster
from qwenlong_jax.llm import Usage
from qwenlong_jax.stages.synthesis_progress import to_come, together


def test_small_blocks_are_worked_on_together() -> None:
  blocks = [Block(Cluster("train", "general", 0), "multi_hop", 0, count) for count in (3, 4, 20, 1)]
  assert [[block.count for block in some] for some in together(blocks, 7)] == [[3, 4], [20], [1]]
  assert [len(some) for some in together(blocks, 1)] == [1, 1, 1, 1]


def test_what_is_to_come_costs_in_proportion_what_this_run_has_paid() -> None:
  before, now = Usage(tokens_in=5000, tokens_out=1000, cost=7.0), Usage(tokens_in=6000, tokens_out=1500, cost=7.5)
  assert to_come(now, before, done=10, left=30) == "; to come: 4,500 tokens, cost 1.50"
  assert to_come(now, before, done=0, left=30) == to_come(now, before, done=10, left=0) == ""
