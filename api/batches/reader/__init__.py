"""The one reader of payment rows: CSV, JSON, NDJSON and .xlsx, for the API, `payouts push` and the dashboard."""
