"""Tests of records in doubt."""
