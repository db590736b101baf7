"""Jobs: many rows for one version, accepted here, run by workers, folded from what they say."""
