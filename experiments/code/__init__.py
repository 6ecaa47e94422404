"""Programs that models write: run them in isolation, grade them, and count how many pass."""
