"""Array operations with several implementations each: arrays in, arrays out, JAX only."""
