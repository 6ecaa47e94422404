"""Text corpora: which files (`sources`), their TFDS dataset (`builder`), and made-up tokens (`synthetic`)."""
