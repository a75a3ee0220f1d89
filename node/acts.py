"""Every act that takes two people, with the function that carries it out: one place, above all use cases.

Each use case asks for its own act and knows how it is carried out; `node.records.approvals` knows neither.
"""

from node.desk import resolutions
from node.exchange import epochs
from node.peering import peers, rotation
from node.records.approvals import Act, Acts
from node.sharing import advisories


def registry() -> Acts:
    """What `node.records.approvals.settle` carries out."""
    return {
        Act.TRUST: peers.carry_out_trust,
        Act.LABEL: advisories.carry_out_label,
        Act.RESOLVE: resolutions.carry_out,
        Act.ROOTS: rotation.carry_out_roots,
        Act.OPEN_EPOCH: epochs.carry_out_open,
        Act.ACCEPT_EPOCH: epochs.carry_out_accept,
    }
