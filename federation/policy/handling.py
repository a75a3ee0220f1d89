"""The built-in forbids: what an advisory's own handling means, whatever agreements and law packs say.

They are asked with every law pack's forbids and beat every permit (I3). The text is Cedar, held here because this layer
reads no files. What a forbid needs to know about time or about the recipient comes as a boolean.
"""

from federation.policy.rules import RuleSet, parse

HANDLING_RULES = """
@id("handling/unlabelled")
@basis("Deny by default (I2)")
@says("No category is known for this part, so nothing says that it may leave.")
forbid (principal, action in [Action::"disclose", Action::"relay", Action::"publish"], resource)
when { resource.categories.isEmpty() };

@id("handling/red")
@basis("FIRST TLP 2.0, TLP:RED")
@says("TLP:RED is for the recipients that the origin names, and this is none of them.")
forbid (principal, action in [Action::"disclose", Action::"store", Action::"relay", Action::"publish"], resource)
when { resource.tlp == Tlp::"RED" }
unless { resource.names_recipients && resource.named };

@id("handling/recipients")
@basis("Handling: recipients")
@says("The origin names the recipients of this advisory, and this is none of them.")
forbid (principal, action in [Action::"disclose", Action::"store", Action::"relay", Action::"publish"], resource)
when { resource.names_recipients && !resource.named };

@id("handling/storage")
@basis("Handling: storage")
@says("The origin does not allow this advisory to be stored in the recipient's jurisdiction.")
forbid (principal, action in [Action::"disclose", Action::"store", Action::"relay"], resource)
when { !resource.storage_allows };

@id("handling/relay-tlp")
@basis("FIRST TLP 2.0, TLP:RED and TLP:AMBER+STRICT")
@says("TLP:RED and TLP:AMBER+STRICT stay with the organisation that received them.")
forbid (principal, action == Action::"relay", resource)
when { resource.tlp == Tlp::"RED" || resource.tlp == Tlp::"AMBER+STRICT" };

@id("handling/relay-onward")
@basis("Handling: onward")
@says("The origin does not allow this advisory to be passed on to other nodes.")
forbid (principal, action == Action::"relay", resource)
when { resource.onward != Onward::"peers" };

@id("handling/publish-tlp")
@basis("FIRST TLP 2.0, TLP:CLEAR")
@says("Only TLP:CLEAR may be published.")
forbid (principal, action == Action::"publish", resource)
when { resource.tlp != Tlp::"CLEAR" };

@id("handling/embargo")
@basis("Handling: embargo_until")
@says("The embargo has not ended: nothing is published or passed on before.")
forbid (principal, action in [Action::"relay", Action::"publish"], resource)
when { resource.embargoed };

@id("handling/expired")
@basis("Handling: retain_until")
@says("The time for which this advisory may be kept has passed.")
forbid (principal, action in [Action::"disclose", Action::"store", Action::"relay", Action::"publish"], resource)
when { resource.expired };
"""

PERMIT_ALL = """
@id("permit-all")
@basis("Forbids are asked beside one permit for everything")
@says("No forbid matched.")
permit (principal, action, resource);
"""

CONTROL = """
@id("control")
@basis("Control traffic passes to every enrolled peer")
@says("Cards, agreements, recalls, withdrawals, purges and refusals pass between enrolled peers.")
permit (principal, action == Action::"notify", resource);
"""


def handling_rules() -> RuleSet:
    """The built-in forbids."""
    return parse(HANDLING_RULES, "handling", "forbid")


def permit_all() -> RuleSet:
    """The one permit beside the forbids: with it, Allow means that no forbid matched."""
    return parse(PERMIT_ALL, "handling", "permit")


def control_permit() -> RuleSet:
    """The permit under which control traffic passes."""
    return parse(CONTROL, "handling", "permit")
