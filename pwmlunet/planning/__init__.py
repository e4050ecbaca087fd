"""From a raw dataset to a plan and preprocessed cases."""
