"""Payout batches over HTTP: endpoints, intake, and the reader of their files."""
