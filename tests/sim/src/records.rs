//! Records on a node's disk, decoded: objects, hints and layouts.

use bytes::Bytes;
use quorate_core::codec;
use quorate_core::layout_change::Layouts;
use quorate_core::{NodeId, Object};

/// Decodes an object's record. `None`: `bytes` are no object's record, or a damaged one.
pub fn decode_object(bytes: &Bytes) -> Option<Object> {
    codec::decode_object(bytes).ok().map(|record| record.object)
}

/// Returns the key of the record that holds a node's layouts.
pub fn layouts_key() -> Bytes {
    quorate_node::layouts_key().to_bytes()
}

/// Decodes the record that holds the layouts of `node`. `None`: `bytes` are no such record.
pub fn decode_layouts(node: NodeId, bytes: &Bytes) -> Option<Layouts> {
    Layouts::decode(node, bytes).ok()
}

/// Returns true if `key` is the key of a hint's record.
pub fn is_hint_key(key: &Bytes) -> bool {
    key.first() == Some(&b'h')
}
