"""The worker: takes request frames from an inbox, batches, runs engines, writes predictions."""
