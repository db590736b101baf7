"""How Inferbus processes run: settings, lifecycle, Kafka, offsets, health, telemetry."""
