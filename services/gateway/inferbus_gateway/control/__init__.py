"""What runs per change: desired state, the fleet, beats."""
