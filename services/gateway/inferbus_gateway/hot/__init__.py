"""What runs per request: parse, pin, place, publish, wait, answer."""
