"""Keeps what the environment sets for jax and other libraries from changing a result."""

import os
import re
import sys
from collections.abc import Iterator, Sequence
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
# Variables that change numbers on purpose, such as by flags that trade accuracy for speed.
CHANGING = (PRECISION, "XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE")
# Variables that say which devices jax uses.
DEVICES = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME", "JAX_NUM_CPU_DEVICES", "XLA_FLAGS")


def import_jax() -> None:
    """Imports jax with its own defaults for every setting that could change a result.

    Prints one line about the variables that are not used, and one for each that is used although it
    may change numbers.

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
    for setting in _settings(CHANGING):
        print(
            f"note: {setting} may change numbers: compare the results only with runs under the "
            "same setting",
            file=sys.stderr,
        )


def _settings(names: Sequence[str]) -> list[str]:
    return [f"{name}={os.environ[name]}" for name in names if os.environ.get(name)]


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
        UserError: If it finds none, such as none of the kind that a variable names.
    """
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        reason = (str(error) or "no such device was found").splitlines()[0]
        set_here = ", ".join(_settings(DEVICES))
        if not set_here:
            raise UserError(
                f"jax cannot use the devices of this machine ({reason}): correct its installation, "
                "or set JAX_PLATFORMS=cpu"
            ) from error
        raise UserError(
            f"{set_here} cannot be used ({reason}): unset the variable, or set what this machine "
            "has, such as JAX_PLATFORMS=cpu"
        ) from error
