"""The reinforcement learner: advantages, AEPO, loss, packing, update."""
