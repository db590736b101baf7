"""The registry: versions, artifacts, aliases, and their events."""
