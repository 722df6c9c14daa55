"""Streams of tasks for small networks, on which loss of plasticity is measured."""
