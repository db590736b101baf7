"""`python -m inferbus_gateway`: run a gateway."""

import os

# A process for a Parquet file begins with a fork. gRPC's own handlers of forks, which it would run
# in the child, crash some while calls are served; it reads this as it is imported.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

from inferbus_gateway.wiring import build
from inferbus_kit.lifecycle import run_process

if __name__ == "__main__":
    run_process("gateway", build)
