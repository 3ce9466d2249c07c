"""What a run does, in order: each module is one stage, and only here the config is read."""
