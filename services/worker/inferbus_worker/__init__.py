"""The worker: takes request frames from an inbox, batches, runs engines, writes predictions."""

VERSION = "0.1.0"
