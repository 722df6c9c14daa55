"""The optimizer side: slices of parameters, masked state, learning rate."""
