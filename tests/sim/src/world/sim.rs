//! The simulated cluster: its machines, their network, and the records on their disks. A node is
//! named by its number, from 0.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quorate_core::{Key, Layout, NodeId, Object, Payload, StorageKey};
use tokio::time::Instant;

use super::connections::Connections;
use super::disk::Disk;
use super::log::Log;
use super::machine::Machine;
use super::network::Net;
use super::options::Options;
use super::process::Process;
use crate::oracle::Oracle;
use crate::random::Random;
use crate::records::{decode_layouts, decode_object, layouts_key};

/// A cluster in simulated time.
pub struct Sim {
    /// The run's options.
    pub options: Options,
    /// The network between nodes and clients.
    pub net: Net,
    /// The checker.
    pub oracle: Arc<Oracle>,
    /// The log of the run.
    pub log: Log,
    pub(super) run_start: Instant,
    /// The first layout.
    pub(super) first_layout: Layout,
    newest: RefCell<NewestLayout>,
    pub(super) machines: RefCell<Vec<Machine>>,
    /// The running process of each machine.
    pub(super) processes: RefCell<Vec<Option<Process>>>,
    random: RefCell<Random>,
    /// The clients' connections.
    pub(super) connections: Connections,
    /// Nodes whose disks an operator declared lost.
    pub(super) declared_lost: RefCell<BTreeSet<usize>>,
    pub(super) next_request: Cell<u64>,
    pub(super) last_change: Cell<u64>,
}

/// The newest layout on any disk, cached.
struct NewestLayout {
    /// The layout records of all disks when `layout` was read. If one of them changes, `layout` is
    /// read again.
    records: Vec<Bytes>,
    layout: Layout,
}

impl Sim {
    /// Creates a cluster in which no node runs yet.
    pub(super) fn new(seed: u64, options: Options) -> Rc<Sim> {
        let mut random = Random::new(seed);
        let run_start = Instant::now();
        let oracle = Arc::new(Oracle::default());
        let machines: Vec<Machine> = (0..options.nodes + options.spares)
            .map(|number| Machine::new(number, options.durability, &oracle, &mut random))
            .collect();
        machines.iter().for_each(|machine| oracle.add_disk(machine.disk.clone()));
        let members = machines[..options.nodes].iter().map(|machine| machine.member.clone()).collect();
        let layout = Layout::first(members, options.partitions, options.replicas)
            .and_then(|layout| layout.with_buckets(&options.definitions()))
            .expect("a valid layout");
        Rc::new(Sim {
            net: Net::new(random.fork()),
            oracle,
            log: Log::new(run_start),
            run_start,
            newest: RefCell::new(NewestLayout { records: Vec::new(), layout: layout.clone() }),
            first_layout: layout,
            processes: RefCell::new(machines.iter().map(|_| None).collect()),
            machines: RefCell::new(machines),
            random: RefCell::new(random),
            connections: Connections::default(),
            declared_lost: RefCell::default(),
            next_request: Cell::new(1),
            last_change: Cell::new(0),
            options,
        })
    }

    /// Returns the number of machines, members of the layout or not.
    pub fn count(&self) -> usize {
        self.options.nodes + self.options.spares
    }

    /// Creates a generator from the seed.
    pub fn random(&self) -> Random {
        self.random.borrow_mut().fork()
    }

    /// Returns the milliseconds since the run began.
    pub fn now_ms(&self) -> u64 {
        self.run_start.elapsed().as_millis() as u64
    }

    /// Lets simulated time pass.
    pub async fn sleep(&self, ms: u64) {
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }

    /// Returns the newest layout on any disk. No node acts on a newer one, because a node stores a
    /// layout before it acts on it.
    pub fn layout(&self) -> Layout {
        let key = layouts_key();
        let machines = self.machines.borrow();
        let records: Vec<Bytes> = machines.iter().filter_map(|machine| machine.disk.record(&key)).collect();
        let mut newest = self.newest.borrow_mut();
        if newest.records != records {
            let layout = |bytes: &Bytes| {
                let layouts = decode_layouts(NodeId(0), bytes)?;
                Some((**layouts.newest()).clone())
            };
            let found =
                records.iter().filter_map(layout).max_by_key(|layout| (layout.number(), layout.digest()));
            let layout = found.unwrap_or_else(|| self.first_layout.clone());
            *newest = NewestLayout { records, layout };
        }
        newest.layout.clone()
    }

    /// Returns the members of the newest layout.
    pub fn members(&self) -> Vec<usize> {
        self.layout().members().iter().map(|member| self.number_of(member.id)).collect()
    }

    /// Returns a node's name in the cluster.
    pub fn name(&self, node: usize) -> String {
        self.machines.borrow()[node].member.name.clone()
    }

    /// Returns the number of the node with this id.
    pub(super) fn number_of(&self, id: NodeId) -> usize {
        self.machines.borrow().iter().position(|machine| machine.member.id == id).expect("a member")
    }

    /// Returns true if a node has a process, paused or not.
    pub fn is_running(&self, node: usize) -> bool {
        self.processes.borrow()[node].is_some()
    }

    /// Returns the key as engines store it.
    pub fn storage_key(&self, key: &Key) -> StorageKey {
        StorageKey::of(self.first_layout.partition_of(key.hash()), key)
    }

    /// Returns a key's replicas in the newest layout.
    pub fn replicas(&self, key: &Key) -> Vec<usize> {
        let layout = self.layout();
        let replicas = layout.replicas_for(layout.partition_of(key.hash()), key.bucket());
        replicas.iter().map(|id| self.number_of(*id)).collect()
    }

    /// Returns the replicas of a stored key in the newest layout.
    pub(super) fn replicas_of(&self, key: &StorageKey) -> Vec<usize> {
        let layout = self.layout();
        layout.replicas_for(key.partition(), key.bucket()).iter().map(|&id| self.number_of(id)).collect()
    }

    /// Returns a key's preference list in the newest layout: its replicas, then its fallbacks.
    pub fn preference_list(&self, key: &Key) -> Vec<usize> {
        let layout = self.layout();
        let partition = layout.partition_of(key.hash());
        let n = layout.buckets().get(key.bucket()).n;
        let replicas = layout.replicas_of(partition, n).to_vec();
        let all = replicas.into_iter().chain(layout.fallbacks_of(partition, n));
        all.map(|id| self.number_of(id)).collect()
    }

    /// Returns a node's disk.
    pub fn disk(&self, node: usize) -> Arc<Disk> {
        self.machines.borrow()[node].disk.clone()
    }

    /// Returns the object in a node's own record of a key. The node's hints for the key do not
    /// count.
    pub fn held(&self, node: usize, key: &Key) -> Option<Object> {
        let records = self.machines.borrow()[node].disk.records();
        decode_object(records.get(self.storage_key(key).as_bytes())?)
    }

    /// Returns the values that a node holds under a key. Tombstones are left out.
    pub fn values(&self, node: usize, key: &Key) -> BTreeSet<String> {
        let object = self.held(node, key).unwrap_or_default();
        let text = |payload: &Payload| match payload {
            Payload::Value(value) => String::from_utf8_lossy(value).into_owned(),
            Payload::Tombstone => String::new(),
        };
        object.shown().iter().map(|version| text(&version.payload)).collect()
    }
}
