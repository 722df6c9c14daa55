"""The optimizer side: slices of parameters, masked state, schedule."""
