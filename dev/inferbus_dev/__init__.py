"""The one-machine stack: Kafka, Postgres and all services as child processes."""
