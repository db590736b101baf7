"""What runs per request: frames in, batches through engines, predictions out."""
