"""A labelled dataset of any size from class names and a model: plan -> sample -> shard -> folder -> card -> publish."""
