"""Evaluation: loss, accuracy and routing per domain, with intervals."""
