"""The paper's comparisons in biaslab, a world whose bias is known: what was expected, and what came out."""
