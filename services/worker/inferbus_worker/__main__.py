"""`python -m inferbus_worker`: run a worker."""

from inferbus_kit.lifecycle import run_process
from inferbus_worker.wiring import build

if __name__ == "__main__":
    run_process("worker", build)
