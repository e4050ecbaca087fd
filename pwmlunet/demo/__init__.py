"""Synthetic cases of each modality, to learn and test with."""
