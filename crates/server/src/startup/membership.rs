//! The membership plugin, which all threads of a node share, and the dialling of seeds.

use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quorate_core::Member;
use quorate_core::admission::Identity;
use quorate_core::membership::Membership;
use quorate_rpc::network::Network;
use quorate_rpc::preamble::introduce;

/// The membership plugin of a node.
pub(super) type SharedMembership = Arc<Mutex<Box<dyn Membership>>>;

const SEED_INTERVAL: Duration = Duration::from_secs(1);
const SEED_TIMEOUT: Duration = Duration::from_secs(2);

/// Locks the membership plugin. The caller must not hold the lock across an `await`.
pub(super) fn lock(membership: &SharedMembership) -> MutexGuard<'_, Box<dyn Membership>> {
    membership.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Dials each seed at intervals, until the node at the seed's address is a known member. Never
/// returns.
pub(super) async fn dial_seeds(
    seeds: Vec<String>,
    ours: Identity,
    network: Rc<dyn Network>,
    membership: SharedMembership,
) {
    loop {
        for seed in &seeds {
            let known = lock(&membership).view().iter().any(|view| view.member.address == *seed);
            if known {
                continue;
            }
            let handshake = async {
                let mut duplex = network.connect(seed, None).await.ok()?;
                introduce(&mut duplex, Some(&ours)).await.ok()
            };
            if let Ok(Some(theirs)) = tokio::time::timeout(SEED_TIMEOUT, handshake).await {
                let _ = lock(&membership).join(Member::new(&theirs.name, seed, ""));
            }
        }
        tokio::time::sleep(SEED_INTERVAL).await;
    }
}
