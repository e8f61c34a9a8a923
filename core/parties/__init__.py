"""Businesses, their API keys and members, payout users, and the audit log of what people change."""
