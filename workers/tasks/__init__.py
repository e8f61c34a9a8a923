"""What the workers do: allocations, payout batches, day sums, verification."""
