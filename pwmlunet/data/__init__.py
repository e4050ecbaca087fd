"""Images, datasets and preprocessed cases on disk."""
