"""The gateway: Open Inference Protocol in, answers from the prediction stream out."""
