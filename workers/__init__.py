"""Celery: takes locks, opens the transaction, publishes the result."""
