"""Synthesis: plan -> draw -> shard -> card -> publish. A labelled dataset of any size, from class names and a model."""
