"""The read endpoints: balance, users, transactions, health, metrics."""
