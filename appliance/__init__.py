"""On-premise image recognition and visual search: one daemon, no image leaves the building."""

import os

# onnxruntime >= 1.29 uploads telemetry from Linux unless this is set before its import. The lock pins an
# older one; whoever raises the pin, and every child process, still inherits this line.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

# Before numpy is imported: a second BLAS thread makes a small product slower and burns a core of the others.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
