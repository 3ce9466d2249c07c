"""Meshes and the one table from logical dimensions to mesh axes."""
