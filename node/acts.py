"""Every act that takes two people, with the function that carries it out: one place, above all use cases.

Each use case asks for its own act and knows how it is carried out; `node.approvals` knows neither.
"""

from node import advisories, epochs, peers, resolutions, rotation
from node.approvals import Act, Acts


def registry() -> Acts:
    """What `node.approvals.settle` carries out."""
    return {
        Act.TRUST: peers.carry_out_trust,
        Act.LABEL: advisories.carry_out_label,
        Act.RESOLVE: resolutions.carry_out,
        Act.ROOTS: rotation.carry_out_roots,
        Act.OPEN_EPOCH: epochs.carry_out_open,
        Act.ACCEPT_EPOCH: epochs.carry_out_accept,
    }
