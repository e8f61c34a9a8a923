"""The chain of seals: it shows where the history, or another row that must not change, was rewritten with SQL."""
