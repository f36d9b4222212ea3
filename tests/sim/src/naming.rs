//! Names of simulated nodes: the simulation numbers its nodes from 0, the cluster uses their names.

use quorate_core::NodeId;

/// Returns the name of the node with this number.
pub fn node_name(number: usize) -> String {
    format!("n{number}")
}

/// Returns the cluster's id of the node with this number.
pub fn node_id(number: usize) -> NodeId {
    NodeId::of_name(&node_name(number))
}
