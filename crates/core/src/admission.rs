//! Admission of connections: a pure comparison of the versions and identities that both sides send.

use crate::member::NodeId;

/// Oldest protocol version that this build speaks.
pub const OLDEST_PROTOCOL: u16 = 1;
/// Newest protocol version that this build speaks.
pub const NEWEST_PROTOCOL: u16 = 1;

/// The first message of each side of a new connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Introduction {
    /// Oldest protocol version that the sender speaks.
    pub oldest: u16,
    /// Newest protocol version that the sender speaks.
    pub newest: u16,
    /// The sender's role: client or node.
    pub role: Role,
}

/// The role of one side of a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Role {
    /// A client. It names no cluster, and uses the cluster of the node that it reaches.
    Client,
    /// A node. Its identity must not contradict the identity of the other side.
    Node(Identity),
}

/// A node's name and cluster, and the first layout that all nodes of the cluster share.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The cluster's id.
    pub cluster: String,
    /// The node's id.
    pub node: NodeId,
    /// The node's name.
    pub name: String,
    /// Digest of the cluster's first layout, from which all others were made. 0: the node has no
    /// layout yet, and may only gossip.
    pub layout_digest: u64,
}

/// Returns the protocol version for a connection to `theirs`.
///
/// # Errors
/// A sentence that names the difference and the remedy, if the connection must be refused.
pub fn admit(ours: &Identity, theirs: &Introduction) -> Result<u16, String> {
    let version = NEWEST_PROTOCOL.min(theirs.newest);
    if version < OLDEST_PROTOCOL || version < theirs.oldest {
        return Err(format!(
            "protocol versions do not overlap: this side speaks {OLDEST_PROTOCOL} to {NEWEST_PROTOCOL}, the other side {} to {}; upgrade the older one",
            theirs.oldest, theirs.newest
        ));
    }
    let Role::Node(peer) = &theirs.role else {
        return Ok(version);
    };
    if peer.cluster != ours.cluster {
        return Err(format!(
            "cluster ids differ: {:?} here, {:?} on the other node; set the same [cluster] id on all nodes",
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

    /// If two nodes disagree on a setting that they must share, the refusal names it.
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
