"""What one connection to an HTTP listener may cost: bytes, time, and how it is refused."""
