"""What `payouts up` starts on one machine: PostgreSQL, Valkey, and the processes of the Procfile."""
