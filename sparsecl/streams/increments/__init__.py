"""Classes of images that come a few at a time."""
