"""One running node: what a national CERT installs, over the pure rules of `federation`."""

import logging

# The `csaf` package sets up the root logger when it is imported, which would send what every library logs to stderr
# (I17). A root logger that has a handler is left alone.
logging.getLogger().addHandler(logging.NullHandler())
