"""The logger: the exactly-once prediction log in Postgres."""
