"""Desired state on its way from Postgres to Kafka, in the order in which it was committed."""
