"""The benchmark: `python -m tests.bench`. README.md beside this says what is measured, and how."""
