"""`payouts doctor`: what it checks, one module for each part."""
