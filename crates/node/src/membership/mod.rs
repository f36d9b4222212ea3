//! Membership: the nodes that this node knows, their layouts, and their clocks.

pub(crate) mod clock_check;
pub(crate) mod gossip;
pub(crate) mod layout_exchange;
