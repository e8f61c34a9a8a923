"""Seals: what shows that the history, or another row that must not change, was rewritten behind the product's back."""
