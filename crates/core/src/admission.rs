//! Whether two that meet on a connection belong together: a pure comparison of what they say of themselves.

use crate::member::NodeId;

/// Oldest protocol version that this build speaks.
pub const OLDEST_PROTOCOL: u16 = 1;
/// Newest protocol version that this build speaks.
pub const NEWEST_PROTOCOL: u16 = 1;

/// What somebody says of itself when a connection opens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Introduction {
    /// Oldest protocol version spoken.
    pub oldest: u16,
    /// Newest protocol version spoken.
    pub newest: u16,
    /// Client or node.
    pub role: Role,
}

/// What somebody is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Role {
    /// A client. Names no cluster: it takes the one it finds.
    Client,
    /// A node, and what it must agree with its peers on.
    Node(Identity),
}

/// What the nodes of one cluster have in common, and what tells them apart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The cluster's id.
    pub cluster: String,
    /// The node.
    pub node: NodeId,
    /// The node's name.
    pub name: String,
    /// The cluster's first layout, from which all others come; 0: it has none yet, and may only gossip.
    pub layout_digest: u64,
}

/// The protocol version to speak with `theirs`, or why they are refused.
///
/// # Errors
/// A sentence that says what differs and what to do.
pub fn admit(ours: &Identity, theirs: &Introduction) -> Result<u16, String> {
    let version = NEWEST_PROTOCOL.min(theirs.newest);
    if version < OLDEST_PROTOCOL || version < theirs.oldest {
        return Err(format!(
            "protocol versions do not overlap: this side speaks {OLDEST_PROTOCOL} to {NEWEST_PROTOCOL}, the other {} to {}; upgrade the older one",
            theirs.oldest, theirs.newest
        ));
    }
    let Role::Node(peer) = &theirs.role else {
        return Ok(version);
    };
    if peer.cluster != ours.cluster {
        return Err(format!(
            "cluster ids differ: {:?} here, {:?} there ([cluster] id)",
            ours.cluster, peer.cluster
        ));
    }
    if peer.node == ours.node {
        return Err(format!("both nodes are called {:?}: give each node its own [node] name", ours.name));
    }
    let both = peer.layout_digest != 0 && ours.layout_digest != 0;
    if both && peer.layout_digest != ours.layout_digest {
        return Err(format!(
            "first layouts differ: {:016x} here, {:016x} there; [cluster] replicas and partitions, [membership] members and [buckets] must be the same on all nodes that found a cluster",
            ours.layout_digest, peer.layout_digest
        ));
    }
    Ok(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(node: u64) -> Identity {
        Identity { cluster: "a".into(), node: NodeId(node), name: "n".into(), layout_digest: 1 }
    }

    fn introduce(identity: Identity) -> Introduction {
        Introduction { oldest: 1, newest: 1, role: Role::Node(identity) }
    }

    /// Each thing that two nodes must agree on is named when they do not.
    #[test]
    fn refusals_name_what_differs() {
        let ours = identity(1);
        assert_eq!(admit(&ours, &introduce(identity(2))), Ok(1));
        let differing: [(&str, Introduction); 4] = [
            ("cluster ids", introduce(Identity { cluster: "b".into(), ..identity(2) })),
            ("both nodes", introduce(identity(1))),
            ("layouts", introduce(Identity { layout_digest: 9, ..identity(2) })),
            ("protocol versions", Introduction { oldest: 7, newest: 9, role: Role::Client }),
        ];
        for (what, theirs) in differing {
            let refusal = admit(&ours, &theirs).unwrap_err();
            assert!(refusal.contains(what), "{refusal}");
        }
    }
}
