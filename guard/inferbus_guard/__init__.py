"""What strangers may cost: a connection to an HTTP listener, and batches in a topic of theirs."""
