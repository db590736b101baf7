"""What a process tells of itself as it works: log lines, and spans of requests."""
