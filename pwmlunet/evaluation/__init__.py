"""How good a prediction is, counted by voxels and by lesions."""
