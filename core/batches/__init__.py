"""Payout batches: accepted, paid, read."""
