//! What an operator sees of layouts, and does to them: stage, plan, commit; and the node that does it by itself.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use quorate_core::change::{Change, Staged, change_id};
use quorate_core::key::end_of_prefix;
use quorate_core::layout::{LayoutError, Load};
use quorate_core::membership::MemberState;
use quorate_core::request::{
    ChangeReport, ClientReply, ClientResult, ClusterMember, ClusterReport, ClusterRequest, PastLayout,
    PlanNode, PlanReport,
};
use quorate_core::storage::{Range, StorageError};
use quorate_core::transition::{Layouts, Phase};
use quorate_core::{Layout, Member, NodeId, PartitionId, RequestError, StorageKey};

use tokio::time::Instant;

use crate::node::Node;
use crate::shared::Shared;
use crate::transition::tell_of_changes;
use crate::{buckets, gossip};

/// Past layouts that a report shows.
const SHOWN_HISTORY: usize = 100;
/// Partitions that are weighed for a plan, and bytes of each.
const WEIGHED: usize = 16;
const WEIGHED_BYTES: usize = 4 * 1024 * 1024;
/// How often a node looks for others that wait.
const LOOK_EVERY: Duration = Duration::from_millis(300);
/// Looks in which nobody new was seen before those who wait are made members: together.
const QUIET_LOOKS: usize = 3;

/// Why a change of layout was not made.
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
                let what = "the number of changes of layout under way (quorate cluster transfers)".to_owned();
                RequestError::Overloaded { what, limit: changes as u64 }
            }
            Refusal::Layout(error) => RequestError::invalid(error.to_string()),
            Refusal::Storage(error) => RequestError::StorageFailed { detail: error.to_string() },
        }
    }
}

/// Serves an operator's request.
pub(crate) async fn run(node: &Rc<Node>, request: ClusterRequest, deadline: Instant) -> ClientResult {
    match request {
        ClusterRequest::Show => {}
        // Asked for again by somebody who did not hear the answer.
        ClusterRequest::Stage(Staged { id, .. }) | ClusterRequest::Apply(Staged { id, .. })
            if node.shared.layouts.look(|layouts| layouts.is_done_with(id)) => {}
        ClusterRequest::Stage(Staged { id, change }) => {
            stage(node, Staged { id, change: completed(node, change)? }).await?
        }
        ClusterRequest::Apply(Staged { id, change }) => {
            commit_only(node, vec![Staged { id, change: completed(node, change)? }]).await?;
        }
        ClusterRequest::Plan => return plan(node).map(report),
        ClusterRequest::Commit { plan } => commit(node, plan).await?,
        ClusterRequest::Clear => {
            alter(node, |layouts: &mut Layouts| {
                layouts.clear();
                Ok(true)
            })
            .await?;
        }
        ClusterRequest::Drain => node.shared.drain(),
        ClusterRequest::CreateBucket { name, definition } => {
            return buckets::create(node, &name, definition, deadline).await.map(report);
        }
        ClusterRequest::Buckets => return Ok(report(buckets::show(node))),
    }
    Ok(report(show(node)))
}

/// A change that this node asks for itself.
pub(crate) fn staged_by(node: &Node, change: Change) -> Staged {
    let environment = &node.shared.environment;
    Staged { id: change_id(environment.wall_ms(), environment.random(), 0), change }
}

async fn stage(node: &Node, change: Staged) -> Result<(), RequestError> {
    let staging =
        |layouts: &mut Layouts| layouts.stage(change.clone()).map_err(Refusal::Layout).map(|()| true);
    alter(node, staging).await
}

/// Makes these changes the newest layout, whatever else is staged.
///
/// # Errors
/// If they do not fit, or this node can't.
pub(crate) async fn commit_only(node: &Node, changes: Vec<Staged>) -> Result<(), RequestError> {
    check_may_commit(node)?;
    alter(node, |layouts: &mut Layouts| {
        let news = layouts.commit_only(&changes).map_err(Refusal::Layout)?;
        if news {
            layouts.advance();
        }
        Ok(news)
    })
    .await
}

fn report(document: impl serde::Serialize) -> ClientReply {
    ClientReply::Report(serde_json::to_string(&document).expect("reports are plain data"))
}

async fn alter(
    node: &Node,
    change: impl FnMut(&mut Layouts) -> Result<bool, Refusal>,
) -> Result<(), RequestError> {
    let before = node.shared.layouts.known();
    node.shared.change_layouts(change).await?;
    tell_of_changes(node, &before);
    Ok(())
}

/// Why this node can make no new layout.
fn check_may_commit(node: &Node) -> Result<(), RequestError> {
    let this = node.shared.view();
    if !node.shared.is_confirmed() {
        // Another one may have heard what the others know; this one has just started.
        return Err(RequestError::NotAttempted { needed: 2, reachable: 1 });
    }
    if this.removed || !this.is_participant(node.shared.node()) {
        let detail = "this node has no part in the layout: ask a member".to_owned();
        return Err(RequestError::InvalidRequest { detail });
    }
    Ok(())
}

async fn commit(node: &Rc<Node>, shown: Option<u64>) -> Result<(), RequestError> {
    check_may_commit(node)?;
    alter(node, |layouts: &mut Layouts| {
        let news = layouts.commit(shown).map_err(Refusal::Layout)?;
        if news {
            // It is stored before anybody goes by it: that is the first phase.
            layouts.advance();
        }
        Ok(news)
    })
    .await
}

fn planned(node: &Node) -> Result<Layout, RequestError> {
    let layouts = node.shared.layouts.known();
    layouts.plan().map_err(|error| RequestError::invalid(error.to_string()))
}

/// A node that was found need not be told where it is, and a bucket's resolver must be there.
fn completed(node: &Node, change: Change) -> Result<Change, RequestError> {
    if let Change::Bucket { definition, .. } = &change {
        node.shared.resolver(&definition.resolver)?;
    }
    let Change::Join { name, address, zone, weight } = change else { return Ok(change) };
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
    Ok(Change::Join { name, address, zone, weight })
}

fn show(node: &Node) -> ClusterReport {
    let shared = &node.shared;
    let layouts = shared.layouts.known();
    let view = shared.view();
    let newest = layouts.newest();
    let mut members: BTreeMap<String, ClusterMember> = BTreeMap::new();
    let mut add = |member: &Member, role: &str| {
        let Load { partitions, first } = newest.load_of(member.id);
        let entry = ClusterMember {
            name: member.name.clone(),
            address: node.transport.address(member.id).unwrap_or_else(|| member.address.clone()),
            zone: member.zone.clone(),
            weight: member.weight,
            role: role.to_owned(),
            state: if node.is_live(member.id) { "up" } else { "down" }.to_owned(),
            partitions,
            first,
        };
        members.entry(member.name.clone()).or_insert(entry);
    };
    let oldest = &layouts.active()[0];
    for member in newest.members() {
        add(member, if oldest.member(member.id).is_some() { "member" } else { "joining" });
    }
    for member in layouts.active().iter().flat_map(|layout| layout.members()) {
        add(member, if newest.is_lost(member.id) { "removed" } else { "leaving" });
    }
    for found in gossip::view(shared) {
        let gone = newest.is_lost(found.member.id);
        add(&found.member, if gone { "removed" } else { "waiting" });
    }
    let history = layouts.history();
    ClusterReport {
        node: shared.identity.name.clone(),
        layout: newest.number(),
        digest: format!("{:016x}", newest.digest()),
        read: view.read.number(),
        partitions: newest.partitions(),
        replicas: newest.replicas(),
        members: members.into_values().collect(),
        staged: layouts.staged().iter().map(|staged| staged.change.to_string()).collect(),
        history: history[history.len().saturating_sub(SHOWN_HISTORY)..]
            .iter()
            .map(|past| PastLayout {
                number: past.number,
                digest: format!("{:016x}", past.digest),
                summary: past.summary.clone(),
            })
            .collect(),
        change: change_report(node),
    }
}

/// How far the change under way is.
pub(crate) fn change_report(node: &Node) -> Option<ChangeReport> {
    let shared = &node.shared;
    let view = shared.view();
    if view.is_settled() {
        return None;
    }
    let layouts = shared.layouts.known();
    let phase_of = |id: NodeId| layouts.phase_of(id);
    let least = layouts.least();
    let mut trouble = Vec::new();
    for &id in &view.participants {
        // Others may have to copy from it, or hand over to it, before they can go on.
        if !node.is_live(id) && least < Phase::Cleared {
            let name = view.name_of(id);
            trouble.push(format!(
                "{name} is down and the change waits for it: start it again, or, if its disk is lost, \
                 `quorate cluster remove {name} --force` or `quorate cluster replace {name} NEW --force`, and commit"
            ));
        }
    }
    let transfer = shared.transfer_report();
    Some(ChangeReport {
        layouts: view.active.iter().map(|layout| layout.number()).collect(),
        phase: least.name().to_owned(),
        phases: view
            .participants
            .iter()
            .map(|&id| (view.name_of(id), phase_of(id).name().to_owned()))
            .collect(),
        trouble,
        transfer,
    })
}

fn plan(node: &Node) -> Result<PlanReport, RequestError> {
    let shared = &node.shared;
    let layouts = shared.layouts.known();
    let now = layouts.newest();
    let then = planned(node)?;
    let bytes_each = bytes_of_a_partition(shared, now);
    let mut nodes: BTreeMap<String, PlanNode> = BTreeMap::new();
    for member in now.members().iter().chain(then.members()) {
        let gains =
            shared.all_partitions().filter(|&p| then.holds(member.id, p) && !now.holds(member.id, p)).count()
                as u32;
        let zone = then.member(member.id).unwrap_or(member).zone.clone();
        let plan = PlanNode {
            name: member.name.clone(),
            zone,
            before: now.load_of(member.id).partitions,
            after: then.load_of(member.id).partitions,
            gains,
            bytes: bytes_each * u64::from(gains),
        };
        nodes.insert(member.name.clone(), plan);
    }
    let moved = nodes.values().map(|node| node.gains).sum();
    Ok(PlanReport {
        staged: layouts.staged().iter().map(|staged| staged.change.to_string()).collect(),
        layout: then.number(),
        digest: format!("{:016x}", then.digest()),
        replicas: then.replicas(),
        moved,
        fewest: nodes.values().map(|node| node.after.saturating_sub(node.before)).sum(),
        bytes: bytes_each * u64::from(moved),
        zones: shared.all_partitions().map(|p| zones_of(&then, p)).min().unwrap_or(0),
        nodes: nodes.into_values().collect(),
    })
}

fn zones_of(layout: &Layout, partition: PartitionId) -> u32 {
    let replicas = layout.replicas_of(partition, u8::MAX).iter();
    let zones = replicas.filter_map(|&replica| layout.member(replica)).map(|member| &member.zone);
    zones.collect::<std::collections::BTreeSet<_>>().len() as u32
}

/// About how many bytes a partition has, by some of those that this node holds.
fn bytes_of_a_partition(shared: &Shared, layout: &Layout) -> u64 {
    let own: Vec<PartitionId> =
        shared.all_partitions().filter(|&partition| layout.holds(shared.node(), partition)).collect();
    let step = (own.len() / WEIGHED).max(1);
    let weighed: Vec<u64> = own
        .iter()
        .step_by(step)
        .take(WEIGHED)
        .map(|&partition| {
            let start = StorageKey::partition_start(partition);
            let end = end_of_prefix(&start);
            let range = Range {
                start: &start,
                after: false,
                end: end.as_deref(),
                limit: usize::MAX,
                max_bytes: WEIGHED_BYTES,
            };
            let page = shared.engine.scan(range).map(|page| page.records).unwrap_or_default();
            page.iter().map(|(key, object)| (key.len() + object.len()) as u64).sum()
        })
        .collect();
    weighed.iter().sum::<u64>() / (weighed.len() as u64).max(1)
}

/// With `auto_commit`: the first live member makes members of nodes that are found and wait, for as long as it runs.
pub(crate) async fn join_who_waits(node: Rc<Node>) {
    let shared = node.shared.clone();
    let mut seen: Vec<NodeId> = Vec::new();
    let mut quiet = 0;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let view = shared.view();
        let newest = view.newest().clone();
        let first = newest.members().iter().map(|member| member.id).find(|&id| node.is_live(id));
        let settled = view.is_settled();
        drop(view);
        if first != Some(shared.node()) || !settled {
            continue;
        }
        let waits = |member: &Member| {
            newest.member(member.id).is_none()
                && !newest.gone().contains_key(&member.name)
                && !member.address.is_empty()
                && node.transport.is_up(member.id)
        };
        let found = gossip::view(&shared).into_iter().filter(|view| view.state == MemberState::Alive);
        let waiting: Vec<Member> = found.map(|view| view.member).filter(waits).collect();
        let ids: Vec<NodeId> = waiting.iter().map(|member| member.id).collect();
        quiet = if ids == seen { quiet + 1 } else { 0 };
        seen = ids;
        if waiting.is_empty() || quiet < QUIET_LOOKS {
            continue;
        }
        let join = |Member { name, address, zone, weight, .. }| Change::Join { name, address, zone, weight };
        let joins: Vec<Change> = waiting.into_iter().map(join).collect();
        // What an operator has begun to stage is an operator's to commit; not a join of these that gave way to another layout.
        let theirs =
            |layouts: &Layouts| layouts.staged().iter().any(|staged| !joins.contains(&staged.change));
        if shared.layouts.look(theirs) {
            continue;
        }
        let _ = commit_only(&node, joins.into_iter().map(|join| staged_by(&node, join)).collect()).await;
        quiet = 0;
    }
}
