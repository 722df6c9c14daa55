"""What a trained network does: how far its weights and its updates interfere with each other."""
