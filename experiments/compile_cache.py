"""Compiled programs kept on disk between commands: the second run of a grid or a fit starts at once."""

from __future__ import annotations

import platform


def use() -> None:
    """Turns JAX's persistent cache on, in the cache folder, for the rest of the process."""
    import jax

    from laws.datasets import cache_folder

    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / f"compiled-{platform.node()}"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
