"""Self-configuring segmentation of brain lesions of a few voxels."""

__version__ = "0.1.0"
