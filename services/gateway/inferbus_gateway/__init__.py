"""The gateway: Open Inference Protocol in, answers from the prediction stream out."""

VERSION = "0.1.0"
