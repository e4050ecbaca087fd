"""From trained models and images to predictions."""
