"""From preprocessed cases to a trained model."""
