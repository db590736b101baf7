"""`python -m inferbus_gateway`: run a gateway."""

from inferbus_gateway.wiring import build
from inferbus_kit.lifecycle import run_process

if __name__ == "__main__":
    run_process("gateway", build)
