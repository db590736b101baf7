"""API keys: made, rotated, revoked; gateways hear of each change."""
