"""The ledger: who may be paid, the statements that pay, what is resolved later, and the proof that it balances."""
