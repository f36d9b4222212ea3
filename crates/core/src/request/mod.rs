//! Requests and replies of both protocols: between clients and nodes, and between nodes. The
//! documents that some replies carry are in [`crate::report`].

pub mod admin;
pub mod client;
pub mod peer;

pub use admin::ClusterRequest;
pub use client::{
    ClientReply, ClientRequest, ClientResult, EncodedWriteMode, GetReply, GetRequest, PartitionFingerprint,
    PutReply, PutRequest, Receipt, ScanEntry, ScanReply, ScanRequest, Sibling, scan_cursor,
};
pub use peer::{
    CollectTombstones, DigestPage, DigestsOf, Likeness, MAX_KEYS_ASKED, PeerError, PeerReply, PeerRequest,
    PeerResult, PeerWrite, ScanPage, ScanPartition, TreeName, TreeRoot, TreeState, WritePurpose,
};
