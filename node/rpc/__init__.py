"""The network side of a node: mutual TLS by exact key, the gRPC server, and the client that a sync uses.

Importing this package keeps gRPC's C++ core from writing handshake failures to stderr; we log what matters of them.
"""

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # before anything here imports grpc
