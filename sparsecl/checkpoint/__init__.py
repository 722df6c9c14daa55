"""What is on disk: manifest, publication, canonical (unsharded) tensors."""
