"""The rules, the tables and the SQL. Knows neither HTTP nor Celery."""
