from qwenlong_jax.data.synthesis.parts import Block, Cluster
from qwenlong_jax.stages.synthesis_progress import together


def test_small_blocks_are_worked_on_together() -> None:
  blocks = [Block(Cluster("train", "general", 0), "multi_hop", 0, count) for count in (3, 4, 20, 1)]
  assert [[block.count for block in some] for some in together(blocks, 7)] == [[3, 4], [20], [1]]
  assert [len(some) for some in together(blocks, 1)] == [1, 1, 1, 1]
