"""A fine-tuning run, part by part: `LbGenTrainer(LbGenConfig(...)).train()`.

Every random number of a run is a function of its seed and of the number of the image, step or epoch it is for. So a
run can be interrupted anywhere, split over processes or into micro-batches, and computes the same: no generator has a
state worth saving.
"""
