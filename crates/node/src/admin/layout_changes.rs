//! Layout changes of an operator: staging, commit and withdrawal.

use quorate_core::RequestError;
use quorate_core::change::{LayoutChange, StagedChange, change_id};
use quorate_core::layout_change::Layouts;
use quorate_core::layout_error::LayoutError;
use quorate_core::storage::StorageError;

use crate::membership::gossip;
use crate::membership::layout_exchange::tell_of_changes;
use crate::node::Node;

/// Error of a layout change.
enum Refusal {
    Layout(LayoutError),
    Storage(StorageError),
}

impl From<StorageError> for Refusal {
    fn from(error: StorageError) -> Refusal {
        Refusal::Storage(error)
    }
}

impl From<Refusal> for RequestError {
    fn from(refusal: Refusal) -> RequestError {
        match refusal {
            Refusal::Layout(LayoutError::UnderWay { changes }) => {
                let what =
                    "the number of layout changes under way (see them with `quorate cluster transfers`)"
                        .to_owned();
                RequestError::Overloaded { what, limit: changes as u64 }
            }
            Refusal::Layout(error) => RequestError::invalid(error.to_string()),
            Refusal::Storage(error) => RequestError::StorageFailed { detail: error.to_string() },
        }
    }
}

/// Creates a staged change with a new id, for a change that this node makes itself.
pub(crate) fn staged_by(node: &Node, change: LayoutChange) -> StagedChange {
    let environment = &node.shared.environment;
    StagedChange { id: change_id(environment.wall_ms(), environment.random(), 0), change }
}

/// Withdraws all staged changes.
///
/// # Errors
/// If the engine fails.
pub(super) async fn clear(node: &Node) -> Result<(), RequestError> {
    alter(node, |layouts: &mut Layouts| {
        layouts.clear();
        Ok(true)
    })
    .await
}

/// Stages a change.
///
/// # Errors
/// If the change does not fit the newest layout, or the engine fails.
pub(super) async fn stage(node: &Node, change: StagedChange) -> Result<(), RequestError> {
    let staging =
        |layouts: &mut Layouts| layouts.stage(change.clone()).map_err(Refusal::Layout).map(|()| true);
    alter(node, staging).await
}

/// Makes these changes the newest layout. Other staged changes stay staged.
///
/// # Errors
/// If the changes do not fit the newest layout, or this node may not commit a layout.
pub(crate) async fn commit_only(node: &Node, changes: Vec<StagedChange>) -> Result<(), RequestError> {
    check_may_commit(node)?;
    alter(node, |layouts: &mut Layouts| {
        let changed = layouts.commit_only(&changes).map_err(Refusal::Layout)?;
        if changed {
            layouts.advance();
        }
        Ok(changed)
    })
    .await
}

/// Changes the layouts, and emits events for the changes.
async fn alter(
    node: &Node,
    change: impl FnMut(&mut Layouts) -> Result<bool, Refusal>,
) -> Result<(), RequestError> {
    let before = node.shared.layouts.known();
    node.shared.change_layouts(change).await?;
    tell_of_changes(node, &before);
    Ok(())
}

/// Checks that this node may commit a new layout.
///
/// # Errors
/// `Unavailable` if it may have lost its layouts. `InvalidRequest` if it is no participant.
fn check_may_commit(node: &Node) -> Result<(), RequestError> {
    let view = node.shared.view();
    if !node.shared.recovery.are_layouts_confirmed() {
        // This node has just started and may not know the newest layout. Another node may serve the
        // request.
        return Err(RequestError::Unavailable { needed: 2, reachable: 1 });
    }
    if view.removed || !view.is_participant(node.shared.node()) {
        let detail = "this node is not a member of the cluster: send the request to a member".to_owned();
        return Err(RequestError::InvalidRequest { detail });
    }
    Ok(())
}

/// Makes the staged changes the newest layout. `shown`: digest of the plan that the operator saw.
///
/// # Errors
/// If the changes do not fit the newest layout, if they make another plan than `shown`, or if this
/// node may not commit a layout.
pub(super) async fn commit(node: &Node, shown: Option<u64>) -> Result<(), RequestError> {
    check_may_commit(node)?;
    alter(node, |layouts: &mut Layouts| {
        let changed = layouts.commit(shown).map_err(Refusal::Layout)?;
        if changed {
            // This node stores the layout before any request uses it. So it enters the first phase,
            // `Known`, at once.
            layouts.advance();
        }
        Ok(changed)
    })
    .await
}

/// Fills in the address and the zone of a joining node that gossip has found, if the operator left
/// them out. Checks that this node has the conflict resolver of a new bucket.
///
/// # Errors
/// `InvalidRequest` if the joining node's address is not known, or if this node does not have the
/// resolver.
pub(super) fn complete_change(node: &Node, change: LayoutChange) -> Result<LayoutChange, RequestError> {
    if let LayoutChange::Bucket { definition, .. } = &change {
        node.shared.resolver(&definition.resolver)?;
    }
    let LayoutChange::Join { name, address, zone, weight } = change else { return Ok(change) };
    let found = gossip::view(&node.shared).into_iter().map(|view| view.member);
    let found = found.into_iter().find(|member| member.name == name);
    let zone = match &found {
        Some(member) if zone.is_empty() => member.zone.clone(),
        _ => zone,
    };
    let address = match (address.is_empty(), found) {
        (false, _) => address,
        (true, Some(member)) => member.address,
        (true, None) => {
            let detail = format!(
                "no node called {name:?} was found: start it with a seed of this cluster, or give its address"
            );
            return Err(RequestError::InvalidRequest { detail });
        }
    };
    Ok(LayoutChange::Join { name, address, zone, weight })
}
