"""Keeps what the environment sets for jax and other libraries from changing a result."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from fgvpl_jax.errors import UserError

# Settings of jax that say where programs run, how processes meet, and what is cached and logged.
# All others could change a number or stop a run that is sound.
KEPT = re.compile(
    r"JAX_(PLATFORM|CUDA_VISIBLE|ROCM_VISIBLE|ONEAPI_VISIBLE|NUM_CPU_DEVICES|PJRT_|COORDINATOR_"
    r"|LOCAL_DEVICE_IDS|PARTITION_INDEX|SLICE_INDEX|CPU_COLLECTIVES|CPU_GET_|CHECK_PROXY_ENVS"
    r"|DISTRIBUTED_DEBUG|COMPILATION_CACHE_|ENABLE_COMPILATION_CACHE|PERSISTENT_CACHE_"
    r"|EXPLAIN_CACHE_MISSES|LOG|DEBUG_LOG_MODULES|DUMP_IR|TRACEBACK_FILTERING)"
)
PRECISION = "JAX_DEFAULT_MATMUL_PRECISION"


def import_jax() -> None:
    """Imports jax with its own defaults for every setting that could change a result.

    Prints one line about the variables that are not used, and one if the precision is another.

    Raises:
        UserError: If a variable has a value that jax does not know.
    """
    os.environ["MPLBACKEND"] = "agg"  # figures go to files; matplotlib refuses unknown values
    unused = {
        name: os.environ.pop(name)
        for name in sorted(os.environ)
        if name.startswith("JAX_") and name != PRECISION and not KEPT.match(name)
    }
    try:
        import jax
    except ValueError as error:
        raise UserError(f"{error}: correct the variable or unset it") from error
    ours = [name for name in unused if name.lower() in jax.config.values]
    os.environ.update({name: value for name, value in unused.items() if name not in ours})
    if ours:
        settings = ", ".join(f"{name}={unused[name]}" for name in ours)
        print(f"note: not used, as results could depend on it: {settings}", file=sys.stderr)
    if os.environ.get(PRECISION):
        print(
            f"note: {PRECISION}={os.environ[PRECISION]}: compare the results only with runs of the "
            "same precision",
            file=sys.stderr,
        )


@contextmanager
def without_proxies() -> Iterator[None]:
    """Hides the proxies of the environment, which Gradio reads although it connects to nobody.

    Its HTTP library refuses proxies whose scheme or address it does not know.
    """
    proxies = {
        name: os.environ.pop(name) for name in list(os.environ) if name.lower().endswith("_proxy")
    }
    try:
        yield
    finally:
        os.environ.update(proxies)


def check_devices() -> None:
    """Makes jax find its devices, now and not after the data are read.

    Raises:
        UserError: If there are none of the kind that a variable names.
    """
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        reason = (str(error) or "no such device was found").splitlines()[0]
        raise UserError(
            f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS')} cannot be used ({reason}): unset the "
            "variable, or name a kind that this machine has, such as cpu"
        ) from error
