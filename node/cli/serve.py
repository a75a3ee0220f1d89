"""`apostille serve`: the server."""

from node.cli import make, screen, session

app = make.single()


@make.command(app, "serve", "apostille serve", "apostille --home /srv/apostille serve")
def serve() -> None:
    """Runs the node in the foreground: answers peers, fetches what they have. Stops cleanly at SIGTERM or Ctrl-C,
    and at once at a second one.

    It says on one line when it is ready. Other commands work beside it; a second server on one home is refused. The
    settings can name a log file and an address for metrics.
    """
    from node.operation import serve as server

    home = session.home()
    server.serve(home, ready=lambda address: screen.note(f"Ready: {home} listens on {address}. Stop it with Ctrl-C."))
