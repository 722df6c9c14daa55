"""The only place that trains."""
