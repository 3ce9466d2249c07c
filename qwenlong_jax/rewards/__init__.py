"""Rewards: text in, float out."""
