"""Text in, Examples out: sources, tasks, shards and the Grain pipeline."""
