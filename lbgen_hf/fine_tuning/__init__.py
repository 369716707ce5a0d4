"""A fine-tuning run, part by part; training/train_lbgen.py is its loop and its command line.

Every random number of a run is a function of its seed and of the number of the image, step or epoch it is for. So a
run can be cut anywhere, split over processes or into micro-batches, and draws the same: no generator has a state worth
saving.
"""
