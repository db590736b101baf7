"""What runs per change: membership, which versions to hold, loads, health."""
