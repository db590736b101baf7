"""Files of model versions, by digest."""
