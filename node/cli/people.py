"""`apostille people`: who may do what on this node."""

from node.cli import make, screen, session

app = make.single()


@make.command(app, "people", "apostille people", "apostille people --json")
def people(as_json: make.AsJson = False) -> None:
    """Lists the accounts that have posts on this node, and says which one you are.

    Posts are given under `people` in the home's apostille.yaml. An analyst works on cases, advisories and the inbox; an
    operator on peers, agreements and keys; an approver is the second person where two are needed; an auditor reads.
    """
    from node.home.people import Post, holds, uid_of

    node = session.node()
    found = [
        {
            "account": account,
            "posts": [post for post in Post if holds(node.people, account, post)],
            "you": account == node.actor,
            "known": uid_of(account) is not None,
        }
        for account in sorted(node.people)
    ]
    if as_json:
        screen.emit({"you": node.actor, "people": found})
        return
    screen.table(("Account", "Posts", "You", "Known to this machine"), [tuple(person.values()) for person in found])
    screen.note(f"You are {node.actor}." if node.actor in node.people else f"You are {node.actor}: you may read here.")
