"""What all tests share: eight virtual CPU devices, both precisions, strict promotion.

float64 is off unless a test asks for it, as it is for users: through `x64`, or through `dtype`,
which runs the test once in each precision.
"""

import os

# Read when the first device is asked for: this has to come before anything that computes. A test is
# mostly compilation, which takes half as long without the emitters; benchmarks, notebooks and
# `make demo` run as users do.
_FLAGS = {
    "--xla_force_host_platform_device_count": "8",
    "--xla_cpu_use_fusion_emitters": "false",
}
_GIVEN = os.environ.get("XLA_FLAGS", "")
_OURS = [f"{name}={value}" for name, value in _FLAGS.items() if name not in _GIVEN]
os.environ["XLA_FLAGS"] = " ".join([_GIVEN, *_OURS]).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# A folder of compiled programs for each worker: reading what another is writing aborts the process.
if "JAX_COMPILATION_CACHE_DIR" in os.environ and "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] += os.sep + os.environ["PYTEST_XDIST_WORKER"]

from pathlib import Path  # noqa: E402

import equinox as eqx  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import pytest  # noqa: E402

# A compiled program maps memory; a process that reaches vm.max_map_count (65 530) crashes.
MOST_MAPS = 40_000


@pytest.fixture(autouse=True)
def room_for_programs():
    """Compiled programs are let go before the system's limit on mappings is reached."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        eqx.clear_caches()
        jax.clear_caches()


@pytest.fixture
def x64():
    """float64 for the length of one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    """Both precisions, one after the other."""
    with jax.enable_x64(request.param == "float64"):
        yield jnp.dtype(request.param)


@pytest.fixture
def strict():
    """Strict dtype promotion: a mixed-precision product is an error."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture
def devices():
    """Eight devices, or the test is skipped (a machine whose own XLA_FLAGS ask for fewer)."""
    if jax.device_count() < 8:
        pytest.skip("needs eight devices: unset XLA_FLAGS")
    return jax.devices()[:8]


@pytest.fixture
def mesh(devices):
    """A one-axis mesh of eight devices, `"lanes"`, with explicit axes (JAX's default)."""
    return jax.make_mesh((8,), ("lanes",), devices=devices)


@pytest.fixture
def auto_mesh(devices):
    """The same mesh with automatic axes."""
    return jax.make_mesh(
        (8,), ("lanes",), axis_types=(jax.sharding.AxisType.Auto,), devices=devices
    )
