"""Rewards on images: CLIP features, the paper's losses, image quality."""
