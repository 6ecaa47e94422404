"""Counterfactual pairs of programming problems (arXiv 2505.14597): built, reviewed, evaluated, selected, trained on."""
